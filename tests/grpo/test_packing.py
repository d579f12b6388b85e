"""Packed rows against the rectangle that they stand for."""

import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode

from hmx import decoder
from hmx.decoder import Decoder
from hmx.grpo import logprobs
from hmx.grpo.logprobs import token_logprobs
from hmx.grpo.packing import Packed, packing_pays
from hmx.lora import adapter_parameters, attach
from hmx.memory import keep_less
from tests import models


def rectangle(groups: list[tuple[int, list[int]]], seed: int = 0, left: int = 0, right: int = 0):
    """Rows [padding][prompt][completion][padding] and T, for groups of (prompt length, completion lengths)."""
    generator = torch.Generator().manual_seed(seed)
    longest = max(length for length, _ in groups) + left
    T = max(max(lengths) for _, lengths in groups) + right
    ids, attention = [], []
    for length, lengths in groups:
        prompt = torch.randint(50, (length,), generator=generator).tolist()
        for completion in lengths:
            tokens = prompt + torch.randint(50, (completion,), generator=generator).tolist()
            ids.append([0] * (longest - length) + tokens + [0] * (T - completion))
            attention.append([0] * (longest - length) + [1] * len(tokens) + [0] * (T - completion))
    return torch.tensor(ids), torch.tensor(attention), T


GROUPS = [(3, [2, 0, 4]), (5, [1]), (1, [3, 3])]


def test_every_token_stands_once_and_no_padding():
    ids, attention, T = rectangle(GROUPS, left=2, right=1)
    packed = Packed.of(ids, attention, T)
    assert len(packed.ids) == sum(prompt + sum(completions) for prompt, completions in GROUPS)
    assert len(packed.predicting) == int(attention[:, -T:].sum())
    first = attention[0].bool()
    assert packed.ids[:5].tolist() == ids[0][first].tolist()  # its prompt and its completion
    assert packed.positions[:9].tolist() == [0, 1, 2, 3, 4, 3, 4, 5, 6]  # both completions begin at position 3
    assert packed.row[:9].tolist() == [-1, -1, -1, 0, 0, 2, 2, 2, 2]
    # The first token of each completion is predicted by the last one of the prompt, which all rows of a group share.
    assert packed.predicting.tolist() == [2, 3, 2, 5, 6, 7, 13, 15, 16, 17, 15, 19, 20]


@pytest.mark.parametrize("window", [None, 1, 3])
def test_who_sees_whom(window):
    ids, attention, T = rectangle(GROUPS)
    packed = Packed.of(ids, attention, T)
    seen = packed.bias(window, torch.float32)[0, 0] == 0
    for i in range(len(packed.ids)):
        for j in range(len(packed.ids)):
            mine = packed.group[j] == packed.group[i] and packed.row[j] in (-1, packed.row[i])
            before = packed.positions[j] <= packed.positions[i]
            near = window is None or packed.positions[j] > packed.positions[i] - window
            assert seen[i, j] == bool(mine and before and near), (i, j)
    assert packed.bias(window, torch.float32).stride(2) % 16 == 0  # as a GPU's kernels want it


def test_prompts_are_shared_by_what_they_hold_not_by_what_fills_the_padding():
    ids, attention, T = rectangle([(3, [2, 2]), (6, [1])])
    other = torch.where(attention.bool(), ids, torch.arange(len(ids))[:, None] + 7)
    for name in ("ids", "positions", "group", "row", "predicting"):
        assert torch.equal(getattr(Packed.of(ids, attention, T), name), getattr(Packed.of(other, attention, T), name))


def test_a_prompt_that_another_begins_with_is_not_shared():
    """[5, 6] and [4, 5, 6] end alike, and differ only where the first is padded."""
    ids = torch.tensor([[0, 5, 6, 1], [4, 5, 6, 1]])
    attention = torch.tensor([[0, 1, 1, 1], [1, 1, 1, 1]])
    assert Packed.of(ids, attention, 1).ids.tolist() == [5, 6, 1, 4, 5, 6, 1]


completions = st.lists(st.integers(0, 9), min_size=1, max_size=5)
structures = st.lists(st.tuples(st.integers(1, 9), completions), min_size=1, max_size=4)


@pytest.mark.parametrize("written_out", [True, False])
@pytest.mark.parametrize("name", models.FAMILIES)
@given(
    groups=structures,
    seed=st.integers(0, 9),
    padding=st.integers(0, 2),
    window=st.integers(1, 12),
    targets=st.sampled_from([models.TARGETS, ("q_proj", "v_proj"), ("k_proj", "up_proj", "o_proj")]),
)
@settings(max_examples=20, phases=[Phase.generate])
def test_values_and_gradients_are_those_of_the_rectangle(name, written_out, groups, seed, padding, window, targets):
    ids, attention, T = rectangle(groups, seed, left=padding, right=1)
    model = models.build_model(name, **({"sliding_window": window} if name == "gemma2" else {}))
    attach(model, 2, 4.0, targets)
    models.fill_adapters(model)
    model.train()
    weights = torch.randn(len(ids), T, generator=torch.Generator().manual_seed(seed))
    results = []
    for pays in (True, False):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(logprobs, "packing_pays", lambda *sizes, pays=pays: pays)
            patch.setattr(decoder, "enabled", written_out)
            assert (Decoder.of(model) is not None) == written_out
            values = token_logprobs(model, ids, attention, T, 0.8, chunk=7)
        results.append((values.detach(), *torch.autograd.grad((values * weights).sum(), adapter_parameters(model))))
    largest = max(float(padded.abs().max()) for padded in results[1])
    for packed, padded in zip(*results, strict=True):
        torch.testing.assert_close(packed, padded, rtol=1e-4, atol=5e-6 * largest)


@pytest.mark.parametrize("name", models.FAMILIES)
def test_the_model_reads_each_token_once(name):
    ids, attention, T = rectangle(GROUPS)
    model, read = models.build_model(name), []
    model.get_input_embeddings().register_forward_pre_hook(lambda module, arguments: read.append(arguments[0].shape))
    with torch.no_grad():
        token_logprobs(model, ids, attention, T)
    assert read == [(1, 22)]


@pytest.mark.parametrize("name", models.FAMILIES)
@pytest.mark.parametrize(("tokens", "rows", "length"), [(22, 6, 9), (90, 6, 20), (70, 6, 12)])
def test_packing_pays_where_it_takes_fewer_operations(name, tokens, rows, length):
    model = models.build_model(name)
    model.set_attn_implementation("eager")  # whose matrix products are counted
    counts = []
    for shape in ((1, tokens), (rows, length)):
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            model.base_model(torch.zeros(shape, dtype=torch.long), use_cache=False)
        counts.append(counter.get_total_flops())
    assert abs(counts[0] / counts[1] - 1) > 0.02  # or the norms' weights, which are in no product, could decide
    assert packing_pays(model, tokens, rows, length) == (counts[0] < counts[1])


def test_packing_never_pays_where_nothing_is_shared_or_padded_or_the_model_is_not_known():
    model = models.build_model("qwen3")
    assert not packing_pays(model, 12, 1, 12)
    assert not packing_pays(model, 2 * 12, 2, 12)
    assert not packing_pays(torch.nn.Linear(2, 2), 5, 5, 5)


@pytest.mark.parametrize("name", models.FAMILIES)
def test_gradient_checkpointing_computes_the_same(name, monkeypatch):
    monkeypatch.setattr(decoder, "enabled", False)  # where checkpointing is on, the modules compute
    ids, attention, T = rectangle(GROUPS)
    gradients = []
    for checkpointing in (False, True):
        model = models.build_model(name)
        attach(model, 2, 4.0, models.TARGETS, generator=torch.Generator().manual_seed(3))
        models.fill_adapters(model)
        if checkpointing:
            keep_less(model)
            model.train()
        values = token_logprobs(model, ids, attention, T)
        gradients.append(torch.autograd.grad(values.sum(), adapter_parameters(model)))
    for kept, again in zip(*gradients, strict=True):
        torch.testing.assert_close(again, kept, rtol=1e-5, atol=1e-6)
