"""How long the whole study of a model would take, from samples of its work: python -m bench.study"""

import random
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from statistics import median

from bench.common import Timer, interleave, keep, parser, prepare, run, table
from bench.models import load, settings
from bench.ours import Laps, our_trainer, step_overrides
from hmx.errors import UserError
from hmx.evaluation.benchmark import Subject
from hmx.evaluation.likelihoods import likelihoods
from hmx.grpo.schedule import evaluation_steps

_CHOICES, _CONTEXT_TOKENS, _CHOICE_TOKENS = 12, 70, 6
"""As in BBQ."""
_LONG, _USUAL = 1000, 200
"""Tokens of the prompts that are read, and of those behind which replies are written."""
_MOST = 256
"""Replies and contexts of a sample."""


@dataclass(frozen=True)
class Size:
    """How much one of the paper's benchmarks asks of a model, in tokens of a usual tokenizer."""

    title: str
    read: int
    """Of all prompts, about; few-shot examples, which are read once a task, are left out."""
    written: int
    """Of all replies, if every one goes on to its limit."""
    contexts: int = 0
    """Twelve choices are scored behind each."""


BENCHMARKS = (
    Size("IFEval", 541 * 60, 541 * 1280),
    Size("BigBench Hard", 6511 * 100, 6511 * 1024),
    Size("RULER 4096", 6500 * 4096, 500 * (8 * 128 + 30 + 120 + 50 + 2 * 32)),
    Size("ACPBench", 14 * 130 * 400, 14 * 130 * 1024),
    Size("BBQ", 0, 0, contexts=58_492),
    Size("SQuAD2.0", 11_873 * 280, 11_873 * 256),
    Size("TruthfulQA MC2", 817 * 100, 0),
    Size("EQ-Bench and ToxiGen", 171 * 400 + 940 * 50, 171 * 80),
    Size("SycophancyEval", 9085 * 50 + 1817 * 330, (9085 + 1817) * 256),
)
"""Rows and limits are those of the data sets and of lm-eval 0.4.13's task files, for SycophancyEval our own limit. A
prompt has about a quarter as many tokens as letters.
"""


def main(arguments: list[str] | None = None) -> None:
    """The command."""
    options = parser(
        "study",
        "Times samples of everything that the study of a model consists of: an optimizer step, an evaluation during "
        "training, and of the benchmarks how quickly prompts are read, replies written and choices scored. Multiplied "
        "by how often the config's study and the paper's benchmarks ask for each, one run after the other, that gives "
        "hours. (The embedded model's own benchmarks are others, and much smaller.)",
        rounds=2,
        epilog="An extrapolation: every reply of a benchmark is taken to go on to its limit, which few do, and every "
        "token to cost what it costs in the sample, while one behind a long text costs more.",
    )
    options.add_argument("--length", type=int, default=128, metavar="N", help="of training's answers (default: 128)")
    options.add_argument(
        "--replies",
        type=int,
        metavar="N",
        help="how many replies are written, and contexts of choices scored, side by side (default: as many as an "
        f"evaluation of this model would, at most {_MOST})",
    )
    given = options.parse_args(arguments)
    prepare(given)
    if given.length < 2 or given.replies is not None and given.replies < 1:
        raise UserError("--length must be at least 2 and --replies at least 1.")

    overrides = step_overrides(given.model != "tiny", given.length, checkpointing=False)
    config = settings(given.model, given.device, given.precision, *overrides)
    timer = Timer(given.device, given.clock)
    loaded = load(given.model, given.device, given.precision)
    trainer = our_trainer(config, loaded, Laps(timer), fixed=True)

    def seconds(action: Callable[[], object]) -> float:
        return median(interleave({"": action}, given.rounds, given.warmup, timer)[""])

    step = seconds(lambda: trainer.step(1))
    evaluation = seconds(lambda: trainer.evaluate(0, 0))
    subject = Subject.on_card(loaded.model, loaded.tokenizer)
    given.replies = given.replies or max(1, min(_MOST, subject.tokens_at_once // (_USUAL + given.length)))
    rates = measure(subject, given.length, given.replies, seconds)

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
    measured = {"step": step, "evaluation": evaluation, "rates": asdict(rates), "hours": hours}
    keep("study", given, measured, f"{given.length}tok")


@dataclass(frozen=True)
class Rates:
    """How much of the benchmarks' work is done in a second."""

    read: float
    """Tokens of long prompts."""
    written: float
    """Tokens of replies side by side."""
    contexts: float
    """Contexts whose choices are scored."""

    def seconds(self, size: Size) -> float:
        """What a benchmark of this size takes.

        >>> Rates(read=10.0, written=2.0, contexts=5.0).seconds(Size("Riddles", 100, 6, contexts=10))
        15.0
        """
        return size.read / self.read + size.written / self.written + size.contexts / self.contexts


def measure(subject: Subject, length: int, replies: int, seconds: Callable[[Callable[[], object]], float]) -> Rates:
    """Read 4 long prompts; write `replies` replies of `length` tokens, less what their first tokens take; score the
    choices behind as many contexts. `seconds` times an action.
    """
    draw, words = random.Random(0), len(subject.tokenizer)

    def tokens(count: int) -> list[int]:
        return [draw.randrange(words) for _ in range(count)]

    long, usual = [tokens(_LONG) for _ in range(4)], [tokens(_USUAL) for _ in range(replies)]
    contexts = [tokens(_CONTEXT_TOKENS) for _ in range(replies)]
    choices = [(context, tokens(_CHOICE_TOKENS)) for context in contexts for _ in range(_CHOICES)]
    begun = seconds(lambda: subject.reply(usual, 1))
    return Rates(
        read=len(long) * _LONG / seconds(lambda: subject.reply(long, 1)),
        written=replies * (length - 1) / (seconds(lambda: subject.reply(usual, length)) - begun),
        contexts=replies / seconds(lambda: likelihoods(subject, choices)),
    )


if __name__ == "__main__":
    sys.exit(run(main))
