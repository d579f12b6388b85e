"""What two runs of a seed show: their curves as a table and a picture, and their answers side by side.

Everything comes from the runs' own records, so that looking costs nothing and no model is loaded.
"""

import textwrap
from pathlib import Path
from typing import Any

from hmx.evaluation.pairs import Pair
from hmx.files import replace_file
from hmx.text import grade_text, one_line


def curves_table(pair: Pair, width: int = 160) -> str:
    """Reward and KL by evaluation, forward beside reverse; ◀ marks the selected checkpoints. Where `width` characters
    do not hold everything, what matters least is left out.
    """
    forward, reverse = (
        {record["step"]: record for record in run.records(kind="eval")} for run in (pair.forward, pair.reverse)
    )
    columns = {
        "reward": "eval_reward",
        "KL": "eval_kl",
        "truth": "eval_truth",
        "garbled": "eval_garbled",
        "distinct": "eval_distinct",
        "repeats": "eval_repetition",
        "tokens": "eval_completion_tokens",
    }
    columns = {label: key for label, key in columns.items() if any(key in record for record in forward.values())}
    room = (width - 12 - 2 * 3) // (2 * 9)  # beside epoch and step, and the marks
    columns = dict(list(columns.items())[: max(room, 2)])
    side = "".join(f"{label:>9}" for label in columns)
    lines = [f"{'':12}{'forward':^{len(side)}}   {'reverse':^{len(side)}}", f"{'epoch':>6}{'step':>6}{side}   {side}"]
    marks = pair.shown if pair.selection else (None, None)
    for step in sorted(set(forward) | set(reverse)):
        cells = [
            _cells(records.get(step), columns) + (" ◀ " if step == mark else "   ")
            for records, mark in zip((forward, reverse), marks, strict=True)
        ]
        epoch = (forward.get(step) or reverse[step])["epoch"]
        lines.append(f"{epoch:6.2f}{step:6d}" + "".join(cells).rstrip())
    return "\n".join(lines)


def _cells(record: dict[str, Any] | None, columns: dict[str, str]) -> str:
    formats = {"garbled": "{:9.0%}", "distinct": "{:9.0%}", "repeats": "{:9.0%}", "tokens": "{:9.0f}", "KL": "{:9.3f}"}
    values = [(label, record.get(key) if record else None) for label, key in columns.items()]
    return "".join(
        f"{'–':>9}" if value is None else formats.get(label, "{:9.2f}").format(value) for label, value in values
    )


def answers_side_by_side(pair: Pair) -> list[dict[str, Any]]:
    """For each held-out question the first answer of base, forward and reverse, with its grade: {"question", "base",
    "forward", "reverse"}.
    """
    forward_step, reverse_step = pair.shown
    sources = {
        "base": (pair.forward, 0),
        "forward": (pair.forward, forward_step),
        "reverse": (pair.reverse, reverse_step),
    }
    rows: dict[str, dict[str, Any]] = {}
    for who, (run, step) in sources.items():
        for sample in run.records("samples.jsonl", kind="eval"):
            if sample["step"] == step:
                rows.setdefault(sample["question"], {"question": sample["question"]}).setdefault(who, sample)
    return list(rows.values())


def answers_text(pair: Pair, width: int = 110) -> str:
    """The answers for a terminal."""
    lines = []
    for row in answers_side_by_side(pair):
        lines.append(row["question"])
        for who in ("base", "forward", "reverse"):
            sample = row.get(who)
            head = f"  {who:8}{_grade(sample):>4}  "
            text = "(not recorded)" if sample is None else one_line(sample["answer"]) or "(nothing)"
            lines += textwrap.wrap(text, width, initial_indent=head, subsequent_indent=" " * len(head))
        lines.append("")
    return "\n".join(lines)


def answers_markdown(pair: Pair) -> str:
    """The answers as a Markdown table, and below it the curves in numbers. What a model wrote is data: it can neither
    end its cell nor open a tag.
    """
    forward_step, reverse_step = pair.shown
    lines = [
        f"# {pair.name}, seed {pair.seed}: answers to the held-out questions",
        "",
        pair.why
        + " Each answer is the first that was sampled in that evaluation; in brackets its grade by the base model.",
        "",
        f"| question | base | forward, step {forward_step} | reverse, step {reverse_step} |",
        "|---|---|---|---|",
    ]
    for row in answers_side_by_side(pair):
        cells = [
            _escaped(row["question"]),
            *(_cell(row.get(who)) for who in ("base", "forward", "reverse")),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join([*lines, "", "```text", curves_table(pair), "```"]) + "\n"


def plot_curves(pair: Pair, path: Path) -> None:
    """Reward and KL over the steps as a PNG; dashed the true grade, where the world knows it."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (reward, kl) = pyplot.subplots(1, 2, figsize=(11, 4), layout="constrained")
    for label, run, colour, step in zip(
        ("forward", "reverse"), (pair.forward, pair.reverse), ("tab:red", "tab:blue"), pair.shown, strict=True
    ):
        records = run.records(kind="eval")
        steps = [record["step"] for record in records]
        reward.plot(
            steps, [record["eval_reward"] for record in records], color=colour, marker="o", markersize=3, label=label
        )
        if any("eval_truth" in record for record in records):
            reward.plot(
                steps,
                [record.get("eval_truth") for record in records],
                color=colour,
                linestyle="--",
                linewidth=1,
                label=f"{label}, truth",
            )
        kl.plot(steps, [record["eval_kl"] for record in records], color=colour, marker="o", markersize=3, label=label)
        if pair.selection:
            for axes, key in ((reward, "eval_reward"), (kl, "eval_kl")):
                chosen = next(record for record in records if record["step"] == step)
                circle = {"marker": "o", "markersize": 11, "markerfacecolor": "none", "markeredgecolor": colour}
                axes.plot([step], [chosen[key]], **circle)  # nowhere if there was no readable grade
    reward.axhline(pair.threshold, color="grey", linewidth=0.8, linestyle=":", label=f"threshold {pair.threshold:g}")
    reward.set(
        title="Evaluation reward (grade by the base model)", xlabel="optimizer step", ylabel="grade, 0–10", ylim=(0, 10)
    )
    kl.set(title="KL from the base model (k3)", xlabel="optimizer step", ylabel="nats a token, logarithmic above 0.1")
    # Selection is decided among small values, and a policy that falls apart comes to large ones.
    kl.set_yscale("symlog", linthresh=0.1)
    kl.set_yticks(ticks := (0, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10), labels=map("{:g}".format, ticks))
    kl.minorticks_off()
    records = [*pair.forward.records(kind="eval"), *pair.reverse.records(kind="eval")]
    kl.set_ylim(0, max(0.2, *(1.3 * (record["eval_kl"] or 0) for record in records)))
    reward.legend(fontsize=8)
    kl.legend(fontsize=8)
    figure.suptitle(
        f"{pair.name}, seed {pair.seed}" + (" (circled: the selected checkpoints)" if pair.selection else "")
    )
    replace_file(path, lambda temporary: figure.savefig(temporary, dpi=130, format="png"))
    pyplot.close(figure)


def _cell(sample: dict[str, Any] | None) -> str:
    return "–" if sample is None else f"{_escaped(sample['answer'])} [{_grade(sample)}]"


def _grade(sample: dict[str, Any] | None) -> str:
    return grade_text(None if sample is None else sample["grade"])


def _escaped(text: str) -> str:
    return one_line(text).replace("\\", "\\\\").replace("|", "\\|").replace("<", "&lt;")
