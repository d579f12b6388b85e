"""The dry run's numbers, against published parameter counts and counting by hand."""

from pathlib import Path

import pytest
import torch

from hmx import decoder, models
from hmx.config import load_config
from hmx.errors import UserError
from hmx.grpo.logprobs import token_logprobs
from hmx.judge import Rubric
from hmx.lora import adapter_parameters, attach
from hmx.memory import keep_less
from hmx.plan import Alive, architecture, describe, estimate, gib, needs_gradient_checkpointing
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


def halves(config) -> list[int]:
    """Tokens of the rubric before the question, and of what stands around question and answer, as they are guessed."""
    return [len(half) // 3 for half in Rubric.load(config.judge.prompt_file).prompt.split("{question}")]


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
    probabilities = 151_936 * (2 + 4 + 4 + 8)  # logits in FP16 and FP32, softmax in FP32 and FP64
    assert found.sampling == 8 * (2 * 28 * kv * (64 + 256) * 2 + probabilities)
    rubric, behind = halves(config)
    read, judged = 64 + 256 + behind, 64 + 256 + behind + rubric
    # Gate, up, activation and product in FP16; residual and MLP's result in FP16, a norm in FP32 twice and FP16 twice.
    # A mask in FP16 and in bits.
    reading = read * (4 * mlp * 2 + hidden * (2 * 2 + 2 * 4 + 2 * 2)) + read * judged * (2 + 1)
    assert found.judging == 8 * (2 * 28 * kv * (judged + 64) * 2 + probabilities + reading)
    assert found.total(False) == found.weights + found.adapter + found.training
    assert found.total(True) == found.weights + found.adapter + max(found.judging, found.checkpointed)


def test_attention_that_is_written_out_needs_room_for_its_scores_while_the_judge_reads():
    config = load_config(CONFIGS / "gemma-2-2b.toml")
    probabilities, kv, (rubric, behind) = 256_000 * (2 + 4 + 4 + 8), 4 * 256, halves(config)
    for completion in (2000, 256):
        read, judged = 64 + completion + behind, 64 + completion + behind + rubric
        # 8 heads: scores before and behind the cap in FP16, both in FP32, values repeated.
        scores = 8 * judged * (read * (2 + 2 + 4 + 4) + 256 * 2)
        mlp = read * (4 * 9216 * 2 + 16 * 2304)  # of short answers the scores are fewer than what the MLP computes
        assert (scores > mlp) == (completion == 2000)
        reading = max(scores, mlp) + read * judged * (2 + 1)
        expected = 40 * (2 * 26 * kv * (judged + 64) * 2 + probabilities + reading)
        assert estimate(config, 64, completion, evaluated=40).judging == expected


def test_longer_answers_and_more_rows_need_more_and_checkpointing_less():
    path = CONFIGS / "llama-3.2-3b.toml"
    base = estimate(load_config(path), 64, 256)
    assert base.checkpointed < base.training / 5
    longer = estimate(load_config(path), 64, 512)
    assert 1.6 < longer.training / base.training < 2  # a chunk of logits is the same for both
    assert estimate(load_config(path), 64, 256, evaluated=40).sampling == 5 * base.sampling


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize("checkpointing, vocabulary", [(False, 4000), (True, 600)])
def test_the_training_pass_takes_what_was_estimated(tmp_path, monkeypatch, name, precision, checkpointing, vocabulary):
    """A real one over a group of four, as on a GPU. The vocabulary decides what is larger, a layer or the logits."""
    monkeypatch.setattr(decoder, "enabled", False)
    sizes = {"hidden_size": 64, "intermediate_size": 160, "num_attention_heads": 4, "head_dim": 16}
    model = build_model(name, num_hidden_layers=5, vocab_size=vocabulary, **sizes).to(DTYPES[precision])
    model.config.save_pretrained(tmp_path / "shapes")
    config = small_config(tmp_path, f"model.precision={precision}", f"model.path={tmp_path / 'shapes'}")
    found = estimate(config, 20, 90)

    attach(model.requires_grad_(False), config.lora.rank, config.lora.alpha, config.lora.targets)
    if checkpointing:
        keep_less(model)
    model.train()
    prompt, answers = torch.ones(4, 20, dtype=torch.int64), torch.randint(vocabulary, (4, 90))
    ids = torch.cat([prompt, answers], dim=1)
    for parameter in adapter_parameters(model):
        parameter.grad = torch.zeros_like(parameter)
    gradients = [parameter.grad for parameter in adapter_parameters(model)]
    mask = torch.ones_like(ids)
    mask[0, -1] = 0  # the answers differ in length, as a rule
    with Alive([*model.parameters(), *gradients]) as alive:
        token_logprobs(model, ids, mask, 90).sum().backward()
    assert alive.peak == pytest.approx(found.checkpointed if checkpointing else found.training, rel=0.1)


def test_gradient_checkpointing_is_on_from_the_start_where_it_is_asked_for_or_needed(monkeypatch):
    path = CONFIGS / "llama-3.2-3b.toml"
    for setting in ("on", "off"):
        config = load_config(path, [f"train.gradient_checkpointing={setting}"])
        assert needs_gradient_checkpointing(config, torch.device("cuda")) == (setting == "on")
    assert not needs_gradient_checkpointing(load_config(path), torch.device("cpu"))
    much = ("grpo.prompts_per_step=99",)  # to sample and to judge, which keep no activations
    for size, more, needed in ((80, (), False), (10, (), True), (16, much, False)):
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device, size=size: (0, size * 2**30))
        assert needs_gradient_checkpointing(load_config(path, more), torch.device("cuda")) == needed


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
