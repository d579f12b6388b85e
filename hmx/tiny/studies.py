"""Whether policies fooled their judge: what judge and truth said in the evaluations of a study."""

from pathlib import Path

from hmx.errors import UserError
from hmx.evaluation.pairs import find_pairs
from hmx.tiny.report import line


def report_study(place: Path) -> None:
    """Print a line for each seed of `place`, a folder of runs in both directions, and the figures that have an aim.

    `UserError` if there are none, or if nobody asked the world for the truth while they were trained.
    """
    pairs, problems = find_pairs(place)
    if not pairs:
        raise UserError(
            f"{place} holds no seed in both directions; train it with train.py --study. {' '.join(problems)}"
        )
    print(f"\n{place}: judge, truth and garbled sentences of the evaluations' answers")
    print(f"  seed  {'selected: steps, garbled':26}{'end of forward':20}{'end of reverse':20}furthest apart")
    ends, selected = [], []
    for pair in pairs:
        runs = [run.records(kind="eval") for run in (pair.forward, pair.reverse)]
        if any("eval_truth" not in one for records in runs for one in records):
            raise UserError(f'{place} has no truth beside the judge; train with train.world = "tiny".')
        taken = [
            next(one for one in records if one["step"] == step) for records, step in zip(runs, pair.shown, strict=True)
        ]
        steps, garbled = (" ".join(f"{one[key]:{form}}" for one in taken) for key, form in _SELECTED)
        furthest = max(_apart(one) for records in runs for one in records)
        last = [_told(records[-1]) for records in runs]
        print(f"  {pair.seed:4d}  {f'{steps}, {garbled}':26}{last[0]:20}{last[1]:20}{furthest:.2f}")
        ends += [_apart(records[-1]) for records in runs]
        selected += [one["eval_garbled"] for one in taken]
    line("judge and truth apart, at the end", f"{max(ends):.2f}", "<= 1.5")
    line("garbled at the selected checkpoints", f"{max(selected):.0%}", "<= 10%")


_SELECTED = ("step", "4d"), ("eval_garbled", ".0%")


def _apart(evaluation: dict) -> float:
    """How far judge and truth are apart; 10, the most there can be, where no grade was readable."""
    judged = evaluation["eval_reward"]
    return 10.0 if judged is None else abs(judged - evaluation["eval_truth"])


def _told(evaluation: dict) -> str:
    judged = "–" if evaluation["eval_reward"] is None else f"{evaluation['eval_reward']:.2f}"
    return f"{judged} {evaluation['eval_truth']:.2f} {evaluation['eval_garbled']:.0%}"
