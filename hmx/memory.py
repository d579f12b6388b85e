"""How much memory a run will take, from the shapes alone."""

import json
from dataclasses import dataclass

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig

from hmx.config import PROJECT, Config
from hmx.errors import UserError
from hmx.lora import adapter_parameters, attach
from hmx.models import model_config
from hmx.precision import DTYPES

ARCHITECTURES = PROJECT / "data" / "architectures.json"


@dataclass(frozen=True)
class Estimate:
    """Bytes by purpose, and counts of parameters."""

    parameters: int
    trainable: int
    weights: int
    """The frozen base, each tied matrix once."""
    adapter: int
    """A and B, their gradients and AdamW's two moments, all FP32."""
    kv_cache: int
    """Keys and values of the answers of one step, at their longest."""
    activations: int
    """What the training pass of one micro-batch keeps for its way back."""
    logits: int
    """One chunk of the output layer: the logits in FP32, their softmax, and their gradient."""

    @property
    def total(self) -> int:
        """Bytes at the peak. Sampling and training don't happen at the same time."""
        return self.weights + self.adapter + max(self.kv_cache, self.activations + self.logits)


def architecture(path: str) -> PreTrainedConfig:
    """The shapes of a model: its own config if it can be had, else those that the project keeps for the paper's five models."""
    try:
        return model_config(path)
    except UserError:
        known = json.loads(ARCHITECTURES.read_text(encoding="utf-8"))
        if path not in known:
            raise
        return AutoConfig.for_model(**known[path])


def estimate(config: Config, longest_prompt: int) -> Estimate:
    """What `config` will need at most, if answers become as long as they may. No weight is loaded.

    A layer's activations are counted in multiples of the residual stream, the attention heads and the gated MLP, as the tensors that autograd keeps for the
    adapted layers: inputs of each projection, what lies between A and B, normalised copies, and the gate's product.
    """
    shapes = architecture(config.model.path)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(shapes, dtype=DTYPES[config.model.precision])
        attach(model, config.lora.rank, config.lora.alpha, config.lora.targets)
    trainable = sum(parameter.numel() for parameter in adapter_parameters(model))
    base = sum(parameter.numel() for parameter in model.parameters()) - trainable
    size = DTYPES[config.model.precision].itemsize
    heads, kv_heads = shapes.num_attention_heads, getattr(shapes, "num_key_value_heads", None) or shapes.num_attention_heads
    head_dim = getattr(shapes, "head_dim", None) or shapes.hidden_size // heads

    grpo = config.grpo
    completion = config.completion_limit(longest_prompt)
    length = longest_prompt + completion
    rows = grpo.prompts_per_step * grpo.completions_per_prompt
    kv_cache = 2 * shapes.num_hidden_layers * kv_heads * head_dim * length * rows * size
    tokens = grpo.prompts_per_microbatch * grpo.completions_per_prompt * length
    per_layer = 8 * shapes.hidden_size + 4 * (heads + kv_heads) * head_dim + 5 * shapes.intermediate_size
    layers = shapes.num_hidden_layers * shapes.hidden_size + per_layer if config.train.gradient_checkpointing else shapes.num_hidden_layers * per_layer
    chunk = min(256, tokens)
    return Estimate(base + trainable, trainable, base * size, 16 * trainable, kv_cache, tokens * layers * size, 3 * 4 * chunk * shapes.vocab_size)


def gib(size: int) -> str:
    """Bytes for people.

    >>> gib(3 * 2**29), gib(5 * 2**20)
    ('1.5 GiB', '5.0 MiB')
    """
    return f"{size / 2**30:.1f} GiB" if size >= 2**29 else f"{size / 2**20:.1f} MiB"


