"""When the GPU's memory does not suffice: the same work with less kept or in smaller portions, said and not hidden."""

import sys
from collections.abc import Callable
from typing import TypeVar

import torch
from tqdm import tqdm

Result = TypeVar("Result")


def say(sentence: str) -> None:
    """Tell the person at the terminal, above whatever progress bar is there."""
    tqdm.write(sentence, file=sys.stderr)


def keep_less(model) -> None:
    """Gradient checkpointing: each layer keeps its input, and computes the rest again on the way back."""
    enable = getattr(model, "activation_checkpointing_enable", None)  # as transformers calls it after 5.17
    (enable or model.gradient_checkpointing_enable)({"use_reentrant": False})
    model.disable_input_require_grads()  # a hook that only the reentrant kind needs; hmx.decoder refuses hooks


class Portions:
    """Rows that are computed together as long as they fit, and in smaller portions ever after they did not.

    The results are the same either way, up to the order of summation: no row looks at another one, and a generator is
    put back to where the portion that failed had started.

    Args:
        what: the work, as the sentence to the person calls it.
    """

    def __init__(self, what: str):
        self.what, self.at_once = what, sys.maxsize

    def __call__(
        self, compute: Callable[[slice], Result], rows: int, generator: torch.Generator | None = None
    ) -> list[Result]:
        """`compute` each portion of `rows` rows, in their order. Raises PyTorch's OutOfMemoryError if a portion of one
        does not fit.
        """
        results: list[Result] = []
        start = 0
        while start < rows:
            portion = slice(start, min(start + self.at_once, rows))
            before = None if generator is None else generator.get_state()
            try:
                results.append(compute(portion))
                start = portion.stop
                continue
            except torch.OutOfMemoryError:
                if portion.stop - start == 1:
                    raise
            # Not in the handler: the exception holds on to every tensor of the computation that failed.
            torch.cuda.empty_cache()
            if generator is not None:
                generator.set_state(before)
            self.at_once = (portion.stop - start) // 2
            say(f"Out of GPU memory while {self.what}: {self.at_once} at a time from here on.")
        return results
