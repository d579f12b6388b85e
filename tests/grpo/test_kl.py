"""Schulman's k3 estimator against exact divergences: over a categorical every expectation is a finite sum."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hmx.grpo.kl import kl_k3, masked_mean

log_probabilities = st.floats(-20, 0)
logit_rows = st.lists(st.floats(-3, 3), min_size=2, max_size=7)


def softmax(logits: list[float]) -> list[float]:
    weights = [math.exp(x) for x in logits]
    return [weight / math.fsum(weights) for weight in weights]


def exact_kl(p: list[float], q: list[float]) -> float:
    """KL(p || q) = sum over the outcomes of p · log(p / q)."""
    return math.fsum(a * (math.log(a) - math.log(b)) for a, b in zip(p, q, strict=True))


@st.composite
def two_categoricals(draw):
    """The logits of a policy and of a reference over the same few tokens."""
    policy = draw(logit_rows)
    return policy, draw(st.lists(st.floats(-3, 3), min_size=len(policy), max_size=len(policy)))


@given(log_probabilities, log_probabilities)
def test_equals_the_slow_formula_and_is_never_negative(policy, reference):
    value = kl_k3(
        torch.tensor([[policy]], dtype=torch.float64), torch.tensor([[reference]], dtype=torch.float64)
    ).item()
    ratio = math.exp(reference - policy)
    assert value >= 0
    assert value == pytest.approx(ratio - 1 - (reference - policy), rel=1e-9, abs=1e-9)


@given(log_probabilities)
def test_is_exactly_zero_where_policy_and_reference_agree(value):
    assert kl_k3(torch.full((1, 2), value), torch.full((1, 2), value)).tolist() == [[0.0, 0.0]]


def test_small_differences_keep_their_digits():
    # k3(x) = x²/2 + x³/6 + …; in float32, exp(x) - 1 - x would be off by more than its value
    x = 1e-4
    value = kl_k3(torch.tensor([[0.0]]), torch.tensor([[x]])).item()
    assert value >= 0
    assert value == pytest.approx(x * x / 2, abs=1e-11)


@given(two_categoricals())
def test_its_mean_under_the_policy_is_the_exact_divergence(logits):
    p, q = map(softmax, logits)
    values = kl_k3(torch.tensor([p], dtype=torch.float64).log(), torch.tensor([q], dtype=torch.float64).log())[
        0
    ].tolist()
    assert math.fsum(a * value for a, value in zip(p, values, strict=True)) == pytest.approx(
        exact_kl(p, q), rel=1e-9, abs=1e-12
    )


def expected_gradient(estimator, policy: list[float], reference: list[float]) -> list[float]:
    """The mean, over tokens drawn from the policy, of the gradient of `estimator` in the policy's logits."""
    p, total = softmax(policy), [0.0] * len(policy)
    ref_logprobs = torch.tensor([reference], dtype=torch.float64).log_softmax(dim=-1)
    for token in range(len(policy)):
        logits = torch.tensor([policy], dtype=torch.float64, requires_grad=True)
        estimator(logits.log_softmax(dim=-1)[:, token : token + 1], ref_logprobs[:, token : token + 1]).sum().backward()
        total = [t + p[token] * g for t, g in zip(total, logits.grad[0].tolist(), strict=True)]
    return total


@given(two_categoricals())
def test_its_expected_gradient_is_that_of_the_other_direction(logits):
    policy, reference = logits
    p, q = softmax(policy), softmax(reference)
    # d/dz KL(q || softmax(z)) = softmax(z) - q
    assert expected_gradient(kl_k3, policy, reference) == pytest.approx(
        [a - b for a, b in zip(p, q, strict=True)], abs=1e-9
    )


def test_its_expected_gradient_is_not_that_of_its_value():
    policy, reference = [2.0, 0.0, -1.0], [0.0, 0.0, 0.0]
    p, q = softmax(policy), softmax(reference)
    # d/dz_i KL(softmax(z) || q) = p_i · (log(p_i / q_i) - KL(p || q))
    forward = [a * (math.log(a / b) - exact_kl(p, q)) for a, b in zip(p, q, strict=True)]
    assert expected_gradient(kl_k3, policy, reference) != pytest.approx(forward, abs=0.05)


@given(two_categoricals())
def test_the_expected_gradient_of_k1_is_zero(logits):
    """Why the loss uses k3: the plain log-ratio, differentiated through its samples, teaches nothing."""
    assert expected_gradient(lambda logprobs, ref: logprobs - ref, *logits) == pytest.approx(
        [0.0] * len(logits[0]), abs=1e-9
    )


@pytest.mark.parametrize("shape", [(3,), (1, 3), (2, 1), ()])
def test_shapes_must_agree(shape):
    with pytest.raises(ValueError, match="differ in shape"):
        kl_k3(torch.zeros(2, 3), torch.zeros(shape))


@given(st.lists(st.lists(st.tuples(st.floats(-5, 5), st.booleans()), min_size=3, max_size=3), min_size=1, max_size=4))
def test_masked_mean_equals_loops_and_ignores_what_is_masked(entries):
    mask = torch.tensor([[keep for _, keep in row] for row in entries])
    values = torch.tensor(
        [[value if keep else math.nan for value, keep in row] for row in entries], dtype=torch.float64
    )
    rows = [[value for value, keep in row if keep] for row in entries]
    by_row = [math.fsum(row) / len(row) if row else 0.0 for row in rows]
    every = [value for row in rows for value in row]
    assert masked_mean(values, mask, dim=1).tolist() == pytest.approx(by_row, abs=1e-12)
    assert masked_mean(values, mask).item() == pytest.approx(math.fsum(every) / len(every) if every else 0.0, abs=1e-12)
