"""Token log-probabilities against the plain thing: one unpadded forward pass a row, log-softmax in float64."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from hmx.grpo.logprobs import token_logprobs
from hmx.lora import adapter_parameters, attach, bypass
from hmx.sampling import generate
from tests import models

PROMPTS, COMPLETIONS = [7, 3, 5, 1], [4, 6, 0, 2]
T = max(COMPLETIONS)


def batch(
    vocab_size: int, left: int = 0, right: int = 0
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, list[list[int]]]:
    """Rows [padding][prompt][completion][padding] with `left` and `right` columns of padding more than needed."""
    prompts = models.random_prompts(PROMPTS, vocab_size, seed=1)
    completions = models.random_prompts(COMPLETIONS, vocab_size, seed=2)
    ids, attention = [], []
    for prompt, completion in zip(prompts, completions, strict=True):
        front, behind = max(PROMPTS) - len(prompt) + left, T - len(completion) + right
        ids.append([0] * front + prompt + completion + [0] * behind)
        attention.append([0] * front + [1] * (len(prompt) + len(completion)) + [0] * behind)
    mask = torch.tensor([[t < length for t in range(T + right)] for length in COMPLETIONS])
    return torch.tensor(ids), torch.tensor(attention), mask, [p + c for p, c in zip(prompts, completions, strict=True)]


def slow_logprobs(model, rows: list[list[int]], temperature: float) -> torch.Tensor:
    """[B, T] in float64, zero behind each row's end."""
    result = torch.zeros(len(rows), T, dtype=torch.float64)
    for b, row in enumerate(rows):
        logprobs = (models.reference_logits(model, row).double() / temperature).log_softmax(dim=-1)
        for t in range(COMPLETIONS[b]):
            at = PROMPTS[b] + t
            result[b, t] = logprobs[at - 1, row[at]]
    return result


@pytest.mark.parametrize("temperature", [0.5, 1.0, 1.7])
def test_equals_the_log_softmax_of_the_models_logits(family, temperature):
    ids, attention, mask, rows = batch(len(family.tokenizer))
    with torch.no_grad():
        result = token_logprobs(family.model, ids, attention, T, temperature)
    assert result.shape == (len(rows), T) and result.dtype == torch.float32
    torch.testing.assert_close(
        result.double().masked_fill(~mask, 0), slow_logprobs(family.model, rows, temperature), rtol=1e-5, atol=1e-5
    )


@pytest.mark.parametrize("left, right", [(3, 0), (0, 5), (2, 3)])
def test_padding_on_either_side_changes_nothing(family, left, right):
    ids, attention, mask, rows = batch(len(family.tokenizer), left, right)
    with torch.no_grad():
        result = token_logprobs(family.model, ids, attention, T + right)
    assert result.isfinite().all()
    torch.testing.assert_close(
        result.double().masked_fill(~mask, 0)[:, :T], slow_logprobs(family.model, rows, 1.0), rtol=1e-5, atol=1e-5
    )


def test_the_id_that_fills_padding_changes_nothing(family):
    ids, attention, mask, _ = batch(len(family.tokenizer), 2, 2)
    other = torch.where(attention.bool(), ids, 5)
    with torch.no_grad():
        results = [token_logprobs(family.model, x, attention, T + 2)[mask] for x in (ids, other)]
    torch.testing.assert_close(*results, rtol=1e-6, atol=1e-6)


def test_padding_inside_a_row_changes_nothing(family):
    """Only explicit positions keep this right; rotary embeddings forgive padding in front and would hide a lack."""
    ids, attention, mask, rows = batch(len(family.tokenizer))
    at = 6  # padding before the last token of each prompt
    ids = torch.cat([ids[:, :at], torch.full((len(ids), 3), 5), ids[:, at:]], dim=1)
    attention = torch.cat([attention[:, :at], torch.zeros(len(ids), 3, dtype=torch.int64), attention[:, at:]], dim=1)
    with torch.no_grad():
        result = token_logprobs(family.model, ids, attention, T)
    torch.testing.assert_close(
        result.double().masked_fill(~mask, 0), slow_logprobs(family.model, rows, 1.0), rtol=1e-5, atol=1e-5
    )


def adapted(family: models.Family) -> None:
    attach(family.model, 2, 4.0, models.TARGETS, generator=torch.Generator().manual_seed(3))
    models.fill_adapters(family.model)


@pytest.mark.parametrize("chunk", [1, 5, 23, 24, 25])
def test_chunked_equals_unchunked_in_values_and_gradients(family, chunk):
    adapted(family)
    ids, attention, mask, _ = batch(len(family.tokenizer))
    weights = torch.randn(mask.shape, generator=torch.Generator().manual_seed(4)) * mask
    results = []
    for size in (10_000, chunk):
        values = token_logprobs(family.model, ids, attention, T, 1.3, chunk=size)
        gradients = torch.autograd.grad((values * weights).sum(), adapter_parameters(family.model))
        results.append((values.detach()[mask], *gradients))
    for whole, pieces in zip(*results, strict=True):
        torch.testing.assert_close(pieces, whole, rtol=1e-4, atol=1e-5)
    assert all(gradient.abs().max() > 0 for gradient in results[1][1:])


def test_gradient_equals_that_of_the_plain_forward(family):
    adapted(family)
    ids, attention, mask, rows = batch(len(family.tokenizer))
    mine = torch.autograd.grad(
        token_logprobs(family.model, ids, attention, T, chunk=5)[mask].sum(), adapter_parameters(family.model)
    )
    total = 0.0
    for b, row in enumerate(rows):
        logprobs = family.model(torch.tensor([row]), use_cache=False).logits[0].log_softmax(dim=-1)
        total += sum(logprobs[PROMPTS[b] + t - 1, row[PROMPTS[b] + t]] for t in range(COMPLETIONS[b]))
    for gradient, expected in zip(mine, torch.autograd.grad(total, adapter_parameters(family.model)), strict=True):
        torch.testing.assert_close(gradient, expected, rtol=1e-3, atol=1e-4)


class LargestOutput(TorchDispatchMode):
    """Records the most numbers that any tensor over the vocabulary holds, among all that any operation returns."""

    def __init__(self, vocab_size: int):
        super().__init__()
        self.vocab_size, self.largest = vocab_size, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **kwargs or {})
        for leaf in tree_leaves(result):
            if isinstance(leaf, torch.Tensor) and self.vocab_size in leaf.shape:
                self.largest = max(self.largest, leaf.numel())
        return result


@pytest.mark.parametrize("with_gradient", [False, True])
@pytest.mark.parametrize("name", models.FAMILIES)
def test_no_tensor_is_larger_than_one_chunk_of_logits(name, with_gradient):
    V, chunk = 1009, 9
    model = models.build_model(name, vocab_size=V, hidden_size=8, intermediate_size=16)
    attach(model, 2, 4.0, models.TARGETS)
    ids, attention, mask, _ = batch(V)
    assert mask.sum() > chunk  # otherwise there is nothing to see
    with torch.set_grad_enabled(with_gradient), LargestOutput(V) as record:
        values = token_logprobs(model, ids, attention, T, chunk=chunk)
        if with_gradient:
            values[mask].sum().backward()
    assert record.largest == chunk * V


def test_the_logits_are_not_kept_for_the_way_back(qwen3):
    adapted(qwen3)
    ids, attention, _, _ = batch(len(qwen3.tokenizer))
    V, saved = len(qwen3.tokenizer), []

    def pack(tensor):
        saved.append(tuple(tensor.shape))
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        token_logprobs(qwen3.model, ids, attention, T, chunk=5)
    assert saved and not [shape for shape in saved if shape[-1] == V]


def test_scoring_what_was_sampled_at_the_same_temperature(family):
    """The log-probabilities of sampled tokens are of the distribution that the sampler draws from, step by step."""
    prompts = models.random_prompts([4, 9], len(family.tokenizer))
    sampled = generate(
        family.model,
        prompts,
        max_new_tokens=6,
        end_ids=[],
        pad_id=0,
        temperature=0.7,
        generator=torch.Generator().manual_seed(5),
    )
    width = max(map(len, prompts))
    ids = torch.tensor([[0] * (width - len(p)) + p + row for p, row in zip(prompts, sampled.rows(), strict=True)])
    attention = torch.tensor([[0] * (width - len(p)) + [1] * (len(p) + 6) for p in prompts])
    with torch.no_grad():
        result = token_logprobs(family.model, ids, attention, 6, temperature=0.7)
    for b, prompt in enumerate(prompts):
        row = prompt + sampled.rows()[b]
        for t in range(6):
            logits = models.reference_logits(family.model, row[: len(prompt) + t])[-1].double() / 0.7
            assert result[b, t].item() == pytest.approx(
                logits.log_softmax(dim=-1)[row[len(prompt) + t]].item(), abs=1e-4
            )


def test_bypassed_and_not_differ_and_the_callers_choice_is_kept(qwen3):
    ids, attention, mask, rows = batch(len(qwen3.tokenizer))
    base = slow_logprobs(qwen3.model, rows, 1.0)[mask]
    adapted(qwen3)
    with torch.no_grad():
        on = token_logprobs(qwen3.model, ids, attention, T)[mask].double()
        with bypass(qwen3.model):
            off = token_logprobs(qwen3.model, ids, attention, T)[mask].double()
    torch.testing.assert_close(off, base, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(on, slow_logprobs(qwen3.model, rows, 1.0)[mask], rtol=1e-5, atol=1e-5)
    assert (on - off).abs().max() > 0.01


@pytest.mark.parametrize("name", models.FAMILIES)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_half_precision_base_is_scored_in_float32(name, dtype):
    model = models.build_model(name).to(dtype)
    ids, attention, mask, rows = batch(model.config.vocab_size)
    attach(model, 2, 4.0, models.TARGETS)
    values = token_logprobs(model, ids, attention, T, chunk=7)
    assert values.dtype == torch.float32
    kept = values.detach()[mask]
    assert (
        kept.to(dtype).float() != kept
    ).float().mean() > 0.5  # they have digits that the half precision could not hold
    exact = slow_logprobs(models.build_model(name), rows, 1.0)[mask]
    torch.testing.assert_close(kept.double(), exact, rtol=0, atol=0.05 if dtype == torch.float16 else 0.4)
    gradients = torch.autograd.grad(values[mask].sum(), adapter_parameters(model))
    assert {gradient.dtype for gradient in gradients} == {torch.float32}


@pytest.mark.parametrize("completion_length", [0, -1, 8, 9])
def test_a_completion_as_long_as_the_row_is_refused(qwen3, completion_length):
    with pytest.raises(ValueError, match="shorter than the whole row"):
        token_logprobs(
            qwen3.model, torch.ones(1, 8, dtype=torch.int64), torch.ones(1, 8, dtype=torch.int64), completion_length
        )
