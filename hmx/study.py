"""A study: every seed of a config in every direction, trained one after the other or a few at a time.

What there is to do (`plan`) is kept apart from doing it (`carry_out`). A study has no state of its own: a run that is
finished is left alone, one that was interrupted goes on, and one that another process is training is left to that
process. So the same command goes on with a study, and the same command in a second terminal shares its work.
"""

import contextlib
import gc
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch

from hmx.config import Config, resolve
from hmx.errors import UserError
from hmx.grpo.schedule import total_steps
from hmx.questions import Questions
from hmx.runs import Busy, Run
from hmx.selection import select, why_none
from hmx.training import train_run

Train = Callable[..., Run]
"""Trains one run: `train_run`, or what a test puts in its place."""


@dataclass(frozen=True)
class Planned:
    """A run of a study."""

    config: Config
    steps: int
    """How many optimizer steps it has."""

    @property
    def run(self) -> Run:
        """Its folder."""
        return Run(self.config.run_folder)

    @property
    def done(self) -> int:
        """How many steps need not be trained any more."""
        return self.steps if self.run.finished else self.run.latest_step()


def plan(config: Config) -> list[Planned]:
    """The runs of a study, both directions of a seed side by side, so that pairs are complete early.

    Raises `UserError`, before anything is trained, if the folder of one of them belongs to another config.
    """
    steps = total_steps(config, len(Questions.load(resolve(config.data.questions)).train))
    runs = [
        Planned(replace(config, run=replace(config.run, seed=seed, direction=direction)), steps)
        for seed in config.study.seeds
        for direction in config.study.directions
    ]
    for one in runs:
        try:
            one.run.require_startable(one.config, resume=True)
        except Busy:
            pass  # asked again when its turn comes
    return runs


def carry_out(runs: Sequence[Planned], plain: bool = False, train: Train = train_run, at_once: int = 1) -> bool:
    """Train what is not finished. Returns whether every run is finished now; False after Ctrl-C.

    The two directions of a seed must start from the same adapter; `UserError` before the second is trained, if not.

    Args:
        at_once: how many runs to train at the same time. The others are trained by silent processes, which take turns
            as a second terminal would.
    """
    print(table(runs))
    begun = time.monotonic()
    spawn = multiprocessing.get_context("spawn")
    to_do = sum(not one.run.finished for one in runs)
    helpers = [spawn.Process(target=_help, args=(runs, n), daemon=True) for n in range(min(at_once, to_do) - 1)]
    with _ended_as_by_ctrl_c():
        try:
            with _deaf_to_ctrl_c():
                for helper in helpers:
                    helper.start()
            if helpers:
                more = "one other is" if len(helpers) == 1 else f"{len(helpers)} others are"
                print(f"\nBeside the run that is shown {more} trained unseen, the last of the list first.")
            if not _train_in_turn(runs, helpers, plain, train):
                return False
        finally:
            for helper in helpers:
                if helper.is_alive():
                    helper.terminate()  # which it takes as a request to save and stop
                    helper.join()
    if to_do:
        print(f"\n{table(runs)}\nThis took {time.monotonic() - begun:.0f} s.")
    print(f"\n{selections(runs)}")
    return all(one.run.finished for one in runs)


@contextlib.contextmanager
def _ended_as_by_ctrl_c() -> Iterator[None]:
    """Let SIGTERM and SIGHUP do between runs what Ctrl-C does: else the helpers would go on alone. A run that is being
    trained hears them itself.
    """
    numbers = [n for n in (signal.SIGTERM, signal.SIGHUP) if signal.getsignal(n) is not signal.SIG_IGN]
    found = {number: signal.signal(number, signal.default_int_handler) for number in numbers}
    try:
        yield
    finally:
        for number, handler in found.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def _deaf_to_ctrl_c() -> Iterator[None]:
    """Ignore Ctrl-C for the milliseconds in which processes are started: they inherit that, and so never hear what a
    terminal tells all of them. The one that was started by hand ends them.
    """
    found = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, found)


def _train_in_turn(runs: Sequence[Planned], helpers: Sequence, plain: bool, train: Train) -> bool:
    """Train what the helpers don't. Returns whether that came to its end. A run that can't be trained stops no other;
    the first of their errors is raised in the end.
    """
    begun, to_do, failed = time.monotonic(), _left(runs), None
    for one in _in_turn(runs, helpers):
        number = runs.index(one) + 1
        print(f"\n{number} of {len(runs)}: {one.run.folder}", flush=True)
        try:
            train(one.config, resume=True, plain=plain)
        except Busy as busy:
            print(busy)
            continue
        except UserError as error:
            failed = failed or error
            print(f"error: {error}", file=sys.stderr)
            continue
        if not one.run.finished:
            return False
        left = _left(runs)
        minutes = (time.monotonic() - begun) / max(to_do - left, 1) * left / 60
        print(f"{_row(one)}   about {minutes:.0f} min left for the study")
        _tidy_up()
    if failed:
        print(f"\n{table(runs)}", flush=True)
        raise failed
    return True


def _in_turn(runs: Sequence[Planned], helpers: Sequence) -> Iterator[Planned]:
    """The runs that are to do; once the helpers are done, those again that a helper has left unfinished."""
    for one in runs:
        if not one.run.finished and not (helpers and one.run.busy):
            yield one
    for helper in helpers:
        helper.join()
    if helpers:
        yield from (one for one in runs if not one.run.finished)


def _help(runs: Sequence[Planned], number: int) -> None:
    """Train what nobody else is training, without a word: the process that was started by hand has the last one, and
    alone hears Ctrl-C. Each helper, by its number, begins with another run.
    """
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere), contextlib.redirect_stderr(nowhere):
        order = [*runs[::-1][number:], *runs[::-1][:number]]  # from the other end, so that the two meet once
        for one in order:
            if one.run.finished or one.run.busy:
                continue
            try:
                train_run(one.config, resume=True, plain=True)
            except UserError:
                continue  # another helper was quicker, or whoever was started by hand will tell what is wrong
            if not one.run.finished:
                return  # it was asked to stop
            _tidy_up()


def _left(runs: Sequence[Planned]) -> int:
    """How many steps are to be trained."""
    return sum(one.steps - one.done for one in runs)


def _tidy_up() -> None:
    """Let go of the model: the next run loads it anew."""
    gc.collect()
    torch.cuda.empty_cache()


def table(runs: Sequence[Planned]) -> str:
    """All runs with how far they are and where they stand."""
    return "\n".join(
        [f"{'seed':>4}  {'direction':9}  {'steps':>11}  {'reward':>6}  {'KL':>6}  {'min':>6}  state"]
        + [*map(_row, runs)]
    )


def selections(runs: Sequence[Planned]) -> str:
    """For every seed that was trained in both directions, which checkpoints the rule takes and why."""
    lines = []
    for seed in dict.fromkeys(one.config.run.seed for one in runs):
        pair = {one.config.run.direction: one for one in runs if one.config.run.seed == seed}
        if len(pair) == 2 and all(one.run.finished for one in pair.values()):
            rule = pair["forward"].config.selection
            forward, reverse = (pair[direction].run.records(kind="eval") for direction in ("forward", "reverse"))
            chosen = select(forward, reverse, rule.threshold, rule.rule)
            lines.append(f"seed {seed}: {chosen.reason if chosen else why_none(forward, rule.threshold)}")
    return "\n".join(lines)


def _row(one: Planned) -> str:
    records = one.run.records()
    last = next((record for record in reversed(records) if record["kind"] == "eval"), None)
    reward, kl = ((last or {}).get(key) for key in ("eval_reward", "eval_kl"))
    minutes = sum(record.get("seconds") or 0.0 for record in records) / 60
    state = "finished" if one.run.finished else "to do" if not one.run.exists else "begun"
    steps, which = f"{one.done} / {one.steps}", one.config.run
    shown = f"{_number(reward, 2):>6}  {_number(kl, 3):>6}"
    return f"{which.seed:4d}  {which.direction:9}  {steps:>11}  {shown}  {minutes:6.1f}  {state}"


def _number(value: float | None, digits: int) -> str:
    return "–" if value is None else f"{value:.{digits}f}"
