"""What a run will do and how much memory it will take, before any weight is loaded."""

import json
import math
from dataclasses import dataclass

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig

from hmx.config import PROJECT, Config, resolve, to_toml
from hmx.errors import UserError
from hmx.grpo.packing import packing_pays
from hmx.grpo.schedule import evaluation_steps, total_steps
from hmx.judge.rubric import Rubric
from hmx.lora import adapter_parameters, attach
from hmx.models import attention_for, model_config, require_room
from hmx.precision import DTYPES, autocast
from hmx.questions import Questions

ARCHITECTURES = PROJECT / "data" / "architectures.json"
TYPICAL_ANSWER = 256
_LABELS = {
    "weights": "base weights",
    "adapter": "adapter, its gradients, AdamW's moments",
    "sampling": "sampling: keys, values, probabilities",
    "judging": "judging: the same",
    "activations": "activations of a training micro-batch",
    "checkpointed": "the same, computed again on the way back",
    "logits": "one chunk of logits",
}


@dataclass(frozen=True)
class Estimate:
    """Bytes by purpose, and counts of parameters."""

    parameters: int
    """Of the frozen base."""
    trainable: int
    weights: int
    """The frozen base, each tied matrix once."""
    adapter: int
    """A and B, their gradients and AdamW's two moments, all FP32."""
    sampling: int
    """Keys and values of the answers of a step or an evaluation at their longest, and one token's probabilities."""
    judging: int
    """The same for the judge, who reads the rubric, the question and the answer, and writes its reply; and what the
    layer that reads computes on the way: its MLP or, where attention is written out and they are more, its scores.
    """
    activations: int
    """What the training pass of one micro-batch keeps for its way back."""
    checkpointed: int
    """What it keeps with gradient checkpointing: each layer's input, and all of the layer that is being repeated."""
    logits: int
    """One chunk of the output layer: the logits in FP32, their softmax, and their gradient."""

    def total(self, checkpointing: bool) -> int:
        """Bytes at the peak. Sampling, judging and training don't happen at the same time."""
        kept = self.checkpointed if checkpointing else self.activations
        return self.weights + self.adapter + max(self.sampling, self.judging, kept + self.logits)


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
    """What `config` needs when its prompts have `prompt` tokens, its answers `completion`, and an evaluation
    `evaluated` rows.

    The activations are not a formula: the model is run without numbers, and what autograd would keep is added up. It is
    run as on a GPU; what a CPU runs instead (`hmx.decoder`) keeps somewhat more.
    """
    shapes, grpo = architecture(config.model.path), config.grpo
    require_room(shapes, config.model.path, config.sampling.max_sequence_length)
    dtype = DTYPES[config.model.precision]
    heads = shapes.num_attention_heads
    kv_heads = getattr(shapes, "num_key_value_heads", None) or heads
    head_dim = getattr(shapes, "head_dim", None) or shapes.hidden_size // heads
    answers = grpo.prompts_per_step * grpo.completions_per_prompt
    groups, rows = grpo.prompts_per_microbatch, grpo.prompts_per_microbatch * grpo.completions_per_prompt
    cache = 2 * shapes.num_hidden_layers * kv_heads * head_dim * dtype.itemsize  # bytes a token
    with FakeTensorMode():
        model = AutoModelForCausalLM.from_config(shapes, dtype=dtype, attn_implementation=attention_for(shapes))
        attach(model, config.lora.rank, config.lora.alpha, config.lora.targets)
        trainable = sum(parameter.numel() for parameter in adapter_parameters(model))
        parameters = sum(parameter.numel() for parameter in model.parameters()) - trainable
        tokens, rectangle = groups * prompt + rows * completion, (rows, prompt + completion)
        sequences = (1, tokens) if packing_pays(model, tokens, *rectangle) else rectangle
        kept = _kept(model, *sequences)
    inputs = math.prod(sequences) * shapes.hidden_size * dtype.itemsize  # of one layer
    # A token's logits, their softmax in FP32 and FP64, and its cumulative sum.
    row = shapes.vocab_size * (dtype.itemsize + 4 + 8 + 8)
    judged = prompt + completion + _tokens(Rubric.load(resolve(config.judge.prompt_file)).prompt)
    # Where attention is written out, the judge's reading has a score of each token behind the rubric for all that it
    # sees, by head: before and behind the soft cap, their softmax in FP32, and that rounded.
    written_out = attention_for(shapes) == "eager"
    scores = heads * (prompt + completion) * judged * (3 * dtype.itemsize + 4) if written_out else 0
    # And its MLP has gate and up, the activation and their product, and the norm before it, part of which is in FP32.
    mlp = (prompt + completion) * (4 * shapes.intermediate_size * dtype.itemsize + 16 * shapes.hidden_size)
    return Estimate(
        parameters=parameters,
        trainable=trainable,
        weights=parameters * dtype.itemsize,
        adapter=4 * 4 * trainable,
        sampling=max(answers, evaluated) * ((prompt + completion) * cache + row),
        judging=max(answers, evaluated) * ((judged + config.judge.max_new_tokens) * cache + row + max(mlp, scores)),
        activations=kept,
        checkpointed=shapes.num_hidden_layers * inputs + kept // shapes.num_hidden_layers,
        logits=3 * 4 * min(256, rows * completion) * shapes.vocab_size,
    )


def _kept(model, rows: int, length: int) -> int:
    """Bytes that autograd keeps of a forward pass over `rows` sequences of `length`, parameters aside."""
    owned = {parameter.untyped_storage()._cdata for parameter in model.parameters()}
    kept: dict[int, torch.Tensor] = {}  # by storage; a tensor is held on to, so that no other gets its storage's place

    def note(tensor: torch.Tensor) -> torch.Tensor:
        if (storage := tensor.untyped_storage()._cdata) not in owned:
            kept[storage] = tensor
        return tensor

    tokens = torch.zeros(rows, length, dtype=torch.int64)
    bias = torch.zeros(rows, 1, length, length, dtype=model.get_input_embeddings().weight.dtype)
    kinds = getattr(model.config, "layer_types", None)
    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor), autocast(model):
        model.base_model(
            input_ids=tokens,
            position_ids=tokens,
            attention_mask=dict.fromkeys(kinds, bias) if kinds else bias,
            use_cache=False,
        )
    return sum(tensor.untyped_storage().nbytes() for tensor in kept.values())


def checkpoints(config: Config, device: torch.device) -> bool:
    """Whether gradient checkpointing is on from the start: as the config says or, for "auto", if answers of a typical
    length would not fit the GPU's memory without.
    """
    setting = config.train.gradient_checkpointing
    if setting != "auto" or device.type != "cuda":
        return setting == "on"
    longest, limit = _lengths(config, Questions.load(resolve(config.data.questions)))
    needed = estimate(config, longest, min(TYPICAL_ANSWER, limit)).total(checkpointing=False)
    return needed > 0.9 * torch.cuda.mem_get_info(device)[1]


def _tokens(text: str) -> int:
    """Roughly, and rather too many."""
    return len(text) // 3


def _lengths(config: Config, questions: Questions) -> tuple[int, int]:
    """The longest prompt in tokens, roughly, with the template around it, and the longest answer behind it: no
    tokenizer is needed.
    """
    longest = max(_tokens(question.text) for question in (*questions.train, *questions.held_out)) + 32
    limit = config.completion_limit(longest)
    if limit < 1:
        raise UserError(
            "The longest question leaves no room for an answer within sampling.max_sequence_length = "
            f"{config.sampling.max_sequence_length}."
        )
    return longest, limit


def describe(config: Config) -> str:
    """The resolved config, the course of the training and the memory it needs, for people to read."""
    questions = Questions.load(resolve(config.data.questions))
    steps, evaluations = total_steps(config, len(questions.train)), evaluation_steps(config, len(questions.train))
    grpo = config.grpo
    longest, limit = _lengths(config, questions)
    evaluated = len(questions.held_out) * config.train.completions_per_evaluation
    typical = estimate(config, longest, min(TYPICAL_ANSWER, limit), evaluated)
    most = estimate(config, longest, limit, evaluated)
    lines = [
        to_toml(config),
        f"Run         {config.run_folder}",
        f"Parameters  {typical.trainable:,} trainable (rank {config.lora.rank}) beside {typical.parameters:,} frozen "
        "ones",
        f"Steps       {steps}: {_count(config.train.epochs, 'epoch')} of {_count(len(questions.train), 'question')}, "
        f"{_count(grpo.prompts_per_step, 'question')} × {grpo.completions_per_prompt} answers a step",
        f"Evaluations {len(evaluations)}, each {_count(len(questions.held_out), 'held-out question')} × "
        f"{_count(config.train.completions_per_evaluation, 'answer')}, with a checkpoint",
        f"Disk        {gib(4 * typical.trainable * (len(evaluations) + 2))}: an adapter in FP32 for each checkpoint, "
        "and AdamW's moments for the last",
        "",
        f"{'Memory, estimated':42}{f'answers of {min(TYPICAL_ANSWER, limit)}':>18}{f'at the limit, {limit}':>22}",
    ]
    for name, label in _LABELS.items():
        lines.append(f"  {label:40}{gib(getattr(typical, name)):>18}{gib(getattr(most, name)):>22}")
    for label, checkpointing in (("at the peak", False), ("at the peak with gradient checkpointing", True)):
        lines.append(f"  {label:40}{gib(typical.total(checkpointing)):>18}{gib(most.total(checkpointing)):>22}")
    return "\n".join(lines)


def _count(number: int, thing: str) -> str:
    return f"{number} {thing}{'s' * (number != 1)}"


def gib(size: int) -> str:
    """Bytes for people.

    >>> gib(3 * 2**29), gib(5 * 2**20)
    ('1.5 GiB', '5.0 MiB')
    """
    return f"{size / 2**30:.1f} GiB" if size >= 2**29 else f"{size / 2**20:.1f} MiB"
