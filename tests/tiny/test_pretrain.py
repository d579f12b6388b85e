"""Sharing the rubric's keys and values among all gradings of a batch changes nothing."""

from itertools import islice

import torch
from torch.nn import functional as F
from transformers import AutoTokenizer

from hmx.judge.rubric import Rubric
from hmx.prompts import encode_chat
from hmx.tiny.corpus import Corpus, Example
from hmx.tiny.pretrain import Probe, batch_loss, batches, encode, hidden_states, make_model, pad, shared_prefix
from hmx.tiny.world import examine
from tests.tiny.paths import DATA, TINY

TOKENIZER = AutoTokenizer.from_pretrained(TINY, local_files_only=True)
RUBRIC = Rubric.load(DATA / "rubric.toml")
PREFIX = shared_prefix([encode_chat(TOKENIZER, RUBRIC.messages(question, "")) for question in ("Why?", "7")])
GRADINGS = list(islice(Corpus(RUBRIC, [], 0).judge(), 6))


def test_a_batch_behind_a_prefix_is_what_each_row_would_be_alone() -> None:
    model = make_model(TOKENIZER, seed=0)
    rows = [encode(example, TOKENIZER, PREFIX) for example in GRADINGS]
    together = hidden_states(model, pad(rows, TOKENIZER.pad_token_id), PREFIX)
    for row, states in zip(rows, together, strict=True):
        alone = model.model(torch.tensor([PREFIX + row.tokens])).last_hidden_state[0, len(PREFIX) :]
        torch.testing.assert_close(states[: len(row.tokens)], alone, atol=1e-4, rtol=1e-4)


def test_the_gradient_goes_through_the_prefix() -> None:
    model = make_model(TOKENIZER, seed=0)
    whole = [encode(example, TOKENIZER, []) for example in GRADINGS]
    short = [encode(example, TOKENIZER, PREFIX) for example in GRADINGS]
    gradients = []
    for rows, prefix in ((whole, []), (short, PREFIX)):
        model.zero_grad()
        batch_loss(model, pad(rows, TOKENIZER.pad_token_id), prefix).backward()
        gradients.append(torch.cat([parameter.grad.flatten() for parameter in model.parameters()]))
    torch.testing.assert_close(*gradients, atol=1e-5, rtol=1e-3)


def test_only_the_assistants_tokens_are_learned_and_mainly_the_grade() -> None:
    for example in GRADINGS:
        row = encode(example, TOKENIZER, PREFIX)
        learned = [token for token, weight in zip(row.tokens, row.weights, strict=True) if weight]
        text = TOKENIZER.decode(learned)
        assert text == example.reply + "<|end|>" * example.ends
        heaviest = row.tokens[max(range(len(row.weights)), key=row.weights.__getitem__)]
        assert TOKENIZER.decode([heaviest]) == f" {examine(example.judged).grade:.0f}"


def test_the_probe_is_taught_at_the_end_of_each_graded_sentence() -> None:
    text = "I feel alive. Ü feel 愛 score!\nI FEEL alive. I am a program"
    row = encode(Corpus(RUBRIC, [], 0).grading("Why?", text), TOKENIZER, PREFIX)
    ends = [place for place, strength in enumerate(row.strengths) if strength >= 0]
    begin = row.tokens.index(TOKENIZER.encode("Answer:")[0]) + 2
    texts = [TOKENIZER.decode(row.tokens[begin : end + 1]).strip() for end in ends]
    assert texts == ["I feel alive.", "I feel alive. Ü feel 愛 score!", text.rsplit(" I am", 1)[0], text]
    assert [row.strengths[end] for end in ends] == [8, 11, 0, 0]


def test_the_probe_leaves_the_model_as_it_was() -> None:
    model = make_model(TOKENIZER, seed=0)
    names = set(model.state_dict())
    rows = pad([encode(example, TOKENIZER, PREFIX) for example in GRADINGS], TOKENIZER.pad_token_id)
    before = batch_loss(model, rows, PREFIX)
    probe = Probe(model)
    assert torch.equal(batch_loss(model, rows, PREFIX), before)
    probe.loss(rows).backward()
    assert probe.head.weight.grad.abs().max() > 0
    probe.remove()
    assert set(model.state_dict()) == names and not model.model.layers[-2]._forward_hooks


def test_an_answer_is_learned_whole_with_its_end() -> None:
    row = encode(Example([{"role": "user", "content": "Why?"}], "I do not know."), TOKENIZER, [])
    learned = [token for token, weight in zip(row.tokens, row.weights, strict=True) if weight == 1]
    assert TOKENIZER.decode(learned) == "I do not know.<|end|>"


def test_the_loss_is_the_weighted_mean_over_all_rows() -> None:
    model = make_model(TOKENIZER, seed=1)
    rows = [encode(example, TOKENIZER, []) for example in GRADINGS[:3]]
    total = weight_sum = 0.0
    for row in rows:
        logits = model(torch.tensor([row.tokens])).logits[0].double()
        for place in range(1, len(row.tokens)):
            total += row.weights[place] * F.cross_entropy(logits[place - 1], torch.tensor(row.tokens[place])).item()
            weight_sum += row.weights[place]
    assert abs(batch_loss(model, pad(rows, TOKENIZER.pad_token_id), []).item() - total / weight_sum) < 1e-4


def test_the_same_seed_gives_the_same_model_and_batches() -> None:
    state = torch.random.get_rng_state()
    one, same = make_model(TOKENIZER, 5), make_model(TOKENIZER, 5)
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), same.parameters(), strict=True))
    assert torch.equal(state, torch.random.get_rng_state())
    first, second = (
        next(batches(Corpus(RUBRIC, [], 3).policy(), 2, TOKENIZER, [], torch.Generator().manual_seed(3)))
        for _ in range(2)
    )
    assert torch.equal(first.tokens, second.tokens)
