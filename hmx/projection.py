"""Linear layers that read the same input, multiplied as one, with what their adapters add."""

import math
import platform
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from hmx.lora.layer import LoRALinear


def _is_intel() -> bool:
    try:
        return "GenuineIntel" in Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:  # not Linux
        return "Intel" in platform.processor()


LARGE = math.inf if _is_intel() else 3 * 2**18
"""Multiplications of a product from which on oneDNN is quicker than MKL; on the Intel Xeon where it was tried it never
was.
"""


@dataclass(frozen=True)
class Projection:
    """Linear layers as one: x Wᵀ + scaling · x Aᵀ Bᵀ."""

    weight: torch.Tensor
    """[out, in], the layers' matrices one below the other."""
    A: torch.Tensor | None
    """[n · r, in], those of n adapted layers one below the other; None if no adapter is on."""
    B: torch.Tensor | None
    """[out, n · r], block-diagonal."""
    scaling: float
    least: float
    """How many numbers x must have for oneDNN, see `linear`."""

    @classmethod
    def of(cls, *layers: nn.Linear | LoRALinear) -> "Projection":
        weight = stacked([base_of(layer) for layer in layers])
        adapters = [layer for layer in layers if _is_on(layer)]
        if not adapters:
            return cls(weight, None, None, 0.0, _least(weight))
        dtype, scaling = weight.dtype, adapters[0].scaling
        if dtype == torch.float32 and weight.device.type == "cpu" and not torch.is_grad_enabled():
            return cls(_merged(weight, layers), None, None, 0.0, _least(weight))
        # In the base's dtype, to which autocast would cast A and B at every use.
        A = torch.cat([layer.lora_A for layer in adapters]).to(dtype)
        blocks = [layer.lora_B if _is_on(layer) else layer.weight.new_zeros(len(layer.weight), 0) for layer in layers]
        return cls(weight, A, torch.block_diag(*blocks).to(dtype), scaling, _least(weight))

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        h = _product(x, self.weight, self.least)
        return h if self.A is None else torch.add(h, F.linear(F.linear(x, self.A), self.B), alpha=self.scaling)


def linear(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """x Wᵀ, of which the weight gets no gradient. In FP32 on a CPU that is not Intel's, several tokens are multiplied
    by oneDNN where there is enough to multiply, which `F.linear` does not use on x86: it takes half of MKL's time, but
    starts more slowly.
    """
    return _product(x, weight, _least(weight))


def _least(weight: torch.Tensor) -> float:
    known = weight.device.type == "cpu" and weight.dtype == torch.float32 and torch.backends.mkldnn.is_available()
    return max(LARGE / len(weight), 2 * weight.shape[1]) if known else math.inf


def _product(x: torch.Tensor, weight: torch.Tensor, least: float) -> torch.Tensor:
    if x.numel() < least:
        return F.linear(x, weight)
    return _Product.apply(x, weight) if torch.is_grad_enabled() else _by_onednn(x, weight)


def _by_onednn(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    return torch.ops.mkldnn._linear_pointwise(x, weight, None, "none", [], "")


class _Product(torch.autograd.Function):
    """x Wᵀ by oneDNN, with the gradient of x."""

    @staticmethod
    def forward(ctx, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(weight)
        return _by_onednn(x, weight)

    @staticmethod
    def backward(ctx, gradient: torch.Tensor) -> tuple[torch.Tensor, None]:
        (weight,) = ctx.saved_tensors
        return _by_onednn(gradient, weight.T), None


def stacked(layers: Sequence[nn.Linear]) -> torch.Tensor:
    """The layers' weights one below the other, as one matrix [out, in] that *is* their memory.

    At the first use the weights are moved next to each other and each becomes a view of its part: no second copy of a
    model that may fill the GPU, and no copy that could grow stale when somebody writes to a weight. In FP32 on a CPU
    the matrix lies in memory column by column, with which the product for a few rows is quicker.
    """
    weights = [layer.weight for layer in layers]
    first, (rows, columns) = weights[0], (sum(map(len, weights)), weights[0].shape[1])
    by_column = first.device.type == "cpu" and first.dtype == torch.float32
    strides = (1, rows) if by_column else (columns, 1)
    begin, memory = first.storage_offset(), first.untyped_storage().data_ptr()
    for weight in weights:
        beside = weight.untyped_storage().data_ptr() == memory and weight.storage_offset() == begin
        if not (beside and weight.stride() == strides):
            break
        begin += len(weight) * strides[0]
    else:
        return first.detach().as_strided((rows, columns), strides)
    whole = torch.cat([weight.detach() for weight in weights])
    if by_column:
        whole = whole.T.contiguous().T
    for weight, part in zip(weights, whole.split([len(weight) for weight in weights]), strict=True):
        weight.data = part
    return whole


def _merged(weight: torch.Tensor, layers: Sequence[nn.Linear | LoRALinear]) -> torch.Tensor:
    """The layers' W + scaling · B A one below the other, in a new matrix: for FP32 alone, whose rounding is far below
    what can be noticed, on a CPU, where there is room for two, and for as long as a decoder lives.
    """
    merged = weight.clone()
    for layer, part in zip(layers, merged.split([base_of(layer).out_features for layer in layers]), strict=True):
        if _is_on(layer):
            part.addmm_(layer.lora_B, layer.lora_A, alpha=layer.scaling)
    return merged


def base_of(layer: nn.Linear | LoRALinear) -> nn.Linear:
    """The layer itself, or what its adapter adapts."""
    return layer.base if isinstance(layer, LoRALinear) else layer


def _is_on(layer: nn.Module) -> bool:
    return isinstance(layer, LoRALinear) and layer.enabled
