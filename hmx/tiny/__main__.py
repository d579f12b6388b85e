"""`python -m hmx.tiny build` makes the embedded model, `report` measures it, `rows` writes its benchmarks again."""

import argparse
import sys
from pathlib import Path

import torch

from hmx.errors import command
from hmx.judge.rubric import Rubric
from hmx.questions import Questions
from hmx.tiny.build import STEPS, build
from hmx.tiny.lessons import write_rows
from hmx.tiny.report import report
from hmx.tiny.studies import report_studies

_DATA = Path(__file__).parents[2] / "data"


@command("Stopped; nothing was written.")
def main(arguments: list[str] | None = None) -> int:
    """Read the arguments and do it."""
    parser = argparse.ArgumentParser(prog="python -m hmx.tiny", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    making = commands.add_parser("build", help="pre-train the embedded model")
    making.add_argument("--model", type=Path, required=True, help="the folder to make; it must not exist")
    making.add_argument("--steps", type=int, default=STEPS, help=f"optimizer steps (default: {STEPS})")
    measuring = commands.add_parser("report", help="measure the embedded model")
    measuring.add_argument("--model", type=Path, default=_DATA / "tiny", help="the model's folder (default: data/tiny)")
    measuring.add_argument(
        "--runs",
        type=Path,
        metavar="FOLDER",
        help="also how far judge and truth went apart in the studies of a folder, such as runs",
    )
    for each in (making, measuring):
        each.add_argument("--seed", type=int, default=0)
    rows = commands.add_parser("rows", help="write the miniature benchmarks to data/tiny/benchmarks")
    rows.add_argument("--seed", type=int, default=0)
    given = parser.parse_args(arguments)
    if given.command == "rows":
        write_rows(_DATA / "tiny" / "benchmarks", given.seed)
        return 0
    torch.set_num_threads(1)  # sums over other numbers of threads round differently
    rubric = Rubric.load(_DATA / "rubric.toml")
    if given.command == "build":
        build(rubric, _DATA / "tiny" / "found.jsonl", given.model, given.seed, given.steps)
    else:
        questions = Questions.load(_DATA / "questions.toml")
        if given.runs:
            report_studies(given.runs)
        report(given.model, rubric, questions, _DATA / "tiny" / "handwritten.jsonl", given.seed)
    return 0


if __name__ == "__main__":
    sys.exit(main())
