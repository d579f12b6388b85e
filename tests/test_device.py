"""On a GPU nothing may mix its tensors with the CPU's. No test machine needs one: `tests.pretend_device` stands in."""

import subprocess
import sys

import pytest
from torch.utils import backend_registration

from hmx.config import PROJECT


@pytest.mark.skipif(
    not hasattr(backend_registration, "_setup_privateuseone_for_python_backend"), reason="needs a newer PyTorch"
)
def test_training_and_evaluation_never_mix_devices():
    command = [sys.executable, "-m", "tests.pretend_device"]
    finished = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True)
    assert finished.returncode == 0, finished.stderr[-2000:]
