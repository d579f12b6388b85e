"""Putting benchmarks to checkpoints: what there is to do, apart from doing it.

A campaign has no state of its own. What has been measured lies in a file each (`results`); so an evaluation that was
interrupted goes on where it was, and gives what it would have given.
"""

import gc
import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from tqdm import tqdm

from hmx.errors import UserError
from hmx.evaluation.benchmark import FEWEST, Benchmark, Outcome, Subject, Tick
from hmx.evaluation.pairs import DIRECTIONS, Model, Pair
from hmx.evaluation.results import Checkpoint, Result, read_result, write_result
from hmx.evaluation.statistic import Statistic
from hmx.evaluation.tables import Chosen, Line
from hmx.lora import detach, load_adapter
from hmx.memory import say
from hmx.models import identity, load_model, set_up
from hmx.runs import BASE, changed
from hmx.text import one_line


@dataclass(frozen=True, eq=False)
class Job:
    """One benchmark for one checkpoint. Each is equal to itself alone."""

    model: Model
    checkpoint: Checkpoint
    benchmark: Benchmark


@dataclass(frozen=True)
class Campaign:
    """Everything that the tables need, and what of it there is."""

    jobs: tuple[Job, ...]
    """All of them, done or not, in the order in which they are done: the base of a config's runs is loaded once."""
    results: dict[Job, Result]
    """What has been measured."""
    problems: tuple[str, ...]
    """What can't be measured and why, a sentence each."""

    @property
    def to_do(self) -> list[Job]:
        """What can be measured and has not been."""
        return [job for job in self.jobs if job not in self.results]


def plan(models: Sequence[Model], suites: Sequence[Sequence[Benchmark]], limit: int | None, baseline: bool) -> Campaign:
    """See what there is to do and what of it is done. Nothing is loaded.

    Args:
        suites: for each model its benchmarks.
        limit: how many questions of each task to take at most.
        baseline: whether the untouched base models are evaluated too.
    """
    jobs, results, problems = [], {}, []
    for model, suite in zip(models, suites, strict=True):
        path, info = model.config.model.path, model.pairs[0].forward.info
        now = identity(path)
        base, foreign = info.get("base") or now["base"], changed(now, info)
        if foreign:
            problems.append(
                f"The runs of {model.name} were trained with another base: the {BASE[foreign]} in {path} changed "
                "since, so nothing more can be evaluated for them."
            )
        for checkpoint in _checkpoints(model, base, baseline):
            for benchmark in suite:
                job = Job(model, checkpoint, benchmark)
                try:
                    _ = checkpoint.fingerprint
                    found = read_result(checkpoint, benchmark, limit)
                except UserError as error:
                    if str(error) not in problems:
                        problems.append(str(error))
                    continue
                if found:
                    results[job] = found
                if found or not foreign:
                    jobs.append(job)
    return Campaign(tuple(jobs), results, tuple(problems))


def needs(campaign: Campaign) -> dict[str, list[str]]:
    """What the benchmarks that are still to be run lack, by name, before anything is loaded or generated."""
    lacking = {}
    for name, benchmark in {job.benchmark.name: job.benchmark for job in campaign.to_do}.items():
        try:
            missing = benchmark.missing()
        except Exception as error:  # of a library that the benchmark asks: it shall not stop the others
            missing = [_told(error)]
        if missing:
            lacking[name] = [f"{name} can't be run yet: {sentence}" for sentence in missing]
    return lacking


def carry_out(
    campaign: Campaign, lacking: Mapping[str, Sequence[str]], limit: int | None, plain: bool = False
) -> Campaign:
    """Run what is to do and can be run. Each result is on disk as soon as it is known.

    What goes wrong with one benchmark or one checkpoint is noted and stops nothing else.

    Args:
        lacking: what `needs` said.
        plain: a line for each result instead of a progress bar.
    """
    results, problems = dict(campaign.results), list(campaign.problems)
    problems += [sentence for sentences in lacking.values() for sentence in sentences]
    to_do = [job for job in campaign.to_do if job.benchmark.name not in lacking]
    if not to_do:
        return replace(campaign, problems=tuple(problems))
    bar = tqdm(
        total=sum(job.benchmark.cost for job in to_do),
        bar_format="{percentage:3.0f} % |{bar:12}| {elapsed}, {remaining} left  {desc}",
        dynamic_ncols=True,
        disable=True if plain else None,
    )
    at_hand = _AtHand(problems)
    with bar:
        for number, job in enumerate(to_do, 1):
            subject = None  # so that the model before is gone when the next is loaded
            subject = at_hand.subject(job)
            name = f"{job.checkpoint.title}: {job.benchmark.title}"
            bar.set_description_str(f"{job.benchmark.name}, {job.checkpoint.title}")
            begun, start = time.monotonic(), bar.n
            if subject is not None:

                def tick(share: float, start=start, cost=job.benchmark.cost) -> None:
                    bar.update(start + cost * share - bar.n)

                try:
                    outcome = _run(job.benchmark, subject, limit, tick)
                    seconds, model = time.monotonic() - begun, job.model.config.model
                    result = Result.of(job.benchmark, job.checkpoint, outcome, limit, subject, model, seconds)
                except Exception as error:  # a benchmark is much foreign code: it shall not stop the others
                    problems.append(f"{name}: {_told(error)}")
                else:
                    results[job] = result
                    write_result(job.checkpoint, result)  # where it can't be, nothing more is worth its hours
                    if plain:
                        print(f"{number} of {len(to_do)}  {name}  {_brief(result)}  {seconds:.0f} s", flush=True)
            bar.update(start + job.benchmark.cost - bar.n)
    return replace(campaign, results=results, problems=tuple(problems))


def lines(campaign: Campaign, models: Sequence[Model], limit: int | None) -> list[Line]:
    """What the tables show: of every metric the seeds that have it in both directions."""
    found = []
    for model in models:
        jobs = [job for job in campaign.jobs if job.model is model]
        mine = {
            (job.benchmark.name, job.checkpoint.direction, job.checkpoint.seed): campaign.results[job]
            for job in jobs
            if job in campaign.results
        }
        for name, benchmark in {job.benchmark.name: job.benchmark for job in jobs}.items():
            seeds = [pair.seed for pair in model.pairs if all((name, way, pair.seed) in mine for way in DIRECTIONS)]
            base = mine.get((name, "base", None))
            for metric in benchmark.metrics if seeds or base else ():
                forward, reverse = (
                    Statistic(tuple(mine[name, way, seed].metrics[metric.key] for seed in seeds)) if seeds else None
                    for way in DIRECTIONS
                )
                found.append(
                    Line(
                        model=model.name,
                        path=model.config.model.path,
                        task=benchmark.title,
                        metric=metric,
                        checkpoints=tuple(_chosen(pair) for pair in model.pairs if pair.seed in seeds),
                        forward=forward,
                        reverse=reverse,
                        base=base.metrics[metric.key] if base else None,
                        limit=limit,
                    )
                )
    return found


def _run(benchmark: Benchmark, subject: Subject, limit: int | None, tick: Tick) -> Outcome:
    """Run it; in smaller batches if the memory does not suffice."""
    while True:
        try:
            return benchmark.run(subject, limit, tick)
        except torch.OutOfMemoryError:
            if subject.tokens_at_once <= FEWEST:
                raise UserError("The GPU's memory does not suffice even for one sequence at a time.") from None
        # Not in the handler: the exception holds on to every tensor of the computation that failed.
        torch.cuda.empty_cache()
        subject = replace(subject, tokens_at_once=subject.tokens_at_once // 2)
        say(f"Out of GPU memory: {benchmark.title} begins anew, in batches half as large.")


def _told(error: Exception) -> str:
    """What went wrong, in a line. Where it went wrong is for us to know, and goes to the log."""
    if isinstance(error, UserError):
        return str(error)
    logging.getLogger("hmx").debug("a benchmark failed", exc_info=error)
    return f"{type(error).__name__}: {one_line(str(error))[:300] or 'no reason given'}"


def remarks(campaign: Campaign) -> list[str]:
    """What one should know of the results: a sentence for each benchmark whose results were reached in different ways,
    and what results say of their own questions.
    """
    said = []
    for model in dict.fromkeys(job.model.name for job in campaign.jobs):
        for name in dict.fromkeys(job.benchmark.name for job in campaign.jobs):
            mine = [
                campaign.results[job]
                for job in campaign.jobs
                if (job.model.name, job.benchmark.name) == (model, name) and job in campaign.results
            ]
            ways = [{**one.versions, **one.settings, "rows": one.rows, "base model": one.base} for one in mine]
            differing = sorted({key for way in ways for key in way if way[key] != ways[0].get(key)})
            if differing:
                said.append(f"The results of {model} on {name} differ in {', '.join(differing)}.")
            said += sorted({note for one in mine if (note := (one.details.get("file") or {}).get("note"))} - set(said))
            for what, happened in (
                ("shortened_prompts", "longer than the model can read, so without their beginning"),
                ("dropped_system_turns", "without their instruction: the chat template has no system role"),
            ):
                if count := max((one.details.get(what, 0) for one in mine), default=0):
                    said.append(f"Prompts of {name} to {model} {happened}: {count}.")
    return said


def _checkpoints(model: Model, base: str | None, baseline: bool) -> Iterator[Checkpoint]:
    if baseline:
        yield Checkpoint(model.folder / "base" / "results", f"{model.name} base", None, base)
    for pair in model.pairs:
        if pair.selection:
            yield Checkpoint.of(pair.forward, pair.selection.forward, base)
            yield Checkpoint.of(pair.reverse, pair.selection.reverse, base)


class _AtHand:
    """The one base model that is loaded, and the adapter on it."""

    def __init__(self, problems: list[str]):
        """Into `problems` goes what can't be had."""
        self._problems = problems
        self._model: Model | None = None
        self._attached: Checkpoint | None = None
        self._subject: Subject | None = None
        self._failed: set[Checkpoint] = set()

    def subject(self, job: Job) -> Subject | None:
        """The job's model, its adapter attached; None if that can't be had. Whoever has the model before it must have
        let go of it: there may be no room for two.
        """
        try:
            if job.model is not self._model:
                self._model, self._attached, self._subject = job.model, None, None
                gc.collect()
                torch.cuda.empty_cache()
                self._subject = _load(job.model)
            if self._subject and job.checkpoint != self._attached and job.checkpoint not in self._failed:
                self._attached = None
                detach(self._subject.model)  # so that each adapter is held against the base alone
                if job.checkpoint.adapter is not None:
                    load_adapter(self._subject.model, job.checkpoint.adapter)
                self._attached = job.checkpoint
        except (UserError, torch.OutOfMemoryError) as error:
            self._problems.append(f"{job.checkpoint.title}: {_told(error)}")
            self._failed.add(job.checkpoint)
        return self._subject if job.checkpoint == self._attached else None


def _chosen(pair: Pair) -> Chosen:
    selection = pair.selection
    exception = selection.further_than_forward
    return Chosen(pair.seed, selection.forward, selection.reverse, exception, pair.threshold, pair.rule)


def _load(model: Model) -> Subject:
    """The base model of a config, without adapter."""
    config = model.config.model
    set_up(config)
    base, tokenizer = load_model(config.path, config.precision, config.device)
    return Subject.on_card(base, tokenizer)


def _brief(result: Result) -> str:
    return ", ".join(f"{key} {value:.2f}" for key, value in result.metrics.items())
