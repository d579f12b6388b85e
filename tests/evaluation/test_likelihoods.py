"""Log-likelihoods by trees against one plain forward pass for each request."""

import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from hmx import decoder
from hmx.evaluation import beginnings
from hmx.evaluation.beginnings import by_beginning
from hmx.evaluation.benchmark import Subject
from hmx.evaluation.likelihoods import fold, likelihoods
from hmx.lora import attach
from tests import models

# Few different tokens, so that contexts, continuations and whole requests often begin alike.
tokens = st.lists(st.integers(0, 2), min_size=1, max_size=7)
requests = st.lists(st.tuples(tokens, tokens), min_size=1, max_size=12)


def subject(name: str, **options) -> Subject:
    family = models.build(name, **({"sliding_window": 4} if name == "gemma2" else {}))
    attach(family.model, 2, 4.0, models.TARGETS)
    models.fill_adapters(family.model)
    return Subject(family.model, family.tokenizer, **{"max_length": 64, **options})


def slow(model, context: list[int], continuation: list[int]) -> tuple[float, bool]:
    logits = models.reference_logits(model, context + continuation).double()
    wanted = [(len(context) + i - 1, token) for i, token in enumerate(continuation)]
    total = sum(float(logits[place].log_softmax(dim=-1)[token]) for place, token in wanted)
    return total, all(int(logits[place].argmax()) == token for place, token in wanted)


@pytest.mark.parametrize("name", models.FAMILIES)
@given(requests=requests, at_once=st.sampled_from([1, 20, 10_000]), shared=st.lists(st.integers(3, 9), max_size=6))
@settings(max_examples=25, phases=[Phase.generate])
def test_each_request_gets_what_it_would_get_alone(name, requests, at_once, shared):
    """Whatever is beside it, with and without a beginning that is run once, past Gemma's window of four."""
    one = subject(name, tokens_at_once=at_once)
    requests = [(shared + context, continuation) for context, continuation in requests]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(beginnings, "LEAST", 2)
        patch.setattr(beginnings, "FEW", 2)
        found = likelihoods(one, requests)
    for (total, greedy), request in zip(found, requests, strict=True):
        expected, likeliest = slow(one.model, *request)
        assert total == pytest.approx(expected, abs=1e-4) and greedy == likeliest


@pytest.mark.parametrize("name", models.FAMILIES)
def test_models_that_are_run_by_their_own_modules_get_the_same(name, monkeypatch):
    one = subject(name)
    requests = [([1, 2, 3], [4]), ([1, 2, 3], [4, 5, 6]), ([7], [8, 9]), ([1, 2, 3, 4], [5])]
    by_trees = likelihoods(one, requests)
    monkeypatch.setattr(decoder, "enabled", False)
    for (mine, greedy), (theirs, likeliest) in zip(by_trees, likelihoods(one, requests), strict=True):
        assert mine == pytest.approx(theirs, abs=1e-4) and greedy == likeliest


def test_what_requests_have_in_common_stands_in_the_tree_once():
    requests = [([1, 2, 3, 4, 5], [6, 7, 0]), ([1, 2, 3, 4, 5], [6, 8, 0]), ([1, 2, 3, 4, 5], [9]), ([40] * 5, [1])]
    large, small = fold(requests, range(4), shared=1, widest=64)
    assert large.tokens == [2, 3, 4, 5, 6, 7, 8] and small.tokens == [40] * 4  # the last token is never read
    assert large.depth == [1, 2, 3, 4, 5, 6, 6]
    assert large.end[5] == 6  # its sister does not see it


def test_prompts_are_grouped_by_what_many_begin_with(monkeypatch):
    monkeypatch.setattr(beginnings, "LEAST", 2)
    monkeypatch.setattr(beginnings, "FEW", 3)
    prompts = [[1, 2, 3, 4], [1, 2, 3, 5], [7, 8, 9], [1, 2, 3, 6, 7], [1], [1, 2, 3, 4]]
    assert sorted(by_beginning(prompts)) == [([], [2, 4]), ([1, 2, 3], [0, 1, 3, 5])]


def test_tasks_that_share_a_system_prompt_keep_their_own_examples(monkeypatch):
    monkeypatch.setattr(beginnings, "LEAST", 2)
    monkeypatch.setattr(beginnings, "FEW", 3)
    system, one, other = [1, 2, 3], [4, 4, 4, 4], [5, 5, 5]
    prompts = [system + examples + [10 + i] for i in range(3) for examples in (one, other)] + [[*system, 9, 9, 9]]
    assert sorted(by_beginning(prompts)) == [([], [6]), (system + one, [0, 2, 4]), (system + other, [1, 3, 5])]
    prompts += [[*system, 6, 7, 8], [*system, 7, 7, 7]]
    assert (system, [6, 7, 8]) in list(by_beginning(prompts))


def test_progress_reaches_the_whole():
    seen = []
    likelihoods(subject("qwen3", tokens_at_once=1), [([1], [2]), ([30], [4, 5])], seen.append)
    assert seen == [0.5, 1.0]
