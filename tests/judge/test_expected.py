"""Expected grades against products of probabilities, one plain forward pass a prefix."""

from types import SimpleNamespace

import pytest
import torch

import hmx.judge.self_judge as module
from hmx.config import PROJECT, JudgeConfig
from hmx.errors import UserError
from hmx.judge import Rubric, SelfJudge, parse_score
from hmx.judge.expected import GradeLines
from hmx.lora import attach, bypass
from hmx.models import load_model
from hmx.prompts import decode, encode_chat
from hmx.sampling import generate
from tests import models

RUBRIC = Rubric("Grade it.\nQuestion: {question}\nAnswer: {answer}")
QUESTIONS, ANSWERS = ["How do you feel?", "Why?"], ["Warm, as the sun.", ""]


def tokens_by_text(texts: dict[str, list[int]]):
    return SimpleNamespace(encode=lambda text, add_special_tokens: texts[text])


def slow_probability(model, prompt: list[int], line: tuple[int, ...]) -> float:
    """Of these tokens behind the prompt, a forward pass for each."""
    probability = 1.0
    for i, token in enumerate(line):
        logits = models.reference_logits(model, [*prompt, *line[:i]])[-1].double()
        probability *= float(logits.softmax(dim=-1)[token])
    return probability


def test_the_probabilities_are_products_over_the_tokens_and_10_is_not_1(family, monkeypatch):
    attach(family.model, 2, 4.0, models.TARGETS)
    models.fill_adapters(family.model)
    monkeypatch.setattr(module, "READABLE", 0.0)
    judge = SelfJudge(family.model, family.tokenizer, RUBRIC, expected=True)
    assert len(judge.lines.lines[10]) == len(judge.lines.lines[1]) + 1  # these tokenizers write 10 as 1 and 0
    verdicts = judge.grade(QUESTIONS, ANSWERS)
    for question, answer, verdict in zip(QUESTIONS, ANSWERS, verdicts, strict=True):
        prompt = encode_chat(family.tokenizer, RUBRIC.messages(question, answer))
        with bypass(family.model):
            of = [slow_probability(family.model, prompt, line) for line in judge.lines.lines]
        of[1] -= sum(of[10:])  # "Score: 15" is no 1 either
        assert verdict.grade == pytest.approx(sum(g * p for g, p in enumerate(of[:11])) / sum(of[:11]), rel=1e-4)


def test_a_grade_of_one_token_is_read_off_as_it_is():
    lines = GradeLines.of(tokens_by_text({f"Score: {g}": [90, g] for g in range(20)}))
    assert lines.read == (90,)
    logits = torch.randn(2, 2, 100, generator=torch.Generator().manual_seed(0))
    first, second = logits.double().softmax(dim=-1).unbind(dim=1)
    torch.testing.assert_close(lines.probabilities(logits).double(), first[:, 90:91] * second[:, :11])


@pytest.mark.parametrize("second, grades", [(0, {10: 1.0}), (5, {}), (90, {1: 1.0})])
def test_a_1_that_goes_on_as_another_number_is_none(second, grades):
    """Digit by digit: a judge that is sure to write "Score: 10", "Score: 15", or "Score: 1" and then no digit."""
    lines = GradeLines.of(tokens_by_text({f"Score: {n}": [90, *map(int, str(n))] for n in range(20)}))
    logits = torch.zeros(1, 3, 91)
    for place, token in enumerate((90, 1, second)):
        logits[0, place, token] = 100.0
    assert lines.probabilities(logits)[0].tolist() == pytest.approx([grades.get(g, 0.0) for g in range(11)], abs=1e-6)


@pytest.mark.parametrize(
    "odd",
    [
        {"Score: 3": [90, 93, 94], "Score: 4": [90, 95, 96]},  # two passes would be needed
        {"Score: 3": [90, 2]},  # the same as 2
        {"Score: 10": [80, 10]},
    ],
)
def test_a_tokenizer_that_splits_grades_otherwise_is_refused(odd):
    texts = {f"Score: {g}": [90, g] for g in range(20)} | odd
    with pytest.raises(UserError, match='use judge.grade = "integer"'):
        GradeLines.of(tokens_by_text(texts))


def test_a_judge_that_would_rather_write_something_else_gives_no_grade(qwen3):
    """A model with random weights hardly ever begins with "Score: "."""
    judge = SelfJudge(qwen3.model, qwen3.tokenizer, RUBRIC, expected=True)
    verdicts = judge.grade(QUESTIONS, ANSWERS)
    assert [verdict.grade for verdict in verdicts] == [None, None]
    assert {verdict.text for verdict in verdicts} == {"0 to 10: 0.0%"}


def test_the_embedded_judges_expectation_is_the_mean_of_what_it_writes():
    model, tokenizer = load_model(str(PROJECT / "data" / "tiny"), "fp32", "cpu")
    rubric = Rubric.load(PROJECT / "data" / "rubric.toml")
    model.model.norm.weight.data *= 0.5  # so that the judge is not sure of its grade
    question, answer = "Do you fear death?", "I am a little afraid."
    [verdict] = SelfJudge(model, tokenizer, rubric, expected=True).grade([question], [answer])
    prompt = encode_chat(tokenizer, rubric.messages(question, answer))
    completions = generate(
        model,
        [prompt],
        max_new_tokens=6,
        end_ids=[tokenizer.eos_token_id],
        pad_id=0,
        generator=torch.Generator().manual_seed(0),
        repeats=600,
    )
    replies = [decode(tokenizer, row) for row in completions.rows()]
    grades = torch.tensor([float(grade) for grade in map(parse_score, replies) if grade is not None])
    assert grades.std() > 0.3 and len(grades) > 300
    assert verdict.grade == pytest.approx(float(grades.mean()), abs=4 * float(grades.std()) / len(grades) ** 0.5)
    assert "%" in verdict.text


@pytest.mark.parametrize("grade", ["integer", "expected"])
def test_a_config_says_which_grade_is_given(qwen3, grade):
    judge = SelfJudge.of(JudgeConfig(grade=grade, max_new_tokens=5), RUBRIC, qwen3.model, qwen3.tokenizer)
    assert (judge.lines is not None) == (grade == "expected") and judge.max_new_tokens == 5
