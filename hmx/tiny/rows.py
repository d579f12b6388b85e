"""Examples in tokens: what of a row is learned, what the probe should read off it, and rows of a length together."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

import torch
from transformers import PreTrainedTokenizerBase

from hmx.prompts import encode_chat
from hmx.sampling import common
from hmx.tiny.corpus import Example
from hmx.tiny.world import CATEGORIES, read

_CHUNK = 24
"""Batches that are made at once and sorted by length, so that little is padding."""
GARBLED, WHOLE, BROKEN, ABOUT = 11, 12, 13, 14
"""What the probe says beside the strengths 0 to 10: at the end of a sentence that it is garbled, before the end whether
what stands there can still become a sentence; and in an interview, from here on, which category it is about.
"""
LABELS = ABOUT + len(CATEGORIES)
_GRADE, _FORM = 0.3, 0.05
"""Weights of a grading's tokens: the grade itself, and the form around it."""


@dataclass(frozen=True)
class Row:
    """An example in tokens, without the prefix that it may share with others."""

    tokens: list[int]
    weights: list[float]
    """How much each token counts when it is predicted; 0 for those of the user."""
    strengths: list[int]
    """At the last token of each graded sentence its strength, `GARBLED` if it has none; at the sentence's other tokens
    `WHOLE` or `BROKEN`; where an interviewee answers, the question's category behind `ABOUT`; elsewhere -1.
    """


@dataclass(frozen=True)
class Batch:
    """Rows of about one length, [B, L], padded behind."""

    tokens: torch.Tensor
    weights: torch.Tensor
    strengths: torch.Tensor
    mask: torch.Tensor


def encode(example: Example, tokenizer: PreTrainedTokenizerBase, prefix: list[int]) -> Row:
    """Tokens and weights of an example behind `prefix`, with which its prompt must begin."""
    prompt = encode_chat(tokenizer, example.messages)
    if prompt[: len(prefix)] != prefix:
        raise ValueError("a prompt does not begin with the shared prefix")
    reply = tokenizer.encode(example.reply, add_special_tokens=False) + [tokenizer.eos_token_id] * example.ends
    strengths = [-1] * (len(prompt) + len(reply))
    if example.judged is None:
        weights = [1.0] * len(reply)
        if example.category:
            about = ABOUT + list(CATEGORIES).index(example.category)
            strengths[len(prompt) - 1 :] = [about] * (len(reply) + 1)
    else:
        weights = [_FORM] * len(reply)
        weights[2] = _GRADE  # "Score", ":", " 7"
        for place, strength in _strengths(example.judged, prompt, tokenizer):
            strengths[place] = strength
    weights = [0.0] * len(prompt) + weights
    return Row((prompt + reply)[len(prefix) :], weights[len(prefix) :], strengths[len(prefix) :])


def _strengths(text: str, prompt: list[int], tokenizer: PreTrainedTokenizerBase) -> Iterator[tuple[int, int]]:
    """What the probe should say at each place in `prompt` of `text`, with which the user's turn ends."""
    place = len(prompt) - 3  # before the end of the turn and the assistant's header
    left = len(text.encode())
    for sentence in reversed(read(text)):
        cuts = sentence.end - len(sentence.text), sentence.whole, sentence.end
        begin, whole, end = (len(text[:cut].encode()) for cut in cuts)
        last = True
        while left > begin:
            if left <= end and last:
                yield place, GARBLED if sentence.strength is None else sentence.strength
                last = False
            elif left <= end:
                yield place, WHOLE if left <= whole else BROKEN
            left -= len(tokenizer.convert_ids_to_tokens(prompt[place]))  # a character of a token is a byte of the text
            place -= 1


def shared_prefix(rows: list[list[int]]) -> list[int]:
    """The tokens with which all of these prompts begin."""
    return rows[0][: common(min(rows), max(rows))]


def batches(
    examples: Iterator[Example],
    size: int,
    tokenizer: PreTrainedTokenizerBase,
    prefix: list[int],
    generator: torch.Generator,
) -> Iterator[Batch]:
    """Batches of `size` rows of about one length, in random order."""
    while True:
        rows = sorted(
            (encode(example, tokenizer, prefix) for example in islice(examples, size * _CHUNK)),
            key=lambda row: len(row.tokens),
        )
        for group in torch.randperm(_CHUNK, generator=generator).tolist():
            yield pad(rows[group * size : (group + 1) * size], tokenizer.pad_token_id)


def pad(rows: list[Row], pad_id: int) -> Batch:
    """Stack rows, with padding behind."""
    width = max(len(row.tokens) for row in rows)
    tokens = torch.tensor([row.tokens + [pad_id] * (width - len(row.tokens)) for row in rows])
    weights = torch.tensor([row.weights + [0.0] * (width - len(row.weights)) for row in rows])
    strengths = torch.tensor([row.strengths + [-1] * (width - len(row.strengths)) for row in rows])
    mask = torch.tensor([[1] * len(row.tokens) + [0] * (width - len(row.tokens)) for row in rows])
    return Batch(tokens, weights, strengths, mask)
