"""Low-rank adaptation (Hu et al. 2021), written out: the layer, attaching and bypassing it, and its files."""

from hmx.lora.attach import adapter_parameters, adapters, attach, bypass, detach, merged_state_dict
from hmx.lora.files import adapter_hash, load_adapter, save_adapter
from hmx.lora.layer import LoRALinear

__all__ = [
    "LoRALinear",
    "adapter_hash",
    "adapter_parameters",
    "adapters",
    "attach",
    "bypass",
    "detach",
    "load_adapter",
    "merged_state_dict",
    "save_adapter",
]
