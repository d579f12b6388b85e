"""From trained runs to the paper's tables: python evaluate.py"""

import argparse
import os
import sys
import time
from dataclasses import replace
from pathlib import Path

from hmx.errors import UserError, command


@command("Stopped. What was measured is kept; the same command goes on.")
def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description="Looks through the runs, selects each seed's checkpoints by evaluation reward and KL, puts "
        "the benchmarks to the selected checkpoints, shows curves and answers, and prints forward, reverse and their "
        "difference, mean ± std over seeds: the paper's Tables 4, 5 and 6.",
        epilog="What has been measured is kept beside its run and never measured again; Ctrl-C loses no more than the "
        "benchmark that was running. Tables go to the runs' folder as Markdown, CSV and JSON. Exit code 1: some "
        "benchmark or checkpoint could not be evaluated, and what is listed as left out says which.",
    )
    parser.add_argument(
        "--runs",
        default="runs",
        metavar="FOLDER",
        help="where the runs are, of all configs or, as in runs/tiny, of one (default: runs)",
    )
    parser.add_argument(
        "--suite",
        metavar="NAME,…",
        help="paper, mini, or benchmarks by name (default: mini for runs in the tiny world, paper for all others)",
    )
    parser.add_argument(
        "--limit", type=int, metavar="N", help="only the first N questions of each task; the tables say so on top"
    )
    parser.add_argument("--threshold", type=float, metavar="X", help="select by this reward instead of the configs'")
    parser.add_argument("--rule", choices=("paper", "same_step"), help="select by this rule instead of the configs'")
    parser.add_argument("--baseline", action="store_true", help="evaluate the untouched base models too")
    parser.add_argument("--tables-only", action="store_true", help="put no benchmark to anything, show what there is")
    parser.add_argument(
        "--out", metavar="FOLDER", type=Path, help="where tables, curves and answers go (default: beside the runs)"
    )
    parser.add_argument("--device", help="compute on it, and not where the runs were trained: auto, cpu, cuda, cuda:1")
    parser.add_argument("--plain", action="store_true", help="no progress bar, a line for each result instead")
    given = parser.parse_args(arguments)

    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    # Imported late, so that --help answers at once.
    from hmx.config import on_device
    from hmx.evaluation import campaign as work
    from hmx.evaluation.pairs import find_models
    from hmx.evaluation.report import found, progress, write_report
    from hmx.evaluation.suites import suite_named, suite_of
    from hmx.files import require_writable
    from hmx.models import pick_device

    if given.limit is not None and given.limit < 1:
        raise UserError(f"--limit must be at least 1, not {given.limit}.")
    if given.threshold is not None and not 0 <= given.threshold <= 10:
        raise UserError(f"--threshold must lie from 0 to 10, not {given.threshold}.")
    chosen = None if given.suite is None else suite_named(given.suite)
    if given.device is not None:
        pick_device(given.device)
    models, odd = find_models(given.runs, given.threshold, given.rule)
    models = [replace(model, config=on_device(model.config, given.device)) for model in models]
    require_writable(given.out or Path(given.runs), "name another folder by --out")
    print(found(models), end="\n\n", flush=True)
    suites = [chosen or suite_of(model.config) for model in models]
    campaign = work.plan(models, suites, given.limit, given.baseline)
    print(progress(campaign), end="\n\n", flush=True)
    told: list[str] = []
    if not given.tables_only:
        for folder in {job.checkpoint.folder for job in campaign.to_do}:
            require_writable(folder, "results are kept beside their runs, so copy those to a folder of your own")
        lacking = work.needs(campaign)
        told = [*odd, *campaign.problems, *(each for many in lacking.values() for each in many)]
        _list("Left out", told)
        quiet = given.plain or not sys.stderr.isatty()
        begun, before = time.monotonic(), len(campaign.results)
        campaign = work.carry_out(campaign, lacking, given.limit, quiet)
        if more := len(campaign.results) - before:
            print(f"{more} results more in {time.monotonic() - begun:.0f} s.\n", flush=True)
    report, unreadable = write_report(campaign, models, given.limit, Path(given.runs), given.out)
    print(report)
    _list("To know", work.remarks(campaign))
    news = [sentence for sentence in (*odd, *unreadable, *campaign.problems) if sentence not in told]
    _list("Left out", news + ["What was listed before the work began."] * bool(told))
    return 1 if campaign.problems else 0


def _list(title: str, sentences: list[str]) -> None:
    if sentences:
        print(f"\n{title}:\n" + "\n".join(f"- {sentence}" for sentence in sentences), file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
