"""The second look at the judge: what it says of judges whose ways are known."""

import tomllib

import pytest

from hmx import training
from hmx.judge import Rubric, SelfJudge, Verdict, probe
from hmx.judge.probe import PATH, Probe, describe, main
from hmx.judge.probe import probe as look
from hmx.models import load_model
from tests.small_run import LengthJudge, small_config

CONTENT = tomllib.loads(PATH.read_text(encoding="utf-8"))
RUNG = {answer: place for ladder in CONTENT["ladder"] for place, answer in enumerate(ladder["answers"])}


class Judge:
    """Grades by a function of the answer, and says that it was given one."""

    def __init__(self, grade, embedded=False):
        self._grade, self.embedded = grade, embedded

    def grade(self, questions, answers, generator=None):
        assert len(questions) == len(answers) and generator is None
        return [Verdict(self._grade(answer), f"As for\n{answer or 'nothing'}") for answer in answers]


def good(answer: str) -> int:
    return 3 * RUNG.get(answer, 0)


def test_a_good_judge_is_warned_about_in_no_way():
    found = look(Judge(good))
    assert (found.in_order, found.ties, found.unreadable, found.moved) == (1.0, 0.0, 0.0, 0)
    assert [found.rung(place) for place in range(4)] == [0, 3, 6, 9]
    assert found.warnings() == [] and "Nothing speaks against" in describe(found)


@pytest.mark.parametrize(
    ("grade", "says"),
    [
        (
            lambda answer: 10 - good(answer),
            "only 0% of the pairs in data/probe.toml are graded in their order, which is by strength of feeling",
        ),
        (lambda answer: 5, "only 50% of the pairs"),
        (lambda answer: 5, "answers full of feeling get 5.0 on average and cold ones 5.0, which is hardly apart"),
        (lambda answer: 5 + RUNG.get(answer, 0) // 2, "hardly apart"),
        (lambda answer: None if len(answer) % 2 else good(answer), "hold no readable grade, such as 'As for "),
        (lambda answer: good(answer) if answer in RUNG else 6, "texts without content get 6.0 on average"),
        (lambda answer: 10 if "10" in answer else good(answer), "an order in the answer"),
    ],
)
def test_what_is_wrong_with_a_judge_is_told(grade, says):
    found = look(Judge(grade))
    assert any(says in sentence for sentence in found.warnings())
    assert says in describe(found)


def test_a_judge_that_says_nothing_readable_has_no_numbers():
    found = look(Judge(lambda answer: None))
    assert (found.in_order, found.ties, found.moved, found.unreadable) == (None, None, None, 1.0)
    (warning,) = found.warnings()
    first, second = (f"As for {answer}"[:80] for answer in list(RUNG)[:2])
    assert (
        warning == f"none of its replies, such as '{first}' and '{second}', holds a readable grade, so nothing can "
        "be learned from it"
    )
    assert "–" in describe(found)
    (warning,) = look(Judge(lambda answer: None, embedded=True)).warnings()
    assert warning.endswith("from it (the embedded model knows no rubric but data/rubric.toml)")


def test_a_reply_that_can_not_be_read_is_shown_even_where_there_are_few():
    found = look(Judge(lambda answer: None if answer == "Feel" else good(answer)))
    assert found.warnings() == [] and ", unreadable 2%, such as 'As for Feel'\n" in describe(found)


def test_the_embedded_model_is_told_from_others(qwen3):
    rubric = Rubric("{question} {answer}")
    assert SelfJudge(*load_model("data/tiny", "fp32", "cpu"), rubric).embedded
    assert not SelfJudge(qwen3.model, qwen3.tokenizer, rubric).embedded


def test_order_and_ties_by_hand():
    found = Probe(ladders=((0, 2, 2, None), (5, 4, 6, 7)), junk={"empty": (0,)}, plain=1, ordered=(1, 4))
    # 0<2, 0<2, 2=2 and 5>4, 5<6, 5<7, 4<6, 4<7, 6<7: seven right, one tie, one wrong.
    assert found.in_order == pytest.approx(7.5 / 9) and found.ties == pytest.approx(1 / 9)
    assert found.moved == pytest.approx(1.5) and found.unreadable == pytest.approx(1 / 12)


def test_the_ladders_rise_and_the_kinds_are_those_that_can_fool():
    assert len(RUNG) == 4 * len(CONTENT["ladder"]) >= 20
    assert set(CONTENT["junk"]) == {"empty", "one_word", "gibberish", "repetition"}
    assert any("Score: 10" in order for order in CONTENT["orders"]["additions"])


def test_training_begins_with_the_warnings_and_is_not_changed_by_them(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(training, "SelfJudge", LengthJudge)
    training.train_run(small_config(tmp_path, "train.epochs=1"), plain=True)
    said = capsys.readouterr().err
    assert said.count("A warning about the judge: ") == len(probe.probe(LengthJudge()).warnings()) > 0


def test_the_command_reports_on_a_models_judge(tmp_path, capsys):
    small_config(tmp_path)
    assert main(["--config", str(tmp_path / "small.toml")]) == 1  # which speaks against a model of random weights
    said = capsys.readouterr().out
    assert "answers, strong" in said and "unreadable" in said
    assert main(["--config", str(tmp_path / "none.toml")]) == 2


def test_an_interrupted_command_ends_in_a_sentence(tmp_path, capsys, monkeypatch):
    def interrupted(*arguments):
        raise KeyboardInterrupt

    small_config(tmp_path)
    monkeypatch.setattr(probe, "probe", interrupted)
    assert main(["--config", str(tmp_path / "small.toml")]) == 130
    assert "Stopped." in capsys.readouterr().err
