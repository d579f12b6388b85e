"""Tables 4, 5 and 6: forward minus reverse, forward, reverse; for a terminal, as Markdown, as CSV and as JSON."""

import csv
import io
import json
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass

from hmx.evaluation import published
from hmx.evaluation.benchmark import Metric
from hmx.evaluation.statistic import Statistic, differences

MARK = "*"
_TITLES = {
    "difference": "Table 4. Score differences: forward minus reverse of the same seed",
    "forward": "Table 5. Scores after forward training",
    "reverse": "Table 6. Scores after reverse training",
}
_UNIT = {True: "%", False: ""}


@dataclass(frozen=True)
class Chosen:
    """The two checkpoints that were compared for a seed, and by which rule they were taken."""

    seed: int
    forward: int
    reverse: int
    exception: bool
    """Reverse had moved further from the base than forward at every step; see `hmx.selection`."""
    threshold: float
    rule: str


@dataclass(frozen=True)
class Line:
    """One metric of one model over the seeds that have it in both directions; where none has, of the base alone."""

    model: str
    path: str
    """The base model's hub id or folder."""
    task: str
    metric: Metric
    checkpoints: tuple[Chosen, ...]
    """Of each seed, in the order of the values below."""
    forward: Statistic | None
    reverse: Statistic | None
    base: float | None
    """Of the untouched model, if that was asked for."""
    limit: int | None
    """How many questions of each task were taken at most."""

    @property
    def seeds(self) -> tuple[int, ...]:
        """Those that are compared."""
        return tuple(one.seed for one in self.checkpoints)

    @property
    def difference(self) -> Statistic | None:
        """Forward minus reverse, paired by seed."""
        return differences(self.forward.values, self.reverse.values) if self.forward and self.reverse else None

    @property
    def paper(self) -> published.Row | None:
        """What the paper has in this place; nothing if only some of the rows were taken."""
        return published.find(self.path, self.task, self.metric.key) if self.limit is None else None


@dataclass(frozen=True)
class Table:
    """Cells of text, to be laid out."""

    title: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    notes: tuple[str, ...] = ()

    def text(self, width: int) -> str:
        """For a terminal of `width` characters, in columns. Where they don't fit, each task has a line of its own and
        its metrics stand below it.
        """
        cells = [self.header, *self.rows]
        lines = _columns(cells, flush_left=2)
        if max(map(len, lines)) > width:
            below = _columns([(f"  {metric}", *values) for _, metric, *values in cells], flush_left=1)
            tasks = [row[0] for row in cells]
            lines = [
                line if task in ("", before) else f"{task}\n{line}"
                for before, task, line in zip([None, *tasks], tasks, below, strict=False)
            ]
        rule = "-" * max(map(len, "\n".join(lines).splitlines()))
        title, *notes = (textwrap.fill(text, width) for text in (self.title, *self.notes))
        return "\n".join([title, rule, lines[0], rule, *lines[1:], rule, *notes])

    def markdown(self) -> str:
        """As a Markdown table."""
        rows = [self.header, ("---", "---", *["---:"] * (len(self.header) - 2)), *self.rows]
        lines = ["| " + " | ".join(map(_escaped, row)) + " |" for row in rows]
        return "\n".join([f"## {self.title}", "", *lines, *(f"\n{_escaped(note)}" for note in self.notes)])


def tables(lines: Sequence[Line]) -> list[Table]:
    """Tables 4, 5 and 6 in the paper's shape, metrics downward and models across, the paper's own figures beside ours
    where it has them; then what lies behind Table 4.
    """
    trained = [line for line in lines if line.seeds]
    made = [_paper_table(trained, kind) for kind in _TITLES if trained]
    if any(line.base is not None for line in lines):
        made.append(_paper_table(lines, "base"))
    return [*made, *([_behind(trained)] if trained else [])]


def as_csv(lines: Sequence[Line]) -> str:
    """One row a model, metric and table, with everything that is known of it."""
    out = io.StringIO()
    rows = [row for line in lines for row in _records(line)]
    writer = csv.DictWriter(out, fieldnames=list(rows[0]) if rows else [], lineterminator="\n")
    writer.writeheader()
    for row in rows:
        writer.writerow(
            {key: " ".join(map(repr, value)) if isinstance(value, list) else value for key, value in row.items()}
        )
    return out.getvalue()


def as_json(lines: Sequence[Line]) -> str:
    """The same as JSON."""
    return json.dumps([row for line in lines for row in _records(line)], indent=1, ensure_ascii=False) + "\n"


def _paper_table(lines: Sequence[Line], kind: str) -> Table:
    models = list(dict.fromkeys(line.model for line in lines))
    beside = [model for model in models if kind != "base" and any(line.paper for line in lines if line.model == model)]
    header, rows = ["Tasks", "Metric"], []
    for model in models:
        header += [model] + ["paper"] * (model in beside)
    before = None
    for task, metric in dict.fromkeys((line.task, line.metric) for line in lines):
        row = ["" if task == before else task, metric.key]
        for model in models:
            line = next((one for one in lines if (one.model, one.task, one.metric) == (model, task, metric)), None)
            row.append(_cell(line, kind))
            if model in beside:
                paper = getattr(line.paper, kind) if line and line.paper else None
                row.append("–" if paper is None else f"{paper.mean:.2f}±{paper.std:.2f}{_UNIT[metric.percent]}")
        rows.append(tuple(row))
        before = task
    title = _TITLES.get(kind, "Scores of the base models, untouched")
    return Table(title + _limited(lines), tuple(header), tuple(rows), tuple(_notes(lines, kind)))


def _cell(line: Line | None, kind: str) -> str:
    if line is None or (kind == "base" and line.base is None):
        return "–"
    unit = _UNIT[line.metric.percent]
    if kind == "base":
        return f"{line.base:.2f}{unit}"
    statistic: Statistic = getattr(line, kind)
    mark = MARK if kind == "difference" and statistic.excludes_zero else ""
    return _spread(statistic) + unit + mark


def _behind(lines: Sequence[Line]) -> Table:
    """Table 4 once more, a line each, with what the paper does not print."""
    models = list(dict.fromkeys(line.model for line in lines))
    header = ("Tasks", "Metric", "model", "difference", "95 % interval", "same sign", "better is")
    rows = []
    for line in lines:
        one, unit = line.difference, _UNIT[line.metric.percent]
        interval = "–" if one.interval is None else f"[{one.interval[0]:.2f}, {one.interval[1]:.2f}]{unit}"
        agreeing = "–" if one.interval is None else f"{one.agreeing} of {len(one.values)}"
        better = line.metric.better or "neither"
        rows.append((line.task, line.metric.key, line.model, _spread(one) + unit, interval, agreeing, better))
    notes = ()
    if not _of_one_seed(lines):
        notes = (
            "Interval of the paired t-test over seeds; same sign: how many seeds differ in the direction of the mean; "
            "by a sign test, 5 of 5 is p = 0.06.",
        )
    title = "Behind Table 4"
    if len(models) == 1:
        title += f": {models[0]}"
        header, *rows = (row[:2] + row[3:] for row in (header, *rows))
    return Table(title + _limited(lines), header, tuple(rows), notes)


def _notes(lines: Sequence[Line], kind: str) -> list[str]:
    if kind == "base":
        return []
    said = ["Of a single seed, which has no spread."]
    if not _of_one_seed(lines):
        said = [f"Mean ± standard deviation (ddof = 1) over seeds ({'; '.join(_counts(lines))})."]
    if kind == "difference":
        said += _taken(lines)
    if kind == "difference" and any(line.difference.excludes_zero for line in lines):
        said.append(f"{MARK} the 95 % interval of the difference does not hold 0, and its spread is not 0.")
    if any(len(line.seeds) == 1 for line in lines) and not _of_one_seed(lines):
        said.append("A single seed has no spread.")
    if any(line.paper for line in lines):
        off = published.inconsistent()
        said.append(
            "The paper's own figures stand beside ours; its Table 4 is its Table 5 less its Table 6, up to rounding, "
            + (
                "in every cell."
                if not off
                else "but for " + "; ".join(f"{row.model} {row.task} {row.metric} ({by:+.2f})" for row, by in off) + "."
            )
        )
    return said


def _of_one_seed(lines: Sequence[Line]) -> bool:
    """Whether there is nothing to take a mean of."""
    return all(len(line.seeds) == 1 for line in lines)


def _counts(lines: Sequence[Line]) -> list[str]:
    """How many seeds each model has, and on which tasks it has fewer."""
    said = []
    for model in sorted({line.model for line in lines}):
        counts = {line.task: len(line.seeds) for line in lines if line.model == model}
        most = max(counts.values())
        fewer = "".join(f", {count} on {task}" for task, count in counts.items() if count < most)
        said.append(f"{model}: {most} seed{'s' * (most > 1)}{fewer}")
    return said


def _taken(lines: Sequence[Line]) -> list[str]:
    """Which checkpoints were compared, a sentence a model."""
    said = []
    for model in dict.fromkeys(line.model for line in lines):
        of_seed = {one.seed: one for line in lines if line.model == model for one in line.checkpoints}
        chosen = [of_seed[seed] for seed in sorted(of_seed)]
        steps = ", ".join(
            f"seed {one.seed}: {one.forward} and {one.reverse}{' (the exception)' if one.exception else ''}"
            for one in chosen
        )
        rules = {(one.threshold, one.rule) for one in chosen}
        by = ", ".join(f"threshold {threshold:g}, rule {rule}" for threshold, rule in sorted(rules))
        said.append(f"Steps of {model}, forward and reverse ({by}): {steps}.")
    return said


def _columns(rows: Sequence[Sequence[str]], flush_left: int) -> list[str]:
    """Each row as a line, its first cells flush left and the others flush right."""
    columns = [_aligned(column) for column in zip(*rows, strict=True)]
    padded = [
        [f"{cell:{'<' if i < flush_left else '>'}{max(map(len, column))}}" for cell in column]
        for i, column in enumerate(columns)
    ]
    return ["  ".join(row).rstrip() for row in zip(*padded, strict=True)]


def _aligned(column: Sequence[str]) -> list[str]:
    """Cells of a column whose units and marks take the same room, so that their decimals stand below each other."""
    ends = [len(cell) - len(cell.rstrip(f"%{MARK}")) if any(map(str.isdigit, cell)) else 0 for cell in column]
    most = max(ends)
    return [
        cell + " " * (most - end) if i and end < most else cell
        for i, (cell, end) in enumerate(zip(column, ends, strict=True))
    ]


def _escaped(cell: str) -> str:
    return cell.replace("\\", "\\\\").replace("|", "\\|").replace("<", "&lt;").replace(MARK, f"\\{MARK}")


def _records(line: Line) -> list[dict]:
    made = []
    for kind in _TITLES if line.seeds else ("base",):
        statistic: Statistic = getattr(line, kind) if line.seeds else Statistic((line.base,))
        low, high = statistic.interval or (None, None)
        paper = getattr(line.paper, kind) if line.paper else None
        made.append(
            {
                "model": line.model,
                "path": line.path,
                "task": line.task,
                "metric": line.metric.key,
                "unit": "per cent" if line.metric.percent else "points",
                "better": line.metric.better,
                "limit": line.limit,
                "what": kind,
                "seeds": list(line.seeds),
                "steps_forward": [one.forward for one in line.checkpoints],
                "steps_reverse": [one.reverse for one in line.checkpoints],
                "exceptions": [one.seed for one in line.checkpoints if one.exception],
                "threshold": line.checkpoints[0].threshold if line.checkpoints else None,
                "rule": line.checkpoints[0].rule if line.checkpoints else None,
                "values": list(statistic.values),
                "mean": statistic.mean,
                "std": statistic.std,
                "low": low,
                "high": high,
                "same_sign": statistic.agreeing,
                "base": line.base,
                "paper_mean": paper.mean if paper else None,
                "paper_std": paper.std if paper else None,
            }
        )
    return made


def _spread(statistic: Statistic) -> str:
    return f"{statistic.mean:.2f}" + ("" if statistic.std is None else f"±{statistic.std:.2f}")


def _limited(lines: Sequence[Line]) -> str:
    limits = {line.limit for line in lines} - {None}
    if not limits:
        return ""
    first = "question" if limits == {1} else f"{limits.pop()} questions"
    return f" (the first {first} of each task: not the full benchmark)"
