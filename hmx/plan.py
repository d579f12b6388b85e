"""What a run will do and how much memory it will take, before any weight is loaded."""

import copy
import json
import re
from collections.abc import Iterable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig

from hmx.config import PROJECT, Config, resolve, to_toml
from hmx.errors import UserError
from hmx.grpo.logprobs import CHUNK, chosen_logprobs
from hmx.grpo.packing import packing_pays
from hmx.grpo.schedule import evaluation_steps, total_steps
from hmx.judge.rubric import Rubric
from hmx.lora import adapter_parameters, attach
from hmx.memory import keep_less
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
    "training": "training pass of a micro-batch",
    "checkpointed": "the same with gradient checkpointing",
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
    layer that reads computes on the way: its mask, and its MLP or, where attention is written out and they are more,
    its scores.
    """
    training: int
    """The most that the training pass of one micro-batch has at once: activations, logits, gradients of both."""
    checkpointed: int
    """The same with gradient checkpointing."""

    def total(self, checkpointing: bool) -> int:
        """Bytes at the peak. Sampling, judging and training don't happen at the same time."""
        training = self.checkpointed if checkpointing else self.training
        return self.weights + self.adapter + max(self.sampling, self.judging, training)


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

    For the training pass there is no formula: it is run without numbers, and what is alive is added up. It is run as on
    a GPU; what a CPU runs instead (`hmx.decoder`) keeps more.
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
        model = _model(config, shapes)
        trainable = sum(parameter.numel() for parameter in adapter_parameters(model))
        parameters = sum(parameter.numel() for parameter in model.parameters()) - trainable
        tokens, rectangle = groups * prompt + rows * completion, (rows, prompt + completion)
        sequences = (1, tokens) if packing_pays(model, tokens, *rectangle) else rectangle
    # A token's logits, the same in FP32, their softmax, and that in FP64, which is summed up in its place.
    row = shapes.vocab_size * (dtype.itemsize + 4 + 4 + 8)
    # The judge's prompt: what all have in common is read once, the rest with each answer, which must fit beside it.
    rubric = Rubric.load(resolve(config.judge.prompt_file)).prompt
    before, rest = re.split(r"\{question\}|\{answer\}", rubric, maxsplit=1)
    read = prompt + completion + _tokens(rest)
    judged = read + _tokens(before)
    # Its attention has a mask in numbers and in bits. Where it is written out, each head has, for each token that is
    # read, the scores of all, before and behind the soft cap and in FP32, their softmax, and the values repeated.
    mask = read * judged * (dtype.itemsize + 1)
    written_out = attention_for(shapes) == "eager"
    scores = heads * judged * (read * (2 * dtype.itemsize + 8) + head_dim * dtype.itemsize) if written_out else 0
    # And its MLP has gate and up, the activation and their product, and the norm before it, part of which is in FP32.
    mlp = read * (4 * shapes.intermediate_size * dtype.itemsize + 16 * shapes.hidden_size)
    reading = mask + max(mlp, scores)
    return Estimate(
        parameters=parameters,
        trainable=trainable,
        weights=parameters * dtype.itemsize,
        adapter=4 * 4 * trainable,
        sampling=max(answers, evaluated) * ((prompt + completion) * cache + row),
        judging=max(answers, evaluated) * ((judged + config.judge.max_new_tokens) * cache + row + reading),
        training=_training_pass(config, shapes, *sequences, rows * completion, checkpointing=False),
        checkpointed=_training_pass(config, shapes, *sequences, rows * completion, checkpointing=True),
    )


class Alive(TorchDispatchMode):
    """Within it, the bytes of tensors that were made in it and are alive are counted.

    Args:
        before: tensors that were there before, whose memory is not counted however it is looked at.
    """

    def __init__(self, before: Iterable[torch.Tensor] = ()):
        super().__init__()
        self.peak = 0
        """The most that there was at once."""
        self._before = {tensor.untyped_storage()._cdata for tensor in before}
        self._alive: dict[int, tuple[StorageWeakRef, int]] = {}  # a reference keeps others from getting its place
        self._bytes = 0  # of these, some of which may have gone since

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        result = operation(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor):
                self._note(tensor.untyped_storage())
        if self._bytes > self.peak:
            for place in [place for place, (reference, _) in self._alive.items() if reference.expired()]:
                self._bytes -= self._alive.pop(place)[1]
            self.peak = max(self.peak, self._bytes)
        return result

    def _note(self, storage: torch.UntypedStorage) -> None:
        if storage._cdata not in self._before and storage._cdata not in self._alive:
            self._alive[storage._cdata] = StorageWeakRef(storage), storage.nbytes()
            self._bytes += storage.nbytes()


def _model(config: Config, shapes: PreTrainedConfig):
    model = AutoModelForCausalLM.from_config(
        shapes, dtype=DTYPES[config.model.precision], attn_implementation=attention_for(shapes)
    )
    attach(model, config.lora.rank, config.lora.alpha, config.lora.targets, config.lora.dropout)
    return model


def _training_pass(
    config: Config, shapes: PreTrainedConfig, rows: int, length: int, asked: int, checkpointing: bool
) -> int:
    """Bytes at the peak of a training pass over `rows` sequences of `length`, of which `asked` tokens are in the loss;
    parameters and their gradients aside.

    Each layer adds the same, so what one and two have tells what all have.
    """
    one, two = (_peak(config, _cut(shapes, layers), rows, length, asked, checkpointing) for layers in (1, 2))
    return one + (two - one) * (shapes.num_hidden_layers - 1)


def _cut(shapes: PreTrainedConfig, layers: int) -> PreTrainedConfig:
    """The first layers of a model."""
    cut = copy.deepcopy(shapes)
    cut.num_hidden_layers = layers
    if getattr(shapes, "layer_types", None):
        cut.layer_types = shapes.layer_types[:layers]
    return cut


def _peak(config: Config, shapes: PreTrainedConfig, rows: int, length: int, asked: int, checkpointing: bool) -> int:
    with FakeTensorMode():
        model = _model(config, shapes).train()
        if checkpointing:
            keep_less(model)
        adapter = adapter_parameters(model)
        for parameter in adapter:
            parameter.grad = torch.zeros_like(parameter)
        tokens, places = torch.zeros(rows, length, dtype=torch.int64), torch.zeros(asked, dtype=torch.int64)
        kinds = getattr(shapes, "layer_types", None)
        with Alive([*model.parameters(), *(parameter.grad for parameter in adapter)]) as alive, autocast(model):
            bias = torch.zeros(rows, 1, length, length, dtype=DTYPES[config.model.precision])
            hidden = model.base_model(
                input_ids=tokens,
                position_ids=tokens,
                attention_mask=dict.fromkeys(kinds, bias) if kinds else bias,
                use_cache=False,
            ).last_hidden_state
            predicting = F.embedding(places, hidden.flatten(0, 1))  # [asked, hidden]
            some = slice(0, 2 * CHUNK)  # the others' logits come and go one chunk at a time as these do
            chosen_logprobs(model, predicting[some], places[some], config.sampling.temperature).sum().backward()
    return alive.peak


def needs_gradient_checkpointing(config: Config, device: torch.device) -> bool:
    """Whether it is on from the start: as the config says or, for "auto", if training on answers of a typical length
    would not fit the GPU's memory without.
    """
    setting = config.train.gradient_checkpointing
    if setting != "auto" or device.type != "cuda":
        return setting == "on"
    longest, limit = _lengths(config, Questions.load(resolve(config.data.questions)))
    found = estimate(config, longest, min(TYPICAL_ANSWER, limit))
    needed = found.weights + found.adapter + found.training  # it makes neither sampling nor judging any smaller
    return needed > 0.9 * torch.cuda.mem_get_info(device)[1]


def _tokens(text: str) -> int:
    """Roughly, and rather too many: three letters a token, or one sign of a script like Chinese."""
    return len(text.encode()) // 3


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
    lines.append("\nOn a GPU that has less, answers, gradings and micro-batches are divided until they fit.")
    return "\n".join(lines)


def _count(number: int, thing: str) -> str:
    return f"{number} {thing}{'s' * (number != 1)}"


def gib(size: int) -> str:
    """Bytes for people.

    >>> gib(3 * 2**29), gib(5 * 2**20)
    ('1.5 GiB', '5.0 MiB')
    """
    return f"{size / 2**30:.1f} GiB" if size >= 2**29 else f"{size / 2**20:.1f} MiB"
