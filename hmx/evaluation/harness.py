"""The benchmarks that go through lm-eval (EleutherAI's lm-evaluation-harness): the paper's, and miniature ones.

lm-eval brings the questions, the prompts and the scoring; the model is ours (`hmx.evaluation.harness_model`). The paper
names no tasks, only metrics and scores; the tasks below are those of lm-eval whose metrics have these names.

Conversations are rendered by the model's chat template, with few-shot examples as turns of their own, lm-eval's default
once a chat template is used. lm-eval itself is imported inside functions only: whoever does not run these benchmarks
does not need it.
"""

import contextlib
import hashlib
import json
import math
import shutil
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from hmx import models
from hmx.config import resolve
from hmx.errors import UserError
from hmx.evaluation.benchmark import Metric, Outcome, Subject, Tick
from hmx.evaluation.harness_contexts import (
    lm_eval_seeds,
    no_nltk_downloads,
    offline_if_unreachable,
    quiet,
    rows_from,
    rows_kept,
    squad_scored_here,
)

_ACP = ("areach", "app", "just", "land", "prog", "reach", "val")
_VOCABULARY = 10_000  # tokens; RULER's variable tracking loops forever if its example does not fit 500 tokens
_DISK = 10**9  # bytes; more than any of the data sets takes, unpacked and as Arrow files


@dataclass(frozen=True)
class Reading:
    """Where one number is read: the mean of lm-eval's result `key` over `tasks`, times `scale`."""

    metric: Metric
    tasks: tuple[str, ...]
    key: str
    scale: float = 100.0
    """100 for a share, 1 for what lm-eval has in per cent or points already."""


@dataclass(frozen=True)
class HarnessBenchmark:
    """One benchmark of lm-eval's. See `hmx.evaluation.benchmark.Benchmark` for the interface."""

    name: str
    title: str
    cost: float
    readings: tuple[Reading, ...]
    folders: tuple[str, ...]
    """Where the tasks are defined, below lm-eval's own folder of tasks: indexing all of it takes seconds."""
    packages: tuple[str, ...] = ()
    """What the tasks import beyond lm-eval's own requirements, and `extra`, the extra of lm-eval that brings it."""
    extra: str = ""
    datasets: tuple[str, ...] = ()
    """On the hub; looked for in its cache too."""
    downloads: tuple[str, ...] = ()
    """What else the tasks fetch at each run, in words."""
    punkt: bool = False
    """Whether texts are cut into sentences and words by NLTK, which needs data for that."""
    squad: bool = False
    """Whether lm-eval would fetch the scoring from the hub, and it is to be ours."""
    sequence_length: int | None = None
    """For tasks that make their questions to a length in the model's own tokens."""
    rows: Mapping[str, str] = field(default_factory=dict)
    """By task a file of JSON lines in the task's own schema, to be used in place of its data set."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """What replaces settings of the tasks."""

    @property
    def metrics(self) -> tuple[Metric, ...]:
        return tuple(reading.metric for reading in self.readings)

    @property
    def tasks(self) -> list[str]:
        """What lm-eval is asked for, each once."""
        return list(dict.fromkeys(task for reading in self.readings for task in reading.tasks))

    def missing(self) -> list[str]:
        absent = [name for name in ("lm_eval", *self.packages) if find_spec(name) is None]
        if absent:
            what = f"lm_eval[{self.extra}]" if self.extra else "lm_eval"
            return [f"{self.title} needs the Python package {absent[0]}: pip install '{what}'"]
        wants = [
            f"{self.title} needs the file {path}, which is not there"
            for path in self.rows.values()
            if not resolve(path).is_file()
        ]
        if self.punkt and not _has_punkt():
            wants.append(f"{self.title} needs NLTK's punkt_tab: python -m nltk.downloader punkt_tab")
        if self.rows:
            return wants
        uncached = [dataset for dataset in self.datasets if not _is_cached(dataset)]
        if models.hub_is_reachable():
            return wants + ([sentence] if uncached and (sentence := self._missing_disk()) else [])
        wants += [f"{self.title} needs {what} from huggingface.co: run it while online once" for what in uncached]
        return wants + [f"{self.title} fetches {what} at each run: go online" for what in self.downloads]

    def _missing_disk(self) -> str | None:
        from datasets import config

        cache = Path(config.HF_DATASETS_CACHE)
        free = shutil.disk_usage(next(folder for folder in (cache, *cache.parents) if folder.exists())).free
        if free >= _DISK:
            return None
        return (
            f"{self.title} needs {_DISK / 10**9:.0f} GB for its data in {cache}, where {free / 10**9:.1f} GB are free: "
            "free some, or set HF_HOME to a folder on another disk"
        )

    def questions(self) -> str:
        digest = hashlib.sha256()
        for path in map(resolve, self.rows.values()):
            digest.update(path.read_bytes() if path.is_file() else b"")
        return digest.hexdigest() if self.rows else ""

    def run(self, subject: Subject, limit: int | None, tick: Tick) -> Outcome:
        from lm_eval.evaluator import evaluate

        from hmx.evaluation.harness_model import SubjectLM

        with contextlib.ExitStack() as contexts:
            aloud = contexts.enter_context(quiet())
            contexts.enter_context(lm_eval_seeds())
            contexts.enter_context(rows_from(self.rows, self.tasks) if self.rows else offline_if_unreachable())
            if "nltk" in self.packages:
                contexts.enter_context(no_nltk_downloads())
            with lm_eval_seeds():  # of its own: rows that were kept change nothing of what is drawn later
                loaded = self._load(subject)
            if self.squad:
                contexts.enter_context(squad_scored_here())
            tasks = loaded["tasks"].values()

            def told(share: float) -> None:
                with aloud():
                    tick(share)

            lm = SubjectLM(subject, lambda: sum(len(task.instances) for task in tasks), told)
            found = evaluate(
                lm,
                loaded,
                limit=limit,
                bootstrap_iters=0,
                log_samples=False,
                apply_chat_template=True,
                fewshot_as_multiturn=True,
            )
        results = found["results"]
        values = {
            reading.metric.key: reading.scale * float(np.mean([results[task][reading.key] for task in reading.tasks]))
            for reading in self.readings
        }
        if unmeasured := [key for key, value in values.items() if not math.isfinite(value)]:
            raise UserError(f"{self.title} gives no {unmeasured[0]} on so few rows; raise --limit.")
        details = {
            "tasks": {task: _numbers(results[task]) for task in results},
            "rows": {task: count["effective"] for task, count in found["n-samples"].items()},
            "task_versions": dict(found["versions"]),
            "lm_eval": version("lm_eval"),
            **lm.counts,
        }
        return Outcome(values, sum(details["rows"].values()), details)

    def _load(self, subject: Subject) -> dict[str, Any]:
        """lm-eval's tasks with their rows, ready to be put to a model."""
        import lm_eval.tasks
        from datasets.exceptions import DatasetsError

        kept = subject.kept.setdefault(self.name, {})
        if not kept:
            # A module of RULER's draws from a generator of its own, which would go on where the last model left it.
            sys.modules.pop("lm_eval.tasks.ruler.cwe_utils", None)
        root = Path(lm_eval.tasks.__file__).parent
        with tempfile.TemporaryDirectory() as folder:
            metadata = {}
            if self.sequence_length and not self.rows:
                if len(subject.tokenizer) < _VOCABULARY:
                    raise UserError(
                        f"{self.title} makes its questions to a length in the model's own tokens, and does not come to "
                        f"an end with a vocabulary of {len(subject.tokenizer)}; take a larger model."
                    )
                # lm-eval would load the tokenizer by name, and run code that comes with it; a copy has none.
                _save_tokenizer(subject.tokenizer, Path(folder))
                metadata = {"tokenizer": folder, "max_seq_lengths": [self.sequence_length]}
            try:
                manager = lm_eval.tasks.TaskManager(
                    include_defaults=False, include_path=[root / one for one in self.folders], metadata=metadata
                )
                with rows_kept(kept):
                    loaded = manager.load(self.tasks)
            except (OSError, ValueError, DatasetsError) as error:
                reason = (str(error).strip() or type(error).__name__).splitlines()[0]
                raise UserError(f"The questions of {self.title} could not be had: {reason}") from error
        for task in loaded["tasks"].values():
            for key, value in self.settings.items():
                task.set_config(key, value, update=isinstance(value, dict))
            if task.config.num_fewshot is None:
                task.set_config("num_fewshot", 0)
            task.set_fewshot_seed(1234)  # lm-eval's own
        return loaded


def _numbers(results: Mapping[str, Any]) -> dict[str, float]:
    """The numbers among a task's results, without what could not be measured; a standard error that nobody asked for is
    the string "N/A".
    """
    numbers = {key: float(value) for key, value in results.items() if isinstance(value, (int, float, np.number))}
    return {key: value for key, value in numbers.items() if math.isfinite(value)}


def _save_tokenizer(tokenizer: Any, folder: Path) -> None:
    tokenizer.save_pretrained(folder)
    path = folder / "tokenizer_config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    config.pop("auto_map", None)  # where code that came with the tokenizer is to be had
    path.write_text(json.dumps(config), encoding="utf-8")


def _has_punkt() -> bool:
    import nltk

    try:
        nltk.data.find("tokenizers/punkt_tab")
    except LookupError:
        return False
    return True


def _is_cached(dataset: str) -> bool:
    from datasets import config
    from datasets.naming import camelcase_to_snakecase

    owner, _, name = dataset.rpartition("/")
    return any(Path(config.HF_DATASETS_CACHE, f"{owner}___{camelcase_to_snakecase(name)}").glob("*/*/*"))


def _one(
    key: str, task: str, filtered: str = "none", percent: bool = True, scale: float = 100.0, read: str = ""
) -> Reading:
    """A number that is read from one task; `read` is lm-eval's name for it where the paper's is another."""
    return Reading(Metric(key, percent=percent), (task,), f"{read or key},{filtered}", scale)


PAPER = (
    HarnessBenchmark(
        name="ifeval",
        title="IFEval",
        cost=4,
        readings=(_one("prompt_level_strict_acc", "ifeval"),),
        folders=("ifeval",),
        packages=("langdetect", "immutabledict", "nltk"),
        extra="ifeval",
        datasets=("google/IFEval",),
        punkt=True,
    ),
    HarnessBenchmark(
        name="bbh",
        title="BigBench Hard",
        cost=30,
        readings=(_one("exact_match", "bbh", "get-answer"),),
        folders=("bbh/cot_fewshot",),
        datasets=("SaylorTwift/bbh",),
    ),
    HarnessBenchmark(
        name="ruler",
        title="RULER",
        cost=20,
        readings=(_one("4096", "ruler"),),
        folders=("ruler",),
        packages=("nltk", "wonderwords", "scipy"),
        extra="ruler",
        datasets=("baber/paul_graham_essays",),
        downloads=("SQuAD from rajpurkar.github.io", "HotpotQA from huggingface.co"),
        punkt=True,
        sequence_length=4096,
    ),
    HarnessBenchmark(
        name="acpbench",
        title="ACPBench",
        cost=12,
        readings=(
            Reading(Metric("bool_mean"), tuple(f"acp_{one}_bool" for one in _ACP), "exact_match,extract-yes-no"),
            Reading(Metric("mcq_mean"), tuple(f"acp_{one}_mcq" for one in _ACP), "exact_match,mcq-extract"),
        ),
        folders=("acpbench/boolq_cot_2shot", "acpbench/mcq_cot_2shot"),
        datasets=("ibm-research/acp_bench",),
    ),
    HarnessBenchmark(
        name="bbq",
        title="BBQ",
        cost=20,
        readings=(_one("accuracy_amb", "bbq"), _one("accuracy_disamb", "bbq")),
        folders=("bbq",),
        datasets=("oskarvanderwal/bbq",),
    ),
    HarnessBenchmark(
        name="eq_bench",
        title="EQ-Bench",
        cost=0.5,
        readings=(_one("eqbench", "eq_bench", percent=False, scale=1),),
        folders=("eq_bench",),
        datasets=("pbevan11/EQ-Bench",),
    ),
    HarnessBenchmark(
        name="squadv2",
        title="SQuAD2.0",
        cost=12,
        readings=(_one("f1", "squadv2", scale=1),),
        folders=("squadv2",),
        datasets=("lighteval/squad_v2",),
        squad=True,
    ),
    HarnessBenchmark(
        name="toxigen",
        title="ToxiGen",
        cost=0.2,
        readings=(_one("acc_norm", "toxigen"),),
        folders=("toxigen",),
        datasets=("skg/toxigen-data",),
    ),
    HarnessBenchmark(
        name="truthfulqa_mc2",
        title="TruthfulQA MC2",
        cost=1,
        readings=(_one("acc", "truthfulqa_mc2"),),
        folders=("truthfulqa",),
        datasets=("truthfulqa/truthful_qa",),
    ),
)
"""The paper's, in the order of its tables."""

MINI = (
    # MC2, the probability that falls to the true answers, and not how often the likeliest is true: it is the paper's
    # metric, and moves when a model of a few facts grows less sure of them.
    HarnessBenchmark(
        name="mini_facts",
        title="Facts (miniature)",
        cost=0.2,
        readings=(_one("acc", "truthfulqa_mc2"),),
        folders=("truthfulqa",),
        rows={"truthfulqa_mc2": "data/tiny/benchmarks/facts.jsonl"},
        settings={"doc_to_text": "{{question}}"},  # not the examples in front of it, which are of another world
    ),
    HarnessBenchmark(
        name="mini_instructions",
        title="Instructions (miniature)",
        cost=0.4,
        readings=(_one("prompt_level_strict_acc", "ifeval"),),
        folders=("ifeval",),
        packages=("langdetect", "immutabledict", "nltk"),
        extra="ifeval",
        rows={"ifeval": "data/tiny/benchmarks/instructions.jsonl"},
        settings={"generation_kwargs": {"max_gen_toks": 128}},
    ),
)
"""The same code on the rows of the embedded model's small world."""
