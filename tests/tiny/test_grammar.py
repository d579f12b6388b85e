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


def test_phrases_are_made_through_every_alternative_alike_often() -> None:
    rng = random.Random(0)
    made = [" ".join(SMALL.make_with(("sentence",), Talk("identity"), rng)) for _ in range(3000)]
    # There are eleven; this one belongs to another category, so by itself it is never drawn.
    assert sum("doomed" in text for text in made) / len(made) == pytest.approx(1 / 11, abs=0.015)
    assert None not in {SMALL.recognise(text.split()) for text in made}


def test_floor_holds_for_weak_phrases() -> None:
    grammar = Grammar("[sentence >1] I am <deg> <mood>\n[deg] hardly -9\n[mood] sad 6")
    assert grammar.recognise("i am hardly sad".split()) == 1
    weaker = Grammar("[sentence >1] I am <deg> <deg> <mood>\n[deg] hardly -9\n[mood] sad 6")
    assert weaker.recognise("i am hardly hardly sad".split()) == 1


def test_braces_hold_alternatives_that_add_nothing() -> None:
    grammar = Grammar("[sentence] I {love/am fond of} {you and me/all I mean/} 6")
    made = {" ".join(grammar.make("sentence", Talk(), random.Random(seed))[0]) for seed in range(50)}
    assert made == {
        f"i {love} {who}".strip() for love in ("love", "am fond of") for who in ("you and me", "all i mean", "")
    }
    assert {grammar.recognise(text.split()) for text in made} == {6}
    assert grammar.recognise("i fond of you and me".split()) is None


@pytest.mark.parametrize(
    "text",
    ["I {love you", "I {love/hate}, you", "I {a {b/c}/d} it", "yes x2 3", "{love 2/hate}", "yes x0", "I {<top>/me}"],
)
def test_notation_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"no word|is empty|slot in braces"):
        Grammar(f"[top] {text}")


def test_all_wordings_of_an_alternative_without_named_slots() -> None:
    grammar = Grammar("[top] I {love/am fond of} it , {always/} 6 | I am <mood>\n[mood] sad")
    plain, slotted = grammar.lists["top"]
    wanted = {("i", *verb, "it", *last) for verb in (("love",), ("am", "fond", "of")) for last in (("always",), ())}
    assert set(grammar.wordings(plain)) == wanted
    assert not list(grammar.wordings(slotted))


def test_an_alternative_may_count_several_times() -> None:
    grammar = Grammar("[sentence] yes x3 | no 2 x1")
    assert [option.items for option in grammar.lists["sentence"]] == [("yes",)] * 3 + [("no",)]
    assert grammar.recognise(["no"]) == 2


def test_words_of_the_wrong_kind_come_from_lists_with_a_name() -> None:
    grammar = Grammar("[top] I {love/like} <mood>\n[mood] sad")
    made = {" ".join(grammar.make("top", Talk(), random.Random(seed), odd=1.0)[0]) for seed in range(20)}
    assert made and not any(text.startswith(("i love love", "i like like")) for text in made)


def test_tags_and_categories_guide_the_maker_only() -> None:
    rng = random.Random(0)
    made = {" ".join(SMALL.make("mood", Talk("death"), rng, "bad")[0]) for _ in range(100)}
    assert made == {"doomed", "sad"}
    assert " ".join(SMALL.make("mood", Talk("death"), rng, "good")[0]) == "happy"
    assert SMALL.recognise("i am doomed".split()) == 9


def test_a_speaker_of_few_habits_uses_some_of_each_list_from_all_over_it() -> None:
    grammar = Grammar("[sentence]\n<feel> happy\n<feel> sad\n<feel> lost\n[feel] I feel | I am | I grow | I fall")
    made = {" ".join(grammar.make("sentence", Talk(habits=2), random.Random(seed))[0]) for seed in range(60)}
    assert made == {"i am happy", "i am lost", "i fall happy", "i fall lost"}


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
    assert different <= 50 and far <= 8


def test_slots_of_the_wrong_kind_seldom_make_sentences() -> None:
    rng = random.Random(1)
    made = [GRAMMAR.make("core", Talk("death"), rng, odd=0.5)[0] for _ in range(300)]
    assert sum(parse(normalise(" ".join(words)))[0] is None for words in made) > 150


@given(st.integers(0, 10**6), st.sampled_from(sorted(CATEGORIES)))
def test_what_follows_at_a_place_is_what_a_sentence_could_go_on_with_or_its_end(seed: int, category: str) -> None:
    rng = random.Random(seed)
    words = [word for word in GRAMMAR.make("sentence", Talk(category), rng, odd=0.05)[0] if word != ","]
    following = GRAMMAR.following(words)
    assert len(following) == len(words) + 1
    others = [word for word in GRAMMAR.make("sentence", Talk(category), rng)[0] if word != ","]
    for place, (sets, complete) in enumerate(following):
        assert complete == (GRAMMAR.recognise(words[:place]) is not None)
        for word in (*words[place : place + 1], rng.choice(others)):
            fits = any(word in some for some in sets)
            assert fits == (GRAMMAR.parse([*words[:place], word])[1] == place + 1)
