"""Conversations to token ids, for every model family. Nothing else in the project touches a chat template.

Three things are easy to get wrong here:

* A template may have switches. Thinking is turned off where the template knows it, and templates that stamp today's
  date (Llama 3, SmolLM3, Granite) are given a fixed one, so that a run gives the same prompts tomorrow.
* The rendered text holds its own BOS where the family wants one, so the tokenizer must not add another.
* What a model or a user wrote is data. If an answer contains the text of a control token ("<|im_end|>"), it must reach
  the judge as those characters, not as the end of the turn: see `cut_control_tokens`.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import date

from transformers import PreTrainedTokenizerBase

from hmx.errors import UserError

Message = dict[str, str]  # {"role": "user" | "assistant", "content": …}

_TODAY = date(2024, 7, 26)  # what Llama 3's template prints when it can't ask the clock
_TEMPLATE_SWITCHES = {
    "enable_thinking": False,  # Qwen3; other templates ignore it
    "date_string": f"{_TODAY:%d %b %Y}",  # Llama 3 otherwise prints today's date
}
# What templates ask for the date. It stands in front of a template that asks, since only text can be handed to one; the
# empty expression keeps a line break with which the template may begin.
_CLOCK = (
    "{% macro strftime_now(form) %}{{ form"
    f" | replace('%-d', '{_TODAY.day}')"
    + "".join(f" | replace('%{code}', '{_TODAY.strftime(f'%{code}')}')" for code in "aAbBdHIjmMpSyY")
    + " }}{% endmacro %}{{ '' }}"
)


def require_chat_template(tokenizer: PreTrainedTokenizerBase, name: str) -> None:
    """Raise `UserError` unless the tokenizer of the model called `name` can format a conversation."""
    if not getattr(tokenizer, "chat_template", None):
        raise UserError(
            f"The tokenizer of {name} has no chat template, so it can't hold an interview; use an instruction-tuned "
            "(chat) model."
        )


def encode_chat(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message]) -> list[int]:
    """The token ids of a conversation, up to and including the header of the assistant's next turn."""
    cut = _unused_character(messages)
    with _one_sentence_for(tokenizer):
        text = render_chat(tokenizer, messages, cut)
    return encode_rendered(tokenizer, text, cut)


def render_chat(
    tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message], cut: str, continue_last: bool = False
) -> str:
    """The text of a conversation, for `encode_rendered`: with `cut` wherever a message spells out a control token.

    Args:
        cut: a character that none of the messages contains.
        continue_last: the last message is the beginning of the assistant's reply, and the text ends with it.

    Raises:
        TemplateError: the template refuses it, such as Gemma's a system role.
    """
    safe = [{**message, "content": cut_control_tokens(tokenizer, message["content"], cut)} for message in messages]
    return _render(tokenizer, safe, add_generation_prompt=not continue_last, continue_final_message=continue_last)


def encode_rendered(tokenizer: PreTrainedTokenizerBase, text: str, cut: str) -> list[int]:
    """The token ids of a rendered conversation, which brings its own BOS."""

    def tokens(piece: str) -> list[int]:
        return tokenizer.encode(piece, add_special_tokens=False, verbose=False)  # too long is what we say ourselves

    first, *others = text.split(cut)
    ids, line_break = tokens(first), tokens("\n")
    for piece in others:
        # Llama 2's kind of tokenizer takes what it is given for the beginning of a text and puts a space before it; so
        # the piece is given behind a line break, of which nothing is kept.
        with_break = tokens(f"\n{piece}")
        whole = with_break[: len(line_break)] == line_break
        ids += with_break[len(line_break) :] if whole else tokens(piece)
    return ids


def encode_question(tokenizer: PreTrainedTokenizerBase, question: str) -> list[int]:
    """The prompt in which the interviewee is asked one question."""
    return encode_chat(tokenizer, [{"role": "user", "content": question}])


def decode(tokenizer: PreTrainedTokenizerBase, tokens: Sequence[int]) -> str:
    """The text of a completion, without control tokens and surrounding white space."""
    return tokenizer.decode(tokens, skip_special_tokens=True).strip()


def end_of_turn_ids(model, tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    """Every token that ends the assistant's turn, by the model's generation config, its tokenizer and its template
    (Llama 3 has several; Gemma's tokenizer doesn't name its own, nor does a folder without generation config).
    """
    configured = getattr(model.generation_config, "eos_token_id", None)
    ids = configured if isinstance(configured, (list, tuple)) else [configured]
    known = (*ids, tokenizer.eos_token_id, _written_end(tokenizer))
    return tuple(sorted({int(token) for token in known if token is not None}))


def pad_id(tokenizer: PreTrainedTokenizerBase) -> int:
    """A token to fill rows with. Which one does not matter: masks are carried, never read off the token ids."""
    known = (tokenizer.pad_token_id, tokenizer.eos_token_id, 0)
    return next(token for token in known if token is not None)


def _render(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message], **how: bool) -> str:
    template = tokenizer.get_chat_template()
    if "strftime_now" in template:
        template = _CLOCK + template
    return tokenizer.apply_chat_template(messages, chat_template=template, tokenize=False, **how, **_TEMPLATE_SWITCHES)


@contextmanager
def _one_sentence_for(tokenizer: PreTrainedTokenizerBase) -> Iterator[None]:
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # a template is a program, and can go wrong in as many ways
        raise UserError(
            f"The chat template of {tokenizer.name_or_path or 'this model'} can't format a conversation ({error}); an "
            "interview needs one that takes turns of a user and an assistant and no system role."
        ) from None


def _written_end(tokenizer: PreTrainedTokenizerBase) -> int | None:
    """The control token that the template writes behind what the assistant said, if it writes one."""
    answer = "Yes, I do."
    messages = [{"role": "user", "content": "Do you?"}, {"role": "assistant", "content": answer}]
    with _one_sentence_for(tokenizer):
        behind = _render(tokenizer, messages).rpartition(answer)[2].lstrip()
    added = tokenizer.get_added_vocab()
    return added.get(max((token for token in added if behind.startswith(token)), key=len, default=None))


def _unused_character(messages: Sequence[Message]) -> str:
    """A private-use character that none of the messages contains."""
    used = set().union(*(message["content"] for message in messages))
    return next(chr(code) for code in range(0xE000, 0xF8FF) if chr(code) not in used)


def cut_control_tokens(tokenizer: PreTrainedTokenizerBase, content: str, cut: str) -> str:
    """Put `cut` behind the first character of every control token that is spelled out in `content`.

    The rendered conversation is tokenised piece by piece between the cuts. The pieces of "<|im_end|>" are "<" and
    "|im_end|>", which are plain text to any tokenizer; all other text, and so nearly every prompt, is tokenised exactly
    as the family does it.
    """
    for token in sorted(tokenizer.get_added_vocab(), key=len, reverse=True):
        if len(token.strip()) > 1:  # Gemma's runs of line breaks are added tokens too, but they control nothing
            while token in content:  # more than once where a token overlaps itself, as "||" does in "||||"
                content = content.replace(token, token[0] + cut + token[1:])
    return content
