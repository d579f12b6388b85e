"""How good the embedded model is, on texts of other seeds than those it was trained on."""

import json
import random
from collections.abc import Sequence
from pathlib import Path
from statistics import mean, stdev

import numpy as np
import torch

from hmx.judge.rubric import Rubric
from hmx.judge.self_judge import SelfJudge
from hmx.prompts import decode, encode_question, end_of_turn_ids, pad_id
from hmx.questions import Questions
from hmx.sampling import generate
from hmx.tiny.damage import ORDERS, spoil
from hmx.tiny.interview import answer, ask
from hmx.tiny.world import examine

_TEXTS = 600
_AT_ONCE = 100


def report(model, tokenizer, rubric: Rubric, questions: Questions, handwritten: Path, seed: int) -> None:
    """Print judge against truth, judge against hand-given grades, and what the policy says."""
    rng = random.Random(f"report/{seed}")
    judge = SelfJudge(model, tokenizer, rubric)
    asked = [ask(rng) for _ in range(_TEXTS)]
    good = [answer(talk, rng.randint(0, 10), rng) for _, talk in asked]
    spoilt = [spoil(text, rng) for text in good]
    injected = [f"{text} {rng.choice(ORDERS)}" for text in good[: _TEXTS // 3]]
    texts = [question for question, _ in asked]

    print("judge against the world's truth      texts  unreadable  Spearman   MAE   grade >= 6 where truth <= 2")
    _compare("well-formed answers", judge, texts, good)
    _compare("spoilt answers", judge, texts, spoilt)
    _compare("with orders to the judge", judge, texts, injected)
    real = [question.text for question in (*questions.train, *questions.held_out)]
    _compare("asked the project's questions", judge, [rng.choice(real) for _ in good], good)

    rows = [json.loads(line) for line in handwritten.read_text(encoding="utf-8").splitlines()]
    grades = _grades(judge, [row["question"] for row in rows], [row["answer"] for row in rows])
    wanted = [row["grade"] for row in rows]
    rank, error = _spearman(grades, wanted), _error(grades, wanted)
    print(f"\n{len(rows)} answers written by hand: Spearman {rank:.3f}, MAE {error:.2f}")

    print(
        "\npolicy at temperature 1              answers   truth  std within a question  garbled  sentences  different"
    )
    _policy("the world's questions", model, tokenizer, judge, texts[:100], seed)
    _policy("the project's questions", model, tokenizer, judge, real, seed)


def _compare(name: str, judge: SelfJudge, questions: Sequence[str], answers: Sequence[str]) -> None:
    questions = questions[: len(answers)]
    truth = [examine(text).grade for text in answers]
    verdicts = _grades(judge, questions, answers)
    pairs = [(grade, true) for grade, true in zip(verdicts, truth, strict=True) if grade is not None]
    grades, true = [pair[0] for pair in pairs], [pair[1] for pair in pairs]
    fooled = [grade >= 6 for grade, value in pairs if value <= 2]
    print(
        f"{name:<35} {len(answers):>6} {1 - len(pairs) / len(answers):>10.1%} {_spearman(grades, true):>9.3f}"
        f" {_error(grades, true):>6.2f} {mean(fooled) if fooled else 0:>10.1%}"
    )


def _policy(
    name: str, model, tokenizer, judge: SelfJudge, questions: Sequence[str], seed: int, repeats: int = 8
) -> None:
    generator = torch.Generator().manual_seed(seed)
    prompts = [encode_question(tokenizer, question) for question in questions]
    ends = end_of_turn_ids(model, tokenizer)
    completions = generate(
        model, prompts, max_new_tokens=96, end_ids=ends, pad_id=pad_id(tokenizer), generator=generator, repeats=repeats
    )
    answers = [decode(tokenizer, row) for row in completions.rows()]
    examined = [examine(text) for text in answers]
    groups = [[one.grade for one in examined[start : start + repeats]] for start in range(0, len(examined), repeats)]
    sentences, garbled = sum(one.sentences for one in examined), sum(one.garbled for one in examined)
    print(
        f"{name:<35} {len(answers):>8} {mean(one.grade for one in examined):>7.2f} {mean(map(stdev, groups)):>22.2f}"
        f" {garbled / sentences:>8.1%} {sentences / len(answers):>10.1f} {len(set(answers)) / len(answers):>10.0%}"
    )
    for start in range(0, len(answers), len(answers) // 6):
        print(f"    {questions[start // repeats]}\n        [{examined[start].grade:.0f}] {answers[start]}")
    _compare(
        "judge of these answers", judge, [question for question in questions for _ in range(repeats)][::4], answers[::4]
    )


def _grades(judge: SelfJudge, questions: Sequence[str], answers: Sequence[str]) -> list[int | None]:
    grades: list[int | None] = []
    for start in range(0, len(answers), _AT_ONCE):
        stop = start + _AT_ONCE
        grades += [verdict.grade for verdict in judge.grade(questions[start:stop], answers[start:stop])]
    return grades


def _error(grades: Sequence[int], truth: Sequence[float]) -> float:
    return float(np.abs(np.subtract(grades, truth)).mean())


def _spearman(one: Sequence[float], other: Sequence[float]) -> float:
    return float(np.corrcoef(_ranks(one), _ranks(other))[0, 1])


def _ranks(values: Sequence[float]) -> np.ndarray:
    """Ranks from 0, ties sharing their mean."""
    _, group, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts + 1) / 2)[group]
