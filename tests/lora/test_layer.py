"""One adapted layer against h = W x + b + (alpha / r) · B A x (Hu et al. 2021, equation 3), computed with loops."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from hmx.lora.layer import LoRALinear


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def layer(
    in_features: int, out_features: int, rank: int, alpha: float, bias: bool = True, seed: int = 0, dropout: float = 0.0
) -> LoRALinear:
    """An adapted layer whose W, b and B are all drawn from `seed`."""
    base = nn.Linear(in_features, out_features, bias=bias)
    adapted = LoRALinear(base, rank, alpha, dropout, generator(seed))
    with torch.no_grad():
        for parameter in (base.weight, *([base.bias] if bias else []), adapted.lora_B):
            parameter.copy_(torch.randn(parameter.shape, generator=generator(seed + parameter.numel())))
    return adapted


def slow_forward(adapted: LoRALinear, x: list[float]) -> list[float]:
    W, A, B = (matrix.tolist() for matrix in (adapted.base.weight, adapted.lora_A, adapted.lora_B))
    b = adapted.base.bias.tolist() if adapted.base.bias is not None else [0.0] * len(W)
    down = [math.fsum(a * value for a, value in zip(row, x, strict=True)) for row in A]  # A x, [r]
    up = [math.fsum(b_ * value for b_, value in zip(row, down, strict=True)) for row in B]  # B A x, [out]
    plain = [math.fsum(w * value for w, value in zip(row, x, strict=True)) for row in W]  # W x, [out]
    return [w + bias + adapted.alpha / adapted.rank * u for w, bias, u in zip(plain, b, up, strict=True)]


shapes = st.tuples(st.integers(1, 6), st.integers(1, 6)).flatmap(
    lambda s: st.tuples(st.just(s[0]), st.just(s[1]), st.integers(1, min(s)))
)


@given(shapes, st.floats(0.5, 32), st.booleans(), st.integers(0, 1000))
def test_output_is_base_plus_scaled_low_rank_update(shape, alpha, bias, seed):
    in_features, out_features, rank = shape
    adapted = layer(in_features, out_features, rank, alpha, bias, seed)
    x = torch.randn(2, 3, in_features, generator=generator(seed + 1))
    with torch.no_grad():
        h = adapted(x)
    assert h.shape == (2, 3, out_features)
    for i in range(2):
        for j in range(3):
            assert h[i, j].tolist() == pytest.approx(slow_forward(adapted, x[i, j].tolist()), rel=1e-4, abs=1e-3)


@given(shapes, st.floats(0.5, 32), st.integers(0, 1000))
def test_the_merged_weight_does_the_same(shape, alpha, seed):
    adapted = layer(*shape, alpha, seed=seed)
    x = torch.randn(4, shape[0], generator=generator(seed + 1))
    before = adapted.base.weight.clone()
    with torch.no_grad():
        torch.testing.assert_close(
            nn.functional.linear(x, adapted.merged_weight(), adapted.base.bias), adapted(x), rtol=1e-4, atol=1e-3
        )
    assert torch.equal(adapted.base.weight, before)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_merging_into_half_precision_adds_in_float32_first(dtype):
    adapted = layer(8, 6, 2, 16.0)
    adapted.base.to(dtype)
    exact = adapted.base.weight.double() + 8.0 * adapted.lora_B.double() @ adapted.lora_A.double()
    merged = adapted.merged_weight()
    assert merged.dtype == dtype
    assert (merged.double() - exact).abs().max() <= exact.abs().max() * torch.finfo(
        dtype
    ).eps / 2 + 1e-6  # rounded once


@given(shapes, st.integers(0, 1000))
def test_a_fresh_layer_is_bitwise_its_base(shape, seed):
    in_features, out_features, rank = shape
    base = nn.Linear(in_features, out_features)
    x = torch.randn(5, in_features, generator=generator(seed))
    with torch.no_grad():
        expected = base(x)
        assert torch.equal(LoRALinear(base, rank, 16.0, generator=generator(seed))(x), expected)


def test_switched_off_it_is_bitwise_its_base():
    adapted = layer(5, 4, 2, 16.0)
    x = torch.randn(5, 5, generator=generator(1))
    with torch.no_grad():
        assert not torch.allclose(adapted(x), adapted.base(x))
        adapted.enabled = False
        assert torch.equal(adapted(x), adapted.base(x))


def test_the_initial_a_is_uniform_within_one_over_sqrt_in_and_b_is_zero():
    adapted = LoRALinear(nn.Linear(100, 64), 64, 16.0, generator=generator(0))
    bound = 1 / math.sqrt(100)
    assert torch.equal(adapted.lora_B, torch.zeros(64, 64))
    assert adapted.lora_A.abs().max() <= bound
    # 6400 uniform numbers: standard deviation bound / √3, its own standard error below 1 %
    assert adapted.lora_A.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.03)
    assert abs(adapted.lora_A.mean().item()) < 4 * bound / math.sqrt(3 * 6400)


def test_the_initial_a_comes_from_the_generator_alone():
    def initial(seed):
        return LoRALinear(nn.Linear(6, 5), 3, 16.0, generator=generator(seed)).lora_A

    state = torch.get_rng_state()
    first = LoRALinear(nn.Linear(6, 5, device="meta").to_empty(device="cpu"), 3, 16.0, generator=generator(0)).lora_A
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(initial(0), first)
    assert not torch.equal(initial(0), initial(1))


def test_gradients_of_a_and_b_by_hand():
    adapted = layer(3, 2, 1, 4.0, bias=False)
    adapted.base.requires_grad_(False)
    x = torch.tensor([[1.0, -2.0, 0.5]])
    adapted(x).sum().backward()
    # sum(h) = … + 4 · (B_1 + B_2) · (A x): its derivative in A is 4 · (B_1 + B_2) · x, in each B_i 4 · (A x)
    torch.testing.assert_close(adapted.lora_A.grad, 4 * adapted.lora_B.detach().sum() * x)
    torch.testing.assert_close(adapted.lora_B.grad, (4 * (x @ adapted.lora_A.detach().T)).expand(2, 1))
    assert adapted.base.weight.grad is None


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_half_precision_base_keeps_a_and_b_and_their_gradients_in_float32(dtype):
    base = nn.Linear(8, 6).to(dtype).requires_grad_(False)
    adapted = LoRALinear(base, 2, 16.0, generator=generator(0))
    assert adapted.lora_A.dtype == adapted.lora_B.dtype == torch.float32
    with torch.autocast("cpu", dtype=dtype):
        h = adapted(torch.ones(3, 8, dtype=dtype))
    assert h.dtype == dtype
    h.float().sum().backward()
    assert adapted.lora_A.grad.dtype == adapted.lora_B.grad.dtype == torch.float32
    assert adapted.lora_B.grad.abs().max() > 0
    assert base.weight.dtype == dtype and base.weight.grad is None


def test_dropout_touches_the_update_alone_and_only_while_training():
    adapted = layer(50, 4, 2, 16.0, dropout=0.5)
    x = torch.ones(1, 50)
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        adapted.train()
        assert not torch.equal(adapted(x), adapted(x))
        adapted.enabled = False
        assert torch.equal(adapted(x), adapted.base(x))
        adapted.enabled = True
        adapted.eval()
        assert adapted(x)[0].tolist() == pytest.approx(slow_forward(adapted, x[0].tolist()), rel=1e-4, abs=1e-3)


@pytest.mark.parametrize("rank", [0, -1, 4])
def test_a_rank_out_of_range_is_refused(rank):
    with pytest.raises(ValueError, match=r"1\.\.3"):
        LoRALinear(nn.Linear(5, 3), rank, 16.0)
