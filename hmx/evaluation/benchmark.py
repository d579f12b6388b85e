"""What a benchmark is to `evaluate.py`, and the model that it is put to.

A benchmark says what it is called, which numbers it gives and on what scale, what it still needs before it can run, and
runs. Whether it goes through lm-eval or is our own makes no difference to who calls it.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import torch

from hmx.evaluation.beginnings import by_beginning
from hmx.prompts import decode, end_of_turn_ids, pad_id
from hmx.sampling import Prefix, generate

FEWEST = 512
"""Places of the KV cache at once below which smaller batches are no help: every prompt of a benchmark runs alone."""

Tick = Callable[[float], None]
"""Called while a benchmark runs with the share of it that is done, 0 to 1."""


@dataclass(frozen=True)
class Metric:
    """One number of a benchmark, as the paper's tables print it."""

    key: str
    """The paper's name for it, such as "prompt_level_strict_acc"."""
    percent: bool = True
    """Whether it is in per cent, 0 to 100; else in points of the benchmark's own."""
    better: str | None = "higher"
    """"higher", "lower", or None if neither is better as such."""


@dataclass(frozen=True)
class Outcome:
    """What came of running a benchmark."""

    metrics: dict[str, float]
    """By `Metric.key`, on the scale that the metric says."""
    rows: int
    """How many questions were put."""
    details: dict[str, Any] = field(default_factory=dict)
    """Further numbers worth keeping, as JSON: counts, conditions, subtasks."""


class Benchmark(Protocol):
    """One benchmark."""

    name: str
    """As on the command line and in file names: "truthfulqa_mc2"."""
    title: str
    """As in the paper's tables: "TruthfulQA MC2"."""
    metrics: tuple[Metric, ...]
    cost: float
    """How long it takes beside the others, roughly, for the progress bar; TruthfulQA MC2 is 1."""

    def missing(self) -> list[str]:
        """What must be had before this can run, each with how to get it, in a sentence; empty if nothing. Cheap: no
        model is loaded for it, nothing generated.
        """

    def questions(self) -> str:
        """What tells the questions from others, if they come from a file of one's own: results for other questions are
        not mixed with these. Empty if they come from the hub.
        """

    def run(self, subject: "Subject", limit: int | None, tick: Tick) -> Outcome:
        """Put the benchmark to a model: all of its questions, or the first `limit` (of each of its subtasks).

        Deterministic: the same model gives the same outcome, to the bit on a CPU. Raises `UserError` for what the user
        can mend.
        """


@dataclass(frozen=True)
class Subject:
    """A model under evaluation, with whatever adapter is attached to it."""

    model: Any
    tokenizer: Any
    max_length: int = 4096
    """Prompt and completion together, in tokens."""
    tokens_at_once: int = 32768
    """How many places of the KV cache a batch may take; of a GPU `on_card` says it."""
    kept: dict[str, Any] = field(default_factory=dict)
    """By a benchmark's name what it keeps for the next checkpoint of the same base model: its questions."""

    @classmethod
    def on_card(cls, model, tokenizer) -> "Subject":
        """A subject whose batches suit the GPU that the model lies on, if it lies on one.

        Half of what the weights leave of the card is for keys and values: by the card's size and not by what happens to
        be free, so that batches are the same each time.
        """
        subject = cls(model, tokenizer, max_length=model.config.max_position_embeddings)
        if model.device.type != "cuda":
            return subject
        shapes, weights = model.config, sum(each.numel() * each.element_size() for each in model.parameters())
        heads = getattr(shapes, "num_key_value_heads", None) or shapes.num_attention_heads
        width = getattr(shapes, "head_dim", None) or shapes.hidden_size // shapes.num_attention_heads
        place = 2 * shapes.num_hidden_layers * heads * width * model.dtype.itemsize  # bytes a token
        left = torch.cuda.get_device_properties(model.device).total_memory - weights
        return replace(subject, tokens_at_once=max(left // 2 // place, FEWEST))

    def reply(
        self,
        prompts: Sequence[Sequence[int]],
        max_new_tokens: int | Sequence[int],
        stops: Sequence[Sequence[str]] | None = None,
        tick: Tick = lambda share: None,
    ) -> list[str]:
        """The greedy reply to each prompt, in the order of the prompts, without control tokens.

        Those that may become the longest are begun first, so that what does not fit the memory shows at the start; the
        others wait until some have ended. What many prompts begin with, a task's few-shot examples, is run once.

        Args:
            max_new_tokens: the limit of all replies, or one for each.
            stops: for each prompt the strings before the first of which its reply ends.
        """
        limits = [max_new_tokens] * len(prompts) if isinstance(max_new_tokens, int) else max_new_tokens
        stops = [()] * len(prompts) if stops is None else stops
        replies: list[str] = [""] * len(prompts)
        done = 0
        for beginning, places in by_beginning(prompts):
            order = sorted(places, key=lambda place: (-len(prompts[place]) - limits[place], place))
            ends = [stops[place] for place in order]
            completions = generate(
                self.model,
                [prompts[place] for place in order],
                max_new_tokens=[limits[place] for place in order],
                end_ids=end_of_turn_ids(self.model, self.tokenizer),
                pad_id=pad_id(self.tokenizer),
                temperature=0.0,
                prefix=Prefix.of(self.model, beginning) if beginning else None,
                stop=(lambda row, tokens, ends=ends: self._has_stop(tokens, ends[row])) if any(ends) else None,
                slots=self.tokens_at_once,
                tick=lambda ended, before=done: tick((before + ended) / len(prompts)),
            )
            for place, row in zip(order, completions.rows(), strict=True):
                replies[place] = _before(stops[place], decode(self.tokenizer, row))
            done += len(places)
        return replies

    def _has_stop(self, reply: Sequence[int], stops: Sequence[str]) -> bool:
        if not stops:
            return False
        tail = self.tokenizer.decode(reply[-max(map(len, stops)) - 4 :], skip_special_tokens=True)
        return any(stop in tail for stop in stops)


def _before(stops: Sequence[str], text: str) -> str:
    """`text` up to the first of the strings in it.

    >>> _before(("Q:", "\\n\\n"), "Paris.\\n\\nQ: Where?")
    'Paris.'
    """
    return text[: min((place for place in map(text.find, stops) if place >= 0), default=len(text))]
