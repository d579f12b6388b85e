"""The whole set for a device, with sizes that fit its speed, what matters most first: python -m bench"""

import argparse
import importlib.util
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import torch

from bench.common import TRIALS, cpu, require_device, table
from hmx.config import PROJECT
from hmx.errors import UserError, command

SETS = {
    "cpu": (
        "step --model tiny --threads 1 --rounds 60",
        "step --model tiny --threads 2 --rounds 60",
        "step --model tiny --threads 1 --fixed-length 26 --rounds 30",
        "step --model tiny --threads 2 --fixed-length 26 --rounds 30",
        "step --model qwen3-50m --fixed-length 32 --rounds 3 --warmup 1",
        "generate --model tiny --threads 1",
        "generate --model tiny --threads 2",
        "generate --model qwen3-50m --batches 1 8 40 --tokens 32 --rounds 2 --warmup 1 --bandwidth",
        "judge --model tiny --threads 1",
        "judge --model qwen3-50m --answers 8 --rounds 2 --warmup 1",
        "train --model tiny --threads 1",
        "train --model qwen3-50m --lengths 32 128 --rounds 2 --warmup 1",
        "growth --model tiny --models qwen3-50m --threads 1 --rounds 3 --warmup 1",
        "evaluation --model tiny --threads 1",
        "evaluation --model qwen3-50m --contexts 8 --replies 40 --rounds 2 --warmup 1",
        "study --model qwen3-0.6b --replies 16 --rounds 1 --warmup 0",
    ),
    "cuda": (
        "step --model qwen3-0.6b --fixed-length 128 --rounds 4 --warmup 1",
        "generate --model qwen3-0.6b --tokens 128 --batches 1 8 40 --rounds 3 --warmup 1",
        "generate --model qwen3-0.6b --tokens 128 --batches 1 8 40 --rounds 3 --warmup 1 --compile",
        "generate --model qwen3-8b --tokens 64 --batches 8 --rounds 2 --warmup 1",
        "generate --model qwen3-0.6b --tokens 128 --batches 8 --rounds 3 --warmup 1 --adapter",
        "memory --model qwen3-8b --cap 24 --warmup 0",
        "memory --model llama-3.2-3b --cap 16 --warmup 0 --no-evaluation",
        "memory --model gemma-2-2b --cap 16 --warmup 0 --no-evaluation",
        "memory --model qwen3-4b --cap 16 --warmup 0 --no-evaluation",
        "judge --model qwen3-0.6b --rounds 3 --warmup 1",
        "train --model qwen3-0.6b --lengths 128 1024 --rounds 2 --warmup 1",
        "study --model qwen3-0.6b --rounds 1 --warmup 1",
        "study --model qwen3-8b --rounds 1 --warmup 1",
        "growth --model qwen3-0.6b --lengths 32 64 128 --groups 4 8 --models qwen3-4b --rounds 1 --warmup 1",
        "evaluation --model qwen3-0.6b --contexts 20 --replies 40 --rounds 1 --warmup 1",
        "study --model qwen3-4b --rounds 1 --warmup 1",
        "study --model llama-3.2-3b --rounds 1 --warmup 1",
        "study --model gemma-2-2b --rounds 1 --warmup 1",
        "step --model qwen3-4b --fixed-length 128 --rounds 2 --warmup 1 --checkpointing",
        "train --model qwen3-8b --lengths 128 1024 --rounds 1 --warmup 1 --checkpointing",
        "generate --model qwen3-0.6b --tokens 128 --rounds 3 --warmup 2 --batches 8 --cache static",
    ),
}
"""The commands of each device, less what all share."""

NEEDS = {"step": ("trl", "peft", "datasets"), "evaluation": ("lm_eval",)}
"""Optional packages; without TRL a step is measured alone, without lm-eval there is no evaluation."""


@dataclass(frozen=True)
class Outcome:
    """Of one command."""

    command: str
    seconds: float | None
    """None if it was left out."""
    said: str


@command("Stopped; what was finished is kept.")
def main(arguments: list[str] | None = None) -> int:
    """The command."""
    parser = argparse.ArgumentParser(
        prog="python -m bench",
        description="Runs every benchmark for a device, each in a process of its own, and says how long all took. What "
        "needs a package that is not there is left out, and said so.",
    )
    parser.add_argument("--device", choices=SETS, default="cpu", help="default: cpu")
    parser.add_argument("--only", nargs="+", default=[], metavar="NAME", help="such as: step generate")
    parser.add_argument("--results", type=Path, default=TRIALS, metavar="FOLDER", help="default: bench/trials")
    parser.add_argument(
        "--within",
        type=float,
        metavar="MINUTES",
        help="stop what still runs then, and what takes more than a quarter of it; what was finished is kept",
    )
    parser.add_argument("--list", action="store_true", help="print the commands and run nothing")
    given = parser.parse_args(arguments)
    names = sorted({command.split()[0] for command in SETS[given.device]})
    if unknown := sorted(set(given.only) - set(names)):
        raise UserError(f"no benchmark for {given.device} is called {unknown[0]!r}; they are {', '.join(names)}.")
    chosen = [one for one in SETS[given.device] if not given.only or one.split()[0] in given.only]
    if given.list:
        print("\n".join(f"python -m bench.{one} --device {given.device}" for one in chosen))
        return 0
    require_device(given.device)
    _require_same_machine(given.results, given.device)
    start = time.perf_counter()
    outcomes = []
    for one in chosen:
        end = None
        if given.within is not None:
            end = min(start + 60 * given.within, time.perf_counter() + 60 * given.within / 4)
        outcomes.append(carry_out(one, given.device, given.results, end))
    took = [[one.command, "–" if one.seconds is None else f"{one.seconds:.0f}", one.said] for one in outcomes]
    print("\n" + table(["command", "seconds", ""], [*took, ["all", f"{time.perf_counter() - start:.0f}", ""]]))
    return 1 if any(one.said.startswith("failed") for one in outcomes) else 0


def _require_same_machine(results: Path, device: str) -> None:
    """Raise `UserError` if the folder holds results of this kind of device that another processor or GPU gave."""
    part, here = ("gpu", torch.cuda.get_device_name) if device == "cuda" else ("cpu", cpu)
    for path in sorted(results.glob(f"*-{device}-*.json")):
        there = json.loads(path.read_text(encoding="utf-8"))["machine"][part]
        if there != here():
            raise UserError(
                f"{path.name} in {results} was measured on another machine ({there}, and this is {here()}); keep those "
                "of this one in another folder, by --results."
            )


def carry_out(command: str, device: str, results: Path, end: float | None = None) -> Outcome:
    """Run one command in a fresh process, or leave it out for want of a package or of time; at `end`, on the clock of
    `time.perf_counter`, it is stopped.
    """
    name, *options = command.split()
    missing = [package for package in NEEDS.get(name, ()) if importlib.util.find_spec(package) is None]
    if missing and name == "evaluation":
        return Outcome(command, None, f"left out: {missing[0]} is not installed")
    if missing:
        options.append("--ours-only")
    start = time.perf_counter()
    if end is not None and start >= end:
        return Outcome(command, None, "left out: no time left")
    whole = [sys.executable, "-m", f"bench.{name}", *options, "--device", device, "--results", str(results.resolve())]
    print(f"\n$ python {shlex.join(whole[1:-2])}", flush=True)
    with subprocess.Popen(whole, cwd=PROJECT, start_new_session=True) as process:  # to be stopped with its children
        try:
            status = process.wait(None if end is None else end - start)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            return Outcome(command, time.perf_counter() - start, "stopped: no time left")
        except KeyboardInterrupt:
            os.killpg(process.pid, signal.SIGKILL)
            raise
    said = f"failed with status {status}" if status else ""
    if missing and not status:
        said = f"ours only: {missing[0]} is not installed"
    return Outcome(command, time.perf_counter() - start, said)


if __name__ == "__main__":
    sys.exit(main())
