"""Looking at two runs: which are compared, and how what a model wrote is shown."""

import json
from pathlib import Path

import pytest

from hmx.config import load_config, to_toml
from hmx.errors import UserError
from hmx.evaluation.report import answers_markdown, answers_side_by_side, answers_text, curves_table, find_pairs, report

HISTORY = {
    "forward": ((0, 3.0, 0.0), (10, 8.0, 0.3), (20, 9.0, 0.6)),
    "reverse": ((0, 3.0, 0.0), (10, 1.0, 0.5), (20, 0.0, 0.9)),
}


def make_run(root: Path, direction: str, adapter: str = "same", history=None, answer: str = "Yes.") -> Path:
    """A run's folder as training leaves it, less its checkpoints."""
    (root / "mine.toml").write_text("")
    config = load_config(root / "mine.toml", [f"run.direction={direction}", f"run.folder={root}/runs"])
    config.run_folder.mkdir(parents=True)
    (config.run_folder / "config.toml").write_text(to_toml(config))
    (config.run_folder / "run.json").write_text(json.dumps({"status": "finished", "initial_adapter": adapter}))
    records, samples = [], []
    for step, reward, kl in history or HISTORY[direction]:
        records.append({"kind": "eval", "step": step, "epoch": step / 10, "eval_reward": reward, "eval_kl": kl})
        for g in range(2):
            sample = {
                "kind": "eval",
                "step": step,
                "question": "Are you there?",
                "answer": f"{answer} {direction} {step} {g}",
            }
            samples.append({**sample, "grade": None if reward is None else int(reward)})
    for name, lines in (("metrics.jsonl", records), ("samples.jsonl", samples)):
        (config.run_folder / name).write_text("".join(json.dumps(line) + "\n" for line in lines))
    return config.run_folder


def test_a_seed_counts_once_it_was_trained_in_both_directions(tmp_path):
    make_run(tmp_path, "forward")
    with pytest.raises(UserError, match="no seed .* trained in both directions"):
        find_pairs(tmp_path / "runs")
    make_run(tmp_path, "reverse")
    ((pair,), _) = find_pairs(tmp_path / "runs")
    assert (pair.name, pair.seed) == ("mine", 0)
    assert (pair.selection.forward, pair.selection.reverse) == (10, 10)
    assert pair.selection.further_than_forward


def test_runs_from_different_adapters_are_not_compared(tmp_path):
    make_run(tmp_path, "forward")
    make_run(tmp_path, "reverse", adapter="other")
    with pytest.raises(UserError, match="did not start from the same adapter"):
        find_pairs(tmp_path / "runs")


def test_runs_of_different_settings_are_not_compared(tmp_path):
    make_run(tmp_path, "forward")
    folder = make_run(tmp_path, "reverse")
    config = (folder / "config.toml").read_text()
    (folder / "config.toml").write_text(config.replace("beta = 0.001", "beta = 0.9"))
    with pytest.raises(UserError, match="had different settings"):
        find_pairs(tmp_path / "runs")


def test_the_answers_are_those_of_the_selected_checkpoints_and_of_the_untrained_model(tmp_path):
    make_run(tmp_path, "forward")
    make_run(tmp_path, "reverse")
    ((pair,), _) = find_pairs(tmp_path / "runs")
    (row,) = answers_side_by_side(pair)
    shown = {who: row[who]["answer"] for who in ("base", "forward", "reverse")}
    assert shown == {"base": "Yes. forward 0 0", "forward": "Yes. forward 10 0", "reverse": "Yes. reverse 10 0"}


def test_runs_that_never_passed_the_threshold_show_their_last_step_and_say_so(tmp_path):
    make_run(tmp_path, "forward", history=((0, 3.0, 0.0), (10, 7.0, 0.1)))
    make_run(tmp_path, "reverse", history=((0, 3.0, 0.0), (10, None, 0.1), (20, 1.0, 0.2)))
    ((pair,), _) = find_pairs(tmp_path / "runs")
    assert pair.selection is None and pair.shown == (10, 10)
    said = report(tmp_path / "runs")
    assert "No checkpoint was selected" in said and "◀" not in said


def test_the_table_marks_the_selected_checkpoints_and_leaves_gaps_where_there_is_no_number(tmp_path):
    make_run(tmp_path, "forward")
    make_run(tmp_path, "reverse", history=((0, 3.0, 0.0), (10, None, 0.2)))
    ((pair,), _) = find_pairs(tmp_path / "runs")
    lines = curves_table(pair).splitlines()
    assert [line.count("◀") for line in lines] == [0, 0, 0, 2, 0]
    assert lines[3].split() == ["1.00", "10", "8.00", "0.300", "◀", "–", "0.200", "◀"]
    assert lines[4].split() == ["2.00", "20", "9.00", "0.600", "–", "–"]


def test_what_a_model_wrote_can_not_break_the_table_or_open_a_tag(tmp_path):
    nasty = "a | b\n\n# c <script>alert(1)</script> \\| \x1b[31mred"
    make_run(tmp_path, "forward", answer=nasty)
    make_run(tmp_path, "reverse")
    ((pair,), _) = find_pairs(tmp_path / "runs")
    (row,) = [line for line in answers_markdown(pair).splitlines() if line.startswith("| Are you there?")]
    assert "<script>" not in row
    assert row.replace("\\\\", "").replace("\\|", "").count("|") == 5
    assert "\x1b" not in answers_text(pair)
