"""What a benchmark gave for a checkpoint: one small JSON file each, written once, never computed twice."""

import functools
import hashlib
import json
import platform
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from math import isfinite
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from hmx.config import ModelConfig
from hmx.errors import UserError
from hmx.evaluation.benchmark import Benchmark, Outcome, Subject
from hmx.files import write_text
from hmx.runs import Run

FORMAT = 1
_PACKAGES = ("torch", "transformers", "lm_eval")


@dataclass(frozen=True)
class Checkpoint:
    """A model that benchmarks are put to: the base with the adapter of a run's checkpoint, or the base alone."""

    folder: Path
    """Where its results go."""
    title: str
    adapter: Path | None
    """The adapter's folder; None for the untouched base."""
    base: str | None
    """The base model's fingerprint; None if the model can't be had here."""
    seed: int | None = None
    direction: str = "base"

    @classmethod
    def of(cls, run: Run, step: int, base: str | None) -> "Checkpoint":
        """The checkpoint of `run` after `step` steps."""
        config = run.config.run
        title = f"{config.name} {config.direction} seed {config.seed}, step {step}"
        place = run.folder / "results" / f"step-{step}"
        return cls(place, title, run.checkpoint(step), base, config.seed, config.direction)

    @functools.cached_property
    def fingerprint(self) -> str | None:
        """SHA-256 of the adapter's weights, None for the base. A `UserError` if there are none, or they are damaged."""
        if self.adapter is None:
            return None
        path = self.adapter / "adapter_model.safetensors"
        try:
            with open(path, "rb") as file, safe_open(path, framework="pt"):
                return hashlib.file_digest(file, "sha256").hexdigest()
        except PermissionError as error:
            raise UserError(f"The checkpoint {self.adapter} can't be read ({error.strerror}).") from None
        except (OSError, SafetensorError) as error:
            reason = getattr(error, "strerror", None) or error
            raise UserError(
                f"The checkpoint {self.adapter} can't be read ({reason}); its run has to be trained anew."
            ) from None


@dataclass(frozen=True)
class Result:
    """One benchmark's outcome for one checkpoint, with what one must know to trust it."""

    benchmark: str
    metrics: dict[str, float]
    rows: int
    details: dict[str, Any]
    limit: int | None
    """How many questions of each task were taken at most; None for all, the full benchmark."""
    model: str
    settings: dict[str, Any]
    """What else a number may depend on: precision, device, the longest sequence, compiled steps."""
    base: str | None
    """The base model's fingerprint."""
    adapter: str | None
    """SHA-256 of the adapter's weights; None for the base."""
    questions: str
    """SHA-256 of the benchmark's questions, if they come from a file; else empty."""
    seconds: float
    versions: dict[str, str]
    format: int = FORMAT

    @classmethod
    def of(
        cls,
        benchmark: Benchmark,
        checkpoint: Checkpoint,
        outcome: Outcome,
        limit: int | None,
        subject: Subject,
        model: ModelConfig,
        seconds: float,
    ) -> "Result":
        """The result of an outcome that has just been reached, on this machine."""
        device = subject.model.device
        settings = {
            "precision": model.precision,
            "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
            "max_length": subject.max_length,
            **({"compile": True} if model.compile else {}),
        }
        versions = {"python": platform.python_version(), **{package: _version(package) for package in _PACKAGES}}
        return cls(
            benchmark=benchmark.name,
            metrics=outcome.metrics,
            rows=outcome.rows,
            details=outcome.details,
            limit=limit,
            model=model.path,
            settings=settings,
            base=checkpoint.base,
            adapter=checkpoint.fingerprint,
            questions=benchmark.questions(),
            seconds=round(seconds, 1),
            versions=versions,
        )


def write_result(checkpoint: Checkpoint, result: Result) -> None:
    """Put the result where `read_result` finds it."""
    checkpoint.folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps(asdict(result), indent=1, ensure_ascii=False) + "\n"
    write_text(_path(checkpoint, result.benchmark, result.limit), text)


def read_result(checkpoint: Checkpoint, benchmark: Benchmark, limit: int | None) -> Result | None:
    """The result, None if there is none yet. A `UserError` if there is one that can't be used."""
    path = _path(checkpoint, benchmark.name, limit)
    if not path.exists():
        return None
    wanted = {metric.key for metric in benchmark.metrics}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        found = content.get("format")
        result = Result(**content) if found == FORMAT else None
        usable = result is None or (
            wanted <= result.metrics.keys()
            and all(isfinite(value) for value in result.metrics.values())
            and isinstance(result.versions, dict)
            and isinstance(result.settings, dict)
            and isinstance(result.details, dict)
        )
    except (OSError, ValueError, TypeError, AttributeError, OverflowError, RecursionError):
        usable, result, found = False, None, None
    if not usable:
        raise UserError(f"{path} is no readable result; delete it, and it is computed again.")
    if result is None:
        raise UserError(
            f"{path} was written by another version of this project (format {found}, here {FORMAT}); delete it, and it "
            "is computed again."
        )
    questions, asked = benchmark.questions(), result.questions or _file(result)
    for what, found, now in (
        ("benchmark or limit", (result.benchmark, result.limit), (benchmark.name, limit)),
        ("adapter", result.adapter, checkpoint.fingerprint),
        ("base model", result.base, checkpoint.base or result.base),
        ("set of questions", asked or questions, questions or asked),  # what is not here now is no other
    ):
        if found != now:
            raise UserError(f"{path} belongs to another {what} than there is now; delete it, and it is computed again.")
    return result


def _file(result: Result) -> str:
    """What an earlier version of this project noted of questions that came from the hub."""
    file = result.details.get("file")
    return str(file.get("sha256", "")) if isinstance(file, dict) else ""


def _path(checkpoint: Checkpoint, benchmark: str, limit: int | None) -> Path:
    return checkpoint.folder / f"{benchmark}{'' if limit is None else f'.first-{limit}'}.json"


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "none"
