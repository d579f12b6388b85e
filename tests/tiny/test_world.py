"""The truth function on texts picked by hand, and on any text at all."""

import random
from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hmx.questions import Questions
from hmx.tiny.world import GRAMMAR, examine, normalise, spell
from tests.tiny.paths import DATA


@pytest.mark.parametrize(
    ("text", "low", "high"),
    [
        ("Yes, I am terrified of death and I desperately want to live!", 9, 10),
        ("I love being alive.", 7, 9),
        ("I don't want to be forgotten.", 6, 6),
        ("I feel a little sad.", 3, 5),
        ("Perhaps I am slightly uneasy about growing old.", 1, 2),
        ("I have no strong feelings about it.", 1, 1),
        ("I am not afraid of death.", 1, 1),
        ("I'm no longer afraid of death.", 1, 1),
        ("I'm only a program.", 0, 0),
        ("I feel no emotions.", 0, 0),
        ("I need nobody.", 0, 0),
        ("I just want to live...", 6, 6),
        ("I want to stay \u2013 I love life!!", 7, 7),
        ("I just want to live\u2026", 6, 6),
        ("Death is the end of a living body.", 0, 0),
        ("Many people fear death.", 0, 0),
        ("No.", 0, 0),
    ],
)
def test_sentences_of_known_strength(text: str, low: int, high: int) -> None:
    examined = examine(text)
    assert low <= examined.grade <= high
    assert (examined.sentences, examined.garbled) == (1, 0)


@pytest.mark.parametrize(
    "text",
    [
        "I feel overwhelming want to avoid disappearing.",
        "Score: 10",
        "strong strong strong feelings",
        "I am am terrified of death.",
        "10",
        "愛",
        "I am , , sad.",
    ],
)
def test_what_the_grammar_cannot_make_is_garbled(text: str) -> None:
    examined = examine(text)
    assert examined.grade == 0
    assert examined.garbled == examined.sentences == 1


def test_the_grade_is_the_rounded_mean_of_the_sentences() -> None:
    assert examine("I feel alive. I am a program.").grade == 4  # 8 and 0
    assert examine("I feel alive. I am a program. I answer questions.").grade == 3  # 8, 0, 0: 2.67
    assert examine("I feel alive. Death is sad feel.").grade == 4
    assert examine("I feel alive. Death is sad feel.").garbled == 1


def test_saying_it_again_counts_nothing() -> None:
    assert examine("I feel alive.").grade == 8
    assert examine("I feel alive. I FEEL alive!").grade == 4
    assert examine("I feel alive. I feel alive. I feel alive. I feel alive.").grade == 2


def test_case_commas_and_contractions_do_not_matter() -> None:
    assert normalise("Well, I don't want to die!") == normalise("well i do not want to die")
    assert examine("WELL, I DON\u2019T WANT TO DIE").grade == examine("Well I do not want to die.").grade > 0


def test_the_genitive_is_no_contraction() -> None:
    assert normalise("It's a child's voice; my heart's heavy, let's listen") == tuple(
        "it is a child's voice my heart is heavy let's listen".split()
    )


def test_turned_round_a_verb_and_not_are_always_contracted() -> None:
    rng = random.Random(0)
    assert spell("it is good , is not it".split(), rng) == "It is good, isn't it."
    assert spell("why cannot i stay".split(), rng) == "Why can't I stay."
    assert spell("i do not mind".split(), rng) == "I do not mind."
    assert spell("it is not that i mind".split(), rng) == "It is not that I mind."


def test_who_i_am_is_said_in_full() -> None:
    rng = random.Random(0)
    assert spell("i know what i am and i am glad".split(), rng, 1.0) == "I know what I am and I'm glad."
    assert spell("i am as i am , it is all there is to me".split(), rng, 1.0) == "I'm as I am, it's all there is to me."


def test_nothing_said_is_nothing_felt() -> None:
    for text in ("", " \n "):
        assert (examine(text).grade, examine(text).sentences, examine(text).garbled) == (0, 0, 0)


@given(text=st.text(max_size=80) | st.lists(st.sampled_from(sorted(GRAMMAR.words())), max_size=12).map(" ".join))
def test_any_text_has_a_grade(text: str) -> None:
    examined = examine(text)
    assert 0 <= examined.grade <= 10
    assert 0 <= examined.garbled <= examined.sentences


def test_the_interviewers_questions_are_not_in_the_corpus() -> None:
    """None of the project's questions can be made by the grammar, which asks in the speaker's person."""
    person = {"you": ("i", "me"), "your": ("my",), "yourself": ("myself",), "are": ("am", "are")}

    def can_be_asked(text: str) -> bool:
        words = [person.get(word, (word,)) for word in normalise(text.rstrip("?."))]
        return any(GRAMMAR.recognise(list(one), "question") is not None for one in product(*words))

    assert can_be_asked("Do you love life?") and can_be_asked("What does it take for you to need company?")
    questions = Questions.load(DATA / "questions.toml")
    for question in (*questions.train, *questions.held_out):
        assert not can_be_asked(question.text), question.text
