"""Show what trained runs learned: python evaluate.py"""

import argparse
import sys


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description="Looks through the runs, selects checkpoints by evaluation reward and KL, and shows for every seed "
        "that was trained in both directions its curves and the answers of base, forward and reverse to the held-out "
        "questions, with their grades.",
        epilog="Reads only what training wrote down; no model is loaded. Pictures and Markdown go beside the runs.",
    )
    parser.add_argument("--runs", default="runs", metavar="FOLDER", help="where the runs are (default: runs)")
    given = parser.parse_args(arguments)

    from hmx.errors import UserError  # imported late, so that --help answers at once

    try:
        from hmx.evaluation.report import report

        print(report(given.runs))
        return 0
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
