"""A whole optimizer step, ours against TRL + PEFT: python -m bench.step"""

import sys
import tempfile
import warnings
from dataclasses import asdict

from transformers.utils import logging

from bench.common import Ratio, Summary, Timer, keep, parser, prepare, require, run, table
from bench.models import load, settings
from bench.ours import Laps, StepSeconds, our_step, our_trainer, step_overrides
from hmx.errors import UserError

_PARTS = ("total", "rollout", "judging", "training")


def main(arguments: list[str] | None = None) -> None:
    """The command."""
    options = parser(
        "step",
        "Times an optimizer step: answers are sampled, graded by the same model with its adapter off, and trained on. "
        "Ours is the real Trainer.step; theirs is one step of TRL's GRPOTrainer with PEFT's LoRA and a reward function "
        "that switches the adapter off and grades all answers in one batch by transformers' generate, ended at the end "
        "of the score's line. Same weights, questions, limits, rank, targets, learning rate and beta; in one process, "
        "in turns.",
        rounds=20,
        epilog="Without --fixed-length both sides of the embedded model sample what they like, so look at the tokens "
        "too. Seconds are medians, with the least and the most; the ratio's range holds the middle half of the rounds.",
    )
    options.add_argument(
        "--fixed-length", type=int, metavar="N", help="every answer has N tokens (default with random weights: 32)"
    )
    options.add_argument(
        "--checkpointing", action="store_true", help="gradient checkpointing on both sides (default: on neither)"
    )
    options.add_argument("--ours-only", action="store_true", help="without TRL")
    given = options.parse_args(arguments)
    prepare(given)
    if not given.ours_only:
        for package in ("trl", "peft", "datasets"):
            require(package)
    if given.fixed_length is None and given.model != "tiny":
        given.fixed_length = 32
    if given.fixed_length is not None and given.fixed_length < 1:
        raise UserError(f"--fixed-length must be at least 1, not {given.fixed_length}.")

    ours, theirs = measure(given)
    rows = [[name, *_row(steps)] for name, steps in (("ours", ours), ("TRL + PEFT", theirs)) if steps]
    ratios = {}
    if theirs:
        ratios = {
            part: Ratio.of([getattr(one, part) for one in theirs], [getattr(one, part) for one in ours])
            for part in _PARTS
        }
        rows.append(["ratio", *(f"{ratios[part].of_medians:.2f}×" for part in _PARTS), ""])
    print(table([f"{given.model}, seconds a step", *_PARTS, "tokens"], rows))
    if theirs:
        print(f"A step of TRL + PEFT takes {ratios['total']} as long as ours.")
    measured = {
        "steps": {"ours": list(map(asdict, ours)), "trl": list(map(asdict, theirs))},
        "seconds": {
            side: {part: Summary.of([getattr(one, part) for one in steps]).median for part in _PARTS}
            for side, steps in (("ours", ours), ("trl", theirs))
            if steps
        },
        "ratio": ratios,
    }
    keep("step", given, measured, f"{given.fixed_length}tok" if given.fixed_length else "")


def measure(given) -> tuple[list[StepSeconds], list[StepSeconds]]:
    """The counted steps of ours and of theirs, which is empty with --ours-only."""
    fixed, timer = given.fixed_length is not None, Timer(given.device, given.clock)
    overrides = step_overrides(given.model != "tiny", given.fixed_length, given.checkpointing)
    config = settings(given.model, given.device, given.precision, *overrides)
    steps, laps = given.warmup + given.rounds, Laps(timer)
    trainer = our_trainer(config, load(given.model, given.device, given.precision), laps, fixed)
    ours: list[StepSeconds] = []
    theirs: list[StepSeconds] = []

    def one_of_ours() -> None:
        ours.append(our_step(trainer, laps, len(ours) + 1))

    if given.ours_only:
        for _ in range(steps):
            one_of_ours()
    else:
        from bench.theirs import their_trainer

        def between(seconds: StepSeconds) -> None:
            theirs.append(seconds)
            one_of_ours()

        questions = [question for n in range(1, steps + 1) for question in trainer.questions_of(n)]
        logging.set_verbosity_error()
        with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            other = their_trainer(
                config,
                load(given.model, given.device, given.precision),
                Laps(timer),
                questions,
                steps,
                fixed,
                folder,
                between,
            )
            other.train()
    if fixed:
        _require_equal_lengths(given.fixed_length, config, [*ours, *theirs])
    return ours[given.warmup :], theirs[given.warmup :]


def _require_equal_lengths(length: int, config, steps: list[StepSeconds]) -> None:
    expected = length * config.grpo.prompts_per_step * config.grpo.completions_per_prompt
    for step in steps:
        if step.tokens != expected:
            raise RuntimeError(f"a step sampled {step.tokens} tokens, not {expected}: the two sides can't be compared")


def _row(steps: list[StepSeconds]) -> list[str]:
    seconds = [str(Summary.of([getattr(one, part) for one in steps])) for part in _PARTS]
    return [*seconds, f"{sum(one.tokens for one in steps) / len(steps):.0f}"]


if __name__ == "__main__":
    sys.exit(run(main))
