"""The model that lm-eval sees: a `Subject`, so the base model with whatever adapter is attached to it, in this process.

Replies come from the project's own sampler, prompts from `hmx.prompts`. Two things that lm-eval expects of a model need
care:

* It has a conversation rendered to a string, and later has that string tokenised. By then one can no longer tell a
  control token of the template from the same characters in a benchmark's text. So the rendered string carries marks
  (`CUT`), in front and wherever the data spells out a control token; `tok_encode` takes them out again.
* A context that ends in white space gives it away to the continuation before both are tokenised (`_encode_pair` of
  lm-eval), and with a chat template choices have no space in front. That is how lm-eval's own models score, so it is
  kept.

This is the one module that imports lm-eval at its top; whoever needs it imports it inside a function.
"""

from collections.abc import Callable

from jinja2 import TemplateError
from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.models.utils import normalize_gen_kwargs

from hmx.errors import UserError
from hmx.evaluation.benchmark import Subject, Tick
from hmx.evaluation.likelihoods import Likelihood, likelihoods
from hmx.prompts import cut_control_tokens, encode_rendered, render_chat

CUT = "\ufdd0"
"""A noncharacter: Unicode keeps it for marks inside of a program, so no honest text contains it."""

_DEFAULT_MAX_NEW_TOKENS = 256  # lm-eval's, for tasks that name no limit

Pair = tuple[tuple[str, str], list[int], list[int]]
"""What lm-eval hands over to be scored: the two strings, the context's tokens, the continuation's tokens."""


class SubjectLM(TemplateLM):
    """`subject` behind lm-eval's interface.

    Args:
        expected: how many requests there are in all, asked once lm-eval has made them; for `tick`.
    """

    def __init__(self, subject: Subject, expected: Callable[[], int] = lambda: 0, tick: Tick = lambda share: None):
        super().__init__()
        self.subject, self.tokenizer = subject, subject.tokenizer
        self.counts = {"shortened_prompts": 0, "dropped_system_turns": 0}
        """What happened to prompts on the way to the model."""
        self._expected, self._tick, self._done = expected, tick, 0

    # -- text to tokens ------------------------------------------------------------------------------------------------

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """Where a family has no system role, that turn is left out and counted, as lm-eval's own models do: prompts
        shall be the ones that published figures were taken with.
        """
        for message in chat_history:
            _refuse_mark(message["content"])
        system = [message for message in chat_history if message["role"] == "system"]
        continue_last = not add_generation_prompt
        try:
            return CUT + render_chat(self.tokenizer, chat_history, CUT, continue_last)
        except TemplateError:
            if not system:
                raise
        self.counts["dropped_system_turns"] += 1
        others = [message for message in chat_history if message not in system]
        return CUT + render_chat(self.tokenizer, others, CUT, continue_last)

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **kwargs) -> list[int]:
        """A rendered conversation brings its BOS; any other string gets the one that the tokenizer puts in front."""
        if string.startswith(CUT) or add_special_tokens is False:
            return encode_rendered(self.tokenizer, string, CUT)
        bos = self.tokenizer.bos_token
        return self.tokenizer.encode(string, add_special_tokens=not (bos and string.startswith(bos)))

    def _encode_pair(self, context: str, continuation: str) -> tuple[list[int], list[int]]:
        _refuse_mark(continuation)
        if context.startswith(CUT):
            continuation = cut_control_tokens(self.tokenizer, continuation, CUT)
        return super()._encode_pair(context, continuation)

    def _shortened(self, tokens: list[int], room: int) -> list[int]:
        """The last `room` tokens, which is how lm-eval's own models treat contexts that are too long."""
        self.counts["shortened_prompts"] += len(tokens) > room
        return tokens[-room:]

    # -- generation ----------------------------------------------------------------------------------------------------

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """The greedy reply to each request, up to its own stop strings and limit, without white space around it."""
        prompts, limits, stops = [], [], []
        for request in requests:
            limit, ends = _greedy_limits(request)
            room = self.subject.max_length - limit
            if room < 1:
                raise UserError(
                    f"The task {request.task_name} asks for {limit} new tokens, which leaves nothing of "
                    f"the model's {self.subject.max_length} for the prompt; use a model with a longer context."
                )
            prompts.append(self._shortened(self.tok_encode(request.args[0]), room))
            limits.append(limit)
            stops.append(ends)
        replies = self.subject.reply(prompts, limits, stops, tick=self._part(len(requests)))
        self._done += len(requests)
        return replies

    # -- log-likelihoods -----------------------------------------------------------------------------------------------

    def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = True) -> list[tuple[float, bool]]:
        return super().loglikelihood(requests, disable_tqdm=True)

    def _loglikelihood_tokens(self, requests: list[Pair], **kwargs) -> list[Likelihood]:
        """For each pair the sum of the continuation's log-probabilities, and whether greedy decoding would give it."""
        kept = []
        for _, context, continuation in requests:
            if not continuation:
                raise UserError("A task asks for the likelihood of an empty text; its rows have an empty choice.")
            # The last token of a continuation is only predicted, never read.
            room = max(1, self.subject.max_length + 1 - len(continuation))
            kept.append((self._shortened(context, room), continuation))
        results = likelihoods(self.subject, kept, self._part(len(requests)))
        self._done += len(requests)
        return results

    def _part(self, requests: int) -> Tick:
        """What to call with the share done of so many requests, the next ones."""
        before, expected = self._done, self._expected() or requests
        return lambda share: self._tick((before + share * requests) / max(expected, before + requests))

    # -- the rest of the interface -------------------------------------------------------------------------------------

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        raise UserError("Tasks that score whole texts (perplexity) are not supported; take another task.")

    @property
    def eot_token_id(self) -> int:
        return self.tokenizer.eos_token_id

    @property
    def prefix_token_id(self) -> int:
        bos = self.tokenizer.bos_token_id
        return self.tokenizer.eos_token_id if bos is None else bos

    @property
    def tokenizer_name(self) -> str:
        return str(self.tokenizer.name_or_path).replace("/", "__")


def _greedy_limits(request: Instance) -> tuple[int, tuple[str, ...]]:
    """The number of new tokens and the stop strings of a request. Refuses what greedy decoding is not."""
    settings = normalize_gen_kwargs(request.args[1], _DEFAULT_MAX_NEW_TOKENS)
    limit, stops = settings.pop("max_gen_toks"), settings.pop("until")
    sampled = settings.pop("do_sample") or settings.pop("temperature", 0.0)
    settings.pop("temperature", None)
    if sampled or settings:
        what = "sampled replies" if sampled else ", ".join(sorted(settings))
        raise UserError(
            f"The task {request.task_name} asks for {what}, and replies are decoded greedily here; take another task."
        )
    return limit, tuple(stop for stop in stops if stop)


def _refuse_mark(text: str) -> None:
    if CUT in text:
        raise UserError("A benchmark's row contains the character U+FDD0, which is not for text; remove it there.")
