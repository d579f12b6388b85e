"""What a folder must hold to be used: whatever would be computed wrongly is refused, in a sentence."""

import hashlib
import json
import logging.handlers

import pytest
import torch
import transformers
from huggingface_hub import constants
from safetensors.torch import load_file, save_file
from transformers import AutoConfig

from hmx import models as loading
from hmx import training
from hmx.config import ModelConfig, load_config
from hmx.errors import UserError
from hmx.models import attention_for, fingerprint, identity, load_model, model_config, require_room
from hmx.plan import describe
from tests import models
from tests.small_run import save_model, small_config


@pytest.fixture
def folder(tmp_path):
    return save_model(tmp_path / "model", "qwen3")


def set_keys(file, **keys):
    file.write_text(json.dumps(json.loads(file.read_text()) | keys))


def rewrite(folder, change):
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


UP = "model.layers.1.mlp.up_proj.weight"


def few_embeddings(folder):
    set_keys(folder / "config.json", vocab_size=100)
    rewrite(
        folder, lambda tensors: tensors.update({name: tensors[name][:100].clone() for name in tensors if _wide(name)})
    )


def _wide(name):
    return "embed_tokens" in name or "lm_head" in name


def no_ends(folder):
    (folder / "generation_config.json").unlink()
    set_keys(folder / "tokenizer_config.json", eos_token=None)
    (folder / "chat_template.jinja").write_text("{% for message in messages %}{{ message.content }}\n{% endfor %}")


BROKEN = {
    "a missing tensor": (lambda folder: rewrite(folder, lambda t: t.pop(UP)), f"{UP} is missing"),
    "another shape": (
        lambda folder: rewrite(folder, lambda t: t.update({UP: torch.zeros(2, 2)})),
        f"{UP} has another shape",
    ),
    "half a file": (
        lambda folder: (folder / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes()[:999]),
        "no model that transformers can load",
    ),
    "no tokenizer": (lambda folder: [file.unlink() for file in folder.glob("tokenizer*")], "knows no words"),
    "too few embeddings": (few_embeddings, "there are embeddings for 100"),
    "a broken template": (
        lambda folder: (folder / "chat_template.jinja").write_text("{% if %}"),
        "can't format a conversation",
    ),
    "no end": (no_ends, "No token is known that ends an answer"),
    "quantised": (
        lambda folder: set_keys(folder / "config.json", quantization_config={"quant_method": "gptq", "bits": 4}),
        r"quantised \(gptq\)",
    ),
    "scaled logits": (lambda folder: set_keys(folder / "config.json", logit_scale=0.5), "scales its logits"),
    "other layers": (
        lambda folder: set_keys(folder / "config.json", layer_types=["full_attention", "linear_attention"]),
        "layers of the kind linear_attention",
    ),
}


@pytest.mark.parametrize("what", BROKEN)
def test_a_folder_that_can_not_be_used_is_refused_with_the_reason(folder, what):
    spoil, says = BROKEN[what]
    load_model(str(folder), "fp32", "cpu")
    spoil(folder)
    with pytest.raises(UserError, match=says):
        load_model(str(folder), "fp32", "cpu")


@pytest.mark.parametrize("key, value", [("hidden_size", 16), ("vocab_size", 7)])
def test_transformers_prints_no_report_beside_our_sentence(folder, key, value):
    set_keys(folder / "config.json", **{key: value})
    handler, found = logging.handlers.BufferingHandler(9), transformers.logging.get_verbosity()
    transformers.logging.add_handler(handler)
    try:
        with pytest.raises(UserError, match="has another shape than config.json says"):
            load_model(str(folder), "fp32", "cpu")
    finally:
        transformers.logging.remove_handler(handler)
    assert handler.buffer == [] and transformers.logging.get_verbosity() == found


def test_a_folder_that_is_not_there_is_told_with_the_place_where_it_was_looked_for(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(loading, "hub_is_reachable", lambda: False)
    with pytest.raises(
        UserError, match=f"'my/model' is neither a local folder.* \\({tmp_path}/my/model doesn't exist\\)"
    ):
        model_config("my/model")


def test_code_that_comes_with_a_model_is_never_run_nor_asked_about(folder, tmp_path, monkeypatch):
    """The kind is unknown to transformers, which then offers on the terminal to run the folder's code."""
    ran = tmp_path / "ran"
    code = f"open({str(ran)!r}, 'w').close()\nfrom transformers import Qwen3Config as MineConfig\n"
    (folder / "configuration_mine.py").write_text(code)
    set_keys(folder / "config.json", model_type="mine", auto_map={"AutoConfig": "configuration_mine.MineConfig"})
    monkeypatch.setattr("builtins.input", lambda *_: "y")
    with pytest.raises(UserError, match="no model that transformers can load"):
        load_model(str(folder), "fp32", "cpu")
    assert not ran.exists()


def test_models_that_carry_a_state_are_refused(tmp_path):
    AutoConfig.for_model("mamba", num_hidden_layers=1, hidden_size=8).save_pretrained(tmp_path)
    with pytest.raises(UserError, match="mamba.*is not supported"):
        model_config(str(tmp_path))


def test_without_its_generation_config_gemma_still_ends_its_turns(tmp_path):
    folder = save_model(tmp_path / "model", "gemma2")
    (folder / "generation_config.json").unlink()
    model, tokenizer = load_model(str(folder), "fp32", "cpu")
    assert tokenizer.convert_tokens_to_ids("<end_of_turn>") in training.SelfJudge(model, tokenizer, None).end_ids


@pytest.mark.parametrize("family", models.FAMILIES)
def test_weights_in_many_files_and_tied_ones_are_whole(tmp_path, family):
    made = models.build(family, tie_word_embeddings=True)
    made.model.save_pretrained(tmp_path, max_shard_size="20KB")
    made.tokenizer.save_pretrained(tmp_path)
    assert len(list(tmp_path.glob("*.safetensors"))) > 2
    model, _ = load_model(str(tmp_path), "fp32", "cpu")
    tokens = models.random_prompts([9], 61)[0]
    expected = models.reference_logits(made.model, tokens)
    torch.testing.assert_close(models.reference_logits(model, tokens), expected, rtol=0, atol=1e-5)
    whole, last = fingerprint(str(tmp_path)), sorted(tmp_path.glob("*.safetensors"))[-1]
    last.unlink()
    assert fingerprint(str(tmp_path)) != whole
    with pytest.raises(UserError, match="no model that transformers can load"):
        load_model(str(tmp_path), "fp32", "cpu")


def test_a_model_in_the_hubs_cache_is_used_as_it_is_and_told_from_others_by_its_files(tmp_path, monkeypatch):
    monkeypatch.setattr(loading, "hub_is_reachable", lambda: pytest.fail("the hub was asked"))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    name, cached, commit = "somebody/small", tmp_path / "models--somebody--small", "0123456789" * 4
    assert identity(name) == {"base": None, "form": None} == identity("no name: of the hub")
    snapshot = cached / "snapshots" / commit
    save_model(snapshot, "qwen3")
    (cached / "refs").mkdir()
    (cached / "refs/main").write_text(commit)
    assert identity(name) == identity(str(snapshot))
    load_model(name, "fp32", "cpu")

    weights = snapshot / "model.safetensors"
    blob = cached / "blobs" / hashlib.sha256(weights.read_bytes()).hexdigest()
    blob.parent.mkdir()
    weights.rename(blob)
    assert identity(name) == {"base": None, "form": None}  # not yet downloaded
    weights.symlink_to(blob)
    before = identity(name)
    assert before == identity(str(snapshot))
    (snapshot / "README.md").write_text("new")
    assert identity(name) == before
    set_keys(snapshot / "config.json", rope_theta=5.0)
    assert identity(name)["base"] == before["base"] and identity(name)["form"] != before["form"]


def test_attention_is_written_out_where_the_fused_one_does_not_know_the_model():
    kinds = {kind: attention_for(AutoConfig.for_model(kind)) for kind in ("qwen3", "llama", "gemma2", "bloom")}
    assert kinds == {"qwen3": "sdpa", "llama": "sdpa", "gemma2": "eager", "bloom": "eager"}


def test_a_model_made_for_shorter_texts_is_refused_before_and_at_training(tmp_path):
    small_config(tmp_path)  # writes the model and the config; the model was made for 1024 tokens
    fits, longer = (load_config(tmp_path / "small.toml", [f"sampling.max_sequence_length={n}"]) for n in (1024, 1025))
    assert "Memory, estimated" in describe(fits)
    assert training.build_trainer(fits).total_steps
    for each in (describe, training.build_trainer):
        with pytest.raises(UserError, match="was made for 1024 tokens, and sampling.max_sequence_length is 1025"):
            each(longer)


@pytest.mark.parametrize(
    "sets", [["sampling.max_sequence_length=1024", "sampling.max_completion_length=0"], ["judge.max_new_tokens=900"]]
)
def test_a_judge_that_has_no_room_for_the_rubric_the_longest_answer_and_its_reply_is_refused(tmp_path, sets):
    small_config(tmp_path)
    with pytest.raises(UserError, match="the judge may have to read and write 1[0-9]{3} tokens.* was made for 1024"):
        training.build_trainer(load_config(tmp_path / "small.toml", sets))


def test_a_model_without_a_limit_has_room_for_everything():
    require_room(AutoConfig.for_model("bloom"), "bloom", 10**6)
    require_room(AutoConfig.for_model("xlnet"), "xlnet", 10**6)


def test_layers_that_config_json_does_not_know_are_not_left_out_in_silence(folder):
    config = json.loads((folder / "config.json").read_text())
    config["num_hidden_layers"] -= 1
    config["layer_types"] = config["layer_types"][:-1]
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=r"layers\.1\..* has no place in it"):
        load_model(str(folder), "fp32", "cpu")


def test_a_template_that_leaves_out_the_question_is_refused(folder):
    (folder / "chat_template.jinja").write_text("{% for message in messages %}hello{% endfor %}")
    with pytest.raises(UserError, match="leaves out what the user says"):
        load_model(str(folder), "fp32", "cpu")


@pytest.mark.parametrize("template", ["{{ 1 / 0 }}", "{{ 'a' + 1 }}"])
def test_a_template_that_fails_is_told_in_a_sentence(folder, template):
    (folder / "chat_template.jinja").write_text(template)
    with pytest.raises(UserError, match="can't format a conversation"):
        load_model(str(folder), "fp32", "cpu")


def test_the_reason_is_told_whole_where_it_is_short_and_else_its_beginning(folder):
    config = (folder / "config.json").read_text()
    set_keys(folder / "config.json", num_hidden_layers=5)
    with pytest.raises(UserError, match=r"\(.*num_hidden_layers.*\); it needs"):  # it stands in the second line
        load_model(str(folder), "fp32", "cpu")
    (folder / "config.json").write_text(config)
    (folder / "tokenizer.json").unlink()
    with pytest.raises(UserError, match=r"\(.*tokenizer.*…\); it needs") as caught:
        load_model(str(folder), "fp32", "cpu")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "path, says",
    [("", "model.path is empty; set"), (" ", "model.path is empty; set"), ("FILE", "config.json' is a file; set")],
)
def test_a_path_that_leads_to_no_folder_is_told_before_transformers_looks(folder, path, says):
    path = path.replace("FILE", str(folder / "config.json"))
    for read in (model_config, lambda path: load_model(path, "fp32", "cpu")):
        with pytest.raises(UserError, match=says):
            read(path)


@pytest.mark.parametrize("field, value", [("hidden_size", "abc"), ("hidden_act", "zz"), ("num_attention_heads", 0)])
def test_whatever_is_wrong_in_config_json_is_told_in_a_sentence(folder, field, value):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, field: value}))
    with pytest.raises(UserError, match="holds no model that transformers can load"):
        load_model(str(folder), "fp32", "cpu")


def test_weights_that_a_device_has_no_room_for_get_a_sentence(folder, monkeypatch):
    def full(model, *arguments):
        raise torch.OutOfMemoryError("full")

    monkeypatch.setattr("transformers.PreTrainedModel.to", full)
    with pytest.raises(UserError, match="GiB in fp32, for which cpu has no room left"):
        load_model(str(folder), "fp32", "cpu")


def test_one_tensor_too_many_is_no_obstacle(folder):
    rewrite(folder, lambda tensors: tensors.update({"vision.weight": torch.zeros(2)}))
    assert load_model(str(folder), "fp32", "cpu")[0].num_parameters()


def test_a_gpu_becomes_the_current_one_and_its_attention_is_none_that_is_planned_for_every_shape(
    monkeypatch, cudnn_switch
):
    """CUDA graphs are recorded on the current one, whichever the model lies on."""
    used = []
    monkeypatch.setattr(torch.cuda, "set_device", used.append)
    loading.use(torch.device("cpu"))
    assert used == [] and torch.backends.cuda.cudnn_sdp_enabled()
    loading.use(torch.device("cuda:1"))
    assert used == [torch.device("cuda:1")] and not torch.backends.cuda.cudnn_sdp_enabled()


@pytest.mark.parametrize("name", ["mps", "gpu", "meta", "cuda:x", "", "cuda:99"])
def test_a_device_that_can_not_be_used_gets_a_short_sentence(name):
    with pytest.raises(UserError) as caught:
        loading.pick_device(name)
    said = str(caught.value)
    assert said.startswith(f"The device {name!r} can't be used here (") and said.endswith("model.device or --device.")
    assert ("only cpu and cuda are supported" in said) == (name != "cuda:99") and len(said) < 250


def test_a_device_without_a_number_is_the_current_one(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
    monkeypatch.setattr(torch, "empty", lambda *size, device: None)
    assert [loading.pick_device(name) for name in ("auto", "cuda", "cuda:0", "cpu")] == [
        torch.device("cuda", 1),
        torch.device("cuda", 1),
        torch.device("cuda", 0),
        torch.device("cpu"),
    ]


def test_loading_a_model_uses_its_device(tmp_path, monkeypatch):
    used = []
    monkeypatch.setattr(loading, "use", used.append)
    load_model(str(save_model(tmp_path / "model")), "fp32", "cpu")
    assert used == [torch.device("cpu")]


def test_threads_are_as_many_as_asked_for_and_else_what_they_were(monkeypatch):
    before = torch.get_num_threads()
    monkeypatch.setattr(loading, "_own_choice", lambda: before)
    loading.set_up(ModelConfig(device="cpu", threads=before + 1))
    assert torch.get_num_threads() == before + 1
    loading.set_up(ModelConfig(device="cpu"))
    assert torch.get_num_threads() == before


@pytest.mark.parametrize("asked", [True, False])
def test_steps_are_compiled_on_a_gpu_if_the_config_says_so(asked, monkeypatch):
    fused = []
    monkeypatch.setattr(loading.graphs, "fuse", fused.append)
    loading.set_up(ModelConfig(device="cpu", compile=asked))
    monkeypatch.setattr(loading, "pick_device", torch.device)
    loading.set_up(ModelConfig(device="cuda:1", compile=asked))
    assert fused == [None, torch.device("cuda:1") if asked else None]
