"""The learning rate of every step, by hand."""

import pytest

from hmx.grpo.schedule import learning_rate


@pytest.mark.parametrize(
    ("schedule", "warmup", "wanted"),
    [
        ("linear", 0.0, [1.0, 0.8, 0.6, 0.4, 0.2]),
        ("linear", 0.4, [0.0, 0.5, 1.0, 2 / 3, 1 / 3]),
        ("linear", 0.3, [0.0, 0.5, 1.0, 2 / 3, 1 / 3]),  # one and a half steps of rise are two
        ("constant", 0.0, [1.0] * 5),
        ("constant", 0.2, [0.0, 1.0, 1.0, 1.0, 1.0]),
    ],
)
def test_five_steps(schedule, warmup, wanted):
    assert [learning_rate(step, 5, 1.0, warmup, schedule) for step in range(1, 6)] == pytest.approx(wanted)


def test_a_share_of_the_steps_that_is_whole_is_not_rounded_up():
    assert 0.07 * 100 > 7
    assert learning_rate(8, 100, 1.0, 0.07, "linear") == 1.0
