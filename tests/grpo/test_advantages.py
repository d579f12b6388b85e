"""Group-relative advantages against Shao et al. 2024, section 4.1.2, written as loops over Python floats."""

import math

import pytest
import torch
from hypothesis import assume, example, given
from hypothesis import strategies as st

from hmx.grpo.advantages import group_advantages

EPS = 1e-4


def slow_advantages(rewards: list[list[float]], valid: list[list[bool]], eps: float) -> list[list[float]]:
    """(r - mean) / (sample standard deviation + eps) over the valid rewards of a group; else, and if constant, 0."""
    result = []
    for group, keep in zip(rewards, valid, strict=True):
        kept = [reward for reward, k in zip(group, keep, strict=True) if k]
        if len(kept) < 2 or min(kept) == max(kept):
            result.append([0.0] * len(group))
            continue
        mean = math.fsum(kept) / len(kept)
        std = math.sqrt(math.fsum((reward - mean) ** 2 for reward in kept) / (len(kept) - 1))
        result.append([(reward - mean) / (std + eps) if k else 0.0 for reward, k in zip(group, keep, strict=True)])
    return result


@st.composite
def graded_groups(draw):
    """Rewards [P, G], grades or any numbers, and which of them are valid."""
    rewards = st.integers(0, 10).map(float) | st.floats(-10, 10, width=32)
    prompts, completions = draw(st.integers(1, 4)), draw(st.integers(1, 6))

    def matrix(elements):
        return draw(
            st.lists(st.lists(elements, min_size=completions, max_size=completions), min_size=prompts, max_size=prompts)
        )

    return matrix(rewards), matrix(st.booleans())


@given(graded_groups())
def test_equals_the_slow_formula(groups):
    rewards, valid = groups
    result = group_advantages(torch.tensor(rewards, dtype=torch.float64), torch.tensor(valid))
    torch.testing.assert_close(
        result, torch.tensor(slow_advantages(rewards, valid, EPS), dtype=torch.float64), rtol=1e-9, atol=1e-9
    )


def test_by_hand():
    # mean 5, deviations -3 -1 1 3, sum of squares 20, / 3 with ddof = 1
    std = math.sqrt(20 / 3)
    result = group_advantages(torch.tensor([[2.0, 4.0, 6.0, 8.0]]), eps=0.0)
    torch.testing.assert_close(result, torch.tensor([[-3 / std, -1 / std, 1 / std, 3 / std]]))


@given(st.lists(st.integers(0, 10).map(float), min_size=2, max_size=8))
def test_mean_is_zero_and_standard_deviation_one(rewards):
    assume(min(rewards) < max(rewards))
    row = group_advantages(torch.tensor([rewards], dtype=torch.float64), eps=0.0)[0].tolist()
    mean = math.fsum(row) / len(row)
    assert mean == pytest.approx(0, abs=1e-12)
    assert math.sqrt(math.fsum((a - mean) ** 2 for a in row) / (len(row) - 1)) == pytest.approx(1, abs=1e-12)


@given(st.lists(st.integers(0, 10).map(float), min_size=2, max_size=8), st.floats(-100, 100), st.floats(0.1, 100))
def test_shift_and_positive_scale_change_nothing_but_for_eps(rewards, shift, scale):
    group = torch.tensor([rewards], dtype=torch.float64)
    assume(min(rewards) < max(rewards))
    torch.testing.assert_close(
        group_advantages(group * scale + shift, eps=0.0), group_advantages(group, eps=0.0), rtol=1e-8, atol=1e-8
    )
    # with eps the scale shows, by at most eps / std of the smaller of the two
    difference = (group_advantages(group * scale + shift) - group_advantages(group)).abs().max()
    assert difference <= 8 * EPS / (min(scale, 1.0) * group.std()) + 1e-8


@given(graded_groups())
def test_negated_rewards_give_exactly_negated_advantages(groups):
    rewards, valid = torch.tensor(groups[0]), torch.tensor(groups[1])
    assert torch.equal(group_advantages(-rewards, valid), -group_advantages(rewards, valid))


@given(st.floats(-1e6, 1e6, width=32), st.integers(1, 9), st.integers(0, 2))
@example(7.3, 6, 1)
@example(-7.3, 6, 1)
@example(7.3, 6, 0)
@example(-7.3, 6, 0)
def test_a_constant_group_gives_exact_zeros(reward, completions, invalid):
    # 7.3 six times has a mean that is not 7.3 in float32: the noise must not be divided by eps, whatever else stands
    # in the batch
    group = [reward] * completions + [0.0] * invalid
    others = [[1e7] * len(group), [-1e7] * len(group)]
    valid = torch.tensor([[True] * completions + [False] * invalid, [True] * len(group), [True] * len(group)])
    result = group_advantages(torch.tensor([group, *others]), valid, eps=1e-12)
    assert torch.equal(result, torch.zeros_like(result))


@given(graded_groups(), st.sampled_from([math.nan, math.inf, -math.inf, 1e30]))
def test_invalid_rewards_are_out_whatever_they_hold(groups, junk):
    rewards, valid = torch.tensor(groups[0]), torch.tensor(groups[1])
    result = group_advantages(torch.where(valid, rewards, junk), valid)
    assert torch.equal(result, group_advantages(rewards, valid))
    assert torch.equal(result[~valid], torch.zeros_like(result[~valid]))
    for p in range(len(rewards)):  # and the others are those of the group without them
        kept = group_advantages(rewards[p : p + 1, valid[p]])[0] if valid[p].any() else rewards[p, valid[p]]
        torch.testing.assert_close(result[p, valid[p]], kept, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("valid", [[False, False, False], [False, True, False]])
def test_a_group_with_fewer_than_two_valid_grades_teaches_nothing(valid):
    assert torch.equal(group_advantages(torch.tensor([[1.0, 9.0, 5.0]]), torch.tensor([valid])), torch.zeros(1, 3))


def test_groups_do_not_touch_each_other():
    first, second = torch.tensor([[1.0, 2.0, 9.0]]), torch.tensor([[10.0, 0.0, 0.0]])
    both = group_advantages(torch.cat([first, second]))
    assert torch.equal(both, torch.cat([group_advantages(first), group_advantages(second)]))


def test_the_inputs_are_not_changed():
    rewards, valid = torch.tensor([[1.0, math.nan, 3.0]]), torch.tensor([[True, False, True]])
    group_advantages(rewards, valid)
    assert rewards.isnan().tolist() == [[False, True, False]] and rewards[0, 2] == 3.0


@pytest.mark.parametrize(
    "rewards, valid",
    [
        (torch.zeros(4), None),
        (torch.zeros(2, 2, dtype=torch.int64), None),
        (torch.zeros(2, 2), torch.ones(2, dtype=torch.bool)),
        (torch.zeros(2, 2), torch.ones(2, 2)),
    ],
)
def test_shapes_and_types_are_checked_at_the_door(rewards, valid):
    with pytest.raises(ValueError, match="must be a"):
        group_advantages(rewards, valid)
