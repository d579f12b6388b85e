"""A run's folder: its config, its metrics, its checkpoints, and how it goes on after an interruption.

    runs/<config name>/<direction>-seed<k>/
        config.toml               the resolved config
        rubric.*, questions.*     copies of what the run read
        run.json                  status, versions, hashes of the initial adapter and of what the run reads
        metrics.jsonl             one object a line, "kind": "step" or "eval"
        samples.jsonl             every answer with its grade
        checkpoints/step-<n>/     the adapter in PEFT's format and the training state after n steps

Nothing is ever half-written: files are replaced as a whole and a checkpoint appears when it is complete. Only the two
.jsonl files grow: a last line that was cut off counts as not written, and lines behind the checkpoint from which a run
goes on are taken back.
"""

import fcntl
import json
import math
import os
import platform
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from hmx.config import Config, apart_from_place, apart_from_seed, load_config, to_toml
from hmx.errors import UserError
from hmx.files import write_safetensors, write_text, write_through
from hmx.lora import load_adapter, save_adapter

_STATE = "training_state.safetensors"


BASE = {"base": "weights", "form": "config, tokenizer or chat template"}
"""What a run notes of its base model, and the words for it."""


class Busy(UserError):
    """The run is being trained by another process."""


class Run:
    """One run's folder, whether it exists yet or not."""

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)

    @property
    def exists(self) -> bool:
        """Whether a run was ever started here."""
        return (self.folder / "config.toml").exists()

    def require_startable(self, config: Config, resume: bool) -> None:
        """Raise `UserError` if the folder holds another config's run, or any run while `resume` is false; `Busy` if
        that run is being trained right now.
        """
        if not self.exists:
            if any((self.folder / name).exists() for name in ("run.json", "metrics.jsonl", "checkpoints")):
                raise UserError(
                    f"{self.folder} holds a run without the config.toml that it was started with; put that file back, "
                    "or delete the folder."
                )
            return
        ours, theirs = (to_toml(apart_from_place(one)).splitlines() for one in (config, self.config))
        if ours != theirs:
            mine, other = next((a, b) for a, b in zip(ours, theirs, strict=True) if a != b)
            raise UserError(
                f"The run folder {self.folder} belongs to another config (there {other}, here {mine}); "
                "choose another --set run.name=…, or delete the folder."
            )
        with self.locked():
            pass
        if not resume:
            interrupted = f"was interrupted after step {self.latest_step()}; add --resume to go on with it,"
            raise UserError(
                f"The run {self.folder} {'is finished already;' if self.finished else interrupted} choose another "
                "--seed or --set run.name=…, or delete the folder."
            )

    def start(self, config: Config) -> None:
        """Make the folder, with its config, unless it is there."""
        if not self.exists:
            try:
                self.folder.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise UserError(f"The run's folder {self.folder} can't be made ({error}); see run.folder.") from None
            with self.locked():
                if not self.exists:  # by somebody who was quicker
                    write_text(self.folder / "config.toml", to_toml(config))
                    self.note(started=datetime.now(UTC).isoformat(timespec="seconds"), versions=_versions())

    def kept(self, what: str, path: Path) -> Path:
        """Where the run keeps its copy of a file that it read, of the rubric or the questions."""
        return self.folder / f"{what}{path.suffix}"

    @property
    def config(self) -> Config:
        """The resolved config that the run was started with."""
        return load_config(self.folder / "config.toml")

    @property
    def info(self) -> dict[str, Any]:
        """The contents of run.json; nothing if it can't be read."""
        try:
            content = json.loads((self.folder / "run.json").read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError):
            return {}
        return content if isinstance(content, dict) else {}

    @property
    def finished(self) -> bool:
        """Whether training reached its end."""
        return self.info.get("status") == "finished"

    def note(self, **facts: Any) -> None:
        """Put facts into run.json."""
        write_text(self.folder / "run.json", json.dumps({**self.info, **facts}, indent=2) + "\n")

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Within this context no other process can train this run; `Busy` if one is at it already."""
        try:
            lock = open(self.folder / ".lock", "w")
        except OSError as error:
            raise UserError(f"Nothing can be written to the run's folder {self.folder} ({error.strerror}).") from None
        with lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise Busy(f"The run {self.folder} is being trained by another process right now.") from None
            except OSError as error:  # some file systems of clusters have none
                raise UserError(
                    f"The file system of {self.folder} gives no locks ({error.strerror}), so nothing would keep two "
                    "processes from training one run; set run.folder to a folder on another."
                ) from None
            yield

    @property
    def busy(self) -> bool:
        """Whether a process is training this run right now."""
        if not self.exists:
            return False
        try:
            with self.locked():
                return False
        except Busy:
            return True

    # Metrics and samples

    def append(self, file: str, records: list[dict[str, Any]]) -> None:
        """Add lines to metrics.jsonl or samples.jsonl."""
        with open(self.folder / file, "a", encoding="utf-8") as lines:
            lines.writelines(_line(record) for record in records)

    def records(self, file: str = "metrics.jsonl", kind: str | None = None) -> list[dict[str, Any]]:
        """The lines of metrics.jsonl or samples.jsonl, or those of one kind. A last line that was cut off by a crash
        counts as not written; a `UserError` tells of any other that can't be read.
        """
        path = self.folder / file
        found = []
        lines = path.read_bytes().split(b"\n") if path.exists() else []
        for number, line in enumerate(lines, 1):
            try:
                record = json.loads(line)
                if not _is_record(record, file):
                    raise ValueError
            except (ValueError, RecursionError):
                if number == len(lines):
                    break  # what follows the last line end: nothing, or a line that was cut off
                raise UserError(
                    f"{path} is damaged in line {number}; the run can't be used unless the file is restored."
                ) from None
            found.append(record)
        return [record for record in found if kind is None or record["kind"] == kind]

    def require_recorded(self, step: int, evaluations: list[int]) -> None:
        """Raise `UserError` if a line is missing of what a run has recorded by its checkpoint after `step` steps;
        `evaluations` are the steps after which it is evaluated.
        """
        due = {("step", n) for n in range(1, step + 1)} | {("eval", n) for n in evaluations if n < step}
        for file in ("metrics.jsonl", "samples.jsonl"):
            missing = due - {(record["kind"], record["step"]) for record in self.records(file)}
            if missing:
                raise UserError(
                    f"{self.folder / file} lacks what was recorded at step {min(n for _, n in missing)}; the run can't "
                    "go on unless the file is restored."
                )

    def take_back_after(self, step: int) -> None:
        """Drop what was recorded after `step`, since it will happen again."""
        done = {(record["kind"], record["step"]) for record in self.records()}
        for file in ("metrics.jsonl", "samples.jsonl"):
            records = [record for record in self.records(file) if record["step"] <= step]
            kept = [record for record in records if (record["kind"], record["step"]) in done]
            write_text(self.folder / file, "".join(map(_line, kept)))

    # Checkpoints

    def checkpoint(self, step: int) -> Path:
        """The folder of the checkpoint after `step` steps, whether it exists or not."""
        return self.folder / "checkpoints" / f"step-{step}"

    def steps(self) -> list[int]:
        """The steps that have a checkpoint, in order."""
        names = (path.name.removeprefix("step-") for path in (self.folder / "checkpoints").glob("step-*"))
        return sorted(int(name) for name in names if name.isdecimal())

    def latest_step(self) -> int:
        """The step of the newest checkpoint, 0 if there is none."""
        return max(self.steps(), default=0)

    def save(self, step: int, model, base_model: str, state: tuple[dict[str, torch.Tensor], dict[str, float]]) -> None:
        """Write the checkpoint after `step` steps: the adapter, and the optimizer's state beside it. One that is there
        already, from before an interruption, is the same and stays.
        """
        target = self.checkpoint(step)
        if target.exists():
            return
        tensors, numbers = state
        temporary = target.with_name(f".{target.name}.tmp")  # whoever trains this run holds its lock
        try:
            shutil.rmtree(temporary, ignore_errors=True)  # left by a process that was killed
            save_adapter(model, temporary, base_model)
            write_safetensors(temporary / _STATE, tensors, {"numbers": json.dumps(numbers)})
            # Without their lines so far nobody could go on from the checkpoint.
            for file in filter(Path.exists, (self.folder / "metrics.jsonl", self.folder / "samples.jsonl")):
                write_through(file)
            os.replace(temporary, target)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
        for step_before in self.steps():  # the adapter of each checkpoint is kept, the state only where a run can go on
            if step_before != step:
                (self.checkpoint(step_before) / _STATE).unlink(missing_ok=True)

    def load(self, step: int, model, load_state: Callable[[dict[str, torch.Tensor], dict[str, float]], None]) -> None:
        """Put the checkpoint after `step` steps into the model's adapter and hand the optimizer's state to
        `load_state`.
        """
        load_adapter(model, self.checkpoint(step))
        path = self.checkpoint(step) / _STATE
        try:
            with safe_open(path, framework="pt") as file:
                load_state(
                    {name: file.get_tensor(name) for name in file.keys()}, json.loads(file.metadata()["numbers"])
                )
        except (OSError, KeyError, TypeError, ValueError, SafetensorError) as error:
            raise UserError(
                f"The training state {path} can't be read ({error}); delete the run's folder to train it anew."
            ) from None


def runs_of_study(config: Config) -> list[Run]:
    """The runs in this config's folder that differ from it in direction and seed alone, its own included; those that
    were begun.
    """
    found = []
    for path in sorted(config.run_folder.parent.glob("*-seed*/config.toml")):
        run = Run(path.parent)
        with suppress(UserError):  # it is that run's trouble
            if apart_from_seed(run.config) == apart_from_seed(config):
                found.append(run)
    return found


def changed(now: Mapping[str, Any], noted: Mapping[str, Any]) -> str | None:
    """Which of the files that a run reads is another in one note than in the other: a key of `BASE`, "rubric" or
    "questions". None if no difference is known: what can't be read here, or was not noted by an earlier version of this
    project, counts as unchanged.
    """
    hashes = ((key, now.get(key), noted.get(key)) for key in (*BASE, "rubric", "questions"))
    return next((key for key, one, other in hashes if None not in (one, other) and one != other), None)


def _is_record(record: Any, file: str) -> bool:
    """Whether a line of `file` holds what those who read it count on."""

    def number(key: str) -> bool:
        return type(record.get(key, 0.0)) in (int, float, type(None))

    if (
        not isinstance(record, dict)
        or record.get("kind") not in ("step", "eval")
        or type(record.get("step")) is not int
    ):
        return False
    if not all(map(number, ("epoch", "grade", "eval_reward", "eval_kl", "eval_truth", "seconds"))):
        return False
    if file == "samples.jsonl":
        return all(isinstance(record.get(key), str) for key in ("question", "answer"))
    return record["kind"] == "step" or (record.get("epoch") is not None and {"eval_reward", "eval_kl"} <= record.keys())


def _line(record: dict[str, Any]) -> str:
    """A record as a line of JSON, which knows no NaN and no infinity: they become null."""
    finite = {
        key: None if isinstance(value, float) and not math.isfinite(value) else value for key, value in record.items()
    }
    return json.dumps(finite, ensure_ascii=False) + "\n"


def _versions() -> dict[str, str]:
    packages = {name: version(name) for name in ("torch", "transformers", "tokenizers", "safetensors", "numpy")}
    return {"python": platform.python_version(), **packages, "machine": f"{platform.system()} {platform.machine()}"}
