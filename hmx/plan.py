"""What a run will do and how much memory it will take, before any weight is loaded."""

import json
from dataclasses import dataclass

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig

from hmx.config import PROJECT, Config, resolve, to_toml
from hmx.errors import UserError
from hmx.grpo.schedule import evaluation_steps, total_steps
from hmx.lora import adapter_parameters, attach
from hmx.models import model_config
from hmx.precision import DTYPES
from hmx.questions import Questions

ARCHITECTURES = PROJECT / "data" / "architectures.json"
TYPICAL_ANSWER = 256
_LABELS = {
    "weights": "base weights",
    "adapter": "adapter, its gradients, AdamW's moments",
    "kv_cache": "keys and values while sampling",
    "activations": "activations of a training micro-batch",
    "logits": "one chunk of logits",
}


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
    """Keys and values of the answers of a step or an evaluation, at their longest."""
    activations: int
    """What the training pass of one micro-batch keeps for its way back."""
    logits: int
    """One chunk of the output layer: the logits in FP32, their softmax, and their gradient."""

    @property
    def total(self) -> int:
        """Bytes at the peak. Sampling and training don't happen at the same time."""
        return self.weights + self.adapter + max(self.kv_cache, self.activations + self.logits)


def architecture(path: str) -> PreTrainedConfig:
    """The shapes of a model: its own config if it can be had, else those that the project keeps for the paper's five
    models.
    """
    try:
        return model_config(path)
    except UserError:
        known = json.loads(ARCHITECTURES.read_text(encoding="utf-8"))
        if path not in known:
            raise
        return AutoConfig.for_model(**{key: value for key, value in known[path].items() if key != "_source"})


def estimate(config: Config, prompt: int, completion: int, evaluated: int = 0) -> Estimate:
    """What `config` needs when its prompts have `prompt` tokens, its answers `completion`, and
    an evaluation `evaluated` rows.

    A layer's activations are counted in multiples of the residual stream, the attention heads and the gated MLP, as
    what autograd keeps for the adapted layers: inputs of each projection, normalised copies, the gate's product. With
    gradient checkpointing only each layer's input is kept, and one layer's activations at a time.
    """
    shapes = architecture(config.model.path)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(shapes, dtype=DTYPES[config.model.precision])
        attach(model, config.lora.rank, config.lora.alpha, config.lora.targets)
    trainable = sum(parameter.numel() for parameter in adapter_parameters(model))
    parameters = sum(parameter.numel() for parameter in model.parameters())
    size = DTYPES[config.model.precision].itemsize

    layers, hidden, heads = shapes.num_hidden_layers, shapes.hidden_size, shapes.num_attention_heads
    kv_heads = getattr(shapes, "num_key_value_heads", None) or heads
    head_dim = getattr(shapes, "head_dim", None) or hidden // heads
    layer = 8 * hidden + 4 * (heads + kv_heads) * head_dim + 5 * shapes.intermediate_size  # numbers kept a token
    if getattr(shapes, "attn_logit_softcapping", None):  # attention written out: scores, soft-capped scores, softmax
        layer += 3 * heads * (prompt + completion)
    kept = layers * hidden + layer if config.train.gradient_checkpointing else layers * layer

    length, grpo = prompt + completion, config.grpo
    sampled = length * max(grpo.prompts_per_step * grpo.completions_per_prompt, evaluated)  # tokens
    trained = length * grpo.prompts_per_microbatch * grpo.completions_per_prompt
    return Estimate(
        parameters=parameters,
        trainable=trainable,
        weights=(parameters - trainable) * size,
        adapter=4 * 4 * trainable,
        kv_cache=2 * layers * kv_heads * head_dim * sampled * size,
        activations=kept * trained * size,
        logits=3 * 4 * min(256, trained) * shapes.vocab_size,
    )


def describe(config: Config) -> str:
    """The resolved config, the course of the training and the memory it needs, for people to read."""
    questions = Questions.load(resolve(config.data.questions))
    steps, evaluations = total_steps(config, len(questions.train)), evaluation_steps(config, len(questions.train))
    grpo = config.grpo
    texts = [question.text for question in (*questions.train, *questions.held_out)]
    longest = max(map(len, texts)) // 3 + 32  # tokens, roughly, with the template around them: no tokenizer is needed
    limit = config.completion_limit(longest)
    if limit < 1:
        raise UserError(
            "The longest question leaves no room for an answer within sampling.max_sequence_length = "
            f"{config.sampling.max_sequence_length}."
        )
    evaluated = len(questions.held_out) * config.train.completions_per_evaluation
    typical = estimate(config, longest, min(TYPICAL_ANSWER, limit), evaluated)
    most = estimate(config, longest, limit, evaluated)
    lines = [
        to_toml(config),
        f"Run         {config.run_folder}",
        f"Parameters  {typical.trainable:,} trainable (rank {config.lora.rank}) beside "
        f"{typical.parameters - typical.trainable:,} frozen ones",
        f"Steps       {steps}: {config.train.epochs} epochs of {len(questions.train)} questions, "
        f"{grpo.prompts_per_step} questions × "
        f"{grpo.completions_per_prompt} answers a step",
        f"Evaluations {len(evaluations)}, each {len(questions.held_out)} held-out questions × "
        f"{config.train.completions_per_evaluation} answers, with a checkpoint",
        "",
        f"{'Memory, estimated':42}{f'answers of {min(TYPICAL_ANSWER, limit)}':>18}{f'at the limit, {limit}':>22}",
    ]
    for name, label in _LABELS.items():
        lines.append(f"  {label:40}{gib(getattr(typical, name)):>18}{gib(getattr(most, name)):>22}")
    lines.append(f"  {'at the peak':40}{gib(typical.total):>18}{gib(most.total):>22}")
    return "\n".join(lines)


def gib(size: int) -> str:
    """Bytes for people.

    >>> gib(3 * 2**29), gib(5 * 2**20)
    ('1.5 GiB', '5.0 MiB')
    """
    return f"{size / 2**30:.1f} GiB" if size >= 2**29 else f"{size / 2**20:.1f} MiB"
