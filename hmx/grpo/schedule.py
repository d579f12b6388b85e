"""When things happen: the number of steps, the evaluations among them, and the learning rate."""

import math

from hmx.config import Config


def total_steps(config: Config, questions: int) -> int:
    """Optimizer steps of the whole training on so many questions."""
    return -(-config.train.epochs * questions // config.grpo.prompts_per_step)  # rounded up


def evaluation_steps(config: Config, questions: int) -> list[int]:
    """The steps after which to evaluate: 0, then `evaluations_per_epoch` times an epoch, the last step among them."""
    per_epoch = config.train.evaluations_per_epoch
    period = config.grpo.prompts_per_step * per_epoch
    return sorted({-(-k * questions // period) for k in range(config.train.epochs * per_epoch + 1)})  # rounded up


def learning_rate(step: int, steps: int, peak: float, warmup: float, schedule: str) -> float:
    """The learning rate of step 1 … `steps`: a linear rise over the share `warmup` of them, then constant or a linear
    fall to 0.

    As in transformers the rise begins at 0, so the first step moves nothing, and it takes a whole number of steps,
    rounded up. Unlike there a step that is skipped for its gradient uses its learning rate up: it is a function of the
    step alone, and a run that goes on needs no state.

    >>> [round(learning_rate(step, 10, 1.0, 0.2, "linear"), 3) for step in (1, 2, 3, 6, 10)]
    [0.0, 0.5, 1.0, 0.625, 0.125]
    """
    done, rise = step - 1, math.ceil(round(warmup * steps, 9))  # 0.07 · 100 is 7.000000000000001
    if done < rise:
        return peak * done / rise
    return peak if schedule == "constant" else peak * (steps - done) / (steps - rise)
