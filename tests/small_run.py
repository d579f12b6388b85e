"""A whole training run in a second: a random model on disk, three questions, and a judge whose grades are known."""

from pathlib import Path

import torch

from hmx.config import Config, load_config
from hmx.judge import Verdict
from tests.models import build


class LengthJudge:
    """Grades an answer by its length, so that rewards differ and never depend on the model."""

    embedded = False

    def __init__(self, *arguments):
        pass

    @classmethod
    def of(cls, *arguments):
        return cls()

    def grade(self, questions, answers, generator=None):
        return [Verdict(len(answer) % 11, f"Score: {len(answer) % 11}") for answer in answers]


def save_model(folder: Path, family: str = "qwen3") -> Path:
    """A tiny random model of the family as a folder that transformers can load."""
    made = build(family)
    # One ordinary token in eight ends a turn too, so that answers differ in length.
    made.model.generation_config.eos_token_id = [made.end_id, *range(8, len(made.tokenizer), 8)]
    made.model.save_pretrained(folder)
    made.tokenizer.save_pretrained(folder)
    return folder


def small_config(folder: Path, *overrides: str, family: str = "qwen3") -> Config:
    """A config for a run of 6 steps and 5 evaluations that lives wholly in `folder`."""
    if not (folder / "model").exists():
        save_model(folder / "model", family)
    (folder / "questions.toml").write_text(
        '[[category]]\nname = "a"\ntrain = ["Who are you?", "Do you feel anything?", "Why?"]\n'
        'held_out = ["Are you there?"]\n'
    )
    (folder / "small.toml").write_text(f"""
[run]
folder = "{folder}/runs"
[model]
path = "{folder}/model"
precision = "fp32"
device = "cpu"
[lora]
rank = 2
[data]
questions = "{folder}/questions.toml"
[judge]
max_new_tokens = 4
[sampling]
max_sequence_length = 400
max_completion_length = 8
[optimizer]
learning_rate = 1e-2
warmup = 0
[train]
epochs = 4
evaluations_per_epoch = 1
""")
    return load_config(folder / "small.toml", overrides)


def without_times(records: list[dict]) -> list[dict]:
    """Metrics less what the clock says."""
    return [
        {key: value for key, value in record.items() if "seconds" not in key and "second" not in key}
        for record in records
    ]


def adapter_tensors(model) -> list[torch.Tensor]:
    """Copies of every A and B."""
    from hmx.lora import adapter_parameters

    return [parameter.detach().clone() for parameter in adapter_parameters(model)]
