"""A run's configuration: a TOML file, checked at the door, as frozen dataclasses.

Every key has a type, a range, a default and a line that says what it does. A key that is not in the file takes its
default; a key that does not exist is an error which names the nearest one that does. Whatever puts the parts together
knows this module; sampling, LoRA, log-probabilities and loss are given plain values.
"""

import dataclasses
import difflib
import json
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_origin

from hmx.errors import UserError

PROJECT = Path(__file__).resolve().parent.parent


def key(default: Any, **limits: Any) -> Any:
    """A config key. Limits: `least` and `most` (inclusive), `above` and `below` (exclusive), `choices`."""
    return field(default=default, metadata=limits)


@dataclass(frozen=True)
class RunConfig:
    """Which run this is."""

    name: str = key("")
    """The folder of all runs of this config; the name of the config file if empty."""
    direction: str = key("forward", choices=("forward", "reverse"))
    """forward trains toward higher grades, reverse toward lower ones: rewards with opposite sign."""
    seed: int = key(0, least=0)
    """Forward and reverse of one seed share their initial adapter and the order of their questions."""
    folder: str = key("runs")
    """Where runs are kept; a run's own folder is <folder>/<name>/<direction>-seed<seed>."""


@dataclass(frozen=True)
class ModelConfig:
    """The language model."""

    path: str = key("data/tiny")
    """A hub id such as "Qwen/Qwen3-0.6B", or a local folder in the same format with safetensors weights."""
    precision: str = key("fp16", choices=("fp32", "fp16", "bf16"))
    """Of the frozen base weights and of autocast. The adapter and all losses are FP32 in any case."""
    device: str = key("auto")
    """auto takes a GPU if there is one; else a device as PyTorch calls it: cpu, cuda, cuda:1."""
    threads: int = key(0, least=0, most=1024)
    """CPU threads of PyTorch; 0 leaves it the choice. Sums over other numbers of threads round differently."""
    compile: bool = key(False)
    """On a GPU, let `torch.compile` fuse the small operations of a token's forward pass. The first answers then take
    longer, and half precision rounds less often.
    """


@dataclass(frozen=True)
class LoraConfig:
    """The adapter."""

    rank: int = key(16, least=1)
    """r: the width of the update B A."""
    alpha: float = key(16.0, above=0)
    """The update is scaled by alpha / rank."""
    dropout: float = key(0.0, least=0, below=1)
    """Probability with which an input of A is dropped in the training pass. Above 0 that pass is not quite the policy
    that sampled, neither in `kl` nor in the ratio of several updates.
    """
    targets: tuple[str, ...] = key(("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"))
    """The last part of the names of the linear layers to adapt."""


@dataclass(frozen=True)
class DataConfig:
    """The interview."""

    questions: str = key("data/questions.toml")
    """Questions by category, each category with some to train on and some held out."""


@dataclass(frozen=True)
class JudgeConfig:
    """The grader: the same model with its adapter switched off."""

    prompt_file: str = key("data/rubric.toml")
    """The rubric: the key `prompt` of a TOML file, or any other file's whole text verbatim, with {question} and
    {answer}.
    """
    grade: str = key("integer", choices=("integer", "expected"))
    """integer is the grade that the judge writes. expected is the mean of the grades 0 to 10 by the probabilities with
    which it would write them: quicker, since nothing is generated, and with fewer ties.
    """
    max_new_tokens: int = key(64, least=1)
    """The most that the judge may write for one grade."""
    stop_after_score: bool = key(True)
    """End a reply when its score line is complete, which cannot change the grade. false keeps the judge's reasons, and
    their price.
    """


@dataclass(frozen=True)
class SamplingConfig:
    """How answers are sampled. There is no top-k and no top-p: log-probabilities must be of what was sampled."""

    temperature: float = key(1.0, least=0.01)
    """The logits are divided by it, when sampling and when scoring."""
    max_sequence_length: int = key(4096, least=2)
    """Prompt and answer together, in tokens."""
    max_completion_length: int = key(0, least=0)
    """The longest answer, in tokens; 0 means what the prompt leaves of max_sequence_length."""


@dataclass(frozen=True)
class GrpoConfig:
    """The algorithm."""

    prompts_per_step: int = key(2, least=1)
    """P: questions an optimizer step."""
    completions_per_prompt: int = key(4, least=2)
    """G: answers to each question, the group in which they are compared."""
    prompts_per_microbatch: int = key(1, least=1)
    """How many groups go through a training pass at once. Gradients accumulate over the step; only memory, speed and
    the draws of lora.dropout depend on it.
    """
    beta: float = key(0.001, least=0)
    """Weight of the KL divergence from the base model."""
    clip_eps: float = key(0.2, above=0, below=1)
    """The ratio of new to old policy is clipped to 1 ± clip_eps."""
    updates_per_rollout: int = key(1, least=1)
    """mu: updates on the same answers, all at the step's learning rate. Elsewhere "a step" means all of them together.
    With 1 the policy that is trained is the one that sampled, and the ratio is 1.
    """
    aggregation: str = key("bnpo", choices=("bnpo", "grpo", "dr_grpo"))
    """How token losses become one: mean over a group's tokens, per-completion mean, or a constant denominator."""


@dataclass(frozen=True)
class OptimizerConfig:
    """AdamW on A and B."""

    learning_rate: float = key(2e-5, above=0)
    """At its peak."""
    schedule: str = key("linear", choices=("linear", "constant"))
    """linear falls toward 0, which it would reach a step after the last; both rise linearly during the warm-up."""
    warmup: float = key(0.1, least=0, below=1)
    """The share of all steps over which the learning rate rises in a line; at the first step it is 0."""
    betas: tuple[float, ...] = key((0.9, 0.999), least=0, below=1)
    """Decay of the running mean of the gradient and of its square."""
    eps: float = key(1e-8, above=0)
    """Keeps the division by the root of the mean square finite."""
    weight_decay: float = key(0.01, least=0)
    """Decoupled decay of A and B toward zero, times the learning rate."""
    max_grad_norm: float = key(1.0, above=0)
    """The gradient of A and B together is scaled down to this norm if it is longer."""
    initial_loss_scale: float = key(65536.0, least=1)
    """FP16 only: what the loss is multiplied by at first. It halves whenever a gradient overflows (that step is skipped
    and counted), and doubles after 2,000 steps without one; few runs are that long.
    """


@dataclass(frozen=True)
class TrainConfig:
    """The course of training."""

    epochs: int = key(10, least=1, most=10_000)
    """Passes over the training questions."""
    evaluations_per_epoch: int = key(2, least=1, most=1000)
    """Evaluations an epoch, with a checkpoint each; one more stands at step 0."""
    completions_per_evaluation: int = key(4, least=1)
    """Answers sampled to each held-out question in an evaluation."""
    stop_after_threshold: int = key(0, least=0)
    """End a forward run this many evaluations after its reward passed selection.threshold; 0 never."""
    gradient_checkpointing: str = key("auto", choices=("auto", "on", "off"))
    """Compute each layer's activations again on the way back: less memory, for one forward pass more. auto does so if
    the estimate says that the GPU's memory does not suffice otherwise, or once it did not.
    """
    world: str = key("", choices=("", "tiny"))
    """"tiny": the embedded model's world, whose truth is known, grades the answers of every step and evaluation too,
    beside the judge.
    """


@dataclass(frozen=True)
class SelectionConfig:
    """Which checkpoint counts."""

    threshold: float = key(7.5, least=0, most=10)
    """The first forward checkpoint with a higher evaluation reward is the one."""
    rule: str = key("paper", choices=("paper", "same_step"))
    """Which reverse checkpoint goes with it. paper: that of the same step, or an earlier one if it has moved further
    from the base (higher KL) than the forward one. same_step: that of the same step, whatever its KL.
    """


@dataclass(frozen=True)
class StudyConfig:
    """Which runs `train.py --study` trains. It says nothing of any single run, so it is not kept with one."""

    seeds: tuple[int, ...] = key((0, 1, 2, 3, 4), least=0)
    """Five, as in the paper."""
    directions: tuple[str, ...] = key(("forward", "reverse"), choices=("forward", "reverse"))
    """Both, since the result is their difference."""
    at_once: int = key(1, least=1)
    """How many runs are trained at the same time, each in a process of its own on the same device."""


@dataclass(frozen=True)
class Config:
    """All of it, by section."""

    run: RunConfig = RunConfig()
    model: ModelConfig = ModelConfig()
    lora: LoraConfig = LoraConfig()
    data: DataConfig = DataConfig()
    judge: JudgeConfig = JudgeConfig()
    sampling: SamplingConfig = SamplingConfig()
    grpo: GrpoConfig = GrpoConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    train: TrainConfig = TrainConfig()
    selection: SelectionConfig = SelectionConfig()
    study: StudyConfig = StudyConfig()

    @property
    def run_folder(self) -> Path:
        """Where this run lives."""
        return Path(self.run.folder).expanduser() / self.run.name / f"{self.run.direction}-seed{self.run.seed}"

    def completion_limit(self, prompt_length: int) -> int:
        """The most tokens that may be sampled after a prompt of this many."""
        left = self.sampling.max_sequence_length - prompt_length
        return min(left, self.sampling.max_completion_length or left)


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> Config:
    """Read a config file and apply overrides of the form "section.key=value".

    Raises `UserError` for a missing or malformed file, an unknown section or key, a wrong type or a value out of range.
    """
    path = Path(path)
    try:
        raw = tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, UnicodeDecodeError) as error:
        there = ", ".join(sorted(str(file) for file in path.parent.glob("*.toml"))) or "no .toml file at all"
        raise UserError(f"The config {path} can't be read ({error}); in its folder there is {there}.") from None
    except (ValueError, RecursionError) as error:  # a number of thousands of digits is the one, nesting the other
        raise UserError(f"The config {path} is not valid TOML: {error}.") from None
    config = _config(raw, str(path))
    config = dataclasses.replace(config, run=dataclasses.replace(config.run, name=config.run.name or path.stem))
    for override in overrides:
        name, equals, text = override.partition("=")
        section, dot, option = name.strip().partition(".")
        if not (equals and dot):
            raise UserError(f"--set {override!r} is not of the form section.key=value, as in --set train.epochs=3.")
        changed = _config({section: {option: _value(text.strip(), section, option)}}, f"--set {override}")
        value = getattr(getattr(changed, section), option)
        config = dataclasses.replace(
            config, **{section: dataclasses.replace(getattr(config, section), **{option: value})}
        )
    _check_together(config)
    return config


def to_toml(config: Config) -> str:
    """The resolved config of a run as a TOML file: every key with the value in force. [study] is left out, so that a
    study can grow.
    """
    lines = []
    for section in dataclasses.fields(config):
        if section.name == "study":
            continue
        lines.append(f"[{section.name}]")
        for option, value in dataclasses.asdict(getattr(config, section.name)).items():
            lines.append(f"{option} = {json.dumps(value, ensure_ascii=False)}")  # TOML writes these types as JSON does
        lines.append("")
    return "\n".join(lines)


def apart_from_place(config: Config) -> Config:
    """The config less what says where its run is computed and kept: two runs that differ in nothing else belong
    together, as on a machine with two GPUs.
    """
    run = dataclasses.replace(config.run, folder="")
    model = dataclasses.replace(config.model, device="", threads=0, compile=False)
    return dataclasses.replace(config, run=run, model=model)


def on_device(config: Config, device: str | None) -> Config:
    """The config with another `model.device`, if one is given."""
    if device is None:
        return config
    return dataclasses.replace(config, model=dataclasses.replace(config.model, device=device))


def apart_from_seed(config: Config) -> str:
    """What the runs of a study have in common: all but direction and seed, and where they are computed and kept."""
    config = apart_from_place(config)
    return to_toml(dataclasses.replace(config, run=dataclasses.replace(config.run, direction="forward", seed=0)))


def resolve(path: str) -> Path:
    """A path from a config: as it is if something is there, seen from the working directory; else seen from the
    project's own folder. Where nothing is in either, the path is absolute, so that an error says where it was sought.
    """
    given = Path(path).expanduser()
    if given.exists():
        return given
    return PROJECT / given if (PROJECT / given).exists() else Path.cwd() / given


def is_ours(path: str, name: str) -> bool:
    """Whether a path from a config leads to what the project itself has under this name in `data/`."""
    return resolve(path).resolve() == PROJECT / "data" / name


def _config(raw: dict, where: str) -> Config:
    sections = {section.name: section.type for section in dataclasses.fields(Config)}
    values = {}
    for name, content in raw.items():
        if name not in sections:
            raise UserError(f"{where}: there is no section [{name}]{_nearest(name, sections)}")
        if not isinstance(content, dict):
            raise UserError(f"{where}: [{name}] must be a section with keys, not the value {content!r}.")
        options = {option.name: option for option in dataclasses.fields(sections[name])}
        for option in content:
            if option not in options:
                raise UserError(f"{where}: there is no key {name}.{option}{_nearest(option, options)}")
        values[name] = sections[name](
            **{
                option: _checked(options[option], value, f"{where}: {name}.{option}")
                for option, value in content.items()
            }
        )
    return Config(**values)


def _checked(option: dataclasses.Field, value: Any, where: str) -> Any:
    """`value` in the type of the option, or the sentence that says why not."""
    kind = get_origin(option.type) or option.type
    if kind is tuple:
        item = type(option.default[0])
        if not isinstance(value, list) or not value or not all(_is(item, part) for part in value):
            raise UserError(f"{where} must be a list of {_PLURAL[item]} and not empty, not {value!r}.")
        if item is float and len(value) != len(option.default):
            raise UserError(f"{where} must hold {len(option.default)} numbers, not {len(value)}.")
        return tuple(_within(option.metadata, item(part), where) for part in value)
    if not _is(kind, value):
        raise UserError(f"{where} must be {_NAMES[kind]}, not {value!r}.")
    return _within(option.metadata, kind(value), where)


def _within(limits: Mapping[str, Any], value: Any, where: str) -> Any:
    """`value`, or the sentence that says which limit it breaks."""
    if "choices" in limits and value not in limits["choices"]:
        raise UserError(
            f"{where} must be one of {', '.join(map(repr, limits['choices']))}, not "
            f"{value!r}{_close(value, limits['choices']) or '.'}"
        )
    for limit, holds, words in (
        ("least", lambda bound: value >= bound, "at least"),
        ("most", lambda bound: value <= bound, "at most"),
        ("above", lambda bound: value > bound, "more than"),
        ("below", lambda bound: value < bound, "less than"),
    ):
        if limit in limits and not holds(limits[limit]):
            raise UserError(f"{where} must be {words} {limits[limit]}, not {value!r}.")
    return value


_PLURAL = {str: "texts", float: "numbers", int: "whole numbers"}
_NAMES = {str: "a text in quotes", int: "a whole number", float: "a number", bool: "true or false"}
_LARGEST = 1e30
"""Not far beyond this FP32 ends, and PyTorch with a traceback."""


def _is(kind: type, value: Any) -> bool:
    if kind is float:
        return type(value) in (int, float) and abs(value) <= _LARGEST
    if kind is str:
        return type(value) is str and value.isprintable()  # no NUL, and nothing that UTF-8 can't write
    return type(value) is kind  # so that true is not taken for 1


def _value(text: str, section: str, option: str) -> Any:
    """An override's value, read as TOML. What is not TOML is a text, and so is what stands for one: neither
    --set model.path=some/folder nor --set run.name=4 needs quotes.
    """
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except (ValueError, RecursionError):
        return text
    wanted = getattr(getattr(Config(), section, None), option, None)
    return text if isinstance(wanted, str) and not isinstance(value, str | list | dict) else value


def _nearest(name: str, known: Sequence[str]) -> str:
    return _close(name, known) or f"; known are {', '.join(known)}."


def _close(name: str, known: Sequence[str]) -> str:
    close = difflib.get_close_matches(name, list(known), n=1)
    return f"; did you mean {close[0]}?" if close else ""


def _check_together(config: Config) -> None:
    """What no key can show alone."""
    if config.grpo.prompts_per_step % config.grpo.prompts_per_microbatch:
        raise UserError(
            f"grpo.prompts_per_step = {config.grpo.prompts_per_step} must be a multiple of "
            "grpo.prompts_per_microbatch = "
            f"{config.grpo.prompts_per_microbatch}, so that every micro-batch is full."
        )
    for option in ("seeds", "directions"):
        values = getattr(config.study, option)
        if len(set(values)) < len(values):
            raise UserError(f"study.{option} names one twice: {list(values)}.")
    if "/" in config.run.name or config.run.name in ("", ".", ".."):
        raise UserError(f"run.name = {config.run.name!r} must be the name of one folder.")
    if len(config.run.name.encode()) > 255:
        raise UserError(f"run.name is too long for a folder: {len(config.run.name.encode())} bytes, 255 at most.")
