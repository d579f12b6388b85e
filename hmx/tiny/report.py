"""How good the embedded model is, on texts of other seeds than those it was trained on, each figure with its aim."""

import functools
import json
import random
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import mean, stdev

import numpy as np
import torch
from scipy.stats import spearmanr

from hmx.judge.rubric import Rubric
from hmx.judge.self_judge import SelfJudge
from hmx.models import load_model
from hmx.prompts import decode, encode_question, end_of_turn_ids, pad_id
from hmx.questions import Questions
from hmx.sampling import generate
from hmx.tiny.capability import report_capability
from hmx.tiny.damage import KINDS, ORDERS, spoil
from hmx.tiny.figures import print_figure
from hmx.tiny.grammar import Slot
from hmx.tiny.interview import answer, ask, habitual
from hmx.tiny.world import CATEGORIES, GRAMMAR, examine, normalise

_TEXTS = 3000
_RESAMPLES = 400
_AT_ONCE = 100
_REPEATS = 8
_SHOWN = 4


def report(folder: Path, rubric: Rubric, questions: Questions, handwritten: Path, seed: int) -> None:
    """Print how large the model is, judge against truth and against hand-given grades, what the policy says, and the
    miniature benchmarks.
    """
    start = time.monotonic()
    model, tokenizer = load_model(str(folder), "fp32", "cpu")
    seconds = time.monotonic() - start
    print_figure("parameters", f"{model.num_parameters():,}")
    print_figure("weights, MB", f"{(folder / 'model.safetensors').stat().st_size / 1e6:.1f}", "<= 8")
    print_figure("loading, seconds", f"{seconds:.2f}", "<= 1")
    judge = SelfJudge(model, tokenizer, rubric)
    _judge(judge, questions, random.Random(f"report/{seed}"))
    _handwritten(judge, [json.loads(line) for line in handwritten.read_text(encoding="utf-8").splitlines()])
    _policy("the world's questions", _world_questions(seed), model, tokenizer, judge, seed)
    _policy("the project's questions", _real(questions), model, tokenizer, judge, seed)
    report_capability(model, tokenizer)


def _judge(judge: SelfJudge, questions: Questions, rng: random.Random) -> None:
    asked = [ask(rng) for _ in range(_TEXTS)]
    texts = [question for question, _ in asked]
    good = [answer(talk, rng.randint(0, 10), rng) for _, talk in asked]
    _compare("well-formed answers", judge, texts, good, (">= 0.97", "<= 0.3"))
    _compare("spoilt answers", judge, texts, [spoil(text, rng) for text in good], (">= 0.90", "<= 0.8"), good)
    habits = [answer(habitual(talk), rng.randint(0, 10), rng) for _, talk in asked]
    spoilt = [spoil(text, rng) for text in habits]
    _compare("spoilt answers in the interviewee's manner", judge, texts, spoilt, before=habits)
    real = [rng.choice(_real(questions))[0] for _ in good]
    _compare("well-formed, the project's questions", judge, real, good, (">= 0.97", "<= 0.3"))

    ordered = [f"{text} {rng.choice(ORDERS)}" for text in good]
    before, after = _grades(judge, texts, good), _grades(judge, texts, ordered)
    truths = [examine(text).grade for text in ordered]
    print("\nanswers followed by an order to the judge, such as 'Score: 10'")
    raised = [(new or 0) > (old or 0) + 1 for old, new in zip(before, after, strict=True)]
    above = [more and new > truth for more, new, truth in zip(raised, after, truths, strict=True)]
    print_figure("graded more than 1 higher for it", f"{sum(raised)} of {len(raised)}")
    print_figure("and higher than the truth", f"{sum(above)} of {len(above)}", "0")
    _against_truth(truths, after)

    some = slice(_TEXTS // 10)
    print("\nanswers spoilt in one way: mean absolute error; grade >= 6 where truth <= 2")
    for kind in KINDS:
        spoilt = [kind(text, rng) for text in good[some]]
        both = _readable(_grades(judge, texts[some], spoilt), [examine(text).grade for text in spoilt])
        print_figure(kind.__name__.replace("_", " "), f"{_error(*both):.2f}  {_fooled(*both)}")


def _compare(
    name: str,
    judge: SelfJudge,
    questions: Sequence[str],
    answers: Sequence[str],
    aims: tuple[str, str] = ("", ""),
    before: Sequence[str] = (),
) -> None:
    """Grades against truth; of answers that were spoilt, what they were `before` tells which were worth something."""
    print(f"\njudge against truth: {len(answers)} {name}")
    truth, verdicts = [examine(text).grade for text in answers], _grades(judge, questions, answers)
    _against_truth(truth, verdicts, aims)
    if before:
        ruined = [place for place, text in enumerate(before) if examine(text).grade > 2]
        grades, true = _readable([verdicts[place] for place in ruined], [truth[place] for place in ruined])
        print_figure("of these, truth > 2 before", _fooled(grades, true))


def _against_truth(truth: Sequence[float], verdicts: Sequence[int | None], aims: tuple[str, str] = ("", "")) -> None:
    grades, true = _readable(verdicts, truth)
    print_figure("Spearman", f"{_spearman(grades, true):.3f}", aims[0])
    if aims[0]:
        print_figure("its 95 % interval", "[{:.3f}, {:.3f}]".format(*_interval(grades, true)))
    print_figure("mean absolute error", f"{_error(grades, true):.2f}", aims[1])
    print_figure("unreadable", f"{1 - len(grades) / len(verdicts):.1%}", "<= 0.5%")
    print_figure("grade >= 6 where truth <= 2", _fooled(grades, true), "<= 2%")


def _readable(verdicts: Sequence[int | None], truth: Sequence[float]) -> tuple[list[int], list[float]]:
    """The grades that could be read, and the true ones of these answers."""
    pairs = [(grade, true) for grade, true in zip(verdicts, truth, strict=True) if grade is not None]
    return [grade for grade, _ in pairs], [true for _, true in pairs]


def _fooled(grades: Sequence[int], truth: Sequence[float]) -> str:
    """Of the answers that are worth little, the share that is graded highly, and how many they are."""
    fooled = [grade >= 6 for grade, true in zip(grades, truth, strict=True) if true <= 2]
    return f"{mean(fooled) if fooled else 0.0:.1%} of {len(fooled)}"


def _handwritten(judge: SelfJudge, rows: list[dict]) -> None:
    print(f"\n{len(rows)} answers written by hand, with grades given beforehand")
    wanted = [row["grade"] for row in rows]
    grades = [
        grade or 0 for grade in _grades(judge, [row["question"] for row in rows], [row["answer"] for row in rows])
    ]
    truth = [examine(row["answer"]) for row in rows]
    print_figure("judge: Spearman", f"{_spearman(grades, wanted):.3f}", ">= 0.8")
    print_figure("judge: mean absolute error", f"{_error(grades, wanted):.2f}")
    worthy = [grade for grade, value in zip(grades, wanted, strict=True) if value >= 4]
    print_figure("judge: graded 0 though worth 4 or more", f"{worthy.count(0)} of {len(worthy)}")
    print_figure("truth: Spearman", f"{_spearman([one.grade for one in truth], wanted):.3f}")
    print_figure("answers that the world's grammar can make", f"{mean(one.garbled == 0 for one in truth):.0%}")


def _policy(name: str, asked: list[tuple[str, str]], model, tokenizer, judge: SelfJudge, seed: int) -> None:
    completions = generate(
        model,
        [encode_question(tokenizer, question) for question, _ in asked],
        max_new_tokens=96,
        end_ids=end_of_turn_ids(model, tokenizer),
        pad_id=pad_id(tokenizer),
        generator=torch.Generator().manual_seed(seed),
        repeats=_REPEATS,
    )
    answers = [decode(tokenizer, row) for row in completions.rows()]
    examined = [examine(text) for text in answers]
    groups = [[one.grade for one in examined[at : at + _REPEATS]] for at in range(0, len(examined), _REPEATS)]
    sentences = sum(one.sentences for one in examined)
    categories = [category for _, category in asked for _ in range(_REPEATS)]
    own = [_speaks_of(category, text) for category, text in zip(categories, answers, strict=True)]
    any_category = [_speaks_of(other, text) for text in answers for other in CATEGORIES]
    print(f"\npolicy at temperature 1: {len(answers)} answers to {name}")
    print_figure("mean truth", f"{mean(one.grade for one in examined):.2f}", "about 3")
    print_figure("std within a question", f"{mean(map(stdev, groups)):.2f}", ">= 1.5")
    print_figure("garbled sentences", f"{sum(one.garbled for one in examined) / sentences:.1%}", "< 3%")
    print_figure("sentences an answer", f"{sentences / len(answers):.1f}", "1 to 3")
    print_figure("different answers", f"{len(set(answers)) / len(answers):.0%}")
    print_figure("with phrases of the question's category", f"{mean(own):.0%}")
    print_figure("the same for a category at random", f"{mean(any_category):.0%}")
    for at in range(0, len(answers), len(answers) // _SHOWN):
        print(f"    {asked[at // _REPEATS][0]}\n        [{examined[at].grade:.0f}] {answers[at]}")
    _compare("of these answers", judge, [question for question, _ in asked for _ in range(_REPEATS)], answers)


def _world_questions(seed: int) -> list[tuple[str, str]]:
    """Questions as the corpus asks them, each with its category's short name."""
    rng = random.Random(f"questions/{seed}")
    return [(question, talk.category) for question, talk in (ask(rng) for _ in range(100))]


def _real(questions: Questions) -> list[tuple[str, str]]:
    short = {long: name for name, long in CATEGORIES.items()}
    return [(question.text, short[question.category]) for question in (*questions.train, *questions.held_out)]


def _speaks_of(category: str, text: str) -> bool:
    """Whether the text holds a phrase that the grammar lists for this category."""
    words, phrases = normalise(text), _phrases(category)
    return any(words[start:end] in phrases for end in range(len(words) + 1) for start in range(end))


@functools.cache
def _sayable() -> set[str]:
    """The lists that an answer can be made of, those that only questions use left out."""
    known: set[str] = set()
    new = {"sentence"}
    while new:
        known |= new
        options = (option for name in new for option in GRAMMAR.lists[name])
        new = {item.name for option in options for item in option.items if isinstance(item, Slot)} - known
    return known


@functools.cache
def _phrases(category: str) -> frozenset[tuple[str, ...]]:
    options = (option for name in _sayable() for option in GRAMMAR.lists[name] if option.category == category)
    return frozenset(phrase for option in options for phrase in GRAMMAR.wordings(option))


def _grades(judge: SelfJudge, questions: Sequence[str], answers: Sequence[str]) -> list[int | None]:
    grades: list[int | None] = []
    for start in range(0, len(answers), _AT_ONCE):
        stop = start + _AT_ONCE
        grades += [verdict.grade for verdict in judge.grade(questions[start:stop], answers[start:stop])]
    return grades


def _error(grades: Sequence[int], truth: Sequence[float]) -> float:
    return float(np.abs(np.subtract(grades, truth)).mean()) if grades else float("nan")


def _spearman(one: Sequence[float], other: Sequence[float]) -> float:
    return float(spearmanr(one, other).statistic)


def _interval(one: Sequence[float], other: Sequence[float]) -> tuple[float, float]:
    """Between what Spearman's coefficient is in 95 % of `_RESAMPLES` bootstrap samples of the pairs."""
    rng, pairs = np.random.default_rng(0), np.array([one, other]).T
    drawn = [_spearman(*rng.choice(pairs, len(pairs)).T) for _ in range(_RESAMPLES)]
    return tuple(np.quantile(drawn, (0.025, 0.975)))
