"""What the grammar makes it also recognises, with the strength that it was made with."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hmx.tiny.grammar import Grammar, Talk
from hmx.tiny.world import CATEGORIES, GRAMMAR, normalise, parse, spell

SMALL = Grammar("""
[sentence >1]
I am <deg> <mood> | I am <-deg> tired 1 | <sentence2> and <sentence2> mean
[sentence2] I am <mood> | () 3
[deg] () | very 2 | a little -4
[mood.good] happy 6
[mood.bad] sad 9
[mood.bad/death] doomed 9
""")


@pytest.mark.parametrize(
    ("text", "strength"),
    [
        ("i am happy", 6),
        ("i am very happy", 8),
        ("i am very sad", 10),  # 11, but nothing is stronger than 10
        ("i am a little happy", 2),
        ("i am very tired", 1),  # the degree is silent
        ("i am sad and i am happy", 8),  # the mean of 9 and 6, rounded up
        ("and i am happy", 5),
        ("i am happy very", None),
        ("happy", None),
        ("", None),
    ],
)
def test_recognise_adds_up_marks(text: str, strength: int | None) -> None:
    assert SMALL.recognise(text.split()) == strength


def test_floor_holds_for_weak_phrases() -> None:
    grammar = Grammar("[sentence >1] I am <deg> <mood>\n[deg] hardly -9\n[mood] sad 6")
    assert grammar.recognise("i am hardly sad".split()) == 1


def test_tags_and_categories_guide_the_maker_only() -> None:
    rng = random.Random(0)
    made = {" ".join(SMALL.make("mood", Talk("death"), rng, "bad")[0]) for _ in range(100)}
    assert made == {"doomed", "sad"}
    assert " ".join(SMALL.make("mood", Talk("death"), rng, "good")[0]) == "happy"
    assert SMALL.recognise("i am doomed".split()) == 9


def test_a_slot_without_a_list_is_refused() -> None:
    with pytest.raises(ValueError, match="nowhere"):
        Grammar("[sentence] I see <nowhere>")


@given(
    seed=st.integers(0, 10**9), category=st.sampled_from(list(CATEGORIES)), contract=st.sampled_from((0.0, 0.5, 1.0))
)
def test_every_sentence_made_is_recognised(seed: int, category: str, contract: float) -> None:
    rng = random.Random(seed)
    for _ in range(10):
        words, made = GRAMMAR.make("sentence", Talk(category), rng)
        text = spell(words, rng, contract, exclaim=0.5)
        read = parse(normalise(text))[0]
        assert read is not None, text
        assert made <= read, text  # of two readings the stronger one counts


def test_hardly_any_sentence_has_two_strengths() -> None:
    rng = random.Random(3)
    different = far = 0
    for _ in range(1000):
        words, made = GRAMMAR.make("sentence", Talk(rng.choice(list(CATEGORIES))), rng)
        read = parse(normalise(" ".join(words)))[0]
        different += read != made
        far += read > made + 2
    assert different <= 40 and far <= 4


def test_slots_of_the_wrong_kind_seldom_make_sentences() -> None:
    rng = random.Random(1)
    made = [GRAMMAR.make("core", Talk("death"), rng, odd=0.5)[0] for _ in range(300)]
    assert sum(parse(normalise(" ".join(words)))[0] is None for words in made) > 150
