"""Attaching, bypassing and merging adapters in whole models."""

import pytest
import torch
from torch import nn

from hmx.errors import UserError
from hmx.lora import LoRALinear, adapter_parameters, adapters, attach, bypass, detach, merged_state_dict
from hmx.precision import autocast
from tests import models

IDS = torch.tensor([models.random_prompts([12], 61)[0]])


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def logits(model: nn.Module) -> torch.Tensor:
    with torch.no_grad(), autocast(model):
        return model(IDS, use_cache=False).logits


def trained(model: nn.Module, **options) -> nn.Module:
    attach(model, 4, 16.0, models.TARGETS, generator=generator(), **options)
    models.fill_adapters(model)
    return model


def snapshot(model: nn.Module) -> dict:
    """All that must be the same when a model is said to be unchanged."""
    return {
        "modules": [(name, type(module), id(module)) for name, module in model.named_modules()],
        "parameters": [(name, parameter.requires_grad, id(parameter)) for name, parameter in model.named_parameters()],
        "logits": logits(model).tolist(),
    }


# ---- attach


def test_attach_adapts_the_targets_freezes_the_rest_and_starts_as_the_base(family):
    before = logits(family.model)
    names = attach(family.model, 4, 16.0, ["q_proj", "down_proj"], generator=generator())
    assert sorted(names) == sorted(
        f"model.layers.{i}.{name}" for i in range(2) for name in ("self_attn.q_proj", "mlp.down_proj")
    )
    assert list(adapters(family.model)) == names
    assert torch.equal(logits(family.model), before)
    trainable = {name for name, parameter in family.model.named_parameters() if parameter.requires_grad}
    assert trainable == {f"{name}.lora_{matrix}" for name in names for matrix in "AB"}
    assert [id(p) for p in adapter_parameters(family.model)] == [
        id(p) for p in family.model.parameters() if p.requires_grad
    ]


def test_rank_alpha_and_dropout_arrive():
    model = models.build_model("qwen3")
    attach(model, 3, 12.0, ["o_proj"], dropout=0.25)
    layer = next(iter(adapters(model).values()))
    assert (layer.rank, layer.alpha, layer.scaling, layer.dropout.p) == (3, 12.0, 4.0, 0.25)
    assert layer.lora_A.shape == (3, 32) and layer.lora_B.shape == (32, 3)


def test_equal_generators_give_bitwise_equal_adapters():
    first, second, third = (
        [p.clone() for p in adapter_parameters(trained(models.build_model("llama")))],
        [p.clone() for p in adapter_parameters(trained(models.build_model("llama", seed=5)))],
        None,
    )
    assert all(map(torch.equal, first, second))
    model = models.build_model("llama")
    attach(model, 4, 16.0, models.TARGETS, generator=generator(1))
    third = adapter_parameters(model)
    assert not any(torch.equal(a, b) for a, b in zip(first[::2], third[::2], strict=True))
    assert not torch.equal(first[0], first[2])  # each layer has numbers of its own


def test_gradients_reach_every_adapter_and_nothing_else(family):
    trained(family.model)
    family.model(IDS, labels=IDS).loss.backward()
    for name, parameter in family.model.named_parameters():
        assert (parameter.grad is not None and parameter.grad.abs().max() > 0) == ("lora_" in name), name


@pytest.mark.parametrize("name", models.FAMILIES)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_models_train_float32_adapters(name, dtype):
    model = trained(models.build_model(name).to(dtype))
    assert {parameter.dtype for parameter in adapter_parameters(model)} == {torch.float32}
    with autocast(model):
        loss = model(IDS, labels=IDS).loss
    loss.backward()
    assert {parameter.grad.dtype for parameter in adapter_parameters(model)} == {torch.float32}
    assert all(parameter.grad.abs().max() > 0 for parameter in adapter_parameters(model))


@pytest.mark.parametrize(
    "rank, targets, sentence",
    [
        (4, ["q_proj", "w_proj"], "w_proj"),
        (4, ["layernorm"], "layernorm"),
        (17, ["q_proj", "k_proj"], r"Rank 17 .*k_proj \[16, 32\]"),  # k_proj has 16 outputs
        (4, ["q_proj", "embed_tokens"], "embed_tokens is a Embedding"),
        (4, ["q_proj", "mlp"], "mlp is a Qwen3MLP"),
    ],
)
def test_what_can_not_be_adapted_is_said_and_leaves_the_model_unchanged(rank, targets, sentence):
    model = models.build_model("qwen3")
    before = snapshot(model)
    with pytest.raises(UserError, match=sentence):
        attach(model, rank, 16.0, targets)
    assert snapshot(model) == before


def test_a_second_adapter_is_refused():
    model = trained(models.build_model("qwen3"))
    before = snapshot(model)
    with pytest.raises(ValueError, match="already has an adapter"):
        attach(model, 4, 16.0, ["q_proj"])
    assert snapshot(model) == before


def test_detach_gives_the_base_back(family):
    before = snapshot(family.model)
    trained(family.model)
    detach(family.model)
    after = snapshot(family.model)
    assert (after["modules"], after["logits"]) == (before["modules"], before["logits"])


# ---- bypass


@pytest.mark.parametrize("name", models.FAMILIES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_bypassed_a_trained_model_is_bitwise_its_base(name, dtype):
    model = models.build_model(name).to(dtype)
    base = logits(model)
    trained(model)
    with_adapter = logits(model)
    assert not torch.allclose(with_adapter, base, atol=0.01)
    with bypass(model):
        assert torch.equal(logits(model), base)
    assert torch.equal(logits(model), with_adapter)


def enabled(model: nn.Module) -> set[bool]:
    return {layer.enabled for layer in adapters(model).values()}


def test_bypass_nests(qwen3):
    trained(qwen3.model)
    with bypass(qwen3.model):
        with bypass(qwen3.model):
            assert enabled(qwen3.model) == {False}
        assert enabled(qwen3.model) == {False}
    assert enabled(qwen3.model) == {True}


def test_bypass_survives_exceptions(qwen3):
    trained(qwen3.model)
    with pytest.raises(KeyError), bypass(qwen3.model):
        raise KeyError
    assert enabled(qwen3.model) == {True}
    with bypass(qwen3.model):
        with pytest.raises(KeyError), bypass(qwen3.model):
            raise KeyError
        assert enabled(qwen3.model) == {False}
    assert enabled(qwen3.model) == {True}


def test_bypass_restores_what_it_found_layer_by_layer(qwen3):
    trained(qwen3.model)
    layers = list(adapters(qwen3.model).values())
    for i, layer in enumerate(layers):
        layer.enabled = i % 3 == 0
    with bypass(qwen3.model):
        assert enabled(qwen3.model) == {False}
    assert [layer.enabled for layer in layers] == [i % 3 == 0 for i in range(len(layers))]


def test_bypass_leaves_requires_grad_and_gradients_alone(qwen3):
    model = trained(qwen3.model)
    adapter_parameters(model)[0].requires_grad_(False)
    model(IDS, labels=IDS).loss.backward()
    requires = [parameter.requires_grad for parameter in model.parameters()]
    gradients = [None if parameter.grad is None else parameter.grad.clone() for parameter in model.parameters()]
    with bypass(model):
        assert [parameter.requires_grad for parameter in model.parameters()] == requires
        logits(model)
    assert [parameter.requires_grad for parameter in model.parameters()] == requires
    for parameter, gradient in zip(model.parameters(), gradients, strict=True):
        assert (parameter.grad is None and gradient is None) or torch.equal(parameter.grad, gradient)


def test_a_model_without_adapters_can_be_bypassed(qwen3):
    before = logits(qwen3.model)
    with bypass(qwen3.model):
        assert torch.equal(logits(qwen3.model), before)


# ---- merging


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("name", models.FAMILIES)
def test_the_merged_state_dict_is_a_plain_model_that_does_the_same(name, tied):
    model = trained(models.build_model(name, tie_word_embeddings=tied, attention_bias=name == "llama"))
    before = snapshot(model)
    plain = models.build_model(name, seed=1, tie_word_embeddings=tied, attention_bias=name == "llama")
    merged = merged_state_dict(model)
    assert set(merged) == set(plain.state_dict())
    plain.load_state_dict(merged)
    torch.testing.assert_close(logits(plain), logits(model), rtol=1e-4, atol=1e-4)
    assert snapshot(model) == before


def test_merging_keeps_the_dtype_and_ignores_a_bypass():
    model = trained(models.build_model("qwen3").half())
    merged = merged_state_dict(model)
    assert {tensor.dtype for tensor in merged.values()} == {torch.float16}
    with bypass(model):
        again = merged_state_dict(model)
    assert all(torch.equal(merged[name], again[name]) for name in merged)


def test_adapters_finds_only_adapters():
    model = nn.Module()
    model.inner = nn.Linear(3, 3)
    assert adapters(model) == {} and adapter_parameters(model) == []
    model.inner = LoRALinear(model.inner, 1, 1.0)
    assert adapters(model) == {"inner": model.inner}


@pytest.mark.parametrize("training", [True, False])
def test_a_fresh_layer_is_in_the_mode_of_the_model(training):
    model = models.build_model("qwen3").train(training)
    attach(model, 4, 16.0, ["q_proj"], dropout=0.5)
    assert {layer.dropout.training for layer in adapters(model).values()} == {training}
