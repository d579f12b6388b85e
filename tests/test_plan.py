"""The dry run's numbers, against published parameter counts and counting by hand."""

from pathlib import Path

import pytest
import torch

from hmx import decoder, models
from hmx.config import load_config
from hmx.errors import UserError
from hmx.grpo.logprobs import token_logprobs
from hmx.grpo.packing import packing_pays
from hmx.judge import Rubric
from hmx.lora import attach
from hmx.models import model_config
from hmx.plan import architecture, checkpoints, describe, estimate, gib
from hmx.precision import DTYPES
from tests.models import FAMILIES, build_model
from tests.small_run import small_config

CONFIGS = Path(__file__).parent.parent / "configs"
# Billions of parameters, and for Qwen3 of those that are not embeddings, as the models' own cards give them.
PUBLISHED = {
    "qwen3-0.6b": (0.6, 0.44),
    "qwen3-4b": (4.0, 3.6),
    "qwen3-8b": (8.2, 6.95),
    "gemma-2-2b": (2.6, None),
    "llama-3.2-3b": (3.21, None),
}


@pytest.fixture(autouse=True)
def offline(monkeypatch):
    monkeypatch.setattr(models, "hub_is_reachable", lambda: False)


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_shapes_we_keep_have_the_published_number_of_parameters(name):
    config = load_config(CONFIGS / f"{name}.toml")
    found, shapes, (total, inner) = estimate(config, 64, 256), architecture(config.model.path), PUBLISHED[name]
    parameters = found.parameters
    assert parameters / 1e9 == pytest.approx(total, abs=0.05 if total > 1 else 0.005)
    if inner:
        embeddings = shapes.vocab_size * shapes.hidden_size * (1 if shapes.tie_word_embeddings else 2)
        assert (parameters - embeddings) / 1e9 == pytest.approx(inner, abs=0.05 if inner > 1 else 0.005)
    assert found.weights == 2 * parameters  # FP16


def test_the_parts_of_the_estimate_counted_by_hand():
    config = load_config(CONFIGS / "qwen3-0.6b.toml")
    found = estimate(config, 64, 256)
    q, kv, hidden, mlp, r = 16 * 128, 8 * 128, 1024, 3072, 16
    pairs = [(hidden, q), (hidden, kv), (hidden, kv), (q, hidden), (hidden, mlp), (hidden, mlp), (mlp, hidden)]
    assert found.trainable == 28 * sum(r * (inner + outer) for inner, outer in pairs)
    assert found.adapter == 4 * 4 * found.trainable  # FP32: A and B, gradient, two moments
    probabilities = 151_936 * (2 + 4 + 8 + 8)  # FP16 logits, softmax in FP32 and FP64, cumulative sum
    assert found.sampling == 8 * (2 * 28 * kv * (64 + 256) * 2 + probabilities)
    rubric = len(Rubric.load(config.judge.prompt_file).prompt) // 3
    # Gate, up, activation and product in FP16; residual and MLP's result in FP16, a norm in FP32 twice and FP16 twice.
    reading = (64 + 256) * (4 * mlp * 2 + hidden * (2 * 2 + 2 * 4 + 2 * 2))
    assert found.judging == 8 * (2 * 28 * kv * (64 + 256 + rubric + 64) * 2 + probabilities + reading)
    assert found.total(False) == found.weights + found.adapter + found.activations + found.logits
    assert found.total(True) == found.weights + found.adapter + max(found.judging, found.checkpointed + found.logits)


def test_attention_that_is_written_out_needs_room_for_its_scores_while_the_judge_reads():
    config = load_config(CONFIGS / "gemma-2-2b.toml")
    rubric = len(Rubric.load(config.judge.prompt_file).prompt) // 3
    scores = 8 * (64 + 2000) * (64 + 2000 + rubric) * (2 + 2 + 4 + 2)  # heads, queries, keys, bytes in FP16
    probabilities, kv = 256_000 * (2 + 4 + 8 + 8), 4 * 256
    expected = 40 * (2 * 26 * kv * (64 + 2000 + rubric + 64) * 2 + probabilities + scores)
    assert estimate(config, 64, 2000, evaluated=40).judging == expected
    mlp = (64 + 256) * (4 * 9216 * 2 + 16 * 2304)  # of short answers the scores are fewer than what the MLP computes
    expected = 40 * (2 * 26 * kv * (64 + 256 + rubric + 64) * 2 + probabilities + mlp)
    assert estimate(config, 64, 256, evaluated=40).judging == expected


def test_longer_answers_and_more_rows_need_more_and_checkpointing_less():
    path = CONFIGS / "llama-3.2-3b.toml"
    base = estimate(load_config(path), 64, 256)
    assert base.checkpointed < base.activations / 5
    longer = estimate(load_config(path), 64, 512)  # packed: the prompt once, four answers
    assert longer.activations / base.activations == pytest.approx((64 + 4 * 512) / (64 + 4 * 256), rel=0.02)
    assert estimate(load_config(path), 64, 256, evaluated=40).sampling == 5 * base.sampling


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize("completion", [10, 40])
def test_the_activations_are_what_autograd_keeps(tmp_path, monkeypatch, name, precision, completion):
    """Of a real training pass over a group of four, as on a GPU; the long answers are laid out as a rectangle."""
    assert packing_pays(build_model(name), 6 + 4 * completion, 4, 6 + completion) == (completion == 10)
    monkeypatch.setattr(decoder, "enabled", False)
    config = small_config(tmp_path, f"model.precision={precision}", family=name)
    expected = estimate(config, 6, completion).activations

    model = build_model(name, vocab_size=model_config(config.model.path).vocab_size).to(DTYPES[precision])
    attach(model, config.lora.rank, config.lora.alpha, config.lora.targets)
    model.train()
    ids = torch.ones(4, 6 + completion, dtype=torch.int64)
    kept = {}

    def note(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        values = token_logprobs(model, ids, torch.ones_like(ids), completion, chunk=4)
    owned = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    found = sum(tensor.untyped_storage().nbytes() for place, tensor in kept.items() if place not in owned)
    assert values.requires_grad and found == pytest.approx(expected, rel=0.1)


def test_gradient_checkpointing_is_on_from_the_start_where_it_is_asked_for_or_needed(monkeypatch):
    path = CONFIGS / "llama-3.2-3b.toml"
    for setting in ("on", "off"):
        config = load_config(path, [f"train.gradient_checkpointing={setting}"])
        assert checkpoints(config, torch.device("cuda")) == (setting == "on")
    assert not checkpoints(load_config(path), torch.device("cpu"))
    for memory, needed in ((80 * 2**30, False), (10 * 2**30, True)):
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device, memory=memory: (0, memory))
        assert checkpoints(load_config(path), torch.device("cuda")) == needed


def test_the_description_tells_steps_and_memory(monkeypatch):
    said = describe(load_config(CONFIGS / "qwen3-8b.toml"))
    assert "450: 10 epochs of 90 questions, 2 questions × 4 answers a step" in said
    assert "Disk        3.7 GiB" in said  # 21 adapters and two moments of 167 MiB each
    few = ["train.epochs=1", "grpo.prompts_per_step=1", "train.completions_per_evaluation=1"]
    said = describe(load_config(CONFIGS / "qwen3-8b.toml", few))
    assert "90: 1 epoch of 90 questions, 1 question × 4 answers a step" in said
    assert "each 10 held-out questions × 1 answer, with a checkpoint" in said
    assert "43,646,976 trainable" in said and "at the limit, 128" in said
    with pytest.raises(UserError, match="leaves no room for an answer"):
        describe(load_config(CONFIGS / "qwen3-8b.toml", ["sampling.max_sequence_length=16"]))


def test_a_model_of_unknown_shape_gets_its_sentence():
    with pytest.raises(UserError, match="the hub can't be reached"):
        architecture("no-such-team/no-such-model")


def test_bytes_for_people():
    assert gib(15 * 2**30) == "15.0 GiB" and gib(2**20) == "1.0 MiB"
