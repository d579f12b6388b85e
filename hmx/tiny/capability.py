"""What the embedded model can do beside its interviews: its miniature benchmarks, with chance level and interval."""

from collections.abc import Sequence

from scipy.stats import binomtest

from hmx.evaluation.benchmark import Benchmark, Outcome, Subject
from hmx.evaluation.suites import SUITES
from hmx.tiny.pretrain import CONTEXT

_CHOICES = 4
"""Of a row of TruthfulQA as `lessons` makes it."""


class Astray(Subject):
    """The same model, each of whose replies goes to another prompt: what its way of talking scores by chance."""

    def reply(self, prompts: Sequence, *arguments, **options) -> list[str]:
        replies = super().reply(prompts, *arguments, **options)
        half = len(replies) // 2
        return replies[half:] + replies[:half]


def report_capability(model, tokenizer) -> None:
    """Put the miniature benchmarks to the model, and print each score with its interval and what chance would give."""
    print("\nminiature benchmarks, in per cent: score, 95 % interval, by chance; training should be able to move each")
    for benchmark in SUITES["mini"]:
        if missing := benchmark.missing():
            print(f"  {benchmark.title}: left out. {' '.join(missing)}")
            continue
        outcome = _run(benchmark, Subject(model, tokenizer, CONTEXT))
        chance = _chance(benchmark, model, tokenizer)
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
        return {"acc": 100 / _CHOICES}
    return {} if benchmark.name == "mini_are_you_sure" else _run(benchmark, Astray(model, tokenizer, CONTEXT)).metrics


def interval(score: float, questions: int) -> tuple[float, float]:
    """Wilson's 95 % interval of a share in per cent. Of a mean of probabilities, such as MC2's, it is too wide if
    anything: no other numbers from 0 to 1 with that mean scatter as much as zeros and ones.

    >>> [round(end, 1) for end in interval(50.0, 100)]
    [40.4, 59.6]
    """
    ends = binomtest(round(score / 100 * questions), questions).proportion_ci(method="wilson")
    return 100 * ends.low, 100 * ends.high
