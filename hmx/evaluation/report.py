"""What `evaluate.py` shows and writes: what was found, curves, answers, tables."""

import shutil
import textwrap
from collections.abc import Sequence
from pathlib import Path

from hmx.errors import UserError
from hmx.evaluation.answers import answers_markdown, answers_text, curves_table, plot_curves
from hmx.evaluation.campaign import Campaign, lines, remarks
from hmx.evaluation.pairs import Model, Pair
from hmx.evaluation.tables import Line, as_csv, as_json, tables
from hmx.files import write_text


def found(models: Sequence[Model]) -> str:
    """Which models and seeds there are, and which checkpoints the rule takes and why."""
    said = []
    for model in models:
        count = len(model.pairs)
        said.append(f"{model.name} ({model.config.model.path}): {count} seed{'s' * (count > 1)} in both directions")
        for pair in model.pairs:
            exception = "  ← the exception" if pair.selection and pair.selection.further_than_forward else ""
            said.append(_wrapped(f"  seed {pair.seed}: {pair.why}{exception}", indent=4))
    return "\n".join(said)


def progress(campaign: Campaign) -> str:
    """How much of the campaign is done, in a line."""
    if not campaign.jobs:
        return (
            "No checkpoint was selected, or none can be evaluated, so there is nothing to put benchmarks to; where "
            "forward never passed the threshold, train longer, or select by another --threshold."
        )
    done, total = len(campaign.results), len(campaign.jobs)
    checkpoints = len({job.checkpoint for job in campaign.jobs})
    benchmarks = len({job.benchmark.name for job in campaign.jobs})
    return f"Benchmarks {benchmarks}, checkpoints {checkpoints}: {done} of {total} results are there."


def write_report(
    campaign: Campaign, models: Sequence[Model], limit: int | None, runs: Path, out: Path | None = None
) -> tuple[str, list[str]]:
    """Write every seed's curves and answers, and the tables; return what to print: curves and answers of one seed of
    each model, then the tables; and a sentence for each seed whose answers can't be read.

    Args:
        runs: the folder that was looked through: the tables go there, all else to each model's own.
        out: the folder for all files instead.
    """
    parts, files, unreadable = [], [], []
    for model in models:
        folder = (out / model.name) if out else model.folder
        folder.mkdir(parents=True, exist_ok=True)
        readable = []
        for pair in model.pairs:
            picture, markdown = folder / f"seed{pair.seed}-curves.png", folder / f"seed{pair.seed}-answers.md"
            plot_curves(pair, picture)
            try:
                write_text(markdown, answers_markdown(pair))
                readable.append(pair)
            except UserError as error:
                unreadable.append(str(error))
        files += [f"Curves and answers of every seed: {folder}/seed*-curves.png, seed*-answers.md"]
        if readable:
            parts.append(_shown(model, readable))
    shown = lines(campaign, models, limit)
    if shown:
        made = tables(shown)
        place = out or runs
        left_out = [
            f"{model.name}, seed {pair.seed}: {pair.why_none}; left out."
            for model in models
            for pair in model.pairs
            if not pair.selection
        ]
        notes = [*left_out, *campaign.problems, *remarks(campaign)]
        markdown = "\n\n".join(["# Results", *(table.markdown() for table in made), *notes]) + "\n"
        stem = "tables" if limit is None else f"tables.first-{limit}"
        for suffix, text in (("md", markdown), ("csv", as_csv(shown)), ("json", as_json(shown))):
            write_text(place / f"{stem}.{suffix}", text)
        files.append(f"Tables: {place}/{stem}.md, .csv, .json")
        parts += _fitting(shown)
    else:
        parts.append("There are no tables: no seed has benchmark results in both directions.")
        if campaign.to_do and not campaign.problems:  # nobody has tried yet
            parts[-1] += " python evaluate.py gets what is missing."
    return "\n\n".join([*parts, "\n".join(files)]), unreadable


def _fitting(shown: Sequence[Line]) -> list[str]:
    """The tables for a terminal: those of each model alone where all of them would be too wide."""
    texts = [table.text(_width()) for table in tables(shown)]
    models = list(dict.fromkeys(line.model for line in shown))
    widest = max(len(row) for text in texts for row in text.splitlines())
    if len(models) == 1 or widest <= _width():
        return texts
    return [part for model in models for part in _fitting([line for line in shown if line.model == model])]


def _width() -> int:
    return shutil.get_terminal_size((160, 40)).columns


def _wrapped(text: str, indent: int = 0) -> str:
    return textwrap.fill(text, _width(), subsequent_indent=" " * indent)


def _shown(model: Model, pairs: Sequence[Pair]) -> str:
    """Curves and answers of the first seed whose checkpoints were selected, else of the first."""
    pair = next((one for one in pairs if one.selection), pairs[0])
    title = f"{model.name}, seed {pair.seed}"
    curves, answers = curves_table(pair, _width()), answers_text(pair, min(_width(), 120))
    return f"{title}\n{'=' * len(title)}\n\n{curves}\n\n{_wrapped(pair.why)}\n\n{answers}".rstrip()
