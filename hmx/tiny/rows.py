"""Examples in tokens: what of each is learned, what the tutor should read off it, and examples packed into rows."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import accumulate, islice

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from hmx.prompts import encode_chat
from hmx.sampling import common_length
from hmx.tiny.corpus import Example
from hmx.tiny.fitting import Fitting
from hmx.tiny.tries import Tried, Trier
from hmx.tiny.world import CATEGORIES, STOPS, read

WIDTH = 128
"""Tokens of a row. No conversation of the corpus is longer, and of the gradings, less their prefix, hardly one."""
_WAITING = 150
"""Examples to choose from for a row, so that little is padding."""
GARBLED, WHOLE, BROKEN, ABOUT = 11, 12, 13, 14
"""What the tutor reads off beside the strengths 0 to 10: at the end of a sentence that it is garbled, before the end
whether what stands there can still become a sentence; and in an interview, from here on, which category it is about.
"""
LABELS = ABOUT + len(CATEGORIES)
_GRADE, _FORM = 0.3, 0.05
"""Weights of a grading's tokens: the grade itself, and the form around it."""


@dataclass(frozen=True, eq=False)
class Encoded:
    """An example in tokens, without the prefix that it may share with others."""

    tokens: list[int]
    weights: list[float]
    """How much each token counts when it is predicted; 0 for those of the user."""
    strengths: list[int]
    """At the last token of each graded sentence its strength, `GARBLED` if it has none (a sentence without a full stop
    ends with the token behind it: of a new line, or of the turn's end); at the sentence's other tokens `WHOLE` or
    `BROKEN`, and so for words that are tried in the places of others; where an interviewee answers, the question's
    category, a number, added to `ABOUT`; elsewhere -1. The tokens of a word are labelled as the word is.
    """
    tried: list[bool]
    """Which words are tried; they stand behind all else."""
    positions: list[int]
    """The place of each token in its example; of a word that is tried, that of the one it takes the place of."""
    fitting: dict[int, np.ndarray]
    """Of places in an interviewee's reply, of all tokens whether they could stand there, [V]."""


@dataclass(frozen=True)
class Batch:
    """Rows of several examples each, [R, L], padded behind."""

    tokens: torch.Tensor
    weights: torch.Tensor
    strengths: torch.Tensor
    tried: torch.Tensor
    examples: torch.Tensor
    """Which of its row's examples a token belongs to; -1 where there is padding."""
    positions: torch.Tensor
    placed: torch.Tensor
    """The row and the place of each of the N tokens in whose place it is known what could stand, [N, 2]."""
    fitting: torch.Tensor
    """Of these, which tokens could, [N, V]."""


def encode(
    example: Example,
    tokenizer: PreTrainedTokenizerBase,
    prefix: list[int],
    trier: Trier | None = None,
    fitting: Fitting | None = None,
) -> Encoded:
    """Tokens and weights of an example behind `prefix`, with which its prompt must begin.

    A `trier` finds words to try in a text that is graded, as many as leave room in a row; `fitting` finds what could
    stand in an interviewee's reply.
    """
    prompt = encode_chat(tokenizer, example.messages)
    if prompt[: len(prefix)] != prefix:
        raise ValueError("a prompt does not begin with the shared prefix")
    reply = tokenizer.encode(example.reply, add_special_tokens=False) + [tokenizer.eos_token_id] * example.ends
    strengths = [-1] * (len(prompt) + len(reply))
    others: list[Tried] = []
    fits: dict[int, np.ndarray] = {}
    if example.judged is None:
        weights = [1.0] * len(reply)
        if example.category:
            about = ABOUT + list(CATEGORIES).index(example.category)
            strengths[len(prompt) - 1 :] = [about] * (len(reply) + 1)
        if example.category and fitting:
            known, begin = fitting(example.reply), 0
            for place, token in enumerate(reply, len(prompt) - len(prefix)):
                if begin in known:
                    fits[place] = known[begin]
                    fits[place][token] = True
                begin += len(tokenizer.convert_ids_to_tokens(token))  # a token's character is a byte of the text
    else:
        weights = [_FORM] * len(reply)
        if reply:
            weights[2] = _GRADE  # "Score", ":", " 7"
        spans = _spans(example.judged, prompt, tokenizer)
        for place, strength in _strengths(example.judged, spans):
            strengths[place] = strength
        if trier:
            others = trier(example.judged, {begin: place - len(prefix) for place, begin, _ in spans})
    weights = [0.0] * len(prompt) + weights
    tokens = (prompt + reply)[len(prefix) :]
    others = others[: max(WIDTH - len(tokens), 0)]
    return Encoded(
        tokens=tokens + [one.token for one in others],
        weights=weights[len(prefix) :] + [0.0] * len(others),
        strengths=strengths[len(prefix) :] + [WHOLE if one.fits else BROKEN for one in others],
        tried=[False] * len(tokens) + [True] * len(others),
        positions=[*range(len(tokens)), *(one.place for one in others)],
        fitting=fits,
    )


def _spans(text: str, prompt: list[int], tokenizer: PreTrainedTokenizerBase) -> list[tuple[int, int, int]]:
    """The tokens of `text`, with which the user's turn in `prompt` ends, from the last to the first: the place of each
    in `prompt`, and the bytes of the text between which it stands. The first holds the space before the text, too, and
    so begins at -1.
    """
    place = len(prompt) - 3  # before the end of the turn and the assistant's header
    end, spans = len(text.encode()), []
    while end > 0:
        begin = end - len(tokenizer.convert_ids_to_tokens(prompt[place]))  # a token's character is a byte of the text
        spans.append((place, begin, end))
        place, end = place - 1, begin
    return spans


def _strengths(text: str, spans: list[tuple[int, int, int]]) -> Iterator[tuple[int, int]]:
    """The places of the tokens of `text` with what the tutor should read off each; `spans` are those of `_spans`."""
    left = iter(spans)
    place, _, until = next(left, (0, 0, 0))
    following = place + 1
    for sentence in reversed(read(text)):
        cuts = sentence.end - len(sentence.text), sentence.whole, sentence.end
        begin, whole, end = (len(text[:cut].encode()) for cut in cuts)
        while until > end:
            following = place
            place, _, until = next(left, (0, 0, 0))
        strength, last = GARBLED if sentence.strength is None else sentence.strength, True
        if sentence.text[-1] not in STOPS:
            yield following, strength  # only what follows says that the sentence goes no further
            last = False
        while until > begin:
            yield place, strength if last else WHOLE if until <= whole else BROKEN
            last = False
            place, _, until = next(left, (0, 0, 0))


def shared_prefix(rows: list[list[int]]) -> list[int]:
    """The tokens with which all of these prompts begin."""
    return rows[0][: common_length(min(rows), max(rows))]


def batches(
    examples: Iterator[Example],
    size: int,
    tokenizer: PreTrainedTokenizerBase,
    prefix: list[int],
    trier: Trier | None = None,
    fitting: Fitting | None = None,
) -> Iterator[Batch]:
    """Batches of `size` rows of `WIDTH` tokens; an example that is longer is left out.

    A row begins with the example that has waited longest, and goes on with the longest that still fits.
    """
    encoded = (encode(example, tokenizer, prefix, trier, fitting) for example in examples)
    short = (one for one in encoded if len(one.tokens) <= WIDTH)
    waiting: list[Encoded] = []
    while True:
        rows = []
        for _ in range(size):
            waiting.extend(islice(short, _WAITING - len(waiting)))
            rows.append(next_row(waiting, WIDTH))
        yield stack(rows, tokenizer.pad_token_id)


def next_row(waiting: list[Encoded], width: int) -> list[Encoded]:
    """Take from `waiting` what has waited longest, and then the longest that still fit in `width` tokens with it."""
    row = [waiting.pop(0)]
    room = width - len(row[0].tokens)
    while fitting := [one for one in waiting if len(one.tokens) <= room]:
        row.append(max(fitting, key=lambda one: len(one.tokens)))
        waiting.remove(row[-1])
        room -= len(row[-1].tokens)
    return row


def stack(rows: list[list[Encoded]], pad_id: int, width: int = WIDTH) -> Batch:
    """Of each row its examples one behind the other, with padding behind."""

    def filled(parts: Callable[[int, Encoded], Iterable], value: float) -> torch.Tensor:
        joined = [[one for number, example in enumerate(row) for one in parts(number, example)] for row in rows]
        return torch.tensor([row + [value] * (width - len(row)) for row in joined])

    placed, fits = [], []
    for number, row in enumerate(rows):
        begins = accumulate((len(example.tokens) for example in row), initial=0)
        for begin, example in zip(begins, row, strict=False):
            placed += [(number, begin + place) for place in example.fitting]
            fits += example.fitting.values()
    return Batch(
        tokens=filled(lambda number, example: example.tokens, pad_id),
        weights=filled(lambda number, example: example.weights, 0.0),
        strengths=filled(lambda number, example: example.strengths, -1),
        tried=filled(lambda number, example: example.tried, False),
        examples=filled(lambda number, example: [number] * len(example.tokens), -1),
        positions=filled(lambda number, example: example.positions, 0),
        placed=torch.tensor(placed, dtype=torch.long).view(-1, 2),
        fitting=torch.from_numpy(np.stack(fits)) if fits else torch.zeros(0, 1, dtype=torch.bool),
    )
