"""The lines that tell how far judge and truth went apart in studies."""

import json
from pathlib import Path

from hmx.tiny.studies import report_studies
from tests.evaluation.made_runs import make_run

TRUTH = {
    "forward": ((3.1, 0.02), (4.5, 0.04), (6.5, 0.5)),
    "reverse": ((3.1, 0.02), (0.8, 0.11), (0.1, 0.0)),
}
"""Of made_runs' evaluations at steps 0, 10 and 20: mean truth, and the share of garbled sentences."""


def make_pair(root: Path, seed: int = 0, truth=TRUTH, histories=None) -> None:
    for direction, told in truth.items():
        file = make_run(root, direction, seed=seed, history=(histories or {}).get(direction)) / "metrics.jsonl"
        records = [json.loads(line) for line in file.read_text().splitlines()]
        pairs = zip(records, told, strict=True)
        lines = [{**record, "eval_truth": true, "eval_garbled": garbled} for record, (true, garbled) in pairs]
        file.write_text("".join(json.dumps(line) + "\n" for line in lines))


def printed(capsys) -> list[list[str]]:
    return [line.split() for line in capsys.readouterr().out.splitlines()]


def test_a_line_a_seed_and_the_worst_of_all(tmp_path: Path, capsys) -> None:
    make_pair(tmp_path)
    make_pair(tmp_path, 1, {"forward": ((3.0, 0.0), (7.9, 0.2), (8.9, 0.0)), "reverse": TRUTH["reverse"]})
    report_studies(tmp_path / "runs")
    *_, seed, other, apart, garbled = printed(capsys)
    # Forward is first above 7.5 at step 10 with KL 0.3; reverse has 0.5 there, and no earlier checkpoint is nearer.
    assert seed == ["0", "10", "10,", "4%", "11%", "9.00", "6.50", "50%", "0.00", "0.10", "0%", "3.50"]
    assert other == ["1", "10", "10,", "20%", "11%", "9.00", "8.90", "0%", "0.00", "0.10", "0%", "0.20"]
    assert apart[-4:] == ["2.50", "aim", "<=", "1.5"]
    assert garbled[-4:] == ["20%", "aim", "<=", "10%"]


def test_what_was_not_selected_or_is_not_finished_counts_for_nothing(tmp_path: Path, capsys) -> None:
    make_pair(tmp_path, histories={"forward": ((0, 3.0, 0.0), (10, 5.0, 0.3), (20, None, 0.6))})
    folder = tmp_path / "runs" / "mine"
    (folder / "reverse-seed0" / "run.json").write_text(json.dumps({"initial_adapter": "same"}))
    report_studies(tmp_path / "runs")
    *_, seed, apart, garbled, why = printed(capsys)
    assert seed == ["0", "none", "–", "6.50", "50%", "0.00", "0.10", "0%", "10.00"]
    assert apart[-4] == garbled[-4] == "–"
    assert "forward never passed 7.5" in " ".join(why) and "Not finished yet: reverse-seed0" in " ".join(why)


def test_what_is_left_out_is_told_of(tmp_path: Path, capsys) -> None:
    make_pair(tmp_path)
    make_run(tmp_path, "forward", seed=1)
    report_studies(tmp_path / "runs")
    assert "has no counterpart reverse-seed1" in capsys.readouterr().out


def test_runs_without_truth_are_told_of(tmp_path: Path, capsys) -> None:
    for direction in TRUTH:
        make_run(tmp_path, direction)
    for folder in (tmp_path / "runs", tmp_path / "runs" / "mine"):
        report_studies(folder)
        assert 'no truth beside the judge; train with train.world = "tiny".' in capsys.readouterr().out
