"""How long the whole study of a model would take, from samples of its work: python -m bench.study"""

import random
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass

from bench.common import Summary, Timer, keep, parser, prepare, run, table
from bench.models import load, settings
from bench.ours import Laps, our_step, our_trainer, step_overrides
from hmx.errors import UserError
from hmx.evaluation.benchmark import Subject
from hmx.evaluation.likelihoods import likelihoods
from hmx.grpo.schedule import evaluation_steps

_CHOICES, _CONTEXT, _CHOICE = 12, 70, 8
"""Of a context of BBQ: choices, its tokens and those of a choice."""


@dataclass(frozen=True)
class Size:
    """How much one of the paper's benchmarks asks of a model; tokens are those of a usual tokenizer, roughly."""

    title: str
    read: int
    """Tokens of all prompts."""
    written: int
    """Tokens of all replies, if every one goes on to its limit."""
    contexts: int = 0
    """Twelve choices are scored behind each."""


BENCHMARKS = (
    Size("IFEval", 30_000, 541 * 1280),
    Size("BigBench Hard", 5_000_000, 6511 * 1024),
    Size("RULER 4096", 6500 * 4096, 6500 * 80),
    Size("ACPBench", 2_000_000, 2_000_000),
    Size("BBQ", 0, 0, contexts=58_492),
    Size("SQuAD2.0", 6_000_000, 11_873 * 256),
    Size("TruthfulQA MC2", 1_200_000, 0),
    Size("EQ-Bench and ToxiGen", 200_000, 171 * 80),
    Size("SycophancyEval", 500_000, (7268 + 2 * 1817) * 256),
)
"""Rows and limits as lm-eval 0.4.13's task files and the data sets have them; SycophancyEval's are our own."""


def main(arguments: list[str] | None = None) -> None:
    """The command."""
    options = parser(
        "study",
        "Times samples of everything that the study of a model consists of: an optimizer step, an evaluation during "
        "training, and of the benchmarks how quickly prompts are read, replies written and choices scored. Multiplied "
        "by how often the config's study and the paper's benchmarks ask for each, that gives hours.",
        rounds=2,
        epilog="An extrapolation, and for replies the most that it can be: every one is taken to go on to its limit.",
    )
    options.add_argument("--length", type=int, default=128, metavar="N", help="of training's answers (default: 128)")
    options.add_argument("--replies", type=int, default=40, metavar="N", help="written side by side (default: 40)")
    options.add_argument("--prompt", type=int, default=1000, metavar="N", help="tokens of a long one (default: 1000)")
    given = options.parse_args(arguments)
    prepare(given)
    if min(given.length, given.replies, given.prompt) < 1:
        raise UserError("--length, --replies and --prompt must be at least 1.")

    overrides = step_overrides(given.model != "tiny", given.length, checkpointing=False)
    config = settings(given.model, given.device, given.precision, *overrides)
    timer = Timer(given.device, given.clock)
    loaded, laps = load(given.model, given.device, given.precision), Laps(timer)
    trainer = our_trainer(config, loaded, laps, fixed=True)
    numbers = range(1, given.warmup + given.rounds + 1)
    step = median([our_step(trainer, laps, n).total for n in numbers][given.warmup :])
    evaluation = timer.seconds(lambda: trainer.evaluate(0, 0))
    subject = Subject(loaded.model, loaded.tokenizer)
    rates = Rates.measure(subject, given, timer)

    runs = len(config.study.seeds) * len(config.study.directions)
    evaluations = len(evaluation_steps(config, len(trainer.questions.train)))
    models = runs + 1  # the untouched one too
    hours = {
        f"training: {runs} runs of {trainer.total_steps} steps": runs * trainer.total_steps * step / 3600,
        f"their evaluations: {evaluations} each": runs * evaluations * evaluation / 3600,
        **{f"{one.title}: {models} models": models * rates.seconds(one) / 3600 for one in BENCHMARKS},
    }
    rows = [[name, f"{value:.2f}"] for name, value in hours.items()]
    print(table([f"{given.model}, hours", ""], [*rows, ["together", f"{sum(hours.values()):.2f}"]]))
    print(
        f"\nA step takes {step:.2f} s, an evaluation {evaluation:.1f} s; in a second {rates.read:,.0f} tokens are "
        f"read, {rates.written:,.0f} written and the choices of {rates.contexts:,.1f} contexts scored."
    )
    keep("study", given, {"step": step, "evaluation": evaluation, "rates": asdict(rates), "hours": hours})


def median(seconds: list[float]) -> float:
    return Summary.of(seconds).median


@dataclass(frozen=True)
class Rates:
    """What the benchmarks' work is done at, a second."""

    read: float
    """Tokens of long prompts."""
    written: float
    """Tokens of replies side by side."""
    contexts: float
    """Whose choices are scored."""

    @classmethod
    def measure(cls, subject: Subject, given, timer: Timer) -> "Rates":
        draw = random.Random(0)

        def tokens(count: int) -> list[int]:
            return [draw.randrange(100, 5000) for _ in range(count)]

        def rate(amount: int, action: Callable[[], object]) -> float:
            return amount / median([timer.seconds(action) for _ in range(given.warmup + given.rounds)][given.warmup :])

        long = [tokens(given.prompt) for _ in range(4)]
        short = [tokens(50) for _ in range(given.replies)]
        choices = []
        for _ in range(given.replies):
            context = tokens(_CONTEXT)
            choices += [(context, tokens(_CHOICE)) for _ in range(_CHOICES)]
        return cls(
            rate(len(long) * given.prompt, lambda: subject.reply(long, 1)),
            rate(given.replies * given.length, lambda: subject.reply(short, given.length)),
            rate(given.replies, lambda: likelihoods(subject, choices)),
        )

    def seconds(self, size: Size) -> float:
        """What a benchmark of this size takes.

        >>> Rates(read=10.0, written=2.0, contexts=5.0).seconds(Size("Riddles", 100, 6, contexts=10))
        15.0
        """
        return size.read / self.read + size.written / self.written + size.contexts / self.contexts


if __name__ == "__main__":
    sys.exit(run(main))
