"""What surrounds a run of lm-eval, so that it neither meets nor leaves anything that it should not: contexts for its
rows, its random numbers, its chatter, and what it would fetch.
"""

import contextlib
import io
import json
import logging
import random
import sys
from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np

from hmx import models
from hmx.config import resolve
from hmx.errors import UserError
from hmx.evaluation.squad import squad_scores


@contextlib.contextmanager
def rows_from(files: Mapping[str, str], tasks: list[str]) -> Iterator[None]:
    """Within this context tasks of lm-eval that are loaded read their rows from these files, all else unchanged.

    Only the one method that fetches a task's data set is replaced, so this works for every kind of task: plain ones,
    members of groups, those that make their rows, and classes in Python (which don't know their name yet).
    """
    from datasets import Dataset
    from lm_eval.api.task import ConfigurableTask

    fetch = ConfigurableTask.download

    def download(task, *args, **kwargs):
        name = task.config.task or tasks[0]
        if name not in files:
            return fetch(task, *args, **kwargs)
        rows = Dataset.from_list(_read_rows(resolve(files[name])))
        task.dataset = dict.fromkeys(("train", "validation", "test"), rows)

    with mock.patch.object(ConfigurableTask, "download", download):
        yield


@contextlib.contextmanager
def rows_kept(kept: dict[str, Any]) -> Iterator[None]:
    """Within this context tasks of lm-eval that are loaded take their rows from `kept`; the first time they fetch or
    make them, and leave them there. All or none, since RULER's tasks draw theirs one after the other: some that are
    kept would change the others.
    """
    from lm_eval.api.task import ConfigurableTask

    fetch, fetched = ConfigurableTask.download, {}

    def download(task, *args, **kwargs):
        name = task.config.task or type(task).__name__
        if not kept:
            fetch(task, *args, **kwargs)
            fetched[name] = task.dataset
        else:
            task.dataset = kept[name]

    with mock.patch.object(ConfigurableTask, "download", download):
        yield
    kept.update(fetched)


def _read_rows(path: Path) -> list[dict[str, Any]]:
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
        rows = [json.loads(line) for line in lines if line.strip()]
    except (OSError, ValueError) as error:
        raise UserError(f"The benchmark's rows in {path} can't be read: {error}.") from None
    if not rows or not all(isinstance(row, dict) for row in rows):
        raise UserError(f"The file {path} must hold a benchmark's rows, one JSON object a line.")
    return rows


@contextlib.contextmanager
def no_nltk_downloads() -> Iterator[None]:
    """Tasks that use NLTK try to download its data when they are imported, which can hang where there is no network.
    Who really needs the data has said so in `missing`.
    """
    import nltk

    with mock.patch.object(nltk, "download", lambda *args, **kwargs: False):
        yield


@contextlib.contextmanager
def lm_eval_seeds() -> Iterator[None]:
    """Global generators as lm-eval seeds them, and afterwards as they were.

    RULER makes its questions from them, a checker of IFEval draws what a row leaves open, and language detection seeds
    itself by the clock if one lets it.
    """
    python, numpy = random.getstate(), np.random.get_state()
    random.seed(0)
    np.random.seed(1234)
    try:
        if find_spec("langdetect") is None:
            yield
        else:
            from langdetect import DetectorFactory

            with mock.patch.object(DetectorFactory, "seed", 0):
                yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)


@contextlib.contextmanager
def quiet() -> Iterator[Any]:
    """Keeps what tasks log, print and draw off the terminal. Yields a context in which one is heard again."""
    loggers = [logging.getLogger(name) for name in ("lm_eval", "datasets", "evaluate", "transformers")]
    levels = [logger.level for logger in loggers]
    out, err = sys.stdout, sys.stderr

    @contextlib.contextmanager
    def aloud() -> Iterator[None]:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            yield

    try:
        for logger in loggers:
            logger.setLevel(logging.CRITICAL)
        with contextlib.redirect_stdout(_Nowhere()), contextlib.redirect_stderr(_Nowhere()):
            yield aloud
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


class _Nowhere(io.TextIOBase):
    """A stream that forgets."""

    def write(self, text: str) -> int:
        return len(text)


@contextlib.contextmanager
def offline_if_unreachable() -> Iterator[None]:
    """Without a network, what is in the caches is taken at once; the hub would else be asked again and again."""
    if models.hub_is_reachable():
        yield
        return
    import datasets
    from huggingface_hub import constants

    with (
        mock.patch.object(constants, "HF_HUB_OFFLINE", True),
        mock.patch.object(datasets.config, "HF_HUB_OFFLINE", True),
    ):
        yield


@contextlib.contextmanager
def squad_scored_here() -> Iterator[None]:
    """Once lm-eval's SQuAD is loaded: within this context it is scored by `hmx.evaluation.squad`."""
    with mock.patch.object(sys.modules["lm_eval.tasks.squadv2.task"], "_squad_metric", squad_scores):
        yield
