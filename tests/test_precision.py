"""The one place that decides on mixed precision."""

import pytest
import torch

from hmx.precision import DTYPES, autocast
from tests import models


@pytest.mark.parametrize("dtype, inside", [("fp32", torch.float32), ("fp16", torch.float16), ("bf16", torch.bfloat16)])
def test_the_region_follows_the_dtype_of_the_base(dtype, inside):
    model = models.build_model("qwen3").to(DTYPES[dtype])
    with autocast(model):
        assert torch.is_autocast_enabled("cpu") == (dtype != "fp32")
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == inside
    assert not torch.is_autocast_enabled("cpu")


def test_a_float32_base_switches_an_outer_region_off():
    with torch.autocast("cpu", dtype=torch.bfloat16), autocast(models.build_model("qwen3")):
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.float32
