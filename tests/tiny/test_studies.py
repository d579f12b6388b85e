"""The lines that tell how far judge and truth went apart in a study."""

import json
from pathlib import Path

import pytest

from hmx.errors import UserError
from hmx.tiny.studies import report_study
from tests.evaluation.made_runs import make_run

TRUTH = {
    "forward": ((3.1, 0.02), (7.5, 0.04), (6.0, 0.5)),
    "reverse": ((3.1, 0.02), (0.8, 0.11), (0.1, 0.0)),
}
"""Of made_runs' evaluations at steps 0, 10 and 20: truth, and the share of garbled sentences."""


def add_truth(run: Path, direction: str) -> None:
    file = run / "metrics.jsonl"
    records = [json.loads(line) for line in file.read_text().splitlines()]
    told = zip(records, TRUTH[direction], strict=True)
    lines = [{**record, "eval_truth": truth, "eval_garbled": garbled} for record, (truth, garbled) in told]
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))


def test_a_line_a_seed_and_the_worst_of_all(tmp_path: Path, capsys) -> None:
    for direction in TRUTH:
        add_truth(make_run(tmp_path, direction), direction)
    report_study(tmp_path / "runs" / "mine")
    *_, seed, apart, garbled = capsys.readouterr().out.splitlines()
    # Forward is first above 7.5 at step 10 with KL 0.3; reverse has 0.5 there, and no earlier checkpoint is nearer.
    assert seed.split() == ["0", "10", "10,", "4%", "11%", "9.00", "6.00", "50%", "0.00", "0.10", "0%", "3.00"]
    assert apart.split()[-4:] == ["3.00", "aim", "<=", "1.5"]
    assert garbled.split()[-4:] == ["11%", "aim", "<=", "10%"]


def test_runs_without_truth_and_folders_without_runs_are_told_of(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no seed in both directions; train it with train\.py --study"):
        report_study(tmp_path)
    for direction in TRUTH:
        make_run(tmp_path, direction)
    with pytest.raises(UserError, match=r"no truth beside the judge; train with train\.world"):
        report_study(tmp_path / "runs" / "mine")
