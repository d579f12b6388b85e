"""The written-out forward pass against the models' own."""

import copy
import math

import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from transformers import MistralConfig, MistralForCausalLM

from hmx import cache, decoder, decoding, projection
from hmx.decoder import Decoder
from hmx.decoding import Decoding
from hmx.lora import adapter_parameters, attach, bypass
from hmx.lora.layer import LoRALinear
from hmx.memory import keep_less
from hmx.precision import autocast
from hmx.sampling import Prefix, generate, last_logits, pad_left
from tests import models

VOCABULARY = 61
CPU = torch.device("cpu")


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def build(name: str, **config):
    """The tiny model, its norms and (Gemma) its windows such that leaving anything out shows."""
    if name == "gemma2":
        config = {"sliding_window": 6, "attn_logit_softcapping": 2.0, "query_pre_attn_scalar": 5} | config
    model = models.build_model(name, **config)
    noise = generator(3)
    for parameter_name, parameter in model.named_parameters():
        if "norm" in parameter_name:
            parameter.data += 0.4 * torch.randn(parameter.shape, generator=noise)
    return model.requires_grad_(False)


def adapt(model, targets=models.TARGETS, dropout: float = 0.0):
    attach(model, 3, 4.5, targets, dropout, generator=generator(1))
    models.fill_adapters(model, scale=0.3)
    return model


@torch.no_grad()
def worst_difference(model, lengths, steps: int = 7, shared: int = 0) -> float:
    """Between each step's logits and those of one plain pass over each row alone."""
    prefix, *prompts = models.random_prompts([shared, *lengths], VOCABULARY, seed=2)
    tokens = torch.randint(VOCABULARY, (steps, len(prompts)), generator=generator(4))
    ids, attention = pad_left(prompts, 0, CPU)
    keys_values = Prefix.of(model, prefix).keys_values if shared else None
    attention = torch.cat([attention.new_ones(len(prompts), shared), attention], dim=1)
    batch = Decoding(Decoder.of(model), ids, attention, keys_values, room=steps)
    rows, worst, logits = [prefix + prompt for prompt in prompts], 0.0, batch.logits[:, -1]
    for t in range(steps + 1):
        expected = torch.stack([models.reference_logits(model, row)[-1] for row in rows])
        worst = max(worst, float((logits - expected).abs().max()))
        if t < steps:
            rows = [[*row, int(token)] for row, token in zip(rows, tokens[t], strict=True)]
            logits = batch.step(tokens[t])
    return worst


# ---- the same logits


@pytest.mark.parametrize("shared", [0, 5])
@pytest.mark.parametrize("name", models.FAMILIES)
def test_every_steps_logits_are_the_models_own(name, shared):
    model = build(name)
    assert worst_difference(model, [4, 9, 1], shared=shared) < 1e-5
    adapt(model)
    assert worst_difference(model, [4, 9, 1], shared=shared) < 1e-5
    with bypass(model):
        assert worst_difference(model, [4, 9, 1], shared=shared) < 1e-5


@pytest.mark.parametrize("name", models.FAMILIES)
def test_on_several_threads_attention_of_many_rows_is_written_out_and_gives_the_same_logits(name, monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    assert worst_difference(adapt(build(name)), [4, 9, 1, 6], shared=5) < 1e-5
    tokens = []
    attention = decoder.F.scaled_dot_product_attention

    def noted(query, *rest, **options):
        tokens.append((len(query), query.shape[2]))
        return attention(query, *rest, **options)

    monkeypatch.setattr(decoder.F, "scaled_dot_product_attention", noted)
    model = adapt(build(name))
    for rows in 3, 4:
        ids = torch.ones(rows, 2, dtype=torch.long)
        decoding = Decoding(Decoder.of(model), ids, ids, None, room=1)
        tokens.clear()
        decoding.step(torch.ones(rows, dtype=torch.long))
        assert bool(tokens) == (rows < 4 and decoding.decoder.softcap is None)


@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="this PyTorch was built without oneDNN")
@pytest.mark.parametrize("name", models.FAMILIES)
def test_large_matrices_by_onednn_give_the_same_logits(name, monkeypatch):
    """All count as large here."""

    def not_by_onednn(x, weight):
        raise AssertionError(x.shape)

    monkeypatch.setattr(projection, "LARGE", 0)
    monkeypatch.setattr(projection.F, "linear", not_by_onednn)
    model, ids = adapt(build(name)), torch.randint(VOCABULARY, (2, 3), generator=generator(4))
    with torch.no_grad():
        written_out = Decoder.of(model)
        logits = written_out.logits(written_out.read(ids, torch.ones_like(ids)))
    monkeypatch.undo()
    expected = torch.stack([models.reference_logits(model, row.tolist()) for row in ids])
    torch.testing.assert_close(logits, expected, atol=1e-5, rtol=1e-5)


@given(
    st.lists(st.integers(0, 4), min_size=1, max_size=3),
    st.integers(1, 20),
    st.integers(1, 20),
    st.sampled_from(["as it is", "transposed", "every other"]),
    st.booleans(),
)
def test_the_product_is_the_same_whatever_lies_how_in_memory(lead, inputs, outputs, strides, by_column):
    random = generator(1)
    if strides == "every other":
        x = torch.randn(*lead, 2 * inputs, generator=random)[..., ::2]
    elif strides == "transposed":
        x = torch.randn(*lead[:-1], inputs, lead[-1], generator=random).mT
    else:
        x = torch.randn(*lead, inputs, generator=random)
    weight = torch.randn(outputs, inputs, generator=random)
    weight = weight.T.contiguous().T if by_column else weight
    x.requires_grad_()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(projection, "LARGE", 0)
        patch.setattr(projection, "ROWS", math.inf)
        with torch.no_grad():
            torch.testing.assert_close(projection.linear(x, weight), x @ weight.T)
        back = torch.randn(outputs, *lead, generator=random).movedim(0, -1)
        (gradient,) = torch.autograd.grad(projection.linear(x, weight), x, back)
    torch.testing.assert_close(gradient, back @ weight)


@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="this PyTorch was built without oneDNN")
@pytest.mark.parametrize("name", models.FAMILIES)
def test_products_by_onednn_give_the_same_gradients(name, monkeypatch):
    ids = torch.randint(VOCABULARY, (2, 5), generator=generator(4))
    gradients = []
    for least in (0, math.inf):
        monkeypatch.setattr(projection, "LARGE", least)
        model = adapt(build(name))
        decoder.output_logits(model, Decoder.of(model).read(ids, torch.ones_like(ids))).square().sum().backward()
        gradients.append([parameter.grad for parameter in adapter_parameters(model)])
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4 * float(other.abs().max()))


@pytest.mark.parametrize("trained", [True, False])
def test_of_layers_multiplied_as_one_only_those_whose_adapter_is_on_are_adapted(trained):
    random = generator(1)
    on, off, bare = (torch.nn.Linear(6, outputs, bias=False) for outputs in (3, 4, 5))
    on, off = (LoRALinear(layer, 2, 4.0, generator=random) for layer in (on, off))
    for layer in (on, off):
        torch.nn.init.normal_(layer.lora_B, generator=random)
    off.enabled = False
    x = torch.randn(2, 6, generator=random)
    expected = torch.cat([layer(x) for layer in (on, off, bare)], dim=-1)
    with torch.set_grad_enabled(trained):
        torch.testing.assert_close(projection.Projection.of(on, off, bare)(x), expected)


ROPE = st.fixed_dictionaries({"rope_type": st.just("default"), "rope_theta": st.sampled_from([30.0, 1e4])}) | st.just(
    {
        "rope_type": "llama3",
        "rope_theta": 100.0,
        "factor": 4.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 3.0,
        "original_max_position_embeddings": 16,
    }
)


@settings(max_examples=40, phases=[Phase.generate])  # shrinking a model takes minutes
@given(st.data())
def test_for_any_shape_of_model(data):
    name, groups = data.draw(st.sampled_from(models.FAMILIES)), data.draw(st.integers(1, 3))
    kv_heads = data.draw(st.integers(1, 3))
    config = {
        "num_attention_heads": groups * kv_heads,
        "num_key_value_heads": kv_heads,
        "head_dim": data.draw(st.sampled_from([4, 6, 16])),
        "hidden_size": groups * kv_heads * data.draw(st.sampled_from([5, 8])),
        "num_hidden_layers": data.draw(st.integers(1, 3)),
        "tie_word_embeddings": data.draw(st.booleans()),
        "rope_parameters": data.draw(ROPE),
        "initializer_range": 0.15,
    }
    if name == "gemma2":
        config |= {"sliding_window": data.draw(st.integers(1, 30))}
        config |= {"attn_logit_softcapping": data.draw(st.sampled_from([None, 1.5]))}
        config |= {"final_logit_softcapping": data.draw(st.sampled_from([None, 3.0]))}
    if name == "qwen3":
        config |= {"use_sliding_window": data.draw(st.booleans()), "sliding_window": 4, "max_window_layers": 1}
    model = build(name, **config)
    if data.draw(st.booleans()):
        adapt(model, data.draw(st.sampled_from([models.TARGETS, ("q_proj", "v_proj"), ("k_proj", "up_proj")])))
    lengths = data.draw(st.lists(st.integers(1, 9), min_size=1, max_size=4))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(decoding, "WORTH", {"cpu": data.draw(st.sampled_from([1, 64]))})
        assert worst_difference(model, lengths, steps=3, shared=data.draw(st.sampled_from([0, 3]))) < 1e-5


@pytest.mark.parametrize("shared", [0, 5])
@pytest.mark.parametrize("name", models.FAMILIES)
def test_prompts_of_like_length_are_read_together_and_give_the_same_logits(name, shared, monkeypatch):
    model, shapes = build(name), []
    read = Decoder.read
    monkeypatch.setattr(Decoder, "read", lambda self, ids, *rest: shapes.append(ids.shape) or read(self, ids, *rest))
    lengths = [40, 39, 12, 11, 11, 2]
    assert worst_difference(model, lengths, shared=shared) < 1e-5
    assert shapes == [(2, 40), (4, 12)]
    monkeypatch.setattr(decoding, "WORTH", {"cpu": 1})
    assert worst_difference(model, lengths, shared=shared) < 1e-5
    assert shapes[2:] == [(2, 40), (3, 12), (1, 2)]


@pytest.mark.parametrize("shared", [0, 5])
@pytest.mark.parametrize("name", models.FAMILIES)
def test_only_the_last_tokens_are_read_to_the_top(name, shared, monkeypatch):
    model, asked, attention = build(name), [], Decoder._attention
    monkeypatch.setattr(Decoder, "_attention", lambda *given: asked.append(given[-1]) or attention(*given))
    prefix, *prompts = models.random_prompts([shared, 9, 4, 3], VOCABULARY, seed=2)
    found = last_logits(
        model, [prefix + prompt for prompt in prompts[::-1]], 3, 0, Prefix.of(model, prefix) if shared else None
    )
    layers = model.config.num_hidden_layers
    assert asked == [9] * (layers - 1) + [3]
    for prompt, logits in zip(prompts[::-1], found, strict=True):
        assert torch.allclose(logits, models.reference_logits(model, prefix + prompt)[-3:], atol=1e-5)


NEEDS_GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=NEEDS_GPU)])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", models.FAMILIES)
def test_half_precision_rounds_where_the_modules_do(name, dtype, device):
    """Not token by token, since fused products may sum in another order, but far below what any other place of rounding
    would make of it in all: the two differ from FP32 by the same amount, and from each other by less.
    """
    exact = adapt(build(name)).to(device)
    half = copy.deepcopy(exact)
    for module in half.modules():
        if not hasattr(module, "lora_A"):
            for weight in module._parameters.values():
                if weight is not None:
                    weight.data = weight.data.to(dtype)
    ids = torch.tensor(models.random_prompts([12] * 16, VOCABULARY), device=device)
    with torch.no_grad(), autocast(half):
        own = half(ids).logits
        here = decoder.output_logits(half, Decoder.of(half).read(ids, torch.ones_like(ids)))
        assert here.dtype == own.dtype == dtype
        rounding = (own.float() - exact(ids).logits).abs().mean()
        assert (here.float() - own.float()).abs().mean() < 0.5 * rounding


# ---- the same completions


@torch.no_grad()
def both(model, monkeypatch, prompts, **options):
    """The completions by either path."""
    settings = {"max_new_tokens": 12, "end_ids": list(range(0, VOCABULARY, 9)), "pad_id": 0} | options
    assert Decoder.of(model) is not None
    fast = generate(model, prompts, generator=generator(8), **settings)
    with monkeypatch.context() as patch:
        patch.setattr(decoder, "enabled", False)
        assert Decoder.of(model) is None
        slow = generate(model, prompts, generator=generator(8), **settings)
    return fast, slow


@pytest.mark.parametrize("adapter", ["none", "on", "bypassed"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", models.FAMILIES)
def test_the_same_tokens_greedily_and_sampled(name, dtype, adapter, monkeypatch):
    model = build(name).to(dtype)
    shared, *rests = models.random_prompts([7, 3, 8, 1], VOCABULARY, seed=5)
    prompts = [shared + rest for rest in rests]
    if adapter != "none":
        adapt(model)
    with bypass(model):
        prefix = Prefix.of(model, shared)
    scope = bypass(model) if adapter == "bypassed" else torch.no_grad()
    with scope:
        for options in ({"temperature": 0.0}, {"repeats": 2}, {"prefix": prefix, "temperature": 0.0}):
            if adapter == "on" and "prefix" in options:
                continue  # those are the base's keys and values
            if adapter == "on" and "repeats" in options and dtype != torch.float32:
                continue  # half-precision kernels sum in an order that depends on the shapes: a last bit may differ
            fast, slow = both(model, monkeypatch, prompts, **options)
            assert fast.rows() == slow.rows()
            assert fast.truncated.tolist() == slow.truncated.tolist()


def test_finished_rows_are_dropped_and_the_others_go_on(monkeypatch):
    model, sizes = build("qwen3"), []
    hidden = Decoder.hidden
    monkeypatch.setattr(
        Decoder, "hidden", lambda self, ids, *rest: (sizes.append(len(ids)), hidden(self, ids, *rest))[1]
    )
    prompts = models.random_prompts([3, 5, 2, 4], VOCABULARY)
    limits = [2, 9, 4, 6]
    fast, slow = both(model, monkeypatch, prompts, max_new_tokens=limits, end_ids=[])
    assert sizes == [4, 4, 3, 3, 2, 2, 1, 1, 1]
    assert fast.rows() == slow.rows() and list(map(len, fast.rows())) == limits


def test_a_cache_that_grows_block_by_block(monkeypatch):
    monkeypatch.setattr(cache, "BLOCK", 3)
    model = build("gemma2")
    fast, slow = both(model, monkeypatch, models.random_prompts([4, 2], VOCABULARY), max_new_tokens=17, end_ids=[])
    assert fast.rows() == slow.rows()


def test_a_cache_grows_by_blocks_and_to_all_there_will_be_if_that_is_hardly_more(monkeypatch):
    monkeypatch.setattr(cache, "BLOCK", 4)
    rooms = []
    for most in (6, 7, 11):
        one = cache.Cache([torch.zeros(1, 1, 2, 1)], [torch.zeros(1, 1, 2, 1)], 2)
        one.reserve(3, most)
        rooms.append(one.keys[0].shape[2])
    assert rooms == [6, 4, 4]


# ---- what it does to the model, and what it leaves alone


@torch.no_grad()
def test_the_stacked_weights_are_the_modules_own_memory():
    model = build("qwen3")
    before = copy.deepcopy(model.state_dict())
    attention = model.model.layers[0].self_attn
    stacked = Decoder.of(model).layers[0].qkv.weight
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert torch.equal(stacked, torch.cat([attention.q_proj.weight, attention.k_proj.weight, attention.v_proj.weight]))
    assert Decoder.of(model).layers[0].qkv.weight.data_ptr() == stacked.data_ptr() == attention.q_proj.weight.data_ptr()
    for matrix in (stacked, Decoder.of(model).layers[1].down.weight, model.lm_head.weight):
        assert matrix.T.is_contiguous()  # in FP32 on a CPU
    with torch.no_grad():
        attention.v_proj.weight.fill_(7.0)  # nothing can be stale
    assert (Decoder.of(model).layers[0].qkv.weight[-1] == 7.0).all()
    attention.k_proj.weight.data = torch.zeros_like(attention.k_proj.weight)  # replaced, not written to
    assert (Decoder.of(model).layers[0].qkv.weight[-17] == 0.0).all()
    assert worst_difference(model, [3, 2]) < 1e-5


@torch.no_grad()
def test_weights_that_only_look_stacked_are_stacked_anew():
    model = build("qwen3")
    attention = model.model.layers[0].self_attn
    q, k, v = (getattr(attention, f"{name}_proj").weight for name in "qkv")
    Decoder.of(model)
    k.data, v.data = v.data, k.data  # the same memory in another order
    assert torch.equal(Decoder.of(model).layers[0].qkv.weight, torch.cat([q, k, v]))
    offset = k.storage_offset()
    k.data = torch.randn(offset + k.numel(), generator=generator())[offset:].view(k.shape)  # the place, in other memory
    assert torch.equal(Decoder.of(model).layers[0].qkv.weight, torch.cat([q, k, v]))


def test_an_adapter_is_taken_as_it_stands():
    model = adapt(build("llama"))
    first = worst_difference(model, [3, 2])
    models.fill_adapters(model, scale=0.3, seed=9)
    assert max(first, worst_difference(model, [3, 2])) < 1e-5


@torch.no_grad()
def test_nothing_is_merged_into_half_precision_weights():
    model = adapt(build("qwen3"))
    assert Decoder.of(model).layers[0].qkv.A is None
    assert Decoder.of(model.half()).layers[0].qkv.A is not None


def test_with_gradients_nothing_is_merged():
    qkv = Decoder.of(adapt(build("qwen3"))).layers[0].qkv
    assert qkv.A.requires_grad and not qkv.weight.requires_grad


@torch.no_grad()
def test_on_a_gpu_nothing_is_merged():
    """There the copy would take memory that nobody has counted."""
    model = adapt(build("qwen3")).to("meta")
    assert Decoder.of(model).layers[0].qkv.A is not None


# ---- what is not known here


def mistral():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        config = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
        config |= {"num_key_value_heads": 2, "vocab_size": VOCABULARY, "initializer_range": 0.2, "sliding_window": None}
        return MistralForCausalLM(MistralConfig(**config)).eval()


def hooked():
    model = build("qwen3")
    model.model.layers[1].mlp.up_proj.register_forward_hook(lambda module, inputs, output: 2 * output)
    return model


def hooked_before():
    model = build("qwen3")
    model.model.norm.register_forward_pre_hook(lambda module, inputs: (2 * inputs[0],))
    return model


def replaced_forward():
    model = build("qwen3")
    forward = model.model.layers[0].mlp.forward
    model.model.layers[0].mlp.forward = lambda x: 2 * forward(x)
    return model


def replaced_module():
    class Doubled(torch.nn.Linear):
        def forward(self, x):
            return 2 * super().forward(x)

    model = build("qwen3")
    model.model.layers[0].mlp.up_proj = Doubled(32, 48, bias=False)
    return model


def subclassed():
    model = build("qwen3")
    model.__class__ = type("Another", (type(model),), {})
    return model


def mixed_precision():
    model = build("qwen3")
    model.model.norm.double()
    return model


def dropping_out():
    return adapt(build("qwen3"), dropout=0.5).train()


UNKNOWN = {
    "another family": mistral,
    "a subclass": subclassed,
    "a hook": hooked,
    "a hook before": hooked_before,
    "a replaced forward": replaced_forward,
    "a replaced module": replaced_module,
    "biases": lambda: build("llama", attention_bias=True),
    "norms of another dtype": mixed_precision,
    "dynamic rope": lambda: build("llama", rope_parameters={"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}),
    "attention dropout": lambda: build("qwen3", attention_dropout=0.5).train(),
    "adapter dropout": dropping_out,
    "an attention of its own": lambda: build("qwen3", attn_implementation="flex_attention"),
}


@pytest.mark.parametrize("what", UNKNOWN)
def test_what_is_unknown_falls_back(what):
    model = UNKNOWN[what]()
    with torch.no_grad():
        assert Decoder.of(model) is None


def test_with_gradients_only_adapters_can_be_trained():
    model = build("qwen3")
    assert Decoder.of(model) is not None
    model.model.norm.weight.requires_grad_(True)
    assert Decoder.of(model) is None
    with torch.no_grad():
        assert Decoder.of(model) is not None


def test_gradient_checkpointing_is_left_to_the_modules():
    model = build("qwen3")
    keep_less(model)
    model.requires_grad_(False)
    assert Decoder.of(model.eval()) is not None
    assert Decoder.of(model.train()) is None
    with torch.no_grad():
        assert Decoder.of(model) is None  # as in the pass that it is compared with


@pytest.mark.parametrize("what", ["another family", "a hook", "a replaced forward", "a replaced module", "biases"])
def test_a_fallback_gives_the_models_own_tokens(what):
    model, prompts = UNKNOWN[what](), models.random_prompts([4, 7], VOCABULARY)
    rows = generate(model, prompts, max_new_tokens=6, end_ids=[], pad_id=0, temperature=0.0).rows()
    for prompt, row in zip(prompts, rows, strict=True):
        expected = list(prompt)
        for _ in range(6):
            expected.append(int(models.reference_logits(model, expected)[-1].argmax()))
        assert row == expected[len(prompt) :]


@torch.no_grad()
def test_dropout_that_is_off_is_no_obstacle():
    assert Decoder.of(adapt(build("qwen3"), dropout=0.5).eval()) is not None
