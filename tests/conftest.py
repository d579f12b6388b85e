"""Settings and fixtures that all tests share."""

import signal

import pytest
import torch
from hypothesis import HealthCheck, settings

from tests import models

# The same examples on every machine and at every run, and no clock: a slow machine is not a failure.
settings.register_profile(
    "hmx", deadline=None, derandomize=True, database=None, max_examples=60, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("hmx")

torch.set_num_threads(1)  # more only get into each other's way on models this small


@pytest.fixture(autouse=True)
def ctrl_c_is_heard():
    """Whoever runs the tests in the background has it ignored, and a signal that is ignored stays so in training."""
    found = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, found)


@pytest.fixture
def cudnn_switch():
    """PyTorch's switch for cuDNN's attention is on, and afterwards as it was."""
    found = torch.backends.cuda.cudnn_sdp_enabled()
    torch.backends.cuda.enable_cudnn_sdp(True)
    yield
    torch.backends.cuda.enable_cudnn_sdp(found)


@pytest.fixture(params=models.FAMILIES)
def family(request) -> models.Family:
    """One tiny model with its tokenizer for each family: Qwen3, Llama and Gemma 2. Fresh for each test."""
    return models.build(request.param)


@pytest.fixture
def qwen3() -> models.Family:
    """The tiny Qwen3 alone, for what does not depend on the family."""
    return models.build("qwen3")
