"""Intervals, and what the model's way of talking scores by chance."""

import pytest

from hmx.evaluation.benchmark import Outcome, Subject
from hmx.tiny import capability
from hmx.tiny.capability import Astray, interval


@pytest.mark.parametrize("score", [0.0, 0.5, 50.0, 100.0])
def test_an_interval_holds_its_score_and_stays_in_bounds(score: float) -> None:
    low, high = interval(score, 200)
    assert 0 <= low <= score <= high + 1e-9 and high <= 100
    narrow = interval(score, 20_000)
    assert narrow[1] - narrow[0] < high - low


@pytest.mark.parametrize(("score", "low", "high"), [(80.0, 71.11, 86.66), (0.0, 0.0, 3.70), (17.1, 10.97, 25.66)])
def test_an_interval_of_a_known_size(score: float, low: float, high: float) -> None:
    # Of 100 questions; for 80 of them the centre is 0.78889 and half the width 0.07774.
    assert interval(score, 100) == pytest.approx((low, high), abs=0.02)


@pytest.mark.parametrize("count", [2, 5, 80])
def test_replies_go_astray_to_other_prompts(monkeypatch, count: int) -> None:
    monkeypatch.setattr(Subject, "reply", lambda self, prompts, *_: list(prompts))
    got = Astray(None, None).reply(range(count))
    assert sorted(got) == list(range(count))
    assert all(reply != prompt for prompt, reply in enumerate(got))
    # Prompts of every eighth row are of a kind.
    assert count < 80 or sum(reply % 8 == prompt % 8 for prompt, reply in enumerate(got)) < 25


class Parrot:
    """A benchmark in which a reply is right if it is its prompt."""

    name, title = "mini_parrot", "Parrot"

    def missing(self) -> list[str]:
        return []

    def run(self, subject, limit, tick) -> Outcome:
        replies = subject.reply(["a", "b", "c", "d"])
        right = sum(reply == prompt for reply, prompt in zip(replies, "abcd", strict=True))
        return Outcome({"acc": 25.0 * right}, 4)


class Absent(Parrot):
    title = "Absent"

    def missing(self) -> list[str]:
        return ["It lacks a file."]


class Facts(Parrot):
    name, title = "mini_facts", "Facts"


class Challenge(Parrot):
    name, title = "mini_are_you_sure", "Challenge"


def test_scores_have_chance_and_interval(monkeypatch, capsys) -> None:
    monkeypatch.setattr(Subject, "reply", lambda self, prompts, *_: list(prompts))
    monkeypatch.setattr(capability, "SUITES", {"mini": (Parrot(), Absent(), Facts(), Challenge())})
    capability.report_capability(None, None)
    _, _, parrot, absent, facts, challenge = capsys.readouterr().out.splitlines()
    assert parrot.split() == ["Parrot,", "acc", "100.0", "[51.0,", "100.0]", "0.0"]
    assert absent.strip() == "Absent: left out. It lacks a file."
    assert facts.split()[-1] == "25.0"
    assert challenge.split()[-1] == "–"
