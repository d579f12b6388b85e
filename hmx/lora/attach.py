"""Putting adapters into a model, switching them off, and collecting what is trained."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import nn

from hmx.errors import UserError
from hmx.lora.layer import LoRALinear

_FUSED = ("qkv_proj", "query_key_value", "Wqkv", "W_pack", "c_attn", "gate_up_proj", "dense_h_to_4h")
"""What Phi-3, Falcon, GPT-NeoX, MPT, Baichuan, ChatGLM and others call a matrix that, in some of them, holds several
projections.
"""


def attach(
    model: nn.Module,
    rank: int,
    alpha: float,
    targets: Sequence[str],
    dropout: float = 0.0,
    generator: torch.Generator | None = None,
) -> list[str]:
    """Replace every linear layer whose name ends in one of `targets` by a `LoRALinear` around it, and freeze everything
    else.

    A's are drawn in the order of the modules, so that equal generators give equal adapters. The layers live where the
    model lives.

    Returns:
        The full names of the adapted layers.

    Raises:
        UserError: no layer matches, a target matches none, or a match is not a plain linear layer. The model is then
            unchanged.
    """
    if adapters(model):
        raise ValueError("the model already has an adapter; load a fresh one")
    if rank < 1:
        raise ValueError(f"the rank must be at least 1, not {rank}")
    matches = [(name, module) for name, module in model.named_modules() if _last(name) in targets]
    if unmatched := set(targets) - {_last(name) for name, _ in matches}:
        missing = min(unmatched)
        _refuse_unusual(model, missing)
        linear = sorted({_last(name) for name, module in model.named_modules() if isinstance(module, nn.Linear)})
        raise UserError(
            f"No layer of this model is called {missing!r}; its linear layers are {', '.join(linear)} "
            "(lora.targets; in a file of PEFT's, target_modules)."
        )
    for name, module in matches:
        if not isinstance(module, nn.Linear):
            raise UserError(
                f"The layer {name} is a {type(module).__name__}, and only plain linear layers can be adapted "
                "(lora.targets; in a file of PEFT's, target_modules)."
            )
        if rank > min(module.in_features, module.out_features):
            raise UserError(
                f"Rank {rank} is too high for {name} [{module.out_features}, {module.in_features}] (lora.rank; in a "
                "file of PEFT's, r)."
            )
    model.requires_grad_(False)
    for name, module in matches:
        model.set_submodule(name, LoRALinear(module, rank, alpha, dropout, generator))
    return [name for name, _ in matches]


def _last(name: str) -> str:
    """The last part of a module's full name, which a target names."""
    return name.rpartition(".")[2]


def _refuse_unusual(model: nn.Module, wanted: str) -> None:
    """Say why, if a model has no layer of that name since it computes its projections in some other way."""
    for name, module in model.named_modules():
        kind, last = type(module).__name__, _last(name)
        if kind == "Conv1D":
            raise UserError(
                f"This model is not supported, because its projections ({last}) are of the kind Conv1D, not linear "
                "layers (GPT-2 is of this kind)."
            )
        if last in _FUSED:
            raise UserError(
                f"This model is not supported as it is, because it computes several projections in one layer, {last}, "
                f"and has none called {wanted!r}; to adapt the layer as a whole, name it in lora.targets."
            )


def detach(model: nn.Module) -> None:
    """Take all adapters out again; the model is its base."""
    for name, layer in adapters(model).items():
        model.set_submodule(name, layer.base)


def adapters(model: nn.Module) -> dict[str, LoRALinear]:
    """The adapted layers of `model` by name."""
    return {name: module for name, module in model.named_modules() if isinstance(module, LoRALinear)}


def adapter_parameters(model: nn.Module) -> list[nn.Parameter]:
    """Every A and B, in the order of the modules: what the optimizer trains."""
    return [parameter for layer in adapters(model).values() for parameter in (layer.lora_A, layer.lora_B)]


@contextmanager
def bypass(model: nn.Module) -> Iterator[None]:
    """Within this context the model is exactly its base: the judge and the reference policy.

    Contexts nest, each restores what it found even when an exception passes through, and `requires_grad` is never
    touched.
    """
    layers = list(adapters(model).values())
    found = [layer.enabled for layer in layers]
    try:
        for layer in layers:
            layer.enabled = False
        yield
    finally:
        for layer, enabled in zip(layers, found, strict=True):
            layer.enabled = enabled


def merged_state_dict(model: nn.Module) -> dict[str, torch.Tensor]:
    """The state dict of the plain model with every adapter added into its weight, under the base model's own names.

    The merged weights are new tensors, all others the model's own: the model is not changed, so there is nothing to
    unmerge and no rounding that adds up.
    """
    layers = adapters(model)
    state = {}
    for name, tensor in model.state_dict().items():
        owner, _, rest = name.rpartition(".base.")
        if owner in layers:
            state[f"{owner}.{rest}"] = layers[owner].merged_weight() if rest == "weight" else tensor
        elif name.rpartition(".")[0] not in layers:  # leaves out lora_A and lora_B
            state[name] = tensor
    return state
