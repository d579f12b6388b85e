"""Train one run: python train.py --config configs/tiny.toml --direction forward --seed 0"""

import argparse
import os
import sys


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description="Trains a LoRA adapter with GRPO on grades that the same model, its adapter switched off, gives to "
        "its own answers.",
        epilog="A run is kept in runs/<config name>/<direction>-seed<seed>/. Ctrl-C saves; the same command with "
        "--resume goes on. Start with configs/tiny.toml, which needs no download and no GPU.",
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
        "--plain", action="store_true", help="no progress bar, only a line for each evaluation, as for a log file"
    )
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="print the resolved config, the steps and an estimate of memory; load no weights",
    )
    given = parser.parse_args(arguments)

    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    from hmx.errors import UserError  # imported late, so that --help answers at once

    try:
        from hmx.config import load_config

        shortcuts = [f'run.direction="{given.direction}"'] if given.direction else []
        shortcuts += [f"run.seed={given.seed}"] if given.seed is not None else []
        config = load_config(given.config, [*given.set, *shortcuts])
        if given.dry_run:
            from hmx.plan import describe

            print(describe(config))
            return 0
        from hmx.study import train_run

        run = train_run(config, given.resume, given.plain)
        return 0 if run.finished else 130
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\nStopped at once; --resume goes on from the last checkpoint.", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
