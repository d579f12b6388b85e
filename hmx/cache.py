"""Keys and values of the tokens that a decoder has read.

Notation: `B` rows, `Q` new tokens of a row, `S` slots up to the last new token, `K` heads of keys and values, `D` head
dimension.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F

BLOCK = 128
"""A cache grows to a multiple of so many slots, or to all that there will be if those are hardly more."""


class Cache:
    """Keys and values of all layers, each a buffer [B, K, room, D] whose first `length` slots are filled."""

    def __init__(self, keys: Sequence[torch.Tensor], values: Sequence[torch.Tensor], length: int):
        self.keys, self.values, self.length = list(keys), list(values), length

    def add(self, i: int, key: torch.Tensor, value: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Write the new slots [B, K, Q, D] of layer i; returns all of its slots [B, K, S, D]."""
        end = self.length + key.shape[2]
        keys, values = self.keys[i], self.values[i]
        keys[:, :, self.length : end] = key
        values[:, :, self.length : end] = value
        return keys[:, :, :end], values[:, :, :end]

    def reserve(self, slots: int, most: int) -> None:
        """Make room for `slots` in all, and at once for those to come in their block; there will be no more than
        `most`.
        """
        if slots > (room := self.keys[0].shape[2]):
            whole = -(-slots // BLOCK) * BLOCK
            more = (most if most <= whole + BLOCK // 2 else whole) - room
            for buffers in (self.keys, self.values):
                for i, buffer in enumerate(buffers):  # one after the other: never the whole cache twice
                    buffers[i] = F.pad(buffer, (0, 0, 0, more))

    def select(self, rows: torch.Tensor) -> None:
        """Keep or repeat rows."""
        for buffers in (self.keys, self.values):
            for i, buffer in enumerate(buffers):
                buffers[i] = buffer[rows]

    def join(self, other: "Cache", orders: Sequence[torch.Tensor]) -> None:
        """Put the rows of `other` behind one's own.

        Args:
            orders: of either cache the slots [B, S] that its rows shall have from now on.
        """
        for buffers, others in ((self.keys, other.keys), (self.values, other.values)):
            for i, both in enumerate(zip(buffers, others, strict=True)):
                buffers[i] = torch.cat([_reordered(*one) for one in zip(both, orders, strict=True)])
        self.length = orders[0].shape[1]


def _reordered(buffer: torch.Tensor, order: torch.Tensor) -> torch.Tensor:
    _, K, _, D = buffer.shape
    return buffer.gather(2, order[:, None, :, None].expand(-1, K, -1, D))


class PrefixCache:
    """The keys and values of a shared prefix under rows that are read once: what `Cache` is to rows that go on.

    Args:
        prefix: a pair [1, K, length, D] for each layer.
    """

    def __init__(self, prefix: Sequence[tuple[torch.Tensor, torch.Tensor]]):
        self.prefix, self.length = prefix, prefix[0][0].shape[2]

    def add(self, i: int, key: torch.Tensor, value: torch.Tensor) -> list[torch.Tensor]:
        """The prefix of layer i and behind it the new slots [B, K, Q, D], which are not kept."""
        pairs = zip(self.prefix[i], (key, value), strict=True)
        return [torch.cat([before.expand(len(new), -1, -1, -1), new], dim=2) for before, new in pairs]
