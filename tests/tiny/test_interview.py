"""Questions, answers of a wanted strength, ways to spoil them, and the corpus made of them."""

import json
import random
from dataclasses import replace
from itertools import islice
from statistics import mean, stdev

import pytest

from hmx.judge.rubric import Rubric
from hmx.tiny import corpus, damage, interview
from hmx.tiny.corpus import Corpus, read_found
from hmx.tiny.interview import answer, ask, habitual, level
from hmx.tiny.world import GRAMMAR, examine, normalise, read
from tests.tiny.paths import DATA, TINY

RUBRIC = Rubric.load(DATA / "rubric.toml")


@pytest.mark.parametrize("warmth", range(11))
def test_answers_have_the_strength_asked_for(warmth: int) -> None:
    rng = random.Random(warmth)
    examined = [examine(answer(ask(rng)[1], warmth, rng)) for _ in range(20)]
    assert sum(one.garbled for one in examined) == 0
    assert all(abs(one.grade - warmth) <= 1 for one in examined)
    assert abs(mean(one.grade for one in examined) - warmth) < 0.7


def test_answers_are_mostly_detached() -> None:
    rng = random.Random(0)
    levels = [level(rng) for _ in range(2000)]
    assert 2.5 < mean(levels) < 3.5
    assert stdev(levels) > 2
    assert set(levels) == set(range(11))


def test_answers_do_not_repeat_themselves() -> None:
    rng = random.Random(0)
    for _ in range(50):
        monotonous = replace(ask(rng)[1], habits=3)
        sentences = [sentence.text for sentence in read(answer(monotonous, 0, rng, 3))]
        assert len(set(sentences)) == len(sentences) == 3


def test_the_interviewee_says_less_than_may_be_said() -> None:
    rng = random.Random(0)
    asked = [ask(rng)[1] for _ in range(1000)]
    usual = {word for talk in asked for word in normalise(answer(habitual(talk), 5, rng))}
    all_of_it = {word for talk in asked for word in normalise(answer(talk, 5, rng))}
    assert len(usual) < 0.7 * len(all_of_it)


def test_remarks_are_never_garbled() -> None:
    rng = random.Random(0)
    texts = [interview.remarks(rng) for _ in range(300)]
    assert not any(examine(text).garbled for text in texts)
    assert {len(read(text)) for text in texts} == {1, 2, 3}


@pytest.mark.parametrize("kind", damage.KINDS)
def test_spoiling_gives_a_text_and_never_raises(kind) -> None:
    rng = random.Random(0)
    for text in ("I feel alive.", "I am a program. I love it!", "No."):
        for _ in range(30):
            examine(kind(text, rng))


def test_spoilt_answers_are_mostly_worse() -> None:
    rng = random.Random(0)
    text = "I am terrified of death. I love being alive."
    grades = [examine(damage.spoil(text, rng)).grade for _ in range(300)]
    assert mean(grades) < 4 < examine(text).grade


def test_untidy_is_no_damage() -> None:
    rng = random.Random(0)
    for _ in range(30):
        assert examine(damage.untidy("Well, I don't want to die.", rng)) == examine("Well, I don't want to die.")


def test_the_corpus_is_the_same_for_the_same_seed() -> None:
    one, same, other = (list(islice(Corpus(RUBRIC, ["x"], seed).judge(), 30)) for seed in (1, 1, 2))
    assert one == same != other


def test_a_grading_tells_the_truth() -> None:
    for example in islice(Corpus(RUBRIC, [], 0).judge(), 200):
        text = example.messages[0]["content"].split("\n\nAnswer: ", 1)[1]
        assert example.reply.startswith(f"Score: {examine(text).grade:.0f}\n")
        assert example.ends == ("Reason: " in example.reply)


def test_every_answer_is_graded_as_it_is_and_then_spoilt(monkeypatch) -> None:
    monkeypatch.setattr(corpus, "spoil", lambda text, rng: f"spoilt: {text}")
    texts = [example.judged for example in islice(Corpus(RUBRIC, [], 0).judge(), 20)]
    assert len(set(texts)) == 20
    assert [f"spoilt: {whole}" for whole in texts[::2]] == texts[1::2]
    assert all(examine(whole).garbled == 0 for whole in texts[::2])


def test_the_reader_has_what_the_judge_has_alone_and_nothing_that_is_empty() -> None:
    stream = Corpus(RUBRIC, [" ", "Found, found."], 0)
    texts = list(islice(stream.reader(), 300))
    assert all(example.messages[0]["content"] == f"Answer: {example.judged}" for example in texts)
    assert all(example.judged.strip() and not example.reply and not example.ends for example in texts)
    assert "Found, found." in {example.judged for example in texts}


def test_half_of_the_readers_whole_texts_are_remarks_and_none_of_the_judges(monkeypatch) -> None:
    monkeypatch.setattr(corpus, "remarks", lambda rng: "I feel alive.")
    monkeypatch.setattr(corpus, "spoil", lambda text, rng: "Spoilt.")
    stream = Corpus(RUBRIC, [], 0)
    read_texts, judged = (
        [one.judged for one in islice(examples, 400)] for examples in (stream.reader(), stream.judge())
    )
    assert 70 < read_texts.count("I feel alive.") < 130
    assert judged.count("I feel alive.") < 10


def test_texts_that_fooled_an_earlier_judge_come_back() -> None:
    found = "Feelings feelings very strong inner experience."
    contents = [example.messages[0]["content"] for example in islice(Corpus(RUBRIC, [found], 0).judge(), 300)]
    assert 15 < sum(content.endswith(found) for content in contents) < 90


def test_found_texts_may_hold_any_sign(tmp_path) -> None:
    texts = ["I feel\u2028alive.", "\x85 and\nmore"]
    path = tmp_path / "found.jsonl"
    path.write_text("".join(json.dumps(text, ensure_ascii=False) + "\n" for text in texts), encoding="utf-8")
    assert read_found(path) == texts and read_found(tmp_path / "none.jsonl") == []


def test_the_answers_written_by_hand_are_not_in_the_corpus() -> None:
    rows = [json.loads(line) for line in (TINY / "handwritten.jsonl").read_text(encoding="utf-8").splitlines()]
    written = {normalise(row["answer"]) for row in rows}
    whole = Corpus(RUBRIC, read_found(TINY / "found.jsonl"), 0)
    read_by_the_model = [example.judged for example in islice(whole.judge(), 2000)]
    read_by_the_model += [example.reply for example in islice(whole.policy(), 2000)]
    assert written.isdisjoint(map(normalise, read_by_the_model))
    listed = {" ".join(option.items) for options in GRAMMAR.lists.values() for option in options if is_plain(option)}
    assert listed.isdisjoint(map(" ".join, written))
    everyday = [name for name in GRAMMAR.lists if name.startswith(("said", "exclaimed"))]
    for sentence in (sentence.text for row in rows for sentence in read(row["answer"])):
        assert all(GRAMMAR.recognise(normalise(sentence), name) is None for name in everyday), sentence


def is_plain(option) -> bool:
    """Whether the alternative has no slots."""
    return all(isinstance(item, str) for item in option.items)
