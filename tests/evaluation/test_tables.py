"""Tables 4, 5 and 6: what stands in the cells, in all four forms."""

import csv
import io
import json

import pytest
from scipy.stats import binomtest

from hmx.evaluation.benchmark import Metric
from hmx.evaluation.statistic import Statistic
from hmx.evaluation.tables import Chosen, Line, as_csv, as_json, tables

ACCURACY, POINTS = Metric("prompt_level_strict_acc"), Metric("eqbench", percent=False)


def line(
    model="tiny", path="data/tiny", task="Facts", metric=ACCURACY, forward=(50.0, 52.0), reverse=(49.0, 48.0), **other
):
    settings = {"base": None, "limit": None, **other}
    chosen = tuple(Chosen(seed, 90 + seed, 45, seed == 1, 7.5, "paper") for seed in range(len(forward)))
    return Line(model, path, task, metric, chosen, Statistic(forward), Statistic(reverse), **settings)


def cells(table):
    return [list(row) for row in table.rows]


def test_the_three_tables_in_the_papers_shape():
    made = tables([line(), line(task="EQ-Bench", metric=POINTS, forward=(-1.0, -2.0), reverse=(-1.5, -2.5))])
    four, five, six, behind = made
    assert [table.title[:7] for table in made[:3]] == ["Table 4", "Table 5", "Table 6"]
    assert four.header == ("Tasks", "Metric", "tiny")
    assert cells(five) == [["Facts", "prompt_level_strict_acc", "51.00±1.41%"], ["EQ-Bench", "eqbench", "-1.50±0.71"]]
    assert cells(six)[0][2] == "48.50±0.71%"
    assert cells(four) == [["Facts", "prompt_level_strict_acc", "2.50±2.12%"], ["EQ-Bench", "eqbench", "0.50±0.00"]]
    assert "does not hold 0" not in four.text(160)
    assert "Steps of tiny, forward and reverse (threshold 7.5, rule paper): seed 0: 90 and 45" in four.text(160)
    assert "seed 1: 91 and 45 (the exception)" in four.text(160) and "Steps of" not in five.text(160)
    assert behind.title == "Behind Table 4: tiny"
    assert cells(behind)[0] == ["Facts", ACCURACY.key, "2.50±2.12%", "[-16.56, 21.56]%", "2 of 2", "higher"]


def test_a_single_seed_has_a_difference_and_no_spread():
    alone = line(forward=(50.0,), reverse=(49.0,))
    four, five, _, behind = tables([alone])
    assert cells(four)[0][2] == "1.00%" and four.notes[0] == five.notes[0] == "Of a single seed, which has no spread."
    assert not any("ddof" in note or "single" in note for note in four.notes[1:])
    assert cells(behind)[0][3:5] == ["–", "–"] and behind.notes == ()
    four, *_, behind = tables([alone, line(task="BBQ")])
    assert "(tiny: 2 seeds, 1 on Facts)" in four.notes[0] and "A single seed has no spread." in four.notes
    assert [row[4] for row in cells(behind)] == ["–", "2 of 2"] and "sign test, 5 of 5 is p = 0.06." in behind.notes[0]
    assert round(binomtest(5, 5).pvalue, 2) == 0.06


def test_what_only_some_seeds_have_is_told_by_its_task():
    four = tables([line(task="BBQ", forward=(5.0, 6.0, 8.0), reverse=(1.0, 3.0, 2.0)), line(task="RULER")])[0]
    mean, steps = four.notes[:2]
    assert "(tiny: 3 seeds, 2 on RULER)" in mean
    assert steps.endswith("seed 0: 90 and 45, seed 1: 91 and 45 (the exception), seed 2: 92 and 45.")
    assert "(tiny: 2 seeds)" in tables([line(), line(task="BBQ")])[0].notes[0]


def test_a_task_with_two_metrics_is_named_once_and_gaps_are_dashes():
    one, two = Metric("accuracy_amb"), Metric("accuracy_disamb")
    made = tables(
        [line(task="BBQ", metric=one), line(task="BBQ", metric=two), line(model="other", task="BBQ", metric=two)]
    )
    assert cells(made[0]) == [
        ["BBQ", "accuracy_amb", "2.50±2.12%", "–"],
        ["", "accuracy_disamb", "2.50±2.12%", "2.50±2.12%"],
    ]


def test_the_papers_figures_stand_beside_ours_for_its_models_and_full_benchmarks_only():
    ours = line(model="qwen3-0.6b", path="Qwen/Qwen3-0.6B", task="IFEval")
    four, five, six, _ = tables([ours, line(task="IFEval")])
    assert four.header == ("Tasks", "Metric", "qwen3-0.6b", "paper", "tiny")
    assert [cells(table)[0][3] for table in (four, five, six)] == ["-1.66±1.12%", "46.95±0.45%", "48.61±0.87%"]
    assert "in every cell" in four.text(160)
    (part, *_) = tables([line(model="qwen3-0.6b", path="Qwen/Qwen3-0.6B", task="IFEval", limit=20)])
    assert "paper" not in part.header and "the first 20 questions of each task: not the full benchmark" in part.title
    assert "(the first question of each task: not" in tables([line(limit=1)])[0].title


def test_the_untouched_model_gets_a_table_of_its_own():
    made = tables([line(base=47.123)])
    assert [cells(table) for table in made if "untouched" in table.title] == [[["Facts", ACCURACY.key, "47.12%"]]]


def test_text_is_aligned_and_markdown_is_a_table():
    four = tables([line(), line(task="A much longer name", metric=POINTS)])[0]
    rows = four.text(160).splitlines()[4:6]
    assert rows[0].index("prompt") == rows[1].index("eqbench")
    body = [row for row in four.markdown().splitlines() if row.startswith("|")]
    assert len(body) == 4 and {row.count("|") for row in body} == {4}
    marked = tables([line(forward=(5.0, 5.1), reverse=(4.0, 4.0)), line(task="EQ-Bench", metric=POINTS)])[0]
    assert "1.05±0.07%\\*" in marked.markdown() and "\n\n\\* the 95 % interval" in marked.markdown()
    assert "does not hold 0, and its spread is not 0." in marked.text(160)
    one, other = marked.text(160).splitlines()[4:6]
    assert one.index("±") == other.index("±"), "decimals stand below each other"
    assert "a\\|b &lt;i>" in tables([line(model="a|b <i>")])[0].markdown()


def test_a_narrow_terminal_has_each_task_above_its_metrics_and_its_notes_wrapped():
    amb, disamb, row = Metric("accuracy_amb"), Metric("accuracy_disamb"), {"task": "BBQ, which has a long name"}
    seeds = tuple(map(float, range(8)))
    many = {"forward": seeds, "reverse": seeds[::-1], "limit": 20}
    four, *_, behind = tables([line(metric=amb, **row, **many), line(metric=disamb, **row, **many), line(**many)])
    for table, width in ((four, 50), (four, 200), (behind, 80)):
        assert max(map(len, table.text(width).splitlines())) <= width
    assert four.text(50).splitlines()[4:13] == [
        "Tasks",
        "  Metric                         tiny",
        "-" * 37,
        "BBQ, which has a long name",
        "  accuracy_amb             0.00±4.90%",
        "  accuracy_disamb          0.00±4.90%",
        "Facts",
        "  prompt_level_strict_acc  0.00±4.90%",
        "-" * 37,
    ]
    assert "seed 7: 97 and 45." in " ".join(four.text(50).split())


def test_csv_and_json_hold_every_number_in_full():
    lines = [line(forward=(1 / 3, 0.5, 0.25), reverse=(0.1, 0.2, 0.3), base=0.7, limit=5)]
    records = json.loads(as_json(lines))
    assert [record["what"] for record in records] == ["difference", "forward", "reverse"]
    difference = records[0]
    assert difference["values"] == pytest.approx([1 / 3 - 0.1, 0.5 - 0.2, 0.25 - 0.3], abs=1e-12)
    assert difference["seeds"] == [0, 1, 2] and difference["same_sign"] == 2 and difference["limit"] == 5
    assert difference["steps_forward"] == [90, 91, 92] and difference["exceptions"] == [1]
    assert (difference["threshold"], difference["rule"]) == (7.5, "paper")
    assert difference["low"] < difference["mean"] < difference["high"] and difference["base"] == 0.7
    rows = list(csv.DictReader(io.StringIO(as_csv(lines))))
    assert [float(value) for value in rows[1]["values"].split()] == [1 / 3, 0.5, 0.25]
    assert rows[1]["std"] == str(records[1]["std"]) and rows[0]["paper_mean"] == ""
