"""The arithmetic of the memory's bandwidth."""

import pytest
import torch

from bench import generate
from tests import models
from tests.bench.test_common import ScriptedTimer


def model(tied: bool) -> torch.nn.Module:
    return models.build_model("qwen3", vocab_size=61, tie_word_embeddings=tied)


@pytest.mark.parametrize("tied", [False, True])
def test_a_decode_step_reads_every_weight_once_and_the_cache_of_every_row(tied):
    a_layer = 32 * 32 + 2 * 16 * 32 + 32 * 32 + 3 * 32 * 48 + 2 * 8 + 2 * 32  # q, k and v, o, MLP, head norms, norms
    weights = 2 * a_layer + 32 + 61 * 32  # the last norm, the output layer; of the embedding a row or two
    a_token = 2 * 2 * 2 * 8  # keys and values, 2 layers, 2 heads, 8 numbers each
    assert generate.step_bytes(model(tied), batch=3, length=10.5) == 4 * (weights + 3 * 10.5 * a_token)
    assert generate.step_bytes(model(tied).half(), batch=1, length=7) == 2 * (weights + 7 * a_token)


def test_copying_reads_and_writes():
    timer = ScriptedTimer()
    durations = iter([4.0, 2.0, *[8.0] * 8])

    def seconds(action):
        action()
        return next(durations)

    timer.seconds = seconds
    assert generate.copy_bandwidth("cpu", timer, size=1000) == 2 * 1000 / 2.0  # the best of ten
