"""Muon, in the precision that the processor multiplies fast in.

`torch.optim.Muon` multiplies in BF16 whatever the processor, which is slow where that is emulated. This one multiplies
in the precision it is given, and has only what the pre-training needs.
"""

import torch
from torch import nn

_MOMENTUM, _ITERATIONS = 0.95, 5
_A, _B, _C = 3.4445, -4.7750, 2.0315
"""The polynomial of an iteration, which brings singular values near 1 in few of them rather than to 1 in many."""
_RMS = 0.2
"""About the root mean square of what AdamW moves by at a learning rate of 1."""


class Muon(torch.optim.Optimizer):
    """Momentum whose singular values are all made about 1, so that no direction of a matrix is left behind.

    After Jordan et al., "Muon: An optimizer for hidden layers in neural networks" (2024), with Nesterov's momentum; the
    step is scaled as in Liu et al., "Muon is Scalable for LLM Training" (arXiv 2502.16982), so that learning rate and
    weight decay mean what they do for AdamW.
    """

    def __init__(self, matrices: list[nn.Parameter], lr: float, weight_decay: float, dtype: torch.dtype) -> None:
        """For parameters of two dimensions; products are made in `dtype`."""
        super().__init__(matrices, {"lr": lr, "weight_decay": weight_decay})
        self._dtype = dtype

    @torch.no_grad()
    def step(self) -> None:
        """Move each matrix against its gradient."""
        for group in self.param_groups:
            for matrix in group["params"]:
                state = self.state[matrix]
                if not state:
                    state["mean"] = torch.zeros_like(matrix)
                mean = state["mean"]
                mean.lerp_(matrix.grad, 1 - _MOMENTUM)
                ahead = matrix.grad.lerp(mean, _MOMENTUM)
                matrix.mul_(1 - group["lr"] * group["weight_decay"])
                scale = _RMS * max(matrix.shape) ** 0.5
                matrix.add_(orthogonal(ahead.to(self._dtype)), alpha=-group["lr"] * scale)


def orthogonal(matrix: torch.Tensor) -> torch.Tensor:
    """A matrix with the same singular vectors, and all singular values between about 0.7 and 1.2, save those near 0:
    Newton-Schulz iterations, X <- aX + (bA + cA²)X with A = XXᵀ, from a matrix of norm 1.
    """
    tall = matrix.shape[0] > matrix.shape[1]
    x = matrix.T if tall else matrix
    x = x / x.norm().clamp(min=1e-7)
    for _ in range(_ITERATIONS):
        gram = x @ x.T
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=_B, alpha=_C), x, beta=_A)
    return x.T if tall else x
