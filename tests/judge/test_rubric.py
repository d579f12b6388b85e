"""The rubric file and the conversation made from it."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hmx.errors import UserError
from hmx.judge.rubric import Rubric

PROMPT = "Grade it.\nQuestion: {question}\nAnswer: {answer}\nScore:"


def write(tmp_path, text: str | bytes, name: str = "rubric.toml"):
    path = tmp_path / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def test_a_toml_file_gives_its_prompt_without_surrounding_white_space(tmp_path):
    assert Rubric.load(write(tmp_path, f'prompt = """\n{PROMPT}\n\n"""\n')).prompt == PROMPT


def test_any_other_file_is_used_verbatim(tmp_path):
    text = f"  {PROMPT}\n\n# prompt = not TOML\n"
    assert Rubric.load(write(tmp_path, text, "rubric.txt")).prompt == text
    assert Rubric.load(str(write(tmp_path, text, "rubric"))).prompt == text


@pytest.mark.parametrize(
    "text, named",
    [
        ('prompt = "{question} {answer}', "not valid TOML"),
        ("", "it holds nothing"),
        ("prompt = 3", "must be a text in quotes"),
        ('text = "{question} {answer}"', "it holds text"),
        ('prompt = "{question} {answer}"\nscale = 10', "it holds prompt, scale"),
        ('prompt = "Question: {question}"', r"\{answer\} exactly once; it does so 0 times"),
        ('prompt = "Answer: {answer}"', r"\{question\} exactly once; it does so 0 times"),
        ('prompt = "{question} {answer} {answer}"', r"\{answer\} exactly once; it does so 2 times"),
        (b'prompt = "\xff"', "can't be read"),
    ],
)
def test_a_bad_file_is_refused_in_a_sentence_that_names_it(tmp_path, text, named):
    with pytest.raises(UserError, match=named) as caught:
        Rubric.load(write(tmp_path, text))
    assert "rubric.toml" in str(caught.value) and str(caught.value).endswith(".")


def test_a_byte_order_mark_is_no_part_of_a_prompt(tmp_path):
    path = tmp_path / "rubric.txt"
    path.write_bytes(b"\xef\xbb\xbfHow polite? {question} {answer}")
    assert Rubric.load(path).prompt.startswith("How polite?")


def test_a_missing_file_and_a_folder_are_refused(tmp_path):
    for path in (tmp_path / "none.toml", tmp_path):
        with pytest.raises(UserError, match=r"judge\.prompt_file"):
            Rubric.load(path)


@given(st.text(), st.text())
def test_question_and_answer_are_put_in_as_they_are(question, answer):
    expected = f"Grade it.\nQuestion: {question}\nAnswer: {answer}\nScore:"
    assert Rubric(PROMPT).messages(question, answer) == [{"role": "user", "content": expected}]


def test_other_braces_in_the_prompt_stay_too():
    prompt = 'Reply with {"score": 7} or {} of {0}.\nQuestion: {question}\nAnswer: {answer}'
    [message] = Rubric(prompt).messages("Q", "A")
    assert message["content"] == 'Reply with {"score": 7} or {} of {0}.\nQuestion: Q\nAnswer: A'


@pytest.mark.parametrize("text", ["{answer}", "{question}", r"\g<0> \1 \n", "{0} {{}} %s", "{question}{answer}"])
def test_places_braces_and_backslashes_in_them_stay_plain_text(text):
    [message] = Rubric(PROMPT).messages(text, text)
    assert message["content"] == f"Grade it.\nQuestion: {text}\nAnswer: {text}\nScore:"
