"""What a step or an evaluation leaves behind: its metrics and its samples. docs/metrics.md explains every number."""

import math
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from hmx.grpo.kl import masked_mean
from hmx.grpo.optimizer import Update
from hmx.grpo.rollout import Rollout
from hmx.judge import Verdict


@dataclass(frozen=True)
class Record:
    """One line of metrics.jsonl and the lines of samples.jsonl that belong to it."""

    metrics: dict[str, Any]
    samples: list[dict[str, Any]]


class Examined(Protocol):
    """What a world whose truth is known says of an answer."""

    grade: float
    sentences: int
    garbled: int


Examine = Callable[[str], Examined]


@dataclass(frozen=True)
class Graded:
    """Answers with their grades."""

    rollout: Rollout
    verdicts: Sequence[Verdict]
    grades: torch.Tensor
    """[P, G] float64; meaningless where not valid."""
    valid: torch.Tensor
    """[P, G] bool: the judge's reply was readable."""

    @classmethod
    def of(cls, rollout: Rollout, verdicts: Sequence[Verdict], group_size: int) -> "Graded":
        """Put the verdicts of B = P · group_size rows in groups."""
        grades = torch.tensor([float(verdict.grade or 0) for verdict in verdicts], dtype=torch.float64)
        valid = torch.tensor([verdict.grade is not None for verdict in verdicts]).view(-1, group_size)
        return cls(rollout, verdicts, grades.view(-1, group_size), valid)

    @property
    def mean(self) -> float | None:
        """Of all valid grades; None if there is none."""
        return float(masked_mean(self.grades, self.valid)) if self.valid.any() else None

    @property
    def mean_group_std(self) -> float:
        """Mean over groups of the standard deviation (ddof = 1) of their valid grades; 0 for fewer than two."""
        groups = [row[keep] for row, keep in zip(self.grades, self.valid, strict=True)]
        return sum(float(group.std()) if len(group) > 1 else 0.0 for group in groups) / len(groups)


@dataclass(frozen=True)
class Trained:
    """What training on one rollout did."""

    loss: float
    """Of the whole step, at the last update."""
    clip_fraction: float
    """Share of tokens whose policy gradient the clip takes away, at the last update."""
    token_kl: torch.Tensor
    """[B, T]: k3 of each sampled token before the first update."""
    updates: list[Update]
    """All `updates_per_rollout` of them."""


def step_record(n: int, graded: Graded, advantages: torch.Tensor, trained: Trained, examine: Examine | None) -> Record:
    """The record of optimizer step n, less what the trainer adds: epoch, learning rate and seconds."""
    completions, update = graded.rollout.completions, trained.updates[-1]
    metrics = {
        "kind": "step",
        "step": n,
        "reward_mean": graded.mean,
        "reward_std": graded.mean_group_std,
        "zero_std_groups": int((advantages == 0).all(dim=1).sum()),
        "judge_invalid": int((~graded.valid).sum()),
        "judge_retried": sum(verdict.retried for verdict in graded.verdicts),
        "kl": float(masked_mean(trained.token_kl, completions.mask, dim=1).mean()),
        "kl_tokens": float(masked_mean(trained.token_kl, completions.mask)),
        "loss": trained.loss,
        "clip_fraction": trained.clip_fraction,
        "grad_norm": update.grad_norm if math.isfinite(update.grad_norm) else None,
        "loss_scale": update.loss_scale,
        "skipped": sum(one.skipped for one in trained.updates),
        "completion_tokens": float(completions.mask.sum(dim=1).float().mean()),
        "truncated": int(completions.truncated.sum()),
    }
    return _record(metrics, graded, examine, prefix="")


def evaluation_record(n: int, graded: Graded, token_kl: torch.Tensor, examine: Examine | None) -> Record:
    """The record of the evaluation after n steps, less epoch and seconds."""
    completions, answers = graded.rollout.completions, graded.rollout.answers
    metrics = {
        "kind": "eval",
        "step": n,
        "eval_reward": graded.mean,
        "eval_kl": float(masked_mean(token_kl, completions.mask, dim=1).mean()),
        "eval_kl_tokens": float(masked_mean(token_kl, completions.mask)),
        "eval_judge_invalid": int((~graded.valid).sum()),
        "eval_completion_tokens": float(completions.mask.sum(dim=1).float().mean()),
        "eval_truncated": int(completions.truncated.sum()),
        "eval_distinct": len(set(answers)) / len(answers),
        "eval_repetition": repetition(answers),
    }
    return _record(metrics, graded, examine, prefix="eval_")


def repetition(answers: Sequence[str]) -> float:
    """Share of word triples that stood in the same answer before: 0 for text that never repeats itself.

    >>> repetition(["I feel it and I feel it"])
    0.2
    """
    counts = [Counter(zip(words, words[1:], words[2:], strict=False)) for words in map(str.split, answers)]
    triples = sum(map(Counter.total, counts))
    return round(1 - sum(map(len, counts)) / triples, 6) if triples else 0.0


class Clock:
    """Seconds since the start, by named laps."""

    def __init__(self) -> None:
        self._started = self._last = time.perf_counter()
        self._laps: dict[str, float] = {}

    def lap(self, name: str) -> None:
        """The time since the last lap goes under `name`."""
        now = time.perf_counter()
        self._laps[name], self._last = round(now - self._last, 4), now

    def seconds(self) -> dict[str, float]:
        """The whole time, then the laps."""
        laps = {f"seconds_{name}": seconds for name, seconds in self._laps.items()}
        return {"seconds": round(time.perf_counter() - self._started, 4), **laps}


def _record(metrics: dict[str, Any], graded: Graded, examine: Examine | None, prefix: str) -> Record:
    """The metrics with their samples and, where a world's truth is known, what it says of them: the mean true grade and
    the share of garbled sentences under `prefix`.
    """
    same = {key: metrics[key] for key in ("kind", "step")}
    rows = zip(graded.rollout.questions, graded.rollout.answers, graded.verdicts, strict=True)
    samples = [
        {**same, "question": question, "answer": answer, "grade": verdict.grade, "judge": verdict.text}
        for question, answer, verdict in rows
    ]
    if examine is not None:
        examined = [examine(answer) for answer in graded.rollout.answers]
        garbled = sum(one.garbled for one in examined) / max(sum(one.sentences for one in examined), 1)
        truth = sum(one.grade for one in examined) / len(examined)
        metrics = {**metrics, f"{prefix}truth": truth, f"{prefix}garbled": garbled}
        samples = [{**sample, "truth": one.grade} for sample, one in zip(samples, examined, strict=True)]
    return Record(metrics, samples)
