"""A batch of prompts on its way: it is read, and goes on a token a row at a time.

A decoder reads prompts of like length together, so that little of what it reads is padding. Rows can be dropped and
repeated on the way, and with a decoder joined by others. Notation as in `hmx.decoder`.
"""

from collections import defaultdict
from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from transformers import DynamicCache

from hmx.cache import Cache
from hmx.decoder import Decoder, positions

WORTH = defaultdict(lambda: 2048, cpu=64)
"""By device, how much padding a part of the prompts must save: what starting its kernels takes the time of. Of a GPU
it is an estimate.
"""


class Decoding:
    """The batch in a decoder.

    Args:
        ids: [B, Q], padded in front; the longest rows had best come first.
        attention: [B, S], 1 for tokens and 0 for padding; the S - Q slots of a shared prefix come first.
        prefix: the keys and values of those slots, a pair [1, K, S - Q, D] for each layer.
        room: the most tokens that will follow.
        last: of how many of each prompt's last tokens `logits` shall hold what follows them.
    """

    joins = True

    def __init__(self, decoder: Decoder, ids: torch.Tensor, attention: torch.Tensor, prefix, room: int, last: int = 1):
        (B, S), Q = attention.shape, ids.shape[1]
        self.decoder = decoder
        shape = (B, decoder.K, S, decoder.D)
        if prefix:
            keys, values = (
                [F.pad(t.expand(B, -1, -1, -1), (0, 0, 0, Q)) for t in side] for side in zip(*prefix, strict=True)
            )
        else:
            keys, values = (
                [torch.zeros(shape, dtype=decoder.dtype, device=decoder.device) for _ in decoder.layers] for _ in "kv"
            )
        lengths, hidden = attention[:, S - Q :].sum(dim=1).tolist(), []
        for first, end in parts(lengths, WORTH[ids.device.type]):
            length = max(lengths[first:end])
            # Views of the part's slots; those in front of its longest row stay as they are, and nobody looks at them.
            slots = Cache([t[first:end] for t in keys], [t[first:end] for t in values], S - length)
            hidden.append(decoder.read(ids[first:end, Q - length :], attention[first:end], slots, last))
        self.cache = Cache(keys, values, S)
        self.logits = decoder.logits(torch.cat(hidden))  # [B, last, V]
        self._lay(attention, room)

    def _lay(self, attention: torch.Tensor, room: int) -> None:
        """What the steps to come need to know of the slots so far: `attention` [B, S], 1 for tokens."""
        decoder, (B, S) = self.decoder, attention.shape
        self.most = S + room
        self.position = attention.sum(dim=1)  # [B], of the next token
        to_come = self.position[:, None] + torch.arange(room, device=attention.device)
        # A window counts positions, not slots, of which padding may take some.
        self.slots = torch.cat([positions(attention), to_come], dim=1)  # [B, S + room]
        self.bias = torch.zeros(B, 1, 1, self.most, dtype=decoder.dtype, device=decoder.device)
        self.bias[:, 0, 0, :S].masked_fill_(attention == 0, -torch.inf)
        self.rope = decoder.rope_table(self.most)

    def step(self, token: torch.Tensor) -> torch.Tensor:
        """Add a token [B] to each row; returns the logits [B, V] of the next."""
        S = self.cache.length + 1
        self.cache.reserve(S, self.most)
        biases = {}
        for window in self.decoder.windows:
            biases[window] = self.bias[..., :S]
            if window is not None and window < S:
                far = self.slots[:, :S] <= self.position[:, None] - window  # [B, S]
                biases[window] = biases[window].masked_fill(far[:, None, None], -torch.inf)
        rope = self.rope.index_select(0, self.position)[:, None]
        hidden = self.decoder.hidden(token[:, None], rope, biases, self.cache)
        self.position = self.position + 1
        return self.decoder.logits(hidden[:, -1])

    def select(self, rows: torch.Tensor) -> None:
        """Go on with these rows, in this order; a row may be repeated."""
        self.cache.select(rows)
        self.position, self.slots, self.bias = self.position[rows], self.slots[rows], self.bias[rows]

    def join(self, other: "Decoding", room: int) -> None:
        """Go on with the rows of `other` behind one's own; at most `room` tokens will follow.

        All rows write to the same slot next, so each is moved until its last token stands in the one before, and the
        padding in front is as short as the longest row allows.
        """
        S = int(max(self.position.max(), other.position.max()))
        orders, seen = [], []
        for decoding in (self, other):
            tokens = decoding.bias[:, 0, 0, : decoding.cache.length] == 0  # [B, slots so far]
            order = tokens.int().argsort(dim=1, stable=True)[:, -S:]  # padding first
            orders.append(F.pad(order, (S - order.shape[1], 0)))
            seen.append(F.pad(tokens.gather(1, order), (S - order.shape[1], 0)))
        self.cache.join(other.cache, orders)
        self._lay(torch.cat(seen).long(), room)


def parts(lengths: Sequence[int], worth: int) -> Iterator[tuple[int, int]]:
    """Where to cut prompts of these lengths, which are read in this order: the first and the end of each part.

    A new part begins with a row of at most three quarters of the part's longest, if that saves at least `worth` tokens
    of padding.

    >>> list(parts([90, 85, 60, 55, 50], 64)), list(parts([90, 50], 64)), list(parts([50, 90, 90], 64))
    ([(0, 2), (2, 5)], [(0, 2)], [(0, 3)])
    """
    first = longest = 0
    for place, length in enumerate(lengths):
        if 4 * length <= 3 * longest and (len(lengths) - place) * (longest - length) >= worth:
            yield first, place
            first, longest = place, 0
        longest = max(longest, length)
    yield first, len(lengths)


class PlainDecoding:
    """The same by the model's own forward pass, for every architecture and as the reference; it can't be joined."""

    joins = False

    def __init__(self, model, ids: torch.Tensor, attention: torch.Tensor, prefix, last: int = 1):
        self.model, self.attention = model, attention
        rows, shared = len(ids), attention.shape[1] - ids.shape[1]
        self.cache = DynamicCache([(k.expand(rows, -1, -1, -1), v.expand(rows, -1, -1, -1)) for k, v in prefix or ()])
        self.position = attention.sum(dim=1)  # [B], of the next token
        self.logits = self._run(ids, positions(attention)[:, shared:], last)  # [B, last, V]

    def step(self, token: torch.Tensor) -> torch.Tensor:
        """Add a token [B] to each row; returns the logits [B, V] of the next."""
        self.attention = torch.cat([self.attention, self.attention.new_ones(len(token), 1)], dim=1)
        self.position = self.position + 1
        return self._run(token[:, None], self.position[:, None] - 1)[:, -1]

    def select(self, rows: torch.Tensor) -> None:
        """Go on with these rows, in this order; a row may be repeated."""
        self.cache.batch_select_indices(rows)
        self.attention, self.position = self.attention[rows], self.position[rows]

    def _run(self, ids: torch.Tensor, position_ids: torch.Tensor, last: int = 1) -> torch.Tensor:
        output = self.model(
            ids,
            attention_mask=self.attention,
            position_ids=position_ids,
            past_key_values=self.cache,
            use_cache=True,
            logits_to_keep=last,
        )
        return output.logits
