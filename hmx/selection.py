"""Which checkpoints are compared: section 4 of "When AI Says It Feels", as a rule.

Forward: the first checkpoint whose evaluation reward is above the threshold. Reverse, of the same seed: the checkpoint
of the same step, unless it has moved further from the base model than the forward one. Then the latest earlier one that
has not, so that a loss of ability on the forward side is not hidden by a larger one on the reverse side. If every
trained reverse checkpoint up to that step has moved further, the same step is taken after all and marked, as the paper
did for Qwen3-0.6B.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import inf
from typing import Any


@dataclass(frozen=True)
class Selection:
    """The two checkpoints of a seed."""

    forward: int
    """Step of the forward checkpoint."""
    reverse: int
    """Step of the reverse checkpoint."""
    reason: str
    """Why these, in a sentence."""
    further_than_forward: bool = False
    """The paper's exception: reverse had moved further at every step, so the same step was taken."""


def select(
    forward: Sequence[dict[str, Any]], reverse: Sequence[dict[str, Any]], threshold: float, rule: str = "paper"
) -> Selection | None:
    """Apply the rule to the evaluations of two runs of one seed.

    Args:
        forward, reverse: records with `step`, `eval_reward` and `eval_kl`, in the order of their steps; where there is
            an `eval_judge_invalid`, the reason tells of it, since the reward is the mean of the other grades.
        rule: "paper"; "same_step" takes reverse at the forward step whatever its KL, to see what the rule changes.

    Returns:
        None if no forward evaluation is above the threshold, or reverse was not evaluated at that step. Step 0, the
        untrained model, is never selected.

    >>> history = ((0, 3.0, 0.0), (10, 6.0, 0.2), (20, 8.0, 0.5))
    >>> ups = [{"step": s, "eval_reward": r, "eval_kl": k} for s, r, k in history]
    >>> downs = [{"step": s, "eval_reward": 1.0, "eval_kl": k} for s, k in ((0, 0.0), (10, 0.4), (20, 0.9))]
    >>> select(ups, downs, 7.5).forward, select(ups, downs, 7.5).reverse
    (20, 10)
    """
    chosen = first_above(forward, threshold)
    if chosen is None:
        return None
    candidates = [one for one in reverse if 0 < one["step"] <= chosen["step"]]
    same = next((one for one in candidates if one["step"] == chosen["step"]), None)
    if same is None:
        return None
    step, kl, moved = chosen["step"], _kl(chosen), _kl(same)
    reward = f"reward {chosen['eval_reward']:.2f}"
    if unread := chosen.get("eval_judge_invalid"):
        reward += f", {unread} grade{'s' * (unread > 1)} unreadable"
    why = f"forward is first above {threshold:g} at step {step} ({reward}, KL {_digits(kl)})"
    near = [one for one in candidates if _kl(one) <= kl]
    if rule == "same_step":
        return Selection(step, step, f"{why}; reverse is taken at the same step (KL {_digits(moved)})")
    if not near:
        why += f"; reverse had moved further at every step (KL {_digits(moved)} there), so its same step is taken"
        return Selection(step, step, why, further_than_forward=True)
    if near[-1] is same:
        return Selection(step, step, f"{why}; reverse at the same step has KL {_digits(moved)}, no more than that")
    taken, its_kl = near[-1]["step"], _kl(near[-1])
    why += f"; reverse had moved further by then (KL {_digits(moved)}), "
    why += f"so its step {taken} is taken (KL {_digits(its_kl)})"
    return Selection(step, taken, why)


def first_above(forward: Sequence[dict[str, Any]], threshold: float) -> dict[str, Any] | None:
    """The first evaluation whose reward is above the threshold, that of the untrained model aside; None if there is
    none.
    """
    passed = (
        one for one in forward if one["step"] > 0 and one["eval_reward"] is not None and one["eval_reward"] > threshold
    )
    return next(passed, None)


def why_none(forward: Sequence[dict[str, Any]], threshold: float) -> str:
    """Why `select` took nothing, in words."""
    if all(one["eval_reward"] is None for one in forward):
        return "no evaluation of forward had a readable grade"
    if first_above(forward, threshold) is None:
        return f"forward never passed {threshold:g}"
    return "reverse has not come so far"


def _kl(record: dict[str, Any]) -> float:
    """The KL of an evaluation. One that was no finite number is recorded as None, and was surely not small."""
    return inf if record["eval_kl"] is None else record["eval_kl"]


def _digits(kl: float) -> str:
    """A KL with the digits that tell it from another.

    >>> _digits(0.25), _digits(0.000456), _digits(0.0)
    ('0.250', '0.000456', '0.000')
    """
    return f"{kl:{'#.3g' if 0 < kl < 0.1 else '.3f'}}"
