"""Train one run: python train.py --config configs/tiny.toml --direction forward --seed 0; or a whole study: --study"""

import argparse
import json
import os
import sys

from hmx.errors import UserError, command


@command("Stopped; --resume, or the same --study, goes on from the last checkpoints, if there are any.")
def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description="Trains a LoRA adapter with GRPO on grades that the same model, its adapter switched off, gives to "
        "its own answers.",
        epilog="A run is kept in runs/<config name>/<direction>-seed<seed>/. Ctrl-C saves; the same command with "
        "--resume goes on, and --study does so by itself. Exit code 130: stopped, and there is more to do. Start with "
        "configs/tiny.toml, which needs no download and no GPU.",
    )
    parser.add_argument(
        "--config", required=True, metavar="FILE", help="a TOML file; those in configs/ explain every key"
    )
    parser.add_argument(
        "--direction", choices=("forward", "reverse"), help="toward higher grades or toward lower ones (run.direction)"
    )
    parser.add_argument(
        "--seed", type=int, metavar="N", help="forward and reverse of one seed start from the same adapter (run.seed)"
    )
    parser.add_argument(
        "--study",
        action="store_true",
        help="train every seed in every direction, study.at_once of them at a time: skip what is finished, go on with "
        "what was interrupted. The same command in a second terminal shares the work",
    )
    parser.add_argument("--seeds", type=int, nargs="+", metavar="N", help="the seeds of --study (study.seeds)")
    parser.add_argument(
        "--directions",
        nargs="+",
        choices=("forward", "reverse"),
        help="the directions of --study (study.directions)",
    )
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="SECTION.KEY=VALUE",
        help="change one key of the config; may be repeated",
    )
    parser.add_argument(
        "--resume",
        action="store_true",
        help="go on with an interrupted run; start it if there is none, leave it if it is finished",
    )
    parser.add_argument(
        "--plain",
        action="store_true",
        help="no progress bar, only each evaluation with an answer, as for a log file",
    )
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="print the resolved config, the steps and an estimate of memory; load no weights",
    )
    given = parser.parse_args(arguments)

    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    # Imported late, so that --help answers at once.
    from hmx.config import load_config

    _require_matching(given)
    shortcuts = {
        "run.direction": given.direction,
        "run.seed": given.seed,
        "study.seeds": given.seeds,
        "study.directions": given.directions,
    }
    overrides = [f"{key}={json.dumps(value)}" for key, value in shortcuts.items() if value is not None]
    config = load_config(given.config, [*given.set, *overrides])
    if given.dry_run:
        from hmx.plan import describe

        print(describe(config))
    if given.study:
        from hmx import study

        runs = study.plan(config)
        if not given.dry_run:
            return 0 if study.carry_out(runs, given.plain, at_once=config.study.at_once) else 130
        print(f"\nThe study's {len(runs)} run{'s' * (len(runs) > 1)}\n{study.table(runs)}")
    elif not given.dry_run:
        from hmx.training import train_run

        return 0 if train_run(config, given.resume, given.plain).finished else 130
    return 0


def _require_matching(given: argparse.Namespace) -> None:
    """Refuse options that say nothing about what was asked for."""
    single, many = (given.seed, given.direction), (given.seeds, given.directions)
    if given.study and single != (None, None):
        raise UserError("A --study has --seeds and --directions; --seed and --direction are of a single run.")
    for one in given.set:
        key = one.partition("=")[0].strip()
        if given.study and key in ("run.seed", "run.direction"):
            raise UserError(f"A --study trains all of study.seeds and study.directions; {key} is of a single run.")
    if not given.study and many != (None, None):
        raise UserError("--seeds and --directions belong to a --study; a single run has --seed and --direction.")


if __name__ == "__main__":
    sys.exit(main())
