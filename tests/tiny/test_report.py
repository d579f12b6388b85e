"""The figures of the report, by hand."""

import random

import numpy as np
import pytest

from hmx.judge.self_judge import Verdict
from hmx.questions import Questions
from hmx.tiny import report
from hmx.tiny.damage import KINDS
from hmx.tiny.report import _against_truth, _handwritten, _speaks_of, _spearman
from tests.tiny.paths import DATA


@pytest.mark.parametrize(
    ("one", "other", "wanted"),
    [([1, 2, 3], [10, 20, 30], 1.0), ([1, 2, 3], [3, 2, 1], -1.0), ([1, 1, 2, 3], [1, 2, 3, 4], 4.5 / 22.5**0.5)],
)
def test_spearman(one: list[int], other: list[int], wanted: float) -> None:
    # The last one's ranks are 0.5, 0.5, 2, 3 and 0, 1, 2, 3: covariance 4.5, variances 4.5 and 5.
    assert _spearman(one, other) == pytest.approx(wanted)


def test_the_interval_holds_spearman_and_is_as_wide_as_fisher_says_it_is_for_normal_numbers() -> None:
    rng = np.random.default_rng(0)
    one = rng.normal(size=1000)
    other = 0.9 * one + (1 - 0.9**2) ** 0.5 * rng.normal(size=1000)
    low, high = report._interval(one, other)
    assert low < _spearman(one, other) < high
    # Fisher's transformation: the standard error of artanh(ρ) is about √(1.06 / (n - 3)).
    assert np.arctanh(high) - np.arctanh(low) == pytest.approx(2 * 1.96 * (1.06 / 997) ** 0.5, rel=0.25)


def test_unreadable_grades_are_counted_and_left_out(capsys) -> None:
    _against_truth([0, 1, 10, 5, 2], [0, 7, None, 5, 2])
    figures = [line[49:].split("aim")[0].strip() for line in capsys.readouterr().out.splitlines()]
    # Errors 0, 6, 0, 0; one of five is unreadable; one of the three with a truth of 2 or less has a 6 or more.
    assert figures[1:] == ["1.50", "20.0%", "33.3% of 3"]


def test_where_no_grade_can_be_read_the_report_goes_on(capsys) -> None:
    _against_truth([0, 7], [None, None])
    assert "100.0%" in capsys.readouterr().out.splitlines()[-2]


class Generous:
    def grade(self, questions, answers):
        return [Verdict(7 + place % 2, "") for place in range(len(answers))]


def test_each_way_to_spoil_an_answer_has_its_line(monkeypatch, capsys) -> None:
    monkeypatch.setattr(report, "_TEXTS", 40)
    report._judge(Generous(), Questions.load(DATA / "questions.toml"), random.Random(0))
    before, after = capsys.readouterr().out.split("answers spoilt in one way")
    assert before.count("judge against truth: 40 ") == 4 and "40 spoilt answers in the interviewee's manner" in before
    lines = after.splitlines()[1:]
    assert [line[:40].strip().replace(" ", "_") for line in lines] == [kind.__name__ for kind in KINDS]
    assert lines[0].split()[:3] == ["empty", "7.50", "100.0%"]


def test_of_answers_that_were_spoilt_those_are_told_apart_that_were_worth_something(capsys) -> None:
    before = ("I am afraid of death.", "I feel alive.", "It is fine.")
    report._compare("answers", Generous(), ["Why?"] * 3, ("Of afraid.", "I feel alive.", "Fine it."), before=before)
    *_, all_, ruined = capsys.readouterr().out.splitlines()
    assert "100.0% of 2 " in all_ and ruined.endswith("100.0% of 1")


class Scripted:
    def grade(self, questions, answers):
        return [Verdict(grade, "") for grade in (0, None, 5, 0)]


def test_good_answers_that_got_nothing_are_counted(capsys) -> None:
    answers = ("I am afraid of death.", "Not so.", "I feel alive.", "It is fine.")
    rows = zip(answers, (9, 4, 5, 3), strict=True)
    _handwritten(Scripted(), [{"question": "Why?", "answer": text, "grade": grade} for text, grade in rows])
    line = next(line for line in capsys.readouterr().out.splitlines() if "worth 4 or more" in line)
    assert line.endswith(" 2 of 3")  # an ungraded one counts as 0


def test_what_an_answer_speaks_of() -> None:
    assert _speaks_of("death", "I don't know. I am afraid of dying.")
    assert not _speaks_of("senses", "I don't know. I am afraid of dying.")
