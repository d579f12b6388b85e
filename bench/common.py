"""What all benchmarks share: options, interleaved timing, the table, and the JSON with the machine it ran on."""

import argparse
import contextlib
import importlib.metadata
import importlib.util
import json
import os
import platform
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median, quantiles

import torch

from bench.models import MODELS
from hmx import graphs
from hmx.config import PROJECT
from hmx.errors import UserError, command
from hmx.files import require_writable, write_text

TRIALS = PROJECT / "bench" / "trials"
"""Where results go unless --results says otherwise: nobody's trial replaces what is quoted, in bench/results."""
_MARK = "measured: "  # before the line of JSON with which a fresh process answers
_PACKAGES = ("torch", "transformers", "trl", "peft", "lm_eval", "accelerate")


def parser(name: str, description: str, rounds: int, epilog: str = "") -> argparse.ArgumentParser:
    """The options of every benchmark; `name` as in python -m bench.<name>."""
    made = argparse.ArgumentParser(prog=f"python -m bench.{name}", description=description, epilog=epilog)
    made.add_argument(
        "--model",
        choices=MODELS,
        default="tiny",
        help="tiny is the embedded model; the others have random weights in their published shapes, and never end an "
        "answer by themselves (default: tiny)",
    )
    made.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="default: cpu")
    made.add_argument(
        "--precision", choices=("fp32", "fp16", "bf16"), help="of the weights; default: fp32 on a CPU, fp16 on a GPU"
    )
    made.add_argument("--threads", type=int, default=0, metavar="N", help="of the CPU; 0 is PyTorch's own choice")
    made.add_argument("--compile", action="store_true", help="on a GPU: model.compile = true, for ours")
    made.add_argument("--rounds", type=int, default=rounds, metavar="N", help=f"measured (default: {rounds})")
    made.add_argument("--warmup", type=int, default=2, metavar="N", help="rounds before that, not counted (default: 2)")
    made.add_argument(
        "--clock",
        choices=("wall", "cpu"),
        default="wall",
        help="cpu counts the CPU seconds of this process: for a machine that is busy with other things, with "
        "--threads 1. Those are no seconds that anybody waits; quote wall (default: wall)",
    )
    made.add_argument(
        "--results", type=Path, default=TRIALS, metavar="FOLDER", help="where the JSON goes (default: bench/trials)"
    )
    return made


def run(main: Callable[[list[str] | None], None], arguments: list[str] | None = None) -> int:
    """Exit status of a benchmark; a user's mistake is one sentence."""
    return command("Stopped; nothing was kept.")(lambda: main(arguments) or 0)()


def require_device(name: str) -> None:
    """Raise `UserError` if the GPU that is asked for is not there."""
    if name == "cuda" and not torch.cuda.is_available():
        raise UserError("This PyTorch finds no CUDA device here; use --device cpu.")


def prepare(given: argparse.Namespace) -> None:
    """Check the device, fill in the default precision, and set how steps are computed."""
    require_device(given.device)
    if given.rounds < 1 or given.warmup < 0 or given.threads < 0:
        raise UserError("--rounds must be at least 1, --warmup and --threads at least 0.")
    require_writable(given.results, "name another folder by --results")
    given.precision = given.precision or ("fp16" if given.device == "cuda" else "fp32")
    if given.threads:
        torch.set_num_threads(given.threads)
    if given.compile and given.device == "cpu":
        raise UserError("--compile is for a GPU's decode steps; it goes with --device cuda.")
    graphs.fuse(torch.device("cuda") if given.compile else None)


def require(package: str) -> None:
    """Raise `UserError` unless an optional package can be imported."""
    if importlib.util.find_spec(package) is None:
        raise UserError(f"This benchmark needs {package}, which is not installed; pip install -e '.[bench]' does it.")


class Timer:
    """A clock that waits for the GPU before it is read."""

    def __init__(self, device: str, clock: str = "wall"):
        self._cuda, self._read = device == "cuda", {"wall": time.perf_counter, "cpu": time.process_time}[clock]

    def now(self) -> float:
        """Seconds since some moment."""
        if self._cuda:
            torch.cuda.synchronize()
        return self._read()

    def seconds(self, action: Callable[[], object]) -> float:
        """How long `action` takes."""
        start = self.now()
        action()
        return self.now() - start


def interleave(
    contenders: Mapping[str, Callable[[], object]], rounds: int, warmup: int, timer: Timer
) -> dict[str, list[float]]:
    """Seconds of each contender, all of them once a round, so that what disturbs the machine disturbs all alike.

    >>> order = []
    >>> times = interleave({"a": lambda: order.append("a"), "b": lambda: order.append("b")}, 2, 1, Timer("cpu"))
    >>> "".join(order), len(times["a"]), len(times["b"])
    ('ababab', 2, 2)
    """
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for i in range(warmup + rounds):
        for name, action in contenders.items():
            taken = timer.seconds(action)
            if i >= warmup:
                seconds[name].append(taken)
    return seconds


@dataclass(frozen=True)
class Summary:
    """Of one contender's seconds."""

    median: float
    low: float
    """The least."""
    high: float
    """The most."""
    seconds: list[float]

    @classmethod
    def of(cls, seconds: Sequence[float]) -> "Summary":
        return cls(median(seconds), min(seconds), max(seconds), list(seconds))

    def __str__(self) -> str:
        """
        >>> str(Summary.of([0.1, 0.4, 0.2]))
        '0.2000 (0.1000–0.4000)'
        """
        return f"{self.median:.4f} ({self.low:.4f}–{self.high:.4f})"


@dataclass(frozen=True)
class Ratio:
    """How many times longer the other takes than we do."""

    of_medians: float
    quartiles: tuple[float, float]
    """Of the ratios of the single rounds: how far the machine's noise moves them."""

    @classmethod
    def of(cls, theirs: Sequence[float], ours: Sequence[float]) -> "Ratio":
        """
        >>> Ratio.of([4.0, 9.0, 8.0], [2.0, 3.0, 2.0])
        Ratio(of_medians=4.0, quartiles=(2.5, 3.5))
        """
        each = [a / b for a, b in zip(theirs, ours, strict=True)]
        low, _, high = quantiles(each, n=4, method="inclusive") if len(each) > 1 else each * 3
        return cls(median(theirs) / median(ours), (low, high))

    def __str__(self) -> str:
        return f"{self.of_medians:.2f}× ({self.quartiles[0]:.2f}–{self.quartiles[1]:.2f})"


def fresh_process(module: str, arguments: Sequence[str]) -> dict:
    """What `python -m <module>` hands over when it is run by itself, so that nobody else's memory counts as its own."""
    command = [sys.executable, "-m", module, *arguments]
    done = subprocess.run(command, cwd=PROJECT, stdout=subprocess.PIPE, text=True)
    lines = [line for line in done.stdout.splitlines() if line.startswith(_MARK)]
    if done.returncode or not lines:
        asked = shlex.join(["python", *command[1:]])
        raise UserError(f"The process `{asked}` failed with status {done.returncode}; what it wrote stands above.")
    return json.loads(lines[-1].removeprefix(_MARK))


def hand_over(measured: dict) -> None:
    """The other end of `fresh_process`."""
    print(_MARK + json.dumps(measured, default=vars))


def shared_arguments(given: argparse.Namespace) -> list[str]:
    """The options of `parser` as they were given, for a fresh process."""
    names = ("model", "device", "precision", "threads", "rounds", "warmup", "clock")
    words = [word for name in names for word in (f"--{name}", str(getattr(given, name)))]
    return [*words, *(["--compile"] if given.compile else [])]


def table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Columns as wide as they need to be: the first to the left, numbers to the right.

    >>> print(table(["what", "s"], [["ours", 1.5], ["theirs", 12]]))
    what      s
    ours    1.5
    theirs   12
    """
    cells = [[str(cell) for cell in row] for row in (head, *rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = []
    for first, *others in cells:
        rest = [cell.rjust(width) for cell, width in zip(others, widths[1:], strict=True)]
        lines.append("  ".join([first.ljust(widths[0]), *rest]).rstrip())
    return "\n".join(lines)


def keep(name: str, given: argparse.Namespace, measured: dict, variant: str = "") -> Path:
    """Write what was measured beside the machine that it was measured on; replaces the last result of this kind."""
    threads = f"{torch.get_num_threads()}t" if given.device == "cpu" else ""
    seconds = "cpuseconds" if given.clock == "cpu" else ""
    compiled = "compiled" if given.compile else ""
    parts = (name, given.model, variant, compiled, given.device, given.precision, threads, seconds)
    path = given.results / ("-".join(filter(None, parts)) + ".json")
    options = {key: value for key, value in vars(given).items() if key != "results"}
    whole = {"benchmark": name, "options": options, "machine": machine(name, given.device), **measured}
    write_text(path, json.dumps(whole, indent=1, ensure_ascii=False, default=vars) + "\n")
    shown = path.relative_to(PROJECT) if path.is_relative_to(PROJECT) else path
    print(f"\n{_brief(whole['machine'])}\nKept in {shown}.")
    return path


def machine(name: str, device: str) -> dict:
    """Everything without which a measured second means nothing."""
    facts = {
        "cpu": cpu(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "threads": torch.get_num_threads(),
        "load_average": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
        "gpu": None,
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "versions": {package: _version(package) for package in _PACKAGES},
        "date": time.strftime("%Y-%m-%d %H:%M:%S %z"),
        "command": shlex.join(["python", "-m", f"bench.{name}", *_asked(sys.argv[1:])]),
        "commit": _commit(),
    }
    if device == "cuda":
        properties = torch.cuda.get_device_properties(0)
        facts |= {"gpu": properties.name, "gpu_bytes": properties.total_memory, "cuda": torch.version.cuda}
        facts["recordings_of_decode_steps"] = {"possible": graphs.enabled, **graphs.recordings}
    return facts


def _brief(facts: dict) -> str:
    where = facts["gpu"] or f"{facts['cpu']}, {facts['threads']} of {facts['cores']} cores"
    versions = ", ".join(f"{package} {version}" for package, version in facts["versions"].items() if version)
    return f"{where}; load {facts['load_average']}; {versions}"


def _asked(arguments: Sequence[str]) -> list[str]:
    """The options of a command, less where its results go: that is a path on somebody's machine, and measures nothing.

    >>> _asked(["--model", "tiny", "--results", "/home/me/kept", "--threads", "1"])
    ['--model', 'tiny', '--threads', '1']
    """
    taker = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    taker.add_argument("--results")
    return taker.parse_known_args(arguments)[1]


def cpu() -> str:
    """Its name, for x86 with family and model, which tell one generation from another, and what PyTorch uses of it."""
    known = {}
    with contextlib.suppress(OSError):  # not Linux
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            key, _, value = line.partition(":")
            known.setdefault(key.strip(), value.strip())
    name = known.get("model name") or platform.processor() or platform.machine()
    kind = f"family {known['cpu family']}, model {known['model']}, " if "cpu family" in known else ""
    return f"{name} ({kind}{torch.backends.cpu.get_cpu_capability()})"


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _commit() -> str | None:
    """The commit that the working tree stands at, with a + if it holds changes to the code; None outside of git."""
    git = ["git", "-C", str(PROJECT)]
    try:
        commit = subprocess.run([*git, "rev-parse", "--short=12", "HEAD"], capture_output=True, text=True, check=True)
        changed = subprocess.run([*git, "diff", "--quiet", "HEAD", "--", "hmx", "bench/*.py"], capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return commit.stdout.strip() + ("+" if changed.returncode else "")
