"""Decode steps of one shape, recorded once as a CUDA graph and replayed.

On a GPU a decode step of a small model takes less time to compute than its thousand kernels take to launch. A graph
launches them all at once, but always the same ones on the same memory. So here a step reads and writes buffers that
stay where they are: the token comes in through one, the slot of the cache is a number on the device, and attention
looks at all slots there are, those still empty being masked out. When the cache grows by a block or rows are dropped or
joined, there are new buffers, and the step is recorded anew.

Even so each kernel takes a microsecond or two, however little it computes, and most of them stand between two matrix
products. `fuse` has them compiled into fewer.

Without a GPU the same steps run unrecorded, which is how the tests hold them against `Decoding`.
"""

import contextlib
import functools
from collections import Counter

import torch

from hmx.cache import Cache
from hmx.decoder import PLAIN, compiled
from hmx.decoding import Decoding
from hmx.errors import UserError
from hmx.memory import say

RECORD_AFTER = 3
"""Steps of a shape before one is recorded: recording takes time too, and a judge's reply is short."""

enabled = True
"""Benchmarks switch this off, and so does a recording that fails."""

recordings: Counter[str] = Counter()
"""How many steps were recorded so far, and how many recordings had too little memory; benchmarks write it down."""

fused = False
"""Whether what is between the matrix products of a step is compiled; set by `fuse`."""


def fuse(device: torch.device | None) -> None:
    """Compile what is between the matrix products of all steps to come, for this GPU; with None, don't.

    Raises `UserError` if PyTorch can't compile for it.
    """
    global fused
    if device is not None and (reason := why_not_compiled(device)):
        raise UserError(
            f"model.compile is true, and PyTorch can't compile for this GPU ({reason}). It needs Triton, which comes "
            "with PyTorch for CUDA, and a C compiler; without them set model.compile to false."
        )
    fused = device is not None


def why_not_compiled(device: torch.device | str) -> str | None:
    """What `torch.compile` says when it is tried for a device; None if it works."""
    try:
        torch.compile(torch.neg, dynamic=False)(torch.zeros(8, device=device))
    except Exception as error:  # there are many kinds, by what is missing
        return (str(error).strip() or type(error).__name__).splitlines()[0]
    return None


class StaticCache(Cache):
    """Keys and values in buffers whose next slot is a number on the device."""

    def __init__(self, cache: Cache):
        super().__init__(cache.keys, cache.values, cache.length)
        self.slot = torch.tensor([cache.length], device=cache.keys[0].device)

    def add(self, i: int, key: torch.Tensor, value: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Write the new slot [B, K, 1, D] of layer i; returns all slots [B, K, room, D], empty ones included."""
        self.keys[i].index_copy_(2, self.slot, key)
        self.values[i].index_copy_(2, self.slot, value)
        return self.keys[i], self.values[i]


class StaticDecoding(Decoding):
    """A `Decoding` whose steps keep their shape for a block of tokens."""

    def __init__(self, *arguments, **options):
        super().__init__(*arguments, **options)
        self.cache = StaticCache(self.cache)
        self._renew()

    def step(self, token: torch.Tensor) -> torch.Tensor:
        """Add a token [B] to each row; returns the logits [B, V] of the next, valid until the next step."""
        if self.cache.length == self.cache.keys[0].shape[2]:
            self.cache.reserve(self.cache.length + 1, self.most)
            self._renew()
        if self.graph is None and self.steps == RECORD_AFTER:
            self._record()
        self.token.copy_(token)
        if self.graph is not None:
            self.graph.replay()
            self.cache.length += 1
            return self.recorded
        self.steps += 1
        return self._advance()

    def select(self, rows: torch.Tensor) -> None:
        """Go on with these rows, in this order; a row may be repeated."""
        super().select(rows)
        self._renew()

    def join(self, other: Decoding, room: int) -> None:
        """Go on with the rows of `other` behind one's own; at most `room` tokens will follow."""
        super().join(other, room)
        self.cache.slot.fill_(self.cache.length)
        self._renew()

    def _renew(self) -> None:
        """New buffers for a new shape."""
        B, room, length = len(self.position), self.cache.keys[0].shape[2], self.cache.length
        self.token = self.position.new_zeros(B)
        # A GPU's kernels want lines that begin at multiples of 16 numbers, and would copy the mask in every layer.
        self.seen = self.bias.new_full((B, 1, 1, -(-room // 16) * 16), -torch.inf)[..., :room]
        self.seen[..., :length] = self.bias[..., :length]
        self.graph, self.recorded, self.steps = None, None, 0

    def _advance(self) -> torch.Tensor:
        """One step from buffers to buffers."""
        decoder = self.decoder
        self.seen.index_fill_(3, self.cache.slot, 0.0)
        biases = {}
        for window in decoder.windows:
            biases[window] = self.seen
            if window is not None:
                far = self.slots[:, : self.seen.shape[-1]] <= self.position[:, None] - window  # [B, room]
                biases[window] = self.seen.masked_fill(far[:, None, None], -torch.inf)
        rope = self.rope.index_select(0, self.position)[:, None]
        between = compiled() if fused else PLAIN
        hidden = decoder.hidden(self.token[:, None], rope, biases, self.cache, between=between)
        self.position += 1
        self.cache.slot += 1
        return decoder.logits(hidden[:, -1])

    def _record(self) -> None:
        """Record the steps of this shape, if the GPU can; else they go on one by one."""
        global enabled
        if not (enabled and self.decoder.device.type == "cuda"):
            return
        length = self.cache.length
        for _ in range(2):
            try:
                self.graph, self.recorded = self._capture()
                recordings["made"] += 1
                break
            except torch.OutOfMemoryError:  # of a graph's own memory; there may be room for another shape's
                recordings["without memory"] += 1
            except RuntimeError as error:
                enabled = False
                reason = str(error).splitlines()[0]
                say(f"This GPU does not record decode steps ({reason}); they run one by one, slower.")
                break
            finally:
                self.cache.length = length
            # A graph's memory is none that the allocator keeps for others. Not in the handler: the exception holds on
            # to what the recording that failed had got.
            torch.cuda.empty_cache()

    def _capture(self) -> tuple[torch.cuda.CUDAGraph, torch.Tensor]:
        """A graph of one step, and where it puts its logits. Recording runs nothing, so the buffers stay as the last
        step left them.

        `torch.cuda.graph` would first give all memory that the allocator keeps back to the GPU, and what comes next
        would have to get it anew.
        """
        graph = torch.cuda.CUDAGraph()
        torch.cuda.synchronize()
        with torch.cuda.stream(_recorder()):
            graph.capture_begin()
            try:
                logits = self._advance()
            except BaseException:
                with contextlib.suppress(RuntimeError):  # that it can't be ended is no news
                    graph.capture_end()
                raise
            graph.capture_end()
        return graph, logits


@functools.cache
def _recorder() -> torch.cuda.Stream:
    """The stream that is recorded: always the same, since cuBLAS has working memory for each that it was used on."""
    return torch.cuda.Stream()
