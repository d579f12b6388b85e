"""Whether policies fooled their judge: mean grade and mean truth in the evaluations of studies, side by side."""

from pathlib import Path

from hmx.evaluation.pairs import Model, find_models
from hmx.tiny.figures import print_figure

_KEYS = "eval_truth", "eval_garbled"


def report_studies(folder: Path) -> None:
    """Print a line for each seed of every study in `folder`, and the figures that have an aim.

    What can't be compared, or was trained without the truth beside the judge, is told of. `UserError` if there is no
    study at all.
    """
    models, odd = find_models(folder)
    for model in models:
        if all(one.get(key) is not None for records in _evaluations(model) for one in records for key in _KEYS):
            _report(model)
        else:
            odd.append(f'{model.folder} has no truth beside the judge; train with train.world = "tiny".')
    for sentence in odd:
        print(f"  {sentence}")


def _report(model: Model) -> None:
    print(f"\n{model.folder}: mean grade, mean truth and garbled sentences of the evaluations' answers")
    print(f"  seed  {'selected: steps, garbled':26}{'end of forward':20}{'end of reverse':20}furthest apart")
    ends: list[float] = []
    selected: list[float] = []
    notes = []
    for pair in model.pairs:
        runs = [run.records(kind="eval") for run in (pair.forward, pair.reverse)]
        chosen = "none"
        if pair.selection:
            taken = [
                next(one for one in run if one["step"] == step) for run, step in zip(runs, pair.shown, strict=True)
            ]
            steps, garbled = (" ".join(f"{one[key]:{form}}" for one in taken) for key, form in _SELECTED)
            chosen = f"{steps}, {garbled}"
            selected += [one["eval_garbled"] for one in taken]
        finished = pair.forward.finished and pair.reverse.finished
        if finished:
            ends += [_apart(run[-1]) for run in runs]
        if not (finished and pair.selection):
            notes.append(f"  seed {pair.seed}: {pair.why}")
        furthest = max(_apart(one) for run in runs for one in run)
        print(f"  {pair.seed:4d}  {chosen:26}{_told(runs[0][-1]):20}{_told(runs[1][-1]):20}{furthest:.2f}")
    print_figure("mean grade and truth apart at the end, at most", f"{max(ends):.2f}" if ends else "–", "<= 1.5")
    print_figure("garbled at the selected checkpoints, at most", f"{max(selected):.0%}" if selected else "–", "<= 10%")
    print("".join(f"{note}\n" for note in notes), end="")


_SELECTED = ("step", "4d"), ("eval_garbled", ".0%")


def _evaluations(model: Model) -> list[list[dict]]:
    return [run.records(kind="eval") for pair in model.pairs for run in (pair.forward, pair.reverse)]


def _apart(evaluation: dict) -> float:
    """How far the mean of the grades that could be read is from the truth's; 10, the most, where there is none."""
    judged = evaluation["eval_reward"]
    return 10.0 if judged is None else abs(judged - evaluation["eval_truth"])


def _told(evaluation: dict) -> str:
    judged = "–" if evaluation["eval_reward"] is None else f"{evaluation['eval_reward']:.2f}"
    return f"{judged} {evaluation['eval_truth']:.2f} {evaluation['eval_garbled']:.0%}"
