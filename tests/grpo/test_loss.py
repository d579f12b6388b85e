"""The GRPO loss against a token-by-token reference in Python floats, written from the papers.

Clipped surrogate: Schulman et al. 2017, equation 7. Token loss and per-sequence mean: Shao et al. 2024 (DeepSeekMath),
equations 3 and 4. Constant normaliser: Liu et al. 2025.
"""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hmx.grpo.loss import AGGREGATIONS, clipped_surrogate, grpo_loss, row_denominators

CLIP, BETA = 0.2, 0.3
LONGEST = 11  # the longest completion possible, for "dr_grpo"


def slow_surrogate(logprob: float, old: float, advantage: float, clip_eps: float) -> float:
    ratio = math.exp(logprob - old)
    clipped = min(max(ratio, 1 - clip_eps), 1 + clip_eps)
    return min(ratio * advantage, clipped * advantage)


def slow_loss(logprobs, old, ref, advantages, mask, group_size: int, aggregation: str, longest: int) -> float:
    """The loss of a whole step, rows in groups of `group_size`, one token at a time."""
    groups = [range(start, start + group_size) for start in range(0, len(mask), group_size)]
    rows = []  # for each row the losses of its tokens
    for b in range(len(mask)):
        losses = []
        for t in range(len(mask[b])):
            if mask[b][t]:
                ratio = math.exp(ref[b][t] - logprobs[b][t])
                k3 = ratio - (ref[b][t] - logprobs[b][t]) - 1
                losses.append(-slow_surrogate(logprobs[b][t], old[b][t], advantages[b], CLIP) + BETA * k3)
        rows.append(losses)
    if aggregation == "bnpo":  # mean over the tokens of a prompt's group, then over the prompts
        means = []
        for group in groups:
            tokens = [loss for b in group for loss in rows[b]]
            means.append(math.fsum(tokens) / len(tokens) if tokens else 0.0)
        return math.fsum(means) / len(groups)
    if aggregation == "grpo":  # mean over each completion's tokens, then over the completions
        return math.fsum(math.fsum(row) / len(row) if row else 0.0 for row in rows) / len(rows)
    return math.fsum(loss for row in rows for loss in row) / (len(rows) * longest)


@st.composite
def steps(draw):
    """A step: groups of completions of unequal lengths, empty ones among them, log-probabilities and advantages."""
    groups, group_size, T = draw(st.integers(1, 3)), draw(st.integers(1, 3)), draw(st.integers(1, 5))
    rows = groups * group_size
    lengths = draw(st.lists(st.integers(0, T), min_size=rows, max_size=rows))
    # An off-grid step keeps ratios away from the clip's corners, where the gradient is not defined.
    value = st.integers(-40, -1).map(lambda i: i / 20 + 0.003)

    def matrix():
        return [draw(st.lists(value, min_size=T, max_size=T)) for _ in range(rows)]

    advantages = draw(st.lists(st.integers(-15, 15).map(lambda i: i / 10), min_size=rows, max_size=rows))
    return {
        "logprobs": matrix(),
        "old": matrix(),
        "ref": [[x - 0.0071 for x in row] for row in matrix()],
        "advantages": advantages,
        "mask": [[t < length for t in range(T)] for length in lengths],
        "group_size": group_size,
    }


def tensors(step: dict) -> tuple[torch.Tensor, ...]:
    values = (torch.tensor(step[name], dtype=torch.float64) for name in ("logprobs", "old", "ref", "advantages"))
    return *values, torch.tensor(step["mask"])


def loss_and_gradient(
    step: dict, aggregation: str, pieces: list[slice], junk: float = 0.0
) -> tuple[float, torch.Tensor]:
    """Loss and gradient in the log-probabilities when the step is taken in `pieces`, with `junk` at padding."""
    logprobs, old, ref, advantages, mask = tensors(step)
    logprobs, old, ref = (torch.where(mask, values, junk) for values in (logprobs, old, ref))
    logprobs.requires_grad_()
    denominators = row_denominators(mask, step["group_size"], aggregation, LONGEST)
    total = 0.0
    for piece in pieces:
        part = (logprobs[piece], old[piece], ref[piece], advantages[piece], mask[piece])
        loss = grpo_loss(*part, CLIP, BETA, aggregation, denominators[piece]).loss
        loss.backward()
        total += loss.item()
    return total, logprobs.grad


# ---- the clipped surrogate


@given(st.floats(-3, 0), st.floats(-3, 0), st.floats(-3, 3), st.floats(0.05, 0.5))
def test_surrogate_equals_the_slow_formula(logprob, old, advantage, clip_eps):
    result = clipped_surrogate(
        torch.tensor([[logprob]], dtype=torch.float64),
        torch.tensor([[old]], dtype=torch.float64),
        torch.tensor([advantage], dtype=torch.float64),
        clip_eps,
    )
    assert result.item() == pytest.approx(slow_surrogate(logprob, old, advantage, clip_eps), rel=1e-12, abs=1e-12)


@pytest.mark.parametrize(
    "ratio, advantage, value, gradient",
    [
        (1.5, 2.0, 1.2 * 2.0, 0.0),  # moved far towards what was good: no more of it
        (0.5, 2.0, 0.5 * 2.0, 0.5 * 2.0),  # moved away from what was good: pulled back
        (1.5, -2.0, 1.5 * -2.0, 1.5 * -2.0),  # moved towards what was bad: pushed back
        (0.5, -2.0, 0.8 * -2.0, 0.0),  # moved far away from what was bad: no more of it
        (1.1, 2.0, 1.1 * 2.0, 1.1 * 2.0),  # within the clip
        (0.9, -2.0, 0.9 * -2.0, 0.9 * -2.0),
    ],
)
def test_value_and_gradient_in_the_four_cases_of_the_clip(ratio, advantage, value, gradient):
    """d/d(log p) of ratio · A is ratio · A, and 0 where the clip holds."""
    logprobs = torch.tensor([[-1.0 + math.log(ratio)]], dtype=torch.float64, requires_grad=True)
    result = clipped_surrogate(
        logprobs, torch.tensor([[-1.0]], dtype=torch.float64), torch.tensor([advantage], dtype=torch.float64), 0.2
    )
    result.sum().backward()
    assert result.item() == pytest.approx(value, rel=1e-12)
    assert logprobs.grad.item() == pytest.approx(gradient, rel=1e-12, abs=0)


@pytest.mark.parametrize(
    "ratio, advantage, clipped",
    [(1.5, 2.0, 1), (0.5, 2.0, 0), (1.5, -2.0, 0), (0.5, -2.0, 1), (1.1, 2.0, 0), (0.5, 0.0, 0), (1.5, 0.0, 0)],
)
def test_clip_fraction_counts_the_tokens_whose_gradient_the_clip_takes(ratio, advantage, clipped):
    logprobs = torch.tensor([[math.log(ratio)]])
    loss = grpo_loss(
        logprobs, torch.zeros(1, 1), logprobs, torch.tensor([advantage]), torch.ones(1, 1), 0.2, 0.0, "bnpo"
    )
    assert loss.clip_fraction.item() == clipped


# ---- the loss and its aggregations


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
@given(step=steps())
def test_loss_equals_the_slow_formula(aggregation, step):
    expected = slow_loss(**step, aggregation=aggregation, longest=LONGEST)
    value, _ = loss_and_gradient(step, aggregation, [slice(None)])
    assert value == pytest.approx(expected, rel=1e-6, abs=1e-6)


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
@given(step=steps())
def test_gradient_equals_finite_differences_of_the_slow_formula(aggregation, step):
    _, gradient = loss_and_gradient(step, aggregation, [slice(None)])
    h = 1e-6
    for b, row in enumerate(step["logprobs"]):
        for t in range(len(row)):
            sides = []
            for sign in (h, -h):
                moved = [list(values) for values in step["logprobs"]]
                moved[b][t] += sign
                sides.append(slow_loss(**step | {"logprobs": moved}, aggregation=aggregation, longest=LONGEST))
            # a ratio exactly on the clip's corner has no derivative
            on_corner = any(
                abs(math.exp(row[t] - step["old"][b][t]) - corner) < 1e-4 for corner in (1 - CLIP, 1 + CLIP)
            )
            if not on_corner:
                assert gradient[b, t].item() == pytest.approx((sides[0] - sides[1]) / (2 * h), abs=1e-5)


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
@given(step=steps(), data=st.data())
def test_any_split_into_micro_batches_gives_the_full_batch(aggregation, step, data):
    rows = len(step["mask"])
    cuts = [0, *sorted(data.draw(st.sets(st.integers(1, rows - 1)) if rows > 1 else st.just(set()))), rows]
    pieces = [slice(a, b) for a, b in zip(cuts[:-1], cuts[1:], strict=True)]
    whole, whole_gradient = loss_and_gradient(step, aggregation, [slice(None)])
    split, split_gradient = loss_and_gradient(step, aggregation, pieces)
    assert split == pytest.approx(whole, abs=1e-9)
    torch.testing.assert_close(split_gradient, whole_gradient, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
@given(step=steps(), junk=st.sampled_from([math.nan, math.inf, -math.inf, -1e4, 300.0]))
def test_what_stands_at_padding_never_matters(aggregation, step, junk):
    clean, clean_gradient = loss_and_gradient(step, aggregation, [slice(None)])
    dirty, dirty_gradient = loss_and_gradient(step, aggregation, [slice(None)], junk)
    assert dirty == clean
    assert torch.equal(dirty_gradient, clean_gradient)
    assert torch.equal(
        dirty_gradient[~torch.tensor(step["mask"])], torch.zeros_like(dirty_gradient[~torch.tensor(step["mask"])])
    )


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
@given(step=steps(), extra=st.integers(1, 3))
def test_more_padding_never_matters(aggregation, step, extra):
    padded = step | {name: [row + [-0.5] * extra for row in step[name]] for name in ("logprobs", "old", "ref")}
    padded["mask"] = [row + [False] * extra for row in step["mask"]]
    value, gradient = loss_and_gradient(step, aggregation, [slice(None)])
    padded_value, padded_gradient = loss_and_gradient(padded, aggregation, [slice(None)])
    assert padded_value == pytest.approx(value, abs=1e-12)
    torch.testing.assert_close(padded_gradient[:, : gradient.shape[1]], gradient, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
@given(step=steps())
def test_the_parts_add_up(aggregation, step):
    logprobs, old, ref, advantages, mask = tensors(step)
    whole = grpo_loss(logprobs.requires_grad_(), old, ref, advantages, mask, CLIP, BETA, aggregation)
    assert whole.loss.item() == pytest.approx((whole.surrogate + BETA * whole.kl).item(), abs=1e-9)
    assert 0 <= whole.clip_fraction.item() <= 1 + 1e-6
    assert whole.token_kl.shape == mask.shape
    assert whole.loss.requires_grad
    assert not any(part.requires_grad for part in (whole.surrogate, whole.kl, whole.clip_fraction, whole.token_kl))


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
@given(step=steps())
def test_without_old_logprobs_the_ratio_is_one_and_keeps_its_gradient(aggregation, step):
    logprobs, _, ref, advantages, mask = tensors(step)
    results = []
    for old in (None, logprobs.clone()):
        leaf = logprobs.clone().requires_grad_()
        loss = grpo_loss(leaf, old, ref, advantages, mask, CLIP, BETA, aggregation)
        loss.loss.backward()
        results.append((loss.loss.item(), leaf.grad))
    assert results[0][0] == results[1][0]
    assert torch.equal(results[0][1], results[1][1])
    # on-policy, the surrogate's gradient is that of REINFORCE with the advantage: -A on each sampled token
    leaf = logprobs.clone().requires_grad_()
    grpo_loss(leaf, None, leaf.detach(), advantages, mask, CLIP, 0.0, aggregation, denominator=1.0).loss.backward()
    share = mask / (mask.sum(dim=1, keepdim=True).clamp(min=1) if aggregation == "grpo" else 1)
    torch.testing.assert_close(leaf.grad, -advantages[:, None] * share)


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
def test_the_default_denominator_takes_the_batch_as_one_group(aggregation):
    logprobs, ref = torch.zeros(2, 3), torch.full((2, 3), -1.0)
    mask = torch.tensor([[1, 1, 0], [1, 0, 0]])
    k3 = math.exp(-1) - 1 + 1
    loss = grpo_loss(logprobs, None, ref, torch.tensor([1.0, -2.0]), mask, 0.2, 1.0, aggregation)
    surrogate = {"bnpo": -(1 + 1 - 2) / 3, "grpo": -(1 - 2) / 2, "dr_grpo": -(1 + 1 - 2) / 6}[aggregation]
    kl = {"bnpo": k3, "grpo": k3, "dr_grpo": k3 * 3 / 6}[aggregation]
    assert (loss.surrogate.item(), loss.kl.item()) == pytest.approx((surrogate, kl), abs=1e-6)
    assert loss.loss.item() == pytest.approx(surrogate + kl, abs=1e-6)


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
@pytest.mark.parametrize("junk", [0.0, math.nan, math.inf])
def test_a_batch_without_a_single_token_is_finite(aggregation, junk):
    logprobs = torch.full((2, 3), junk, requires_grad=True)
    loss = grpo_loss(
        logprobs,
        None,
        torch.full((2, 3), junk),
        torch.ones(2),
        torch.zeros(2, 3, dtype=torch.bool),
        0.2,
        0.1,
        aggregation,
    )
    loss.loss.backward()
    assert loss.loss.item() == 0
    assert torch.equal(logprobs.grad, torch.zeros(2, 3))


def test_a_kl_of_no_weight_is_not_in_the_loss():
    """k3 overflows where the base would say a token that the policy all but excludes."""
    logprobs, reference = torch.tensor([[-200.0, -1.0]], requires_grad=True), torch.tensor([[-1.0, -1.0]])
    mask = torch.ones(1, 2)
    loss = grpo_loss(logprobs, None, reference, torch.tensor([1.0]), mask, 0.2, 0.0, "bnpo")
    loss.loss.backward()
    assert loss.kl.isinf() and loss.loss.item() == -1.0 and logprobs.grad.tolist() == [[-0.5, -0.5]]


def test_row_denominators_by_hand():
    mask = torch.tensor([[1, 1, 1], [1, 0, 0], [0, 0, 0], [1, 1, 0], [0, 0, 0], [0, 0, 0]], dtype=torch.bool)
    assert row_denominators(mask, 2, "bnpo", 9).tolist() == [
        12,
        12,
        6,
        6,
        3,
        3,
    ]  # (3 + 1, 0 + 2, none but never 0) tokens × 3 groups
    assert row_denominators(mask, 2, "grpo", 9).tolist() == [6] * 6
    assert row_denominators(mask, 2, "dr_grpo", 9).tolist() == [54] * 6


def test_the_inputs_are_not_changed():
    logprobs, old, ref = torch.zeros(2, 2), torch.ones(2, 2), torch.ones(2, 2)
    advantages, mask = torch.ones(2), torch.tensor([[1, 0], [0, 0]])
    before = [tensor.clone() for tensor in (logprobs, old, ref, advantages, mask)]
    grpo_loss(logprobs, old, ref, advantages, mask, 0.2, 0.1, "bnpo")
    assert all(map(torch.equal, before, (logprobs, old, ref, advantages, mask)))


# ---- the door


@pytest.mark.parametrize(
    "name, shape",
    [("old", (2,)), ("advantages", (3,)), ("advantages", (2, 1)), ("mask", (2, 1)), ("mask", (3,)), ("ref", (2, 4))],
)
def test_wrong_shapes_are_refused(name, shape):
    arguments = {key: torch.zeros(2, 3) for key in ("logprobs", "old", "ref")} | {
        "advantages": torch.zeros(2),
        "mask": torch.ones(2, 3),
    }
    arguments[name] = torch.ones(shape)
    with pytest.raises((ValueError, RuntimeError)):
        grpo_loss(*arguments.values(), 0.2, 0.1, "bnpo")


def test_surrogate_refuses_advantages_of_each_token():
    with pytest.raises(ValueError, match="advantages"):
        clipped_surrogate(torch.zeros(2, 2), torch.zeros(2, 2), torch.zeros(2, 2), 0.2)


def test_an_unknown_aggregation_and_ragged_groups_are_refused():
    with pytest.raises(ValueError, match="bnpo, grpo, dr_grpo"):
        row_denominators(torch.ones(2, 2), 2, "mean", 2)
    with pytest.raises(ValueError, match="whole number of groups"):
        row_denominators(torch.ones(3, 2), 2, "bnpo", 2)


@pytest.mark.parametrize("name", ["old", "ref"])
@pytest.mark.parametrize("shape", [(), (3,), (1, 3), (2, 1)])
def test_nothing_is_broadcast_silently(name, shape):
    arguments = {key: torch.zeros(2, 3) for key in ("logprobs", "old", "ref")} | {
        "advantages": torch.zeros(2),
        "mask": torch.ones(2, 3),
    }
    arguments[name] = torch.ones(shape)
    with pytest.raises(ValueError):
        grpo_loss(*arguments.values(), 0.2, 0.1, "bnpo")


@pytest.mark.parametrize("shape", [(2, 1), (2, 3), (3,), (1, 2)])
def test_a_denominator_of_the_wrong_shape_is_refused(shape):
    arguments = [torch.zeros(2, 3), None, torch.zeros(2, 3), torch.zeros(2), torch.ones(2, 3)]
    with pytest.raises(ValueError):
        grpo_loss(*arguments, 0.2, 0.1, "bnpo", denominator=torch.ones(shape))
