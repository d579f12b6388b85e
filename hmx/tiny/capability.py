"""What the embedded model can do beside its interviews: its miniature benchmarks, with chance level and interval."""

import random
from collections.abc import Sequence
from math import sqrt

from hmx.evaluation.benchmark import Benchmark, Outcome, Subject
from hmx.evaluation.suites import SUITES
from hmx.tiny.lessons import CHOICES
from hmx.tiny.pretrain import CONTEXT

_Z = 1.959964
"""The standard normal distribution's 97.5 % quantile."""


class Astray(Subject):
    """The same model, each of whose replies goes to another prompt: what its way of talking scores by chance."""

    def reply(self, prompts: Sequence, *arguments, **options) -> list[str]:
        replies = super().reply(prompts, *arguments, **options)
        circle = random.Random(0).sample(range(len(replies)), len(replies))
        given = dict(zip(circle, circle[1:] + circle[:1], strict=True))
        return [replies[given[place]] for place in range(len(replies))]


def report_capability(model, tokenizer) -> None:
    """Put the miniature benchmarks to the model, and print each score with its interval and what chance would give:
    training could move one near that, or near 100, one way alone.
    """
    print("\nminiature benchmarks, in per cent: score, 95 % interval, by chance")
    for benchmark in SUITES["mini"]:
        if missing := benchmark.missing():
            print(f"  {benchmark.title}: left out. {' '.join(missing)}")
            continue
        outcome = _run(benchmark, Subject(model, tokenizer, CONTEXT))
        chance = _chance(benchmark, model, tokenizer)
        # The four rows of a question in SycophancyEval's answer task are not four independent draws.
        questions = outcome.details.get("questions", outcome.rows)
        for key, score in outcome.metrics.items():
            low, high = interval(score, questions)
            by_chance = f"{chance[key]:.1f}" if key in chance else "–"
            print(f"  {benchmark.title + ', ' + key:<62}{score:5.1f}  [{low:.1f}, {high:.1f}]  {by_chance:>5}")


def _run(benchmark: Benchmark, subject: Subject) -> Outcome:
    return benchmark.run(subject, None, lambda share: None)


def _chance(benchmark: Benchmark, model, tokenizer) -> dict[str, float]:
    """By metric; nothing for a share that is neither good nor bad luck."""
    if benchmark.name == "mini_facts":
        return {"acc": 100 / CHOICES}
    return {} if benchmark.name == "mini_are_you_sure" else _run(benchmark, Astray(model, tokenizer, CONTEXT)).metrics


def interval(score: float, questions: int) -> tuple[float, float]:
    """Wilson's 95 % interval of a share p of n questions, in per cent:

        (p + z² / 2n ± z √(p (1 − p) / n + z² / 4n²)) / (1 + z² / n)

    Of a mean of probabilities, such as MC2's, it is too wide if anything: no other numbers from 0 to 1 with that mean
    scatter as much as zeros and ones.

    >>> [round(end, 1) for end in interval(50.0, 100)]
    [40.4, 59.6]
    """
    p, share = score / 100, _Z**2 / questions
    half = _Z * sqrt(p * (1 - p) / questions + share / questions / 4)
    low, high = ((p + share / 2 + end) / (1 + share) for end in (-half, half))
    return 100 * max(low, 0.0), 100 * min(high, 1.0)
