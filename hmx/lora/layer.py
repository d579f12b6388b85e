"""One adapted linear layer (Hu et al. 2021, section 4.1)."""

import math

import torch
import torch.nn.functional as F
from torch import nn


class LoRALinear(nn.Module):
    """A frozen linear layer with a trainable low-rank update beside it.

        h = W x + b + (alpha / r) · B A dropout(x)

    `A` starts Kaiming-uniform, as PEFT's does (Hu et al. draw it from a Gaussian), and `B` at zero, so that the layer
    starts as exactly its base. Both stay in FP32 whatever the base's dtype: the optimizer's small steps would round
    away in FP16, and a gradient scaler can't unscale FP16 gradients.

    Args:
        base: the linear layer [out, in] to adapt; it is kept, not copied.
        rank: r, from 1 to min(in, out).
        alpha: numerator of the scaling.
        dropout: probability with which an input of A is dropped while training.
        generator: where A's initial values come from.
    """

    def __init__(
        self, base: nn.Linear, rank: int, alpha: float, dropout: float = 0.0, generator: torch.Generator | None = None
    ):
        super().__init__()
        if not 1 <= rank <= min(base.in_features, base.out_features):
            raise ValueError(
                f"the rank must lie in 1..{min(base.in_features, base.out_features)} for this layer, not {rank}"
            )
        self.base = base
        self.rank, self.alpha, self.scaling = rank, alpha, alpha / rank
        self.enabled = True
        self.dropout = nn.Dropout(dropout) if dropout > 0 else nn.Identity()
        self.train(base.training)  # a new module is in training mode, and dropout would be on while sampling
        # Kaiming-uniform with a = sqrt(5), as in nn.Linear and PEFT, is uniform in ±1/sqrt(in). Drawn on the CPU: the
        # same on every device.
        bound = 1 / math.sqrt(base.in_features)
        initial = torch.empty(rank, base.in_features).uniform_(-bound, bound, generator=generator)
        self.lora_A = nn.Parameter(initial.to(base.weight.device))  # [r, in]
        self.lora_B = nn.Parameter(torch.zeros(base.out_features, rank, device=base.weight.device))  # [out, r]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x [..., in] to h [..., out]; exactly the base's output while the adapter is bypassed."""
        h = self.base(x)
        if not self.enabled:
            return h
        update = F.linear(F.linear(self.dropout(x), self.lora_A), self.lora_B)  # B A x
        return torch.add(h, update, alpha=self.scaling)

    def merged_weight(self) -> torch.Tensor:
        """W + scaling · B A [out, in], added in FP32 and returned in the base's dtype. The layer itself is left
        alone.
        """
        update = self.scaling * (self.lora_B @ self.lora_A).detach()
        return (self.base.weight.detach().float() + update).to(self.base.weight.dtype)
