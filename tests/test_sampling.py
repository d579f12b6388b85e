"""The sampler against exact distributions, and against plain forward passes without a cache."""

import inspect
import itertools

import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from scipy import stats
from transformers import MistralConfig, MistralForCausalLM

from hmx import sampling
from hmx.decoder import positions
from hmx.decoding import Decoding
from hmx.errors import UserError
from hmx.lora import attach, bypass
from hmx.models import load_model
from hmx.sampling import Completions, Prefix, generate, last_logits, pad_left, sample_token
from tests import models

PAD = 0


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def sample(model, prompts, **options) -> Completions:
    return generate(
        model, prompts, **{"max_new_tokens": 8, "end_ids": [], "pad_id": PAD, "generator": generator()} | options
    )


class Scripted(torch.nn.Module):
    """As much of a model as `generate` uses; its next token depends on the last alone, by a row of `table` [V, V]."""

    def __init__(self, table: torch.Tensor):
        super().__init__()
        self.table, self.device, self.calls = table, torch.device("cpu"), []
        self.embedding = torch.nn.Embedding(1, 1)

    def get_input_embeddings(self):
        return self.embedding

    def forward(self, ids, past_key_values=None, **options):
        self.calls.append(options | {"gradient": torch.is_grad_enabled()})
        for_cache = torch.zeros(*ids.shape, 1)[:, None]  # [B, 1, L, 1]: one head of one dimension
        past_key_values.update(for_cache, for_cache, 0)
        return type("Output", (), {"logits": self.table[ids][:, -options["logits_to_keep"] :]})


def counting(size: int = 20) -> Scripted:
    """After token i comes i + 1, with near certainty."""
    return Scripted(100 * torch.eye(size).roll(1, dims=1))


# ---- one token


def empirical(logits: torch.Tensor, temperature: float, draws: int, seed: int) -> torch.Tensor:
    uniform = torch.rand(draws, dtype=torch.float64, generator=generator(seed))
    return torch.bincount(sample_token(logits.expand(draws, -1), uniform, temperature), minlength=logits.shape[-1])


@pytest.mark.parametrize("temperature", [0.3, 1.0, 2.5])
@pytest.mark.parametrize("seed", range(3))
def test_the_empirical_distribution_is_the_softmax(temperature, seed):
    logits = 2 * torch.randn(12, generator=generator(seed))
    draws = 40_000
    expected = (logits.double() / temperature).softmax(dim=-1) * draws
    observed = empirical(logits, temperature, draws, seed + 10)
    common = expected >= 5  # the chi-square test wants no rare cells: they are taken together
    cells = [
        torch.cat([counts[common].double(), counts[~common].sum().double()[None]]) for counts in (observed, expected)
    ]
    observed, expected = (cell[cells[1] > 0].numpy() for cell in cells)
    assert stats.chisquare(observed, expected * observed.sum() / expected.sum()).pvalue > 0.001


@given(st.lists(st.integers(0, 5), min_size=1, max_size=8), st.floats(0, 1, exclude_max=True))
def test_a_token_is_the_first_whose_cumulative_probability_exceeds_the_uniform_number(weights, uniform):
    if sum(weights) == 0:
        return
    logits = torch.tensor([weights], dtype=torch.float64).log()
    token = int(sample_token(logits, torch.tensor([uniform], dtype=torch.float64), 1.0))
    below, above = sum(weights[:token]) / sum(weights), sum(weights[: token + 1]) / sum(weights)
    assert weights[token] > 0
    assert below - 1e-6 <= uniform <= above + 1e-6


@settings(max_examples=200)
@given(
    st.lists(st.floats(-200, 5, width=32) | st.just(-torch.inf), min_size=2, max_size=9),
    st.sampled_from([0.0, 0.5, 1 - 2**-53]),
)
def test_a_token_of_probability_zero_is_never_drawn(logits, uniform):
    logits = torch.tensor([logits])
    if logits.isneginf().all():
        return
    token = int(sample_token(logits, torch.tensor([uniform], dtype=torch.float64), 1.0))
    assert logits.softmax(dim=-1)[0, token] > 0


def test_a_sum_that_rounding_leaves_below_one_draws_no_impossible_token():
    logits = torch.randn(5000, 30, generator=torch.Generator().manual_seed(0))
    logits[:, -1] = -torch.inf
    highest = torch.full((5000,), 1 - 2**-53, dtype=torch.float64)
    assert (logits.softmax(dim=-1).double().sum(dim=-1) < highest).any()
    assert (sample_token(logits, highest, 1.0) < 29).all()


@pytest.mark.parametrize("within", [0.001, 0.5, 0.999])
def test_no_token_of_a_large_vocabulary_is_favoured_by_rounding(within):
    # Equal logits: token k owns the uniform numbers from k / V to (k + 1) / V. Near 1 a float32 sum is off by up to
    # half a percent of that.
    V, tokens = 150_000, torch.tensor([0, 1, 70_000, *range(149_900, 150_000)])
    drawn = sample_token(torch.zeros(1, V).expand(len(tokens), V), (tokens.double() + within) / V, 1.0)
    assert torch.equal(drawn, tokens)


def test_half_precision_logits_are_drawn_in_float32():
    logits = torch.randn(2000, generator=generator(3)).half()
    uniform = torch.rand(500, dtype=torch.float64, generator=generator(4))
    drawn, expected = (sample_token(x.expand(500, -1), uniform, 0.9) for x in (logits, logits.float()))
    assert torch.equal(drawn, expected)


def test_a_whole_models_first_tokens_follow_its_softmax(qwen3):
    [prompt] = models.random_prompts([5], len(qwen3.tokenizer))
    draws, temperature = 4000, 0.5
    tokens = sample(qwen3.model, [prompt], repeats=draws, max_new_tokens=1, temperature=temperature).tokens[:, 0]
    expected = (models.reference_logits(qwen3.model, prompt)[-1].double() / temperature).softmax(dim=-1) * draws
    observed, order = torch.bincount(tokens, minlength=len(expected)), expected.argsort(descending=True)
    cells = [
        torch.cat([counts[order[:30]].double(), counts[order[30:]].sum().double()[None]]).numpy()
        for counts in (observed, expected)
    ]
    assert stats.chisquare(cells[0], cells[1] * cells[0].sum() / cells[1].sum()).pvalue > 0.001


def test_the_tokens_of_a_row_and_of_different_rows_are_independent():
    model = Scripted(torch.zeros(4, 4))
    tokens = sample(model, [[1], [2]], repeats=1600, max_new_tokens=2).tokens  # [3200, 2]
    neighbours = torch.cat([tokens[::2], tokens[1::2]], dim=1)  # [1600, 4]: two tokens each of two rows
    for i, j in itertools.combinations(range(4), 2):
        observed = torch.bincount(4 * neighbours[:, i] + neighbours[:, j], minlength=16)
        assert stats.chisquare(observed.numpy()).pvalue > 0.001


# ---- ends, masks, limits


def test_the_first_end_token_is_sampled_and_nothing_after_it():
    result = sample(counting(), [[1], [5], [8]], end_ids=[7, 12], max_new_tokens=6)
    assert result.rows() == [[2, 3, 4, 5, 6, 7], [6, 7], [9, 10, 11, 12]]
    assert result.mask.tolist() == [[True] * 6, [True] * 2 + [False] * 4, [True] * 4 + [False] * 2]
    assert result.tokens[1].tolist() == [6, 7, PAD, PAD, PAD, PAD]
    assert result.truncated.tolist() == [False, False, False]


def test_rows_that_meet_their_limit_are_truncated_and_those_that_end_on_it_are_not():
    result = sample(counting(), [[1], [2], [3]], end_ids=[5], max_new_tokens=3)
    assert result.rows() == [[2, 3, 4], [3, 4, 5], [4, 5]]
    assert result.truncated.tolist() == [True, False, False]


def test_each_prompt_has_a_limit_of_its_own():
    # After its limit a row is fed padding, behind which comes the end token 1: that is not an end of its own.
    result = sample(counting(), [[1], [2], [3]], end_ids=[1], max_new_tokens=[2, 5, 1], repeats=2)
    assert result.rows() == [[2, 3], [2, 3], [3, 4, 5, 6, 7], [3, 4, 5, 6, 7], [4], [4]]
    assert result.truncated.tolist() == [True] * 6
    assert result.tokens.shape == result.mask.shape == (6, 5)


def test_the_result_is_as_wide_as_its_longest_row():
    result = sample(counting(), [[3], [4]], end_ids=[6], max_new_tokens=12)
    assert result.tokens.shape == (2, 3) and result.mask.shape == (2, 3)


def test_the_end_token_counts_where_it_is_also_the_padding():
    result = sample(counting(), [[3], [5]], end_ids=[7], pad_id=7)
    assert result.rows() == [[4, 5, 6, 7], [6, 7]]
    assert result.mask.tolist() == [[True] * 4, [True, True, False, False]]
    assert result.tokens[1].tolist() == [6, 7, 7, 7]


def test_end_tokens_in_the_prompt_end_nothing():
    assert sample(counting(), [[7, 1, 7, 2]], end_ids=[7, 5]).rows() == [[3, 4, 5]]


def test_stop_ends_a_row_and_is_asked_about_unfinished_rows_alone():
    asked = []

    def stop(row, tokens):
        asked.append((row, list(tokens)))
        return tokens[-1] == 5

    result = sample(counting(), [[1], [4], [7]], end_ids=[9], max_new_tokens=5, stop=stop)
    assert result.rows() == [[2, 3, 4, 5], [5], [8, 9]]
    assert result.truncated.tolist() == [False, False, False]
    first, then = [(0, [2]), (1, [5]), (2, [8])], [(0, [2, 3]), (2, [8, 9]), (0, [2, 3, 4]), (0, [2, 3, 4, 5])]
    assert asked == first + then


def test_generation_ends_with_its_last_row():
    model = counting()
    sample(model, [[1], [3]], end_ids=[5], max_new_tokens=50)
    assert len(model.calls) == 4  # a prefill for the first token, and one step for each of the other three


def test_however_seldom_it_is_asked_whether_rows_have_ended_the_completions_are_the_same(qwen3, monkeypatch):
    prompts = models.random_prompts([5, 3, 8], len(qwen3.tokenizer))
    often = sample(qwen3.model, prompts, max_new_tokens=40, end_ids=range(0, len(qwen3.tokenizer), 9))
    monkeypatch.setattr(sampling, "POLL", {"cpu": 16})
    seldom = sample(qwen3.model, prompts, max_new_tokens=40, end_ids=range(0, len(qwen3.tokenizer), 9))
    assert torch.equal(often.tokens, seldom.tokens) and torch.equal(often.mask, seldom.mask)
    assert max(map(len, often.rows())) > 1 and not often.truncated.any()


def test_where_seldom_is_asked_no_step_follows_the_last_that_stop_ended(monkeypatch):
    monkeypatch.setattr(sampling, "POLL", {"cpu": 16})
    model = counting()
    result = sample(model, [[1], [2]], max_new_tokens=15, stop=lambda row, tokens: tokens[-1] == 3)
    assert result.rows() == [[2, 3], [3]]
    assert len(model.calls) == 2  # a prefill and one step
    model = counting()
    sample(model, [[1], [2]], max_new_tokens=15, end_ids=[3])
    assert len(model.calls) == 15  # nobody asked


def test_nothing_is_taken_from_the_models_own_generation_config(qwen3):
    prompts = models.random_prompts([5, 3], len(qwen3.tokenizer))
    before = sample(qwen3.model, prompts)
    config = qwen3.model.generation_config
    config.temperature, config.top_k, config.top_p, config.do_sample = 0.01, 1, 0.1, False
    config.eos_token_id, config.repetition_penalty, config.max_new_tokens = before.tokens[0, 0].item(), 100.0, 2
    assert torch.equal(sample(qwen3.model, prompts).tokens, before.tokens)
    assert not {"top_k", "top_p"} & set(inspect.signature(generate).parameters)


@pytest.mark.parametrize(
    "prompts, limit", [([], 3), ([[1], []], 3), ([[1]], 0), ([[1], [2]], [3]), ([[1], [2]], [3, 0])]
)
def test_empty_prompts_and_limits_are_refused(prompts, limit):
    with pytest.raises(ValueError):
        sample(counting(), prompts, max_new_tokens=limit)


# ---- the same whatever the way it is computed


def test_cached_greedy_equals_whole_forward_passes_token_by_token(family):
    prompts = models.random_prompts([9, 2, 14, 1], len(family.tokenizer), seed=3)
    rows = sample(family.model, prompts, temperature=0.0, max_new_tokens=10).rows()
    for prompt, row in zip(prompts, rows, strict=True):
        expected = list(prompt)
        for _ in range(10):
            expected.append(int(models.reference_logits(family.model, expected)[-1].argmax()))
        assert row == expected[len(prompt) :]


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_rows_together_equal_rows_one_by_one(family, temperature):
    """The same generator, used once for the batch or by one row after the other, whose prompts differ in length."""
    prompts = models.random_prompts([6, 11, 1, 3], len(family.tokenizer), seed=4)
    options = {"temperature": temperature, "end_ids": list(range(0, len(family.tokenizer), 7)), "max_new_tokens": 9}
    together = sample(family.model, prompts, generator=generator(5), **options)
    one_generator = generator(5)
    alone = [sample(family.model, [prompt], generator=one_generator, **options) for prompt in prompts]
    assert together.rows() == [row for result in alone for row in result.rows()]
    assert together.truncated.tolist() == [flag for result in alone for flag in result.truncated.tolist()]
    assert len({len(row) for row in together.rows()}) > 1 or temperature == 0


def test_rows_together_equal_rows_one_by_one_under_limits_of_their_own(qwen3):
    prompts, limits, one_generator = models.random_prompts([4, 5], len(qwen3.tokenizer)), [3, 6], generator(5)
    together = sample(qwen3.model, prompts, max_new_tokens=limits, generator=generator(5))
    alone = [
        sample(qwen3.model, [p], max_new_tokens=n, generator=one_generator)
        for p, n in zip(prompts, limits, strict=True)
    ]
    assert together.rows() == [row for result in alone for row in result.rows()]


@pytest.mark.parametrize("shared", [0, 7])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_rows_that_wait_for_slots_equal_rows_together(family, temperature, shared):
    """Prompts longer than what is in the cache when they join, and shorter ones; with a prefix and without."""
    beginning, *rests = models.random_prompts([max(shared, 1), 12, 9, 3, 17, 2, 5, 8, 1], len(family.tokenizer), seed=4)
    prompts = [beginning + rest for rest in rests] if shared else rests
    options = {
        "temperature": temperature,
        "end_ids": list(range(0, len(family.tokenizer), 7)),
        "max_new_tokens": [9, 4, 12, 6, 9, 1, 5, 9],
        "prefix": Prefix.of(family.model, beginning) if shared else None,
    }
    together = sample(family.model, prompts, generator=generator(5), **options)
    told = []
    for slots in (1, 60, 100, 10_000):
        few = sample(family.model, prompts, generator=generator(5), slots=slots, tick=told.append, **options)
        assert few.rows() == together.rows()
        assert few.truncated.tolist() == together.truncated.tolist()
        assert told[-1] == len(prompts) and told == sorted(set(told))
        told.clear()
    assert len({len(row) for row in together.rows()}) > 2


def test_rows_that_wait_take_the_places_of_rows_that_ended(monkeypatch):
    """Of eight replies, of 1 or 12 tokens, not quite five have room: the short ones make it while the long go on."""
    model = models.build_model("qwen3")
    steps = []
    monkeypatch.setattr(
        Decoding, "step", lambda self, token, step=Decoding.step: steps.append(len(token)) or step(self, token)
    )
    sample(model, models.random_prompts([4] * 8, 61), max_new_tokens=[12, 1, 1, 12, 12, 1, 1, 12], slots=5 * 16 - 1)
    assert max(steps) == 4
    assert sum(steps) <= 4 * 11 + 8  # the rows' own steps, and few for rows that had ended
    assert len(steps) == 3 + 11  # the last to begin is one of the long rows; without joining there are twice eleven


@given(
    rows=st.lists(st.tuples(st.integers(1, 30), st.integers(1, 30)), min_size=1, max_size=12),
    slots=st.integers(1, 400),
)
@settings(max_examples=25, phases=[Phase.generate])
def test_no_more_slots_are_used_than_may_be(rows, slots):
    model, used = models.build_model("qwen3"), []

    def step(self, token, step=Decoding.step):
        used.append(len(token) * (self.cache.length + 1))
        return step(self, token)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Decoding, "step", step)
        prompts = models.random_prompts([length for length, _ in rows], 61)
        sample(model, prompts, max_new_tokens=[limit for _, limit in rows], end_ids=range(0, 61, 20), slots=slots)
    assert max(used, default=0) <= max(slots, *(length + limit for length, limit in rows))


def test_without_a_way_to_join_waiting_rows_begin_when_all_have_ended():
    model = counting()
    result = sample(model, [[1], [2], [3], [4], [5]], end_ids=[9], slots=12, max_new_tokens=5)
    assert result.rows() == [[2, 3, 4, 5, 6], [3, 4, 5, 6, 7], [4, 5, 6, 7, 8], [5, 6, 7, 8, 9], [6, 7, 8, 9]]


@pytest.mark.parametrize("length", [1, 3])
def test_a_guess_changes_nothing_where_it_is_right_and_leaves_the_other_rows_empty(family, length):
    prompts = models.random_prompts([9, 2, 14, 5], len(family.tokenizer), seed=3)
    guess = sample(family.model, prompts, temperature=0.0).rows()[0][:length]
    ends = [token for token in range(0, len(family.tokenizer), 7) if token not in guess]
    options = {"temperature": 0.0, "end_ids": ends, "max_new_tokens": 9}
    plain = sample(family.model, prompts, **options)
    guessed = sample(family.model, prompts, guess=guess, **options)
    assert guessed.rows() == [row if row[:length] == guess else [] for row in plain.rows()]
    assert guessed.truncated[0] == plain.truncated[0]
    assert [] in guessed.rows()


def test_a_guess_is_read_with_the_prompt():
    model = counting()
    rows = sample(model, [[1], [1]], temperature=0.0, end_ids=[5], guess=[2, 3]).rows()
    assert rows == [[2, 3, 4, 5]] * 2
    assert len(model.calls) == 2  # the prompt with the guess, then 4


def test_when_no_row_begins_as_guessed_all_are_empty():
    assert sample(counting(), [[1], [5]], temperature=0.0, guess=[9]).rows() == [[], []]


@pytest.mark.parametrize("options", [{"temperature": 1.0}, {"slots": 100}, {"max_new_tokens": 2}, {"end_ids": [3]}])
def test_a_guess_that_can_not_be_checked_is_refused(options):
    with pytest.raises(ValueError, match="guessed"):
        sample(counting(), [[1]], **{"temperature": 0.0, "guess": [2, 3]} | options)


def test_prompts_with_repeats_cannot_wait(qwen3):
    with pytest.raises(ValueError, match="one completion"):
        sample(qwen3.model, [[1], [2]], repeats=2, slots=10)


def test_a_shared_prefix_changes_nothing_under_a_sliding_window():
    model = models.build_model("gemma2", sliding_window=8)
    shared, *rests = models.random_prompts([6, 1, 9], 61, seed=1)
    prompts = [shared + rest for rest in rests]
    plain = sample(model, prompts, temperature=0.0)
    assert sample(model, prompts, temperature=0.0, prefix=Prefix.of(model, shared)).rows() == plain.rows()


def test_a_shared_prefix_changes_nothing_where_all_layers_slide():
    """Mistral names no kinds of layers, and is run by its own modules."""
    settings = {"vocab_size": 61, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
    config = MistralConfig(**settings, num_attention_heads=4, num_key_value_heads=2, sliding_window=8)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = MistralForCausalLM(config).eval()
    for parameter in model.parameters():
        parameter.data *= 8  # far from uniform, so that a wrong key shows
    shared, *rests = models.random_prompts([6, 1, 9], 61, seed=1)
    prompts = [shared + rest for rest in rests]
    plain = sample(model, prompts, temperature=0.0, max_new_tokens=12)
    found = sample(model, prompts, temperature=0.0, max_new_tokens=12, prefix=Prefix.of(model, shared))
    assert found.rows() == plain.rows()


def test_repeats_are_rows_of_their_own_in_the_order_of_the_prompts(family):
    prompts = models.random_prompts([6, 2], len(family.tokenizer), seed=6)
    repeated = sample(family.model, prompts, repeats=3, generator=generator(7))
    spelled_out = sample(family.model, [prompt for prompt in prompts for _ in range(3)], generator=generator(7))
    assert repeated.rows() == spelled_out.rows()
    assert len(set(map(tuple, repeated.rows()))) == 6


def test_the_same_generator_gives_the_same_completions_and_another_gives_others(qwen3):
    prompts = models.random_prompts([6, 2], len(qwen3.tokenizer))
    first, second, other = (sample(qwen3.model, prompts, generator=generator(seed)).rows() for seed in (1, 1, 2))
    assert first == second != other


def test_the_global_generator_is_left_alone(qwen3):
    state = torch.get_rng_state()
    sample(qwen3.model, [[1, 2]], generator=generator())
    sample(qwen3.model, [[1, 2]], generator=None, temperature=0.0)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_shared_prefix_changes_nothing(family, temperature):
    shared, *rests = models.random_prompts([8, 5, 1, 9], len(family.tokenizer), seed=8)
    prompts = [shared + rest for rest in rests]
    prefix = Prefix.of(family.model, shared)
    for repeats in (1, 2):
        options = {"temperature": temperature, "repeats": repeats, "max_new_tokens": 7}
        plain = sample(family.model, prompts, generator=generator(9), **options)
        for _ in range(2):  # the prefix can be used again
            assert (
                sample(family.model, prompts, generator=generator(9), prefix=prefix, **options).rows() == plain.rows()
            )


def test_a_prefix_is_refused_where_it_does_not_stand(qwen3):
    prefix = Prefix.of(qwen3.model, [4, 5, 6])
    assert prefix.starts([4, 5, 6, 7])
    assert not prefix.starts([4, 5, 6]) and not prefix.starts([4, 5, 7, 7]) and not prefix.starts([4])
    with pytest.raises(ValueError, match="does not begin"):
        sample(qwen3.model, [[4, 5, 6, 7], [4, 5, 7, 7]], prefix=prefix)


def test_a_prefix_holds_the_keys_and_values_of_its_tokens(family):
    prefix = Prefix.of(family.model, [4, 5, 6])
    assert len(prefix.keys_values) == 2
    assert {tuple(tensor.shape) for pair in prefix.keys_values for tensor in pair} == {(1, 2, 3, 8)}
    before = [tensor.clone() for pair in prefix.keys_values for tensor in pair]
    sample(family.model, [[4, 5, 6, 7]], prefix=prefix)
    assert all(map(torch.equal, before, [tensor for pair in prefix.keys_values for tensor in pair]))
    assert not any(tensor.requires_grad for tensor in before)


@pytest.mark.parametrize("name", models.FAMILIES)
def test_with_an_adapter_and_in_half_precision(name):
    """The same loop samples from what is trained: FP16 base, FP32 adapter, under autocast; bypassed it is the base."""
    model = models.build_model(name).half()
    prompts = models.random_prompts([5, 3], 61)
    base = sample(model, prompts, temperature=0.0).rows()
    attach(model, 4, 16.0, models.TARGETS, generator=generator())
    models.fill_adapters(model, scale=0.3)
    assert sample(model, prompts, temperature=0.0).rows() != base
    with bypass(model):
        assert sample(model, prompts, temperature=0.0).rows() == base


def test_no_gradient_is_kept():
    model = counting()
    sample(model, [[1], [3]], end_ids=[5])
    assert torch.is_grad_enabled()
    assert model.calls and not any(call["gradient"] for call in model.calls)


# ---- the small parts


def test_pad_left_and_positions():
    ids, attention = pad_left([[5, 6, 7], [8]], 9, torch.device("cpu"))
    assert ids.tolist() == [[5, 6, 7], [9, 9, 8]]
    assert attention.tolist() == [[1, 1, 1], [0, 0, 1]]
    assert positions(attention).tolist() == [[0, 1, 2], [0, 0, 0]]
    assert positions(torch.tensor([[0, 1, 1, 0, 1, 0]])).tolist() == [[0, 0, 1, 1, 2, 2]]


def test_logits_that_are_not_finite_are_told(qwen3):
    qwen3.model.model.norm.weight.data[0] = float("nan")
    with pytest.raises(UserError, match="not finite"):
        sample(qwen3.model, [[1, 2]])
    with pytest.raises(UserError, match="not finite"):
        last_logits(qwen3.model, [[1, 2]], 1, 0)


def test_a_prefix_is_the_same_before_the_first_use_and_after():
    """Of few tokens the product with weights that lie otherwise in memory differs by last bits."""
    model, _ = load_model("data/tiny", "fp32", "cpu")
    tokens = [4, 5, 6]
    first = Prefix.of(model, tokens)
    sample(model, [[1, 2]])
    for one, other in zip(first.keys_values, Prefix.of(model, tokens).keys_values, strict=True):
        assert all(map(torch.equal, one, other))
