"""Mixed precision, decided in one place by the dtype of the frozen base weights."""

import torch

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


def autocast(model: torch.nn.Module) -> torch.autocast:
    """The autocast region for every forward pass of `model`: in the dtype of its base weights if that is a half
    precision, else switched off.

    Sampling, scoring and judging all use this region, so that the log-probabilities are of the distribution that was
    sampled from. It also is what lets the FP32 adapter matrices meet FP16 activations: autocast casts them on the way
    in, and their gradients stay FP32.
    """
    weight = model.get_input_embeddings().weight
    half = weight.dtype in (torch.float16, torch.bfloat16)
    return torch.autocast(weight.device.type, dtype=weight.dtype if half else None, enabled=half)
