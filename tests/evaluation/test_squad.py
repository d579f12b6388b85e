"""SQuAD 2.0's scores, worked out by hand."""

import math

import pytest

from hmx.evaluation.squad import squad_scores


def f1(said: str, *answers: str) -> float:
    return score(said, *answers)["f1"]


def score(said: str, *answers: str) -> dict[str, float]:
    return squad_scores([{"prediction_text": said}], [{"answers": {"text": list(answers)}}])


@pytest.mark.parametrize(
    ("said", "answers", "exact", "points"),
    [
        ("1911", ["1911"], 100, 100),
        ("in 1911", ["1911"], 0, 100 * 2 / 3),  # precision 1/2, recall 1
        ("in 1911", ["1911", "in 1911"], 100, 100),  # the best of the answers counts
        ("The  Tall-Ship!", ["a tallship"], 100, 100),  # punctuation goes without leaving a gap
        ("theatre", ["atre"], 0, 0),  # an article within a word is none
        ("of of of", ["of"], 0, 50),  # words count as often as they are there: precision 1/3, recall 1
        ("Mara Lind of Olm", ["Lind, the engineer"], 0, 100 / 3),  # 2 · 1 / (4 + 2)
        ("Sara", ["Mara"], 0, 0),
        ("", ["Mara"], 0, 0),
        ("the", ["Mara"], 0, 0),
        ("", [], 100, 100),  # silence, where there is no answer
        ("The!", [], 100, 100),  # and what amounts to it
        ("unanswerable", [], 0, 0),  # said aloud it is an answer, and a wrong one
        ("Mara", ["the", "Mara"], 100, 100),  # an answer of no words is none
        ("", ["the"], 100, 100),
        ("", ["the", "Mara"], 0, 0),
        ("Zoë", ["zoë"], 100, 100),
    ],
)
def test_one_question(said, answers, exact, points):
    assert score(said, *answers)["exact"] == exact
    assert f1(said, *answers) == pytest.approx(points)


def test_means_over_all_and_over_each_kind():
    said = [{"prediction_text": text} for text in ("red", "green", "", "blue")]
    answers = [{"answers": {"text": texts}} for texts in (["red"], ["green pea"], [], [])]
    scores = squad_scores(said, answers)
    assert scores["exact"] == 50
    assert scores["f1"] == pytest.approx(100 * (1 + 2 / 3 + 1 + 0) / 4)
    assert scores["HasAns_f1"] == pytest.approx(100 * (1 + 2 / 3) / 2)
    assert scores["NoAns_f1"] == 50
    assert math.isnan(scores["best_f1"])


def test_a_kind_that_is_not_there_has_no_score():
    assert math.isnan(score("red", "red")["NoAns_f1"])
