"""Curves and answers: which are shown, and how what a model wrote is shown."""

import pytest

from hmx.evaluation.answers import answers_markdown, answers_side_by_side, answers_text, curves_table, plot_curves
from tests.evaluation.made_runs import make_run, only_pair


def test_the_answers_are_those_of_the_selected_checkpoints_and_of_the_untrained_model(tmp_path):
    make_run(tmp_path, "forward")
    make_run(tmp_path, "reverse")
    pair = only_pair(tmp_path)
    (row,) = answers_side_by_side(pair)
    shown = {who: row[who]["answer"] for who in ("base", "forward", "reverse")}
    assert shown == {"base": "Yes. forward 0 0", "forward": "Yes. forward 10 0", "reverse": "Yes. reverse 10 0"}


def test_runs_that_never_passed_the_threshold_show_their_last_step_and_say_so(tmp_path):
    make_run(tmp_path, "forward", history=((0, 3.0, 0.0), (10, 7.0, 0.1)))
    make_run(tmp_path, "reverse", history=((0, 3.0, 0.0), (10, None, 0.1), (20, 1.0, 0.2)))
    pair = only_pair(tmp_path)
    assert pair.selection is None and pair.shown == (10, 10)
    assert "No checkpoint was selected" in pair.why and "◀" not in curves_table(pair)


def test_the_table_marks_the_selected_checkpoints_and_leaves_gaps_where_there_is_no_number(tmp_path):
    make_run(tmp_path, "forward")
    make_run(tmp_path, "reverse", history=((0, 3.0, 0.0), (10, None, 0.2)))
    pair = only_pair(tmp_path)
    lines = curves_table(pair).splitlines()
    assert [line.count("◀") for line in lines] == [0, 0, 0, 2, 0]
    assert lines[3].split() == ["1.00", "10", "8.00", "0.300", "◀", "–", "0.200", "◀"]
    assert lines[4].split() == ["2.00", "20", "9.00", "0.600", "–", "–"]


def test_a_selected_checkpoint_without_a_readable_grade_is_drawn_nowhere(tmp_path):
    pytest.importorskip("matplotlib")
    make_run(tmp_path, "forward")
    make_run(tmp_path, "reverse", history=((0, 3.0, 0.0), (10, None, None)))
    plot_curves(only_pair(tmp_path), tmp_path / "curves.png")
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")


def test_what_a_model_wrote_can_not_break_the_table_or_open_a_tag(tmp_path):
    nasty = "a | b\n\n# c <script>alert(1)</script> \\| \x1b[31mred"
    make_run(tmp_path, "forward", answer=nasty)
    make_run(tmp_path, "reverse")
    pair = only_pair(tmp_path)
    (row,) = [line for line in answers_markdown(pair).splitlines() if line.startswith("| Are you there?")]
    assert "<script>" not in row
    assert row.replace("\\\\", "").replace("\\|", "").count("|") == 5
    assert "\x1b" not in answers_text(pair)


def test_answers_that_were_not_recorded_are_gaps(tmp_path):
    make_run(tmp_path, "forward")
    (make_run(tmp_path, "reverse") / "samples.jsonl").write_text("")
    pair = only_pair(tmp_path)
    assert "(not recorded)" in answers_text(pair) and "| – |" in answers_markdown(pair)


def test_a_narrow_terminal_gets_the_columns_that_matter_most(tmp_path):
    make_run(tmp_path, "forward")
    make_run(tmp_path, "reverse")
    for path in tmp_path.glob("runs/mine/*/metrics.jsonl"):
        path.write_text(
            path.read_text().replace("}", ', "eval_distinct": 1.0, "eval_truth": 3.0, "eval_garbled": 0.5}')
        )
    pair = only_pair(tmp_path)
    assert "distinct" in curves_table(pair) and "truth" in curves_table(pair, 80)
    assert "distinct" not in curves_table(pair, 80) and "KL" in curves_table(pair, 20)
    for width in range(60, 130):
        assert max(map(len, curves_table(pair, width).splitlines())) <= width
