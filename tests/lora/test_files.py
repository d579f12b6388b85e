"""Adapter files in PEFT's format: what is written, what is read back, and what is refused with which words."""

import json

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from hmx.errors import UserError
from hmx.lora import adapter_hash, adapter_parameters, adapters, attach, load_adapter, save_adapter
from tests import models

IDS = torch.tensor([models.random_prompts([12], 61)[0]])
CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"


def trained(seed: int = 7, targets=("q_proj", "down_proj"), rank: int = 4, **model):
    result = models.build_model("qwen3", **model)
    attach(result, rank, 16.0, targets, generator=torch.Generator().manual_seed(seed))
    models.fill_adapters(result, seed=seed)
    return result


def logits(model) -> torch.Tensor:
    with torch.no_grad():
        return model(IDS, use_cache=False).logits


def change_config(folder, **changes) -> None:
    config = json.loads((folder / CONFIG).read_text())
    (folder / CONFIG).write_text(json.dumps(config | changes))


@pytest.fixture
def folder(tmp_path):
    """A folder with a good adapter."""
    save_adapter(trained(), tmp_path / "adapter", "some/base")
    return tmp_path / "adapter"


def test_the_files_are_as_peft_writes_them(folder):
    config = json.loads((folder / CONFIG).read_text())
    expected = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": "some/base",
        "r": 4,
        "lora_alpha": 16.0,
    }
    assert config | expected == config
    assert config["target_modules"] == ["down_proj", "q_proj"] and config["bias"] == "none"
    with safe_open(folder / WEIGHTS, framework="pt") as file:
        shapes = {name: file.get_slice(name).get_shape() for name in file.keys()}
        assert file.metadata() == {"format": "pt"}
    layer = "base_model.model.model.layers.{}.{}.lora_{}.weight"
    expected = {}
    for i in range(2):
        expected |= {
            layer.format(i, "self_attn.q_proj", "A"): [4, 32],
            layer.format(i, "self_attn.q_proj", "B"): [32, 4],
        }
        expected |= {layer.format(i, "mlp.down_proj", "A"): [4, 48], layer.format(i, "mlp.down_proj", "B"): [32, 4]}
    assert shapes == expected


def test_the_matrices_stand_under_the_right_names(folder):
    stored = load_file(folder / WEIGHTS)
    layer = trained().model.layers[1].mlp.down_proj
    assert torch.equal(stored["base_model.model.model.layers.1.mlp.down_proj.lora_A.weight"], layer.lora_A)
    assert torch.equal(stored["base_model.model.model.layers.1.mlp.down_proj.lora_B.weight"], layer.lora_B)


@pytest.mark.parametrize("name", models.FAMILIES)
def test_saved_and_loaded_is_bitwise_the_same(tmp_path, name):
    model = models.build_model(name)
    attach(model, 4, 16.0, models.TARGETS, dropout=0.1, generator=torch.Generator().manual_seed(0))
    models.fill_adapters(model)
    save_adapter(model, tmp_path, "base")
    other = models.build_model(name)
    names = load_adapter(other, tmp_path)
    other.eval(), model.eval()
    assert names == list(adapters(model)) == list(adapters(other))
    assert all(map(torch.equal, adapter_parameters(model), adapter_parameters(other)))
    assert torch.equal(logits(model), logits(other))
    assert adapter_hash(model) == adapter_hash(other)
    first, second = (next(iter(adapters(m).values())) for m in (model, other))
    assert (first.rank, first.scaling, first.dropout.p) == (second.rank, second.scaling, second.dropout.p)
    assert all(parameter.requires_grad == ("lora_" in name) for name, parameter in other.named_parameters())


def test_loading_fills_an_adapter_of_the_same_shape_in_place(folder):
    model = trained(seed=8)
    before = [id(parameter) for parameter in adapter_parameters(model)]
    assert load_adapter(model, folder) == list(adapters(model))
    assert [
        id(parameter) for parameter in adapter_parameters(model)
    ] == before  # an optimizer that holds them still does
    assert adapter_hash(model) == adapter_hash(trained())


def test_saving_replaces_files_as_a_whole_and_leaves_nothing_else(folder):
    save_adapter(trained(seed=9), folder, "other/base")
    assert sorted(path.name for path in folder.iterdir()) == [CONFIG, WEIGHTS]
    model = models.build_model("qwen3")
    load_adapter(model, folder)
    assert adapter_hash(model) == adapter_hash(trained(seed=9))


def test_the_hash_sees_every_bit_and_every_name():
    model = trained()
    before = adapter_hash(model)
    assert before == adapter_hash(trained()) and len(before) == 64
    with torch.no_grad():
        entry = adapter_parameters(model)[-1].view(-1)[-1:]
        entry.copy_(torch.nextafter(entry, torch.tensor([torch.inf])))
    assert adapter_hash(model) != before
    assert adapter_hash(trained(targets=("k_proj",))) != adapter_hash(trained(targets=("v_proj",)))


def test_a_half_precision_adapter_of_others_is_loaded_in_float32(folder):
    save_file({name: tensor.half() for name, tensor in load_file(folder / WEIGHTS).items()}, folder / WEIGHTS)
    model = models.build_model("qwen3")
    load_adapter(model, folder)
    assert {parameter.dtype for parameter in adapter_parameters(model)} == {torch.float32}
    assert torch.equal(adapter_parameters(model)[1], adapter_parameters(trained())[1].half().float())


# ---- what is refused


def break_json(folder):
    (folder / CONFIG).write_text('{"peft_type": "LORA", ')


def not_an_object(folder):
    (folder / CONFIG).write_text("[1, 2]")


def not_text(folder):
    (folder / CONFIG).write_bytes(b"\xff\xfe\x00")


def truncate_weights(folder):
    (folder / WEIGHTS).write_bytes((folder / WEIGHTS).read_bytes()[:-100])


def drop_a_tensor(folder):
    tensors = load_file(folder / WEIGHTS)
    tensors.pop("base_model.model.model.layers.1.mlp.down_proj.lora_B.weight")
    save_file(tensors, folder / WEIGHTS)


def add_a_tensor(folder):
    save_file(
        load_file(folder / WEIGHTS) | {"base_model.model.lm_head.lora_A.weight": torch.zeros(4, 32)}, folder / WEIGHTS
    )


def reshape_a_tensor(folder):
    tensors = load_file(folder / WEIGHTS)
    tensors["base_model.model.model.layers.0.mlp.down_proj.lora_A.weight"] = torch.zeros(4, 47)
    save_file(tensors, folder / WEIGHTS)


def without(key):
    def damage(folder):
        config = json.loads((folder / CONFIG).read_text())
        del config[key]
        (folder / CONFIG).write_text(json.dumps(config))

    return damage


def with_config(**changes):
    return lambda folder: change_config(folder, **changes)


def fill_a_tensor(value):
    def damage(folder):
        tensors = load_file(folder / WEIGHTS)
        name = "base_model.model.model.layers.0.mlp.down_proj.lora_A.weight"
        tensors[name] = torch.full_like(tensors[name], value) if isinstance(value, float) else tensors[name].to(value)
        save_file(tensors, folder / WEIGHTS)

    return damage


REFUSED = {
    "config missing": (lambda folder: (folder / CONFIG).unlink(), CONFIG),
    "weights missing": (lambda folder: (folder / WEIGHTS).unlink(), "adapter"),
    "config cut off": (break_json, "not a readable LoRA adapter"),
    "config a list": (not_an_object, "not a readable LoRA adapter"),
    "config not text": (not_text, "not a readable LoRA adapter"),
    "weights cut off": (truncate_weights, "not a readable LoRA adapter"),
    "weights empty": (lambda folder: (folder / WEIGHTS).write_bytes(b""), "not a readable LoRA adapter"),
    "no rank": (without("r"), "'r'"),
    "no alpha": (without("lora_alpha"), "'lora_alpha'"),
    "no targets": (without("target_modules"), "'target_modules'"),
    "rank a word": (with_config(r="high"), "can't be: 'high'"),
    "no type": (without("peft_type"), "only LORA"),
    "another type": (with_config(peft_type="LOHA"), "LOHA"),
    "DoRA": (with_config(use_dora=True), "use_dora"),
    "rank-stabilised": (with_config(use_rslora=True), "use_rslora"),
    "biases": (with_config(bias="all"), "bias = 'all'"),
    "some layers only": (with_config(layers_to_transform=[0]), "layers_to_transform"),
    "ranks by layer": (with_config(rank_pattern={"q_proj": 8}), "rank_pattern"),
    "other modules saved": (with_config(modules_to_save=["lm_head"]), "modules_to_save"),
    "targets a pattern": (with_config(target_modules=".*_proj"), r"target_modules as '\.\*_proj'"),
    "a target that is not there": (with_config(target_modules=["q_proj", "down_proj", "c_attn"]), "c_attn"),
    "a target without matrices": (with_config(target_modules=["q_proj", "down_proj", "k_proj"]), r"k_proj\.lora_A"),
    "another rank": (with_config(r=5), "lora_A.*shape"),
    "a rank too high": (with_config(r=33), "Rank 33"),
    "a matrix missing": (drop_a_tensor, r"layers\.1\.mlp\.down_proj\.lora_B"),
    "a matrix too many": (add_a_tensor, r"lm_head\.lora_A"),
    "a matrix of another shape": (reshape_a_tensor, r"layers\.0\.mlp\.down_proj\.lora_A"),
    "not a number": (fill_a_tensor(float("nan")), r"down_proj\.lora_A\.weight that are not finite"),
    "infinite": (fill_a_tensor(float("inf")), r"down_proj\.lora_A\.weight that are not finite"),
    "whole numbers": (fill_a_tensor(torch.int8), r"down_proj\.lora_A\.weight that are not finite"),
}


def state(model) -> dict:
    return {
        "modules": [(name, id(module)) for name, module in model.named_modules()],
        "values": {name: tensor.tolist() for name, tensor in model.state_dict().items()},
    }


@pytest.mark.parametrize("case", REFUSED)
def test_a_bad_adapter_is_refused_in_a_sentence_and_leaves_the_model_as_it_was(folder, case):
    damage, named = REFUSED[case]
    damage(folder)
    model = models.build_model("qwen3")
    before = state(model)
    with pytest.raises(UserError, match=named) as caught:
        load_adapter(model, folder)
    assert str(caught.value).endswith(".")
    assert state(model) == before


# A model that has its adapter doesn't look at the targets, and needs of the rank no more than scaling and shapes.
ONLY_WHEN_FRESH = {"a target that is not there", "a target without matrices", "another rank", "a rank too high"}


@pytest.mark.parametrize("case", [case for case in REFUSED if case not in ONLY_WHEN_FRESH])
def test_a_bad_adapter_leaves_the_one_that_is_there_as_it_was(folder, case):
    damage, named = REFUSED[case]
    damage(folder)
    model = trained(seed=8)
    before = state(model)
    with pytest.raises(UserError, match=named):
        load_adapter(model, folder)
    assert state(model) == before


def test_an_adapter_for_another_model_names_both_sides(folder):
    model = models.build_model("qwen3", intermediate_size=40)
    before = state(model)
    with pytest.raises(UserError, match="down_proj.*'some/base'"):
        load_adapter(model, folder)
    assert state(model) == before


def test_another_scaling_is_not_silently_taken_over(folder):
    change_config(folder, lora_alpha=8)
    model = trained(seed=8)
    before = state(model)
    with pytest.raises(UserError, match="scaling is 8 / 4"):
        load_adapter(model, folder)
    assert state(model) == before
    fresh = models.build_model("qwen3")
    load_adapter(fresh, folder)
    assert {layer.scaling for layer in adapters(fresh).values()} == {2.0}


def test_harmless_options_of_peft_are_accepted(folder):
    change_config(
        folder,
        use_dora=False,
        use_rslora=False,
        rank_pattern={},
        modules_to_save=None,
        init_lora_weights=True,
        revision=None,
    )
    load_adapter(models.build_model("qwen3"), folder)


def test_full_names_as_targets_are_accepted(folder):
    names = [f"model.layers.{i}.{name}" for i in range(2) for name in ("self_attn.q_proj", "mlp.down_proj")]
    change_config(folder, target_modules=names)
    model = models.build_model("qwen3")
    load_adapter(model, folder)
    assert adapter_hash(model) == adapter_hash(trained())


def test_a_model_without_adapter_has_nothing_to_save(tmp_path):
    with pytest.raises(ValueError, match="no adapter"):
        save_adapter(models.build_model("qwen3"), tmp_path, "base")
    assert list(tmp_path.iterdir()) == []


NONSENSE = {
    "r": [0, -1, 4.7, float("inf")],
    "lora_alpha": [float("inf"), 1e308, 10**400],
    "lora_dropout": ["some", 2],
    "target_modules": [[1]],
}


@pytest.mark.parametrize("key, value", [(key, value) for key, values in NONSENSE.items() for value in values])
def test_nonsense_in_the_config_is_refused_in_a_sentence(folder, key, value):
    change_config(folder, **{key: value})
    with pytest.raises(UserError):
        load_adapter(models.build_model("qwen3"), folder)


def test_a_refused_adapter_leaves_the_base_trainable_as_it_was(folder):
    drop_a_tensor(folder)
    model = models.build_model("qwen3")
    with pytest.raises(UserError):
        load_adapter(model, folder)
    assert all(parameter.requires_grad for parameter in model.parameters())
