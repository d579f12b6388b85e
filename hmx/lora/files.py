"""Adapters on disk, in PEFT's own format: `adapter_config.json` and `adapter_model.safetensors`.

PEFT wraps a model once more, so a layer that is called `model.layers.0.self_attn.q_proj` here has its matrices under
`base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight` there. The shapes are the same.
"""

import hashlib
import json
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from hmx.errors import UserError
from hmx.files import write_safetensors, write_text
from hmx.lora.attach import adapters, attach, detach

_PEFT_NAME = "base_model.model.{layer}.lora_{matrix}.weight"

# PEFT's options that say nothing about what an adapter computes, or that are read below. Whatever else is not empty is
# refused by name: PEFT has many, gets more, and none may be ignored.
_KNOWN = {
    "peft_type", "task_type", "peft_version", "auto_mapping", "base_model_name_or_path", "revision", "inference_mode",
    "r", "lora_alpha", "lora_dropout", "target_modules", "layers_pattern", "megatron_core", "qalora_group_size",
    "runtime_config", "ensure_weight_tying",
}  # fmt: skip
_EMPTY = (None, False, {}, [], "none")
# Ways to draw the first A and B. Others (PiSSA, OLoRA, LoftQ, CorDA) change the base weights too, which are not saved.
_DRAWN = (True, False, None, "gaussian", "orthogonal", "eva")


def save_adapter(model: nn.Module, folder: str | Path, base_model: str) -> None:
    """Write the adapter of `model` so that PEFT's `PeftModel.from_pretrained` and `load_adapter` can read it.

    Args:
        folder: made if need be; each file is replaced as a whole.
        base_model: the id or folder of the base, noted in the file for whoever loads the adapter.
    """
    layers = adapters(model)
    if not layers:
        raise ValueError("the model has no adapter to save")
    first = next(iter(layers.values()))
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base_model,
        "r": first.rank,
        "lora_alpha": first.alpha,
        "lora_dropout": getattr(first.dropout, "p", 0.0),
        "target_modules": sorted({name.rpartition(".")[2] for name in layers}),
        "bias": "none",
        "use_rslora": False,
        "use_dora": False,
        "inference_mode": True,
    }
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    write_safetensors(folder / "adapter_model.safetensors", _peft_tensors(model))
    write_text(folder / "adapter_config.json", json.dumps(config, indent=2) + "\n")


def load_adapter(model: nn.Module, folder: str | Path) -> list[str]:
    """Attach the adapter in `folder` to `model`, or fill it into a model that already has one of the same shape.

    Returns:
        The full names of the adapted layers.

    Raises:
        UserError: a file is missing or unreadable, an option of PEFT that we do not compute is on, or the adapter
            doesn't fit the model.
    """
    folder = Path(folder)
    try:
        config = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
        tensors = load_file(folder / "adapter_model.safetensors")
        rank, alpha, targets = config["r"], config["lora_alpha"], config["target_modules"]
    except (OSError, ValueError, TypeError, KeyError, RecursionError, SafetensorError) as error:
        raise UserError(
            f"{folder} is not a readable LoRA adapter in PEFT's format ({type(error).__name__}: {error})."
        ) from None
    if config.get("peft_type") != "LORA":
        raise UserError(f"The adapter in {folder} is of the type {config.get('peft_type')}; only LORA can be loaded.")
    for option, value in config.items():
        if option not in _KNOWN and value not in (_DRAWN if option == "init_lora_weights" else _EMPTY):
            raise UserError(f"The adapter in {folder} uses {option} = {value!r}, which this project does not compute.")
    if not isinstance(targets, list) or not all(isinstance(target, str) for target in targets):
        raise UserError(
            f"The adapter in {folder} gives target_modules as {targets!r}; only a list of names can be loaded."
        )
    dropout = config.get("lora_dropout") or 0.0
    numbers = type(rank) is int and all(type(value) in (int, float) for value in (alpha, dropout))
    # An alpha that FP32 can't hold would make everything infinite.
    if not (numbers and rank >= 1 and 0 < alpha <= 1e30 and 0 <= dropout < 1):
        raise UserError(
            f"The adapter in {folder} has a rank, alpha or dropout that can't be: {rank!r}, {alpha!r}, {dropout!r}."
        )
    for name, tensor in tensors.items():
        if not (tensor.is_floating_point() and tensor.isfinite().all()):
            raise UserError(f"The adapter in {folder} holds values in {name} that are not finite numbers.")

    fresh = not adapters(model)
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if fresh:
        attach(model, rank, alpha, sorted({target.rpartition(".")[2] for target in targets}), dropout)
    expected = _peft_tensors(model)
    odd = sorted(set(expected) ^ set(tensors))
    odd = odd or sorted(key for key in expected if expected[key].shape != tensors[key].shape)
    if odd or any(layer.scaling != alpha / rank for layer in adapters(model).values()):
        if fresh:
            detach(model)
            for parameter in trainable:
                parameter.requires_grad_(True)
        what = f"{odd[0]} is missing on one side or has another shape" if odd else f"its scaling is {alpha:g} / {rank}"
        raise UserError(
            f"The adapter in {folder} does not fit this model: {what}; "
            f"it was trained for {config.get('base_model_name_or_path')!r}."
        )
    with torch.no_grad():
        for key, tensor in tensors.items():
            expected[key].copy_(tensor)
    return list(adapters(model))


def adapter_hash(model: nn.Module) -> str:
    """SHA-256 over the bytes of every A and B: two models with the same hash have bitwise the same adapter."""
    digest = hashlib.sha256()
    for name, tensor in sorted(_peft_tensors(model).items()):
        digest.update(name.encode() + tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def _peft_tensors(model: nn.Module) -> dict[str, torch.Tensor]:
    """A and B of each layer under PEFT's names: the live parameters, detached."""
    return {
        _PEFT_NAME.format(layer=name, matrix=matrix): getattr(layer, f"lora_{matrix}").detach()
        for name, layer in adapters(model).items()
        for matrix in "AB"
    }
