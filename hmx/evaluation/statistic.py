"""Mean, spread and confidence over seeds."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import sqrt
from statistics import mean, stdev

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Statistic:
    """A number measured once a seed."""

    values: tuple[float, ...]
    """In the order of the seeds; never empty."""

    @property
    def mean(self) -> float:
        """Over the seeds."""
        return mean(self.values)

    @property
    def std(self) -> float | None:
        """Over the seeds, with n − 1 in the denominator (ddof = 1), as in section 3.4; None for a single seed."""
        return stdev(self.values) if len(self.values) > 1 else None

    @property
    def interval(self) -> tuple[float, float] | None:
        """The 95 % confidence interval of the mean by Student's t: mean ± t(0.975, n − 1) · std / √n. Of differences
        within seeds, this is the interval of the paired t-test. None for a single seed.

        >>> low, high = Statistic((1.0, 2.0, 3.0)).interval  # t(0.975, 2) = 4.303
        >>> round(low, 3), round(high, 3)
        (-0.484, 4.484)
        """
        if self.std is None:
            return None
        from scipy.stats import t

        half = float(t.ppf((1 + CONFIDENCE) / 2, len(self.values) - 1)) * self.std / sqrt(len(self.values))
        return self.mean - half, self.mean + half

    @property
    def excludes_zero(self) -> bool:
        """Whether the interval does not hold 0. A spread of exactly 0 decides nothing: it comes from a metric's coarse
        steps and few seeds.
        """
        return bool(self.std) and not self.interval[0] <= 0 <= self.interval[1]

    @property
    def agreeing(self) -> int:
        """How many seeds have the sign of the mean; none has it where the mean is 0.

        >>> Statistic((0.5, 1.0, -0.2)).agreeing, Statistic((0.0, 0.0)).agreeing
        (2, 0)
        """
        return sum(value * self.mean > 0 for value in self.values)


def differences(forward: Sequence[float], reverse: Sequence[float]) -> Statistic:
    """Forward minus reverse, seed by seed: the paper's result. Without the rounding of FP64, by which differences that
    are the same would seem to spread.

    >>> differences((60.0, 63 + 1 / 3), (55.0, 58 + 1 / 3)).excludes_zero
    False
    """
    return Statistic(tuple(round(one - other, 12) for one, other in zip(forward, reverse, strict=True)))
