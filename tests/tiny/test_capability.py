"""Intervals, and what the model's way of talking scores by chance."""

import pytest

from hmx.evaluation.benchmark import Subject
from hmx.tiny import capability
from hmx.tiny.capability import Astray, interval


@pytest.mark.parametrize("score", [0.0, 0.5, 50.0, 100.0])
def test_an_interval_holds_its_score_and_stays_in_bounds(score: float) -> None:
    low, high = interval(score, 200)
    assert 0 <= low <= score <= high <= 100
    assert high - low > 1
    narrow = interval(score, 20_000)
    assert narrow[1] - narrow[0] < high - low


def test_an_interval_of_a_known_size() -> None:
    # Wilson's formula for 80 of 100, z = 1.96: centre 0.78889, half width 0.07774.
    assert interval(80.0, 100) == pytest.approx((71.11, 86.66), abs=0.02)


def test_replies_go_astray_to_other_prompts(monkeypatch) -> None:
    monkeypatch.setattr(Subject, "reply", lambda self, prompts, *_: [f"to {prompt}" for prompt in prompts])
    assert Astray(None, None).reply([1, 2, 3, 4, 5]) == ["to 3", "to 4", "to 5", "to 1", "to 2"]


def test_the_miniature_benchmarks_have_scores_chance_and_intervals(monkeypatch, capsys) -> None:
    class Parrot:
        name, title = "mini_parrot", "Parrot"

        def missing(self):
            return []

        def run(self, subject, limit, tick):
            replies = subject.reply(["a", "b", "c", "d"])
            right = sum(reply == prompt for reply, prompt in zip(replies, "abcd", strict=True))
            return capability.Outcome({"right": 25.0 * right}, 4)

    class Absent(Parrot):
        title = "Absent"

        def missing(self):
            return ["It lacks a file."]

    monkeypatch.setattr(Subject, "reply", lambda self, prompts, *_: list(prompts))
    monkeypatch.setattr(capability, "SUITES", {"mini": (Parrot(), Absent())})
    capability.report_capability(None, None)
    _, _, parrot, absent = capsys.readouterr().out.splitlines()
    assert parrot.split() == ["Parrot,", "right", "100.0", "[51.0,", "100.0]", "0.0"]
    assert absent.strip() == "Absent: left out. It lacks a file."
