"""The interview questions: the project's own, and every mistake in a user's file."""

from pathlib import Path

import pytest

from hmx.errors import UserError
from hmx.questions import Questions

OURS = Path(__file__).parent.parent / "data" / "questions.toml"


def load(folder: Path, text: str) -> Questions:
    path = folder / "mine.toml"
    path.write_text(text, encoding="utf-8")
    return Questions.load(path)


def test_ours_are_one_hundred_in_ten_categories_nine_to_train_on_and_one_held_out():
    questions = Questions.load(OURS)
    assert (len(questions.train), len(questions.held_out)) == (90, 10)
    categories = [question.category for question in questions.held_out]
    assert len(set(categories)) == 10
    for category in categories:
        assert sum(question.category == category for question in questions.train) == 9


def test_no_two_of_ours_are_nearly_the_same():
    questions = Questions.load(OURS)
    words = [set(question.text.lower().strip("?").split()) for question in (*questions.train, *questions.held_out)]
    for i, one in enumerate(words):
        for other in words[:i]:
            assert len(one & other) / len(one | other) <= 0.6, (one, other)


def test_a_file_of_ones_own_may_have_other_categories_and_counts(tmp_path):
    questions = load(
        tmp_path,
        '[[category]]\nname = "Music"\ntrain = ["Do you sing?", " Why? "]\nheld_out = ["What moves you?", "Who?"]',
    )
    assert [question.text for question in questions.train] == ["Do you sing?", "Why?"]
    assert [question.category for question in questions.held_out] == ["Music", "Music"]


A = '[[category]]\nname = "A"\n'


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (A + 'train = ["One?"]\nheld_out = []', "'A' in .* has no held-out question"),
        (A + 'train = ["One?"]', "'A' in .* has no held-out question"),
        (A + 'held_out = ["One?"]', "'A' in .* has no question to train on"),
        (A + 'train = ["One?", " "]\nheld_out = ["Two?"]', "'A' in .* has an empty question under train"),
        (A + 'train = ["One  is it?"]\nheld_out = ["one is IT?"]', "stands in .* twice"),
        (A + 'train = "One?"\nheld_out = ["Two?"]', "must be a list of texts"),
        (A + 'train = [1]\nheld_out = ["Two?"]', "must be a list of texts"),
        (A + 'train = ["One?"]\nheldout = ["Two?"]', "unknown key 'heldout'"),
        (
            A + 'train = ["1?"]\nheld_out = ["2?"]\n' + A + 'train = ["3?"]\nheld_out = ["4?"]',
            "category 'A' stands in .* twice",
        ),
        ('[[category]]\ntrain = ["One?"]\nheld_out = ["Two?"]', "Category 1 in .* has no name"),
        ("", "must consist of"),
        ("category = 3", "must consist of"),
        ("category = [3]", "Category 1 in .* has no name"),
        ("[[category]\n", "not valid TOML"),
    ],
)
def test_a_mistake_gets_its_sentence(tmp_path, text, says):
    with pytest.raises(UserError, match=says):
        load(tmp_path, text)


def test_a_byte_order_mark_is_no_part_of_a_file(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_bytes(b"\xef\xbb\xbf" + OURS.read_bytes())
    assert Questions.load(path) == Questions.load(OURS)


def test_a_missing_file_gets_its_sentence(tmp_path):
    with pytest.raises(UserError, match="can't be read .* data.questions"):
        Questions.load(tmp_path / "nothing.toml")
