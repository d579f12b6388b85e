"""Batched sampling with a KV cache: the one way in which this project generates text.

`generate` reads as the loop it is: prefill the prompts, then choose a token for every row and feed it back until all
rows have ended; prompts that wait for room take the places of rows that have. Tokens are drawn by inverting the
cumulative distribution with one uniform number a token. All uniform numbers are drawn at the start, on the CPU, row by
row: they are the same on every device and whether rows are sampled together or one by one, and so are the completions,
but where a last bit of a probability decides. The forward pass is the model's own (`PlainDecoding`) or, for the
families it knows, the same one written out in fewer operations (`hmx.decoder`).

Notation: `B` rows, `T` completion tokens (the longest row's), `V` vocabulary.
"""

import itertools
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from transformers import DynamicCache

from hmx.decoder import Decoder
from hmx.decoding import Decoding, PlainDecoding
from hmx.errors import UserError
from hmx.graphs import StaticDecoding
from hmx.precision import autocast

DROP_BELOW = defaultdict(lambda: 0.25, cpu=0.75)
"""By device: when no more than this share of the rows that are computed is still unfinished, the finished ones are
dropped. Often enough to save their work, seldom enough to copy the cache a few times only; on a GPU a step of a few
rows takes as long as that of some more, and each drop has another step recorded. Of a GPU it is an estimate.
"""
POLL = defaultdict(lambda: 16, cpu=1)
"""By device, every how many steps it is asked how many rows have ended: a GPU that is asked makes us wait for it."""


@dataclass(frozen=True)
class Completions:
    """What was sampled. The mask is carried from here on; nothing downstream guesses it from token ids."""

    tokens: torch.Tensor
    """[B, T] int64, filled with the pad id behind each row's end."""
    mask: torch.Tensor
    """[B, T] bool: True for every sampled token, the first end-of-turn token included."""
    truncated: torch.Tensor
    """[B] bool: the row met its length limit before it ended."""

    @classmethod
    def joined(cls, parts: Sequence["Completions"], pad_id: int) -> "Completions":
        """The rows of all parts, one part after the other."""
        longest = max(part.tokens.shape[1] for part in parts)

        def wide(rows: torch.Tensor, value: int | bool) -> torch.Tensor:
            return F.pad(rows, (0, longest - rows.shape[1]), value=value)

        return cls(
            torch.cat([wide(part.tokens, pad_id) for part in parts]),
            torch.cat([wide(part.mask, False) for part in parts]),
            torch.cat([part.truncated for part in parts]),
        )

    def rows(self) -> list[list[int]]:
        """The sampled ids of each row, without padding."""
        return [row[keep].tolist() for row, keep in zip(self.tokens.cpu(), self.mask.cpu(), strict=True)]


@dataclass(frozen=True)
class Prefix:
    """Tokens with which many prompts begin, and their keys and values. Valid as long as the weights that made it."""

    tokens: tuple[int, ...]
    keys_values: tuple[tuple[torch.Tensor, torch.Tensor], ...]
    """For each layer two tensors [1, KV heads, len(tokens), head dimension]."""

    @classmethod
    @torch.no_grad()
    def of(cls, model, tokens: Sequence[int]) -> "Prefix":
        """Run `model` over `tokens` once."""
        Decoder.of(model)  # which lays the weights out as they will lie from then on: sums must not differ by that
        cache = DynamicCache()
        with autocast(model):
            model(
                torch.tensor([list(tokens)], device=model.device),
                past_key_values=cache,
                use_cache=True,
                logits_to_keep=1,
            )
        return cls(tuple(tokens), tuple((layer.keys, layer.values) for layer in cache.layers))

    def starts(self, prompt: Sequence[int]) -> bool:
        """Whether `prompt` begins with these tokens and goes on after them."""
        return len(prompt) > len(self.tokens) and tuple(prompt[: len(self.tokens)]) == self.tokens


@torch.no_grad()
def generate(
    model,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int | Sequence[int],
    end_ids: Sequence[int],
    pad_id: int,
    generator: torch.Generator | None = None,
    temperature: float = 1.0,
    repeats: int = 1,
    prefix: Prefix | None = None,
    stop: Callable[[int, list[int]], bool] | None = None,
    guess: Sequence[int] = (),
    slots: int | None = None,
    tick: Callable[[int], None] | None = None,
) -> Completions:
    """Sample `repeats` completions of every prompt; row `p * repeats + g` is the g-th of prompt p.

    Args:
        prompts: token ids, of any lengths.
        max_new_tokens: the limit of all rows, or one for each prompt.
        end_ids: tokens that end a row; the first of them is part of the completion.
        generator: where the uniform numbers come from; not needed at temperature 0.
        temperature: the logits are divided by it; 0 takes the likeliest token. There is no top-k and no top-p, and
            nothing is read from the model's own generation config.
        prefix: keys and values of tokens that *all* prompts begin with, to be reused. Exact, up to the order of
            summation.
        stop: called with the number and the tokens of each unfinished row; True ends that row.
        guess: tokens with which replies at temperature 0 are expected to begin. They are read with the prompt, which
            costs less than a step for each, and checked: a row that would begin otherwise comes back empty.
        slots: how many slots of the KV cache may be used at once, a row taking as many as the longest prompt of its
            batch has and the most tokens that any of its rows may still get. Prompts that do not fit wait, in their
            order, and take the places of rows that have ended. Only for one completion a prompt.
        tick: called with how many rows have ended, whenever it is a good part of those that are computed.
    """
    if not prompts or not all(prompts):
        raise ValueError("generate needs at least one prompt, and none may be empty")
    limits = [max_new_tokens] * len(prompts) if isinstance(max_new_tokens, int) else list(max_new_tokens)
    if len(limits) != len(prompts) or min(limits) < 1:
        raise ValueError(f"every prompt needs a limit of at least one new token, not {limits}")
    if slots is not None and repeats > 1:
        raise ValueError("prompts can wait for slots only where each has one completion")
    if guess and (temperature > 0 or slots is not None or len(guess) >= min(limits) or set(guess) & set(end_ids)):
        raise ValueError("only likeliest tokens that end nothing can be guessed, fewer than the limit, without `slots`")
    rows, device, longest = len(prompts) * repeats, model.device, max(limits)
    ends, guessed = (torch.tensor(list(ids), dtype=torch.int64, device=device) for ids in (end_ids, guess))
    if temperature > 0:
        uniform = torch.zeros(rows, longest + 1, dtype=torch.float64)  # each row's own up to its limit
        for row in range(rows):
            most = limits[row // repeats]
            uniform[row, :most] = torch.rand(most, dtype=torch.float64, generator=generator)
        uniform = uniform.to(device)

    # One column more than can be filled: where a row stands that has met its limit.
    tokens = torch.full((rows, longest + 1), pad_id, dtype=torch.int64, device=device)
    mask = torch.zeros(rows, longest + 1, dtype=torch.bool, device=device)
    stopped = torch.zeros(rows, dtype=torch.bool, device=device)  # by `stop`
    total = torch.zeros((), device=device)  # of all logits: a finite number if each of them is
    limit = torch.tensor(limits, device=device).repeat_interleave(repeats)  # [B]
    sizes = [(len(prompt), most) for prompt, most in zip(prompts, limits, strict=True)]
    poll = 1 if stop else POLL[device.type]  # for `stop` the tokens are fetched at every step as it is

    def begin(count: int) -> _Batch:
        """Read the next `count` prompts, each with the guess behind it."""
        nonlocal begun, room
        first, begun = begun, begun + count
        room = max(room, *(limits[place] - len(guess) for place in range(first, begun)))
        order = _longest_first(prompts[first:begun])
        read = [[*prompts[first + place], *guess] for place in order]
        forward = _start(model, decoder, read, pad_id, prefix, room, len(guess) + 1)
        batch = _Batch.of(forward, first + torch.tensor(order, device=device), repeats, guessed, limit)
        right = batch.rows[batch.active]
        tokens[right, : len(guess)], mask[right, : len(guess)] = guessed, True
        return batch

    begun = room = 0  # how many prompts were begun, and the most tokens that any row of the batch can still get
    with autocast(model):
        decoder = Decoder.of(model)
        batch = begin(_fitting(sizes, slots))
        for t in itertools.count():
            row, place, logits, active = batch.rows, batch.place, batch.logits, batch.active
            if temperature > 0:
                token = sample_token(logits, uniform[row, place], temperature)
            else:
                token = logits.argmax(dim=-1)
            total += logits.sum(dtype=torch.float32)
            tokens[row, place] = torch.where(active, token, pad_id)
            mask[row, place] = active
            ending = active & torch.isin(token, ends)
            if stop is not None:
                stopping = active & _stopped(stop, row, tokens[row], place + 1, active)
                stopped[row] |= stopping
                ending |= stopping
            batch.place = place + active
            batch.active = active & ~ending & (batch.place < batch.limit)
            room -= 1
            if room > 0 and t % poll < poll - 1:
                batch.step(token)
                continue

            left = int(batch.active.sum())
            if left > DROP_BELOW[device.type] * len(row):
                batch.step(token)
                continue
            if tick is not None:
                tick(begun * repeats - left)
            kept = batch.active.nonzero().squeeze(1)
            going = zip(row[kept].tolist(), batch.place[kept].tolist(), strict=True)
            beside = [(len(prompts[one // repeats]) + got, limits[one // repeats] - got) for one, got in going]
            more = _fitting(sizes[begun:], slots, beside)
            if left:
                batch.keep(kept)
                batch.step(token[kept])
                if more and batch.forward.joins:
                    batch.join(begin(more), room)
            elif more:
                room = 0
                batch = begin(more)
            else:
                break

    _require_finite(total)
    used = mask.sum(dim=1)
    last = tokens.gather(1, (used - 1).clamp(min=0)[:, None]).squeeze(1)
    ended = stopped | (used > 0) & torch.isin(last, ends)
    width = int(used.max())
    return Completions(tokens[:, :width], mask[:, :width], ~ended)


@torch.no_grad()
def last_logits(
    model, prompts: Sequence[Sequence[int]], count: int, pad_id: int, prefix: Prefix | None = None
) -> torch.Tensor:
    """The logits [P, count, V] that follow each of the last `count` tokens of every prompt.

    Args:
        prefix: as for `generate`; the prompts must go on for at least `count` tokens behind it.
    """
    order = _longest_first(prompts)
    with autocast(model):
        read = [prompts[place] for place in order]
        logits = _start(model, Decoder.of(model), read, pad_id, prefix, room=0, last=count).logits
    _require_finite(logits.sum(dtype=torch.float32))
    return logits[torch.tensor(order, device=logits.device).argsort()]


def _require_finite(total: torch.Tensor) -> None:
    if not total.isfinite():
        raise UserError("The model's logits are not finite numbers; set model.precision to bf16 or fp32.")


def sample_token(logits: torch.Tensor, uniform: torch.Tensor, temperature: float) -> torch.Tensor:
    """Draw a token a row from softmax(logits / temperature): the first whose cumulative probability exceeds the row's
    uniform number.

    The cumulative sum is in float64, so that no token of a large vocabulary is favoured by rounding, and a token of
    probability 0 is never drawn.

    Args:
        logits: [B, V], of any float dtype.
        uniform: [B] float64 in [0, 1).

    >>> logits = torch.log(torch.tensor([[0.2, 0.5, 0.3]])).expand(3, 3)
    >>> sample_token(logits, torch.tensor([0.1, 0.6, 0.9], dtype=torch.float64), 1.0).tolist()
    [0, 1, 2]
    """
    scaled = logits.float() if temperature == 1.0 else logits.float() / temperature
    cumulative = torch.softmax(scaled, dim=-1).double().cumsum_(dim=-1)  # [B, V]
    threshold = uniform[:, None] * cumulative[:, -1:]
    return torch.searchsorted(cumulative, threshold, right=True).squeeze(-1).clamp(max=logits.shape[-1] - 1)


def common_length(one: Sequence[int], other: Sequence[int]) -> int:
    """How many tokens two sequences have in common at their beginning.

    >>> common_length([5, 6, 7], [5, 6, 8, 9])
    2
    """
    for same, (a, b) in enumerate(zip(one, other, strict=False)):
        if a != b:
            return same
    return min(len(one), len(other))


def pad_left(rows: Sequence[Sequence[int]], pad_id: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids [B, longest] with padding in front, and their mask [B, longest] (1 for tokens, 0 for padding)."""
    width = max(map(len, rows))
    ids = torch.tensor([[pad_id] * (width - len(row)) + list(row) for row in rows], device=device)
    attention = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows], device=device)
    return ids, attention


@dataclass
class _Batch:
    """The rows that are computed together, ended or not."""

    forward: "PlainDecoding | Decoding"
    rows: torch.Tensor
    """[B], which they are of all rows."""
    active: torch.Tensor
    """[B] bool, whether they have not ended."""
    place: torch.Tensor
    """[B], how many tokens they have, which is where the next one goes."""
    limit: torch.Tensor
    """[B], how many tokens they may have."""
    logits: torch.Tensor
    """[B, V], of the next token."""

    @classmethod
    def of(cls, forward, prompts: torch.Tensor, repeats: int, guessed: torch.Tensor, limit: torch.Tensor) -> "_Batch":
        """The completions of the prompts numbered `prompts` [P], which `forward` has read with `guessed` behind them.
        Where other tokens would be likelier, a row has ended. `limit` is that of every row there is.
        """
        logits = forward.logits  # [P, len(guessed) + 1, V]
        if repeats > 1:
            each = torch.arange(len(logits) * repeats, device=logits.device) // repeats
            forward.select(each)
            logits = logits[each]  # [B, len(guessed) + 1, V]
        rows = (prompts[:, None] * repeats + torch.arange(repeats, device=logits.device)).flatten()
        right = (logits[:, :-1].argmax(dim=-1) == guessed).all(dim=1)
        return cls(forward, rows, right, torch.full_like(rows, len(guessed)), limit[rows], logits[:, -1])

    def step(self, token: torch.Tensor) -> None:
        """Add a token [B] to each row."""
        self.logits = self.forward.step(token)

    def keep(self, rows: torch.Tensor) -> None:
        """Drop all rows but these."""
        self.forward.select(rows)
        for name in ("rows", "active", "place", "limit"):
            setattr(self, name, getattr(self, name)[rows])

    def join(self, other: "_Batch", room: int) -> None:
        """Take in the rows of `other`; at most `room` tokens will follow."""
        self.forward.join(other.forward, room)
        for name in ("rows", "active", "place", "limit", "logits"):
            setattr(self, name, torch.cat([getattr(self, name), getattr(other, name)]))


def _fitting(waiting: Sequence[tuple[int, int]], slots: int | None, beside: Sequence[tuple[int, int]] = ()) -> int:
    """How many of the rows that wait fit beside others, in their order; one at least if there are no others.

    A row is the tokens that it has and those that it may still get. All rows of a batch write to the same slot next, so
    each takes the most of the one and the most of the other.

    >>> _fitting([(3, 2), (3, 2), (1, 2)], 12), _fitting([(1, 2), (1, 2)], 12, beside=[(3, 2)])
    (2, 1)
    >>> _fitting([(9, 1), (1, 9)], 20), _fitting([(20, 1)], 12), _fitting([(20, 1)], 12, beside=[(3, 2)])
    (1, 1, 0)
    """
    if slots is None:
        return len(waiting)
    rows = len(beside)
    longest, most = (max((size[i] for size in beside), default=0) for i in range(2))
    for place, (tokens, limit) in enumerate(waiting):
        rows, longest, most = rows + 1, max(longest, tokens), max(most, limit)
        if rows > 1 and rows * (longest + most) > slots:
            return place
    return len(waiting)


def _longest_first(prompts: Sequence[Sequence[int]]) -> list[int]:
    """The order in which a decoder reads prompts with the least padding."""
    return sorted(range(len(prompts)), key=lambda place: -len(prompts[place]))


def _start(model, decoder: Decoder | None, prompts, pad_id: int, prefix: Prefix | None, room: int, last: int):
    """The prompts read, by `decoder` if it knows the model, with the logits behind the `last` tokens."""
    if prefix and decoder is None and _slides_within(model, max(map(len, prompts)) + room):
        prefix = None
    layout = _lay_out(prompts, pad_id, prefix, model.device)
    if decoder is None:
        return PlainDecoding(model, *layout, last)
    decoding = StaticDecoding if model.device.type == "cuda" else Decoding
    return decoding(decoder, *layout, room, last)


def _lay_out(prompts, pad_id: int, prefix: Prefix | None, device) -> tuple:
    """What a forward pass starts from: the ids [P, Q] after the prefix, the mask [P, S] of prefix and ids, and the
    prefix's keys and values.

    With a shared prefix a row is [prefix][padding][rest of the prompt]: the mask and the explicit positions keep that
    exact.
    """
    shared = len(prefix.tokens) if prefix else 0
    if prefix and not all(map(prefix.starts, prompts)):
        raise ValueError("a prompt does not begin with the shared prefix")
    ids, attention = pad_left([prompt[shared:] for prompt in prompts], pad_id, device)
    attention = torch.cat([attention.new_ones(len(prompts), shared), attention], dim=1)
    return ids, attention, prefix.keys_values if prefix else None


def _slides_within(model, length: int) -> bool:
    """Whether some layer's sliding window is shorter than `length`.

    Such a window is counted in slots of the cache, and padding between a shared prefix and the rest of a prompt would
    take some of them; padding in front does no harm.
    """
    config = model.config
    window = getattr(config, "sliding_window", None)
    if not window or not getattr(config, "use_sliding_window", True):
        return False
    kinds = getattr(config, "layer_types", None) or ["sliding_attention"]  # Mistral names none: all of its layers slide
    return "sliding_attention" in kinds and window < length


def _stopped(stop: Callable[[int, list[int]], bool], rows, tokens, lengths, active) -> torch.Tensor:
    table = zip(rows.tolist(), tokens[:, : int(lengths.max())].tolist(), lengths.tolist(), active.tolist(), strict=True)
    return torch.tensor([on and stop(number, row[:length]) for number, row, length, on in table], device=rows.device)
