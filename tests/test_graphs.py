"""Steps of one shape against those that grow; on a GPU also recorded against unrecorded."""

from collections import Counter

import pytest
import torch
from torch._dynamo.utils import counters

from hmx import cache, graphs, sampling
from hmx.decoder import Decoder, compiled
from hmx.decoding import Decoding
from hmx.errors import UserError
from hmx.graphs import StaticDecoding
from hmx.lora import attach
from hmx.models import pick_device, use
from hmx.precision import autocast
from hmx.sampling import generate, pad_left
from tests import models

PROMPTS = [3, 9, 1]
TOLERANCE = {"rtol": 1e-5, "atol": 1e-5}


@pytest.fixture(autouse=True)
def short_blocks(monkeypatch):
    monkeypatch.setattr(cache, "BLOCK", 4)


def both(name: str, room: int = 14, dtype: torch.dtype = torch.float32):
    """The same prompts, on their way with growing and with static steps. Gemma's window is shorter than the rows."""
    model = models.build_model(name, **({"sliding_window": 6} if name == "gemma2" else {})).to(dtype)
    attach(model, 2, 4.0, models.TARGETS)
    models.fill_adapters(model)
    ids, attention = pad_left(models.random_prompts(PROMPTS, 61), 0, torch.device("cpu"))
    with torch.no_grad():
        return [kind(Decoder.of(model), ids, attention, None, room) for kind in (Decoding, StaticDecoding)]


def tokens(steps: int, rows: int) -> torch.Tensor:
    return torch.randint(61, (steps, rows), generator=torch.Generator().manual_seed(5))


@pytest.mark.parametrize("name", models.FAMILIES)
@torch.no_grad()
def test_every_step_gives_the_same_logits_over_blocks_and_dropped_rows(name):
    growing, static = both(name)
    torch.testing.assert_close(static.logits, growing.logits)
    rows = torch.tensor([0, 1, 2])
    for t, token in enumerate(tokens(14, 3)):
        if t in (5, 9):  # in the middle of a block and at the end of one
            rows = torch.tensor([2, 0]) if t == 5 else torch.tensor([1, 1, 0])
            for decoding in (growing, static):
                decoding.select(rows)
        token = token[: len(rows)]
        torch.testing.assert_close(static.step(token), growing.step(token), **TOLERANCE)
        assert static.cache.length == growing.cache.length == max(PROMPTS) + t + 1


@pytest.mark.parametrize("name", models.FAMILIES)
@torch.no_grad()
def test_every_step_gives_the_same_logits_after_rows_joined(name):
    growing, static = both(name)
    for token in tokens(6, 3):
        growing.step(token), static.step(token)
    ids, attention = pad_left(models.random_prompts([5, 13], 61), 0, torch.device("cpu"))
    for decoding in (growing, static):
        decoding.join(type(decoding)(decoding.decoder, ids, attention, None, 8), 8)
    alone = Decoding(growing.decoder, ids, attention, None, 8)
    for token in tokens(8, 5):
        logits = growing.step(token)
        torch.testing.assert_close(static.step(token), logits, **TOLERANCE)
        torch.testing.assert_close(logits[3:], alone.step(token[3:]), rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_buffers_stay_where_they_are_for_a_block():
    """Else a recorded graph would write where nobody reads."""
    _, static = both("qwen3")

    def places():
        tensors = (static.token, static.seen, static.position, static.slots, static.rope, static.cache.slot)
        return [tensor.data_ptr() for tensor in (*tensors, *static.cache.keys, *static.cache.values)]

    seen = []
    for token in tokens(9, 3):
        static.step(token)
        seen.append(places())
        assert static.seen.stride(0) % 16 == 0  # or a GPU copies it in every layer
    for block in (seen[:3], seen[3:7], seen[7:]):  # nine slots are the prompts', and a block ends after 12 and 16
        assert all(place == block[0] for place in block)
    assert seen[2] != seen[3] and seen[6] != seen[7]


@torch.no_grad()
def test_a_replayed_step_goes_on_where_the_last_one_ended(monkeypatch):
    """A recording that computes when it is replayed, as a GPU's does."""
    replayed = []

    class Graph:
        def __init__(self, decoding):
            self.decoding, decoding.recorded = decoding, torch.zeros(len(decoding.token), 61)

        def replay(self):
            length = self.decoding.cache.length
            self.decoding.recorded.copy_(self.decoding._advance())
            self.decoding.cache.length = length  # the graph knows nothing of Python's numbers
            replayed.append(length)

    monkeypatch.setattr(StaticDecoding, "_record", lambda decoding: setattr(decoding, "graph", Graph(decoding)))
    growing, static = both("gemma2")
    for token in tokens(14, 3):
        torch.testing.assert_close(static.step(token), growing.step(token), **TOLERANCE)
    assert replayed == [15, 19]  # the fourth step of each block that has four


@pytest.mark.parametrize("error, goes_on", [(torch.OutOfMemoryError("full"), True), (RuntimeError("no\nway"), False)])
@torch.no_grad()
def test_what_can_not_be_recorded_runs_step_by_step(error, goes_on, monkeypatch, capsys):
    """For want of memory it is tried again at once and with the next shape, for any other reason never again."""
    tried = []

    def capture(decoding):
        tried.append(decoding.cache.length)
        decoding.cache.length += 1  # as far as it came
        raise error

    monkeypatch.setattr(graphs, "enabled", True)
    monkeypatch.setattr(graphs, "recordings", Counter())
    monkeypatch.setattr(StaticDecoding, "_capture", capture)
    growing, static = both("gemma2")
    static.decoder.device = torch.device("cuda")
    for token in tokens(14, 3):
        torch.testing.assert_close(static.step(token), growing.step(token), **TOLERANCE)
    assert tried == ([15, 15, 19, 19] if goes_on else [15]) and graphs.enabled == goes_on
    assert graphs.recordings == ({"without memory": 4} if goes_on else {})
    assert ("does not record decode steps (no)" in capsys.readouterr().err) != goes_on


@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 1e-5), (torch.bfloat16, 0.05)])
@pytest.mark.parametrize("name", models.FAMILIES)
@torch.no_grad()
def test_fused_steps_give_the_same_logits_and_are_compiled_for_all_layers_at_once(name, dtype, tolerance, monkeypatch):
    """And once more for another number of rows; not for further numbers, the next step or another adapter."""
    torch.compiler.reset()
    monkeypatch.setattr(graphs, "fused", True)
    monkeypatch.setattr(graphs, "compiled", lambda: compiled("aot_eager"))  # traced, but no kernels are made
    for weights in range(2):
        growing, static = both(name, dtype=dtype)
        rows = torch.tensor([0, 1, 2])
        for t, token in enumerate(tokens(14, 5)):
            if t in (3, 6):
                rows = torch.tensor([2, 0]) if t == 3 else torch.tensor([1, 1, 0, 0, 1])
                for decoding in (growing, static):
                    decoding.select(rows)
            known = weights > 0 or t not in (0, 3)
            with torch.compiler.set_stance("fail_on_recompile" if known else "default"):
                with autocast(growing.decoder.model):
                    logits, expected = (each.step(token[: len(rows)]) for each in (static, growing))
            torch.testing.assert_close(logits, expected, rtol=tolerance, atol=tolerance)
    assert counters["stats"]["unique_graphs"] > 0


@torch.no_grad()
def test_fused_kernels_give_the_same_logits(monkeypatch):
    if graphs.why_not_compiled("cpu"):
        pytest.skip("needs a C++ compiler")
    monkeypatch.setattr(graphs, "fused", True)
    growing, static = both("gemma2")  # which has a norm in every place
    for token in tokens(2, 3):
        torch.testing.assert_close(static.step(token), growing.step(token), **TOLERANCE)


def test_where_pytorch_can_not_compile_it_says_so(monkeypatch):
    def broken(*arguments, **options):
        raise RuntimeError("Cannot find a working triton installation.\nAnd more")

    monkeypatch.setattr(torch, "compile", broken)
    with pytest.raises(UserError, match=r"can't compile for this GPU \(Cannot find a working triton installation.\)"):
        graphs.fuse(torch.device("cuda"))
    assert not graphs.fused
    graphs.fuse(None)


@pytest.mark.parametrize("name", models.FAMILIES)
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_generate_gives_the_same_completions(name, temperature, monkeypatch):
    model, prompts = models.build_model(name), models.random_prompts([2, 7], 61)
    completions = []
    for kind in (Decoding, StaticDecoding):
        monkeypatch.setattr(sampling, "Decoding", kind)
        completions.append(
            generate(
                model,
                prompts,
                max_new_tokens=12,
                end_ids=[3, 5, 9],
                pad_id=0,
                generator=torch.Generator().manual_seed(0),
                temperature=temperature,
                repeats=3,
            )
        )
    assert torch.equal(completions[0].tokens, completions[1].tokens)
    assert torch.equal(completions[0].mask, completions[1].mask)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("name", models.FAMILIES)
@torch.no_grad()
def test_on_a_gpu_recorded_steps_give_what_unrecorded_ones_do(name, monkeypatch, cudnn_switch):
    monkeypatch.setattr(cache, "BLOCK", 16)
    use(pick_device("cuda"))
    model, prompts = models.build_model(name, head_dim=64).half().cuda(), models.random_prompts([2, 7, 30], 61)
    attach(model, 4, 8.0, models.TARGETS)
    before = None
    for scale in (0.1, -0.3):  # what is recorded must not outlive a step of the optimizer
        models.fill_adapters(model, scale)
        completions = []
        for recorded in (True, False):
            monkeypatch.setattr(graphs, "enabled", recorded)
            options = {"max_new_tokens": 60, "end_ids": [3], "pad_id": 0, "temperature": 1.0, "repeats": 4}
            completions.append(generate(model, prompts, generator=torch.Generator().manual_seed(0), **options))
            assert graphs.enabled == recorded  # no recording failed
        assert torch.equal(completions[0].tokens, completions[1].tokens)
        assert before is None or not torch.equal(completions[0].tokens, before.tokens)
        before = completions[0]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 1e-4), (torch.float16, 0.02)])
@pytest.mark.parametrize("name", models.FAMILIES)
@torch.no_grad()
def test_on_a_gpu_fused_and_recorded_steps_give_what_plain_ones_do(name, dtype, tolerance, monkeypatch):
    monkeypatch.setattr(cache, "BLOCK", 16)
    use(pick_device("cuda"))
    model = models.build_model(name, head_dim=64).to(dtype).cuda()
    attach(model, 4, 8.0, models.TARGETS)
    models.fill_adapters(model)
    ids, attention = pad_left(models.random_prompts(PROMPTS, 61), 0, torch.device("cuda"))
    plain, static = (kind(Decoder.of(model), ids, attention, None, 40) for kind in (Decoding, StaticDecoding))
    graphs.fuse(torch.device("cuda"))
    try:
        for t, token in enumerate(tokens(40, 3).cuda()):
            if t == 30:
                for decoding in (plain, static):
                    decoding.select(torch.tensor([1], device="cuda"))
            with autocast(model):
                found, expected = (each.step(token[: len(each.position)]) for each in (static, plain))
            torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)
    finally:
        graphs.fuse(None)
    assert graphs.enabled and static.graph is not None
