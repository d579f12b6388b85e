"""Linear layers that read the same input, multiplied as one, with what their adapters add."""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from hmx.lora.layer import LoRALinear


def _where_onednn_is_quicker() -> tuple[float, float]:
    try:
        cpu = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:  # not Linux
        cpu = ""
    if "AuthenticAMD" not in cpu:
        return math.inf, math.inf
    in_halves = re.search(r"^cpu family\s*: 25$", cpu, re.MULTILINE)  # Zen 4's AVX-512
    known = {"AVX512": ((12 if in_halves else 3) * 2**18, math.inf), "AVX2": (3 * 2**20, 24)}
    return known.get(torch.backends.cpu.get_cpu_capability(), (math.inf, math.inf))


LARGE, ROWS = _where_onednn_is_quicker()
"""From how many multiplications on, and up to how many rows, a product is oneDNN's and not MKL's. It was tried on AMD's
Zen 4 and 5, where MKL makes no use of AVX-512, and on Zen 3, which has none: there MKL is as quick for many rows. Zen 4
computes with AVX-512 in halves, so that there MKL is as quick for products of a few rows. On an Intel Xeon it always
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
    onednn: tuple[float, float]
    """How many numbers x has, at least and at most, where oneDNN is used, see `linear`."""

    @classmethod
    def of(cls, *layers: nn.Linear | LoRALinear) -> "Projection":
        weight = stacked([base_of(layer) for layer in layers])
        adapters = [layer for layer in layers if _is_on(layer)]
        if not adapters:
            return cls(weight, None, None, 0.0, _for_onednn(weight))
        dtype, scaling = weight.dtype, adapters[0].scaling
        if dtype == torch.float32 and weight.device.type == "cpu" and not torch.is_grad_enabled():
            return cls(_merged(weight, layers), None, None, 0.0, _for_onednn(weight))
        # In the base's dtype, to which autocast would cast A and B at every use.
        A = torch.cat([layer.lora_A for layer in adapters]).to(dtype)
        blocks = [
            layer.lora_B if _is_on(layer) else weight.new_zeros(base_of(layer).out_features, 0) for layer in layers
        ]
        return cls(weight, A, torch.block_diag(*blocks).to(dtype), scaling, _for_onednn(weight))

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        h = _product(x, self.weight, self.onednn)
        return h if self.A is None else torch.add(h, F.linear(F.linear(x, self.A), self.B), alpha=self.scaling)


def linear(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """x Wᵀ, of which the weight gets no gradient. In FP32 on a CPU, what is `LARGE` and has few enough `ROWS` is
    multiplied by oneDNN, which `F.linear` does not use on x86: there it takes down to half of MKL's time.
    """
    return _product(x, weight, _for_onednn(weight))


def _for_onednn(weight: torch.Tensor) -> tuple[float, float]:
    known = weight.device.type == "cpu" and weight.dtype == torch.float32 and torch.backends.mkldnn.is_available()
    inputs = weight.shape[1]
    return (max(LARGE / len(weight), 2 * inputs), ROWS * inputs) if known else (math.inf, math.inf)


def _product(x: torch.Tensor, weight: torch.Tensor, onednn: tuple[float, float]) -> torch.Tensor:
    least, most = onednn
    if not least <= x.numel() <= most:
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
