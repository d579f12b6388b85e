"""Our side of a step: the trainer as train.py builds it, with a clock at the judge's door."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from bench.common import Timer
from bench.models import SCORE_TOKENS, Loaded, never_end
from hmx.config import Config, resolve
from hmx.grpo.trainer import Trainer
from hmx.judge import Rubric, SelfJudge, Verdict
from hmx.lora import attach
from hmx.questions import Questions
from hmx.randomness import stream


@dataclass(frozen=True)
class StepSeconds:
    """One optimizer step."""

    total: float
    rollout: float
    """Until the answers are there as texts."""
    judging: float
    training: float
    """All else: reference, policy, backward, optimizer, and what is written down."""
    tokens: int
    """Sampled in all answers."""


class Laps:
    """The clock of one side. A step is divided at the judge: before it comes the rollout, after it the training, of
    which some may come early.
    """

    def __init__(self, timer: Timer):
        self._timer = timer

    def begin(self) -> None:
        self._start, self._early = self._timer.now(), 0.0

    @contextmanager
    def training(self) -> Iterator[None]:
        """What belongs to the training though it is done before the answers are judged."""
        start = self._timer.now()
        yield
        self._early += self._timer.now() - start

    @contextmanager
    def judging(self) -> Iterator[None]:
        self._judge = self._timer.now()
        yield
        self._judged = self._timer.now()

    def end(self, tokens: int) -> StepSeconds:
        end = self._timer.now()
        return StepSeconds(
            total=end - self._start,
            rollout=self._judge - self._start - self._early,
            judging=self._judged - self._judge,
            training=end - self._judged + self._early,
            tokens=tokens,
        )


class TimedJudge:
    """`judge` with its laps taken. The replies of random weights are no grades: there the replies are paid for, not
    asked for twice, and the grades are `made_up`.
    """

    def __init__(self, judge: SelfJudge, laps: Laps, random: bool):
        self.judge, self._laps, self._random = judge, laps, random

    def grade(self, questions, answers, generator=None) -> list[Verdict]:
        with self._laps.judging():
            verdicts = self.judge.grade(questions, answers, None if self._random else generator)
        if not self._random:
            return verdicts
        return [Verdict(grade, one.text) for grade, one in zip(made_up(len(verdicts)), verdicts, strict=True)]


def made_up(count: int) -> list[int]:
    """Grades that differ within every group.

    >>> made_up(12)
    [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 0]
    """
    return [i % 11 for i in range(count)]


def step_overrides(random: bool, fixed_length: int | None, checkpointing: bool) -> tuple[str, ...]:
    """What a step's options mean for the config of either side."""
    length = (f"sampling.max_completion_length={fixed_length}",) if fixed_length else ()
    reply = (f"judge.max_new_tokens={SCORE_TOKENS}",) if random else ()
    return (*length, *reply, f"train.gradient_checkpointing={'on' if checkpointing else 'off'}")


def our_trainer(config: Config, loaded: Loaded, laps: Laps, fixed: bool, kind: type[Trainer] = Trainer) -> Trainer:
    """A trainer on `loaded`, into which a fresh adapter is attached.

    Args:
        fixed: answers go on to their limit, whatever tokens they hold; the judge's replies end as ever.
        kind: the class to make, for a part of the step alone.
    """
    model = loaded.model
    attach_fresh(loaded, config)
    rubric = Rubric.load(resolve(config.judge.prompt_file))
    judge = SelfJudge.of(config.judge, rubric, model, loaded.tokenizer)
    if fixed:
        never_end(loaded)
    questions = Questions.load(resolve(config.data.questions))
    timed, checkpointing = TimedJudge(judge, laps, loaded.random), config.train.gradient_checkpointing == "on"
    return kind(config, model, loaded.tokenizer, timed, questions, checkpointing=checkpointing)


def attach_fresh(loaded: Loaded, config: Config) -> None:
    """Give the model the adapter that a run of `config` begins with."""
    lora = config.lora
    attach(loaded.model, lora.rank, lora.alpha, lora.targets, lora.dropout, stream(config.run.seed, "init"))


def our_step(trainer: Trainer, laps: Laps, n: int) -> StepSeconds:
    """The n-th `Trainer.step`, timed."""
    laps.begin()
    metrics = trainer.step(n).metrics
    rows = trainer.config.grpo.prompts_per_step * trainer.config.grpo.completions_per_prompt
    return laps.end(round(metrics["completion_tokens"] * rows))
