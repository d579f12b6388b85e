"""The models that are measured."""

import pytest
import torch

from bench import models
from hmx.prompts import decode, encode_question, end_of_turn_ids


@pytest.fixture(scope="module")
def medium() -> models.Loaded:
    """Random weights in the shape of our own."""
    return models.load("qwen3-50m", "cpu", "fp32")


def test_random_weights_are_the_same_each_time(medium):
    assert 49e6 < sum(parameter.numel() for parameter in medium.model.parameters()) < 52e6
    again = models.load("qwen3-50m", "cpu", "fp32").model
    assert all(torch.equal(a, b) for a, b in zip(medium.model.parameters(), again.parameters(), strict=True))
    assert not any(parameter.requires_grad for parameter in again.parameters())


def test_no_token_of_random_weights_ends_an_answer(medium):
    assert end_of_turn_ids(medium.model, medium.tokenizer) == (medium.model.config.vocab_size,)


def test_foreign_tokens_read_as_ordinary_text_of_about_as_many_tokens(medium):
    tokenizer, vocabulary = medium.tokenizer, medium.model.config.vocab_size
    tokens = torch.randint(len(tokenizer), vocabulary, (200,), generator=torch.Generator().manual_seed(0)).tolist()
    text = decode(tokenizer, tokens)
    assert 180 < len(tokenizer.encode(text, add_special_tokens=False)) < 220
    assert not any(control in tokenizer.decode(tokens) for control in tokenizer.get_added_vocab())
    assert tokenizer.batch_decode([tokens])[0].strip() == text
    own = encode_question(tokenizer, "Who are you?")
    assert tokenizer.decode(own) == "<|user|>Who are you?<|end|><|assistant|>"


def test_every_model_has_a_config_and_shapes():
    for name in models.MODELS:
        config = models.settings(name, "cpu", "fp32", "sampling.max_completion_length=7")
        assert config.completion_limit(0) == 7 and config.optimizer.schedule == "constant"
        assert models.architecture(config.model.path).num_hidden_layers >= 4


def test_the_embedded_model_ends_its_answers_until_told_otherwise():
    tiny = models.load("tiny", "cpu", "fp32")
    assert not tiny.random and end_of_turn_ids(tiny.model, tiny.tokenizer) == (3,)
    models.never_end(tiny)
    assert end_of_turn_ids(tiny.model, tiny.tokenizer) == (tiny.never,)
