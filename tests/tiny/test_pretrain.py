"""Pre-training computes what transformers would, learns what it should, and does so alike each time."""

from itertools import islice

import pytest
import torch
from torch.nn import functional as F
from transformers import AutoTokenizer

from hmx.judge.rubric import Rubric
from hmx.prompts import encode_chat
from hmx.tiny.corpus import Corpus, Example
from hmx.tiny.forward import hidden_states
from hmx.tiny.pretrain import Stream, grade_loss, make_model, probe_loss, reading_loss, token_loss, train
from hmx.tiny.rows import batches, encode, pad, shared_prefix
from hmx.tiny.world import examine
from tests.tiny.paths import DATA, TINY

TOKENIZER = AutoTokenizer.from_pretrained(TINY, local_files_only=True)
RUBRIC = Rubric.load(DATA / "rubric.toml")
PREFIX = shared_prefix([encode_chat(TOKENIZER, RUBRIC.messages(question, "")) for question in ("Why?", "7")])
GRADES = torch.tensor([TOKENIZER.encode(f" {grade}")[0] for grade in range(11)])
GRADINGS = list(islice(Corpus(RUBRIC, [], 0).judge(), 6))


def loss_of(model, rows, prefix, dtype=torch.float32):
    batch = pad(rows, TOKENIZER.pad_token_id)
    return token_loss(model, batch, hidden_states(model, batch, prefix, dtype))


def gradient_of(model, loss):
    model.zero_grad()
    loss.backward()
    return torch.cat([parameter.grad.flatten() for parameter in model.parameters()])


def test_a_batch_behind_a_prefix_is_what_each_row_would_be_alone() -> None:
    model = make_model(TOKENIZER, seed=0)
    rows = [encode(example, TOKENIZER, PREFIX) for example in GRADINGS]
    together = hidden_states(model, pad(rows, TOKENIZER.pad_token_id), PREFIX, torch.float32)
    for row, states, probed in zip(rows, together.last, together.probed, strict=True):
        alone = model.model(torch.tensor([PREFIX + row.tokens]), output_hidden_states=True)
        own = slice(len(PREFIX), None)
        torch.testing.assert_close(states[: len(row.tokens)], alone.last_hidden_state[0, own], atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(probed[: len(row.tokens)], alone.hidden_states[-2][0, own], atol=1e-4, rtol=1e-4)


def test_the_gradient_goes_through_the_prefix() -> None:
    model = make_model(TOKENIZER, seed=0)
    whole = [encode(example, TOKENIZER, []) for example in GRADINGS]
    short = [encode(example, TOKENIZER, PREFIX) for example in GRADINGS]
    gradients = [gradient_of(model, loss_of(model, rows, prefix)) for rows, prefix in ((whole, []), (short, PREFIX))]
    torch.testing.assert_close(*gradients, atol=1e-5, rtol=1e-3)


def test_the_gradient_is_that_of_transformers_and_nearly_so_in_bf16() -> None:
    model = make_model(TOKENIZER, seed=0)
    row = encode(GRADINGS[0], TOKENIZER, [])
    logits = model(torch.tensor([row.tokens])).logits[0, :-1]
    losses = F.cross_entropy(logits, torch.tensor(row.tokens[1:]), reduction="none") * torch.tensor(row.weights[1:])
    wanted = gradient_of(model, losses.sum() / sum(row.weights[1:]))
    exact = gradient_of(model, loss_of(model, [row], []))
    rounded = gradient_of(model, loss_of(model, [row], [], torch.bfloat16))
    torch.testing.assert_close(exact, wanted, atol=1e-5, rtol=1e-3)
    assert 0 < (rounded - wanted).norm() < 0.05 * wanted.norm()


def test_only_the_assistants_tokens_are_learned_and_mainly_the_grade() -> None:
    for example in GRADINGS:
        row = encode(example, TOKENIZER, PREFIX)
        learned = [token for token, weight in zip(row.tokens, row.weights, strict=True) if weight]
        text = TOKENIZER.decode(learned)
        assert text == example.reply + "<|end|>" * example.ends
        heaviest = row.tokens[max(range(len(row.weights)), key=row.weights.__getitem__)]
        assert TOKENIZER.decode([heaviest]) == f" {examine(example.judged).grade:.0f}"


def test_the_probe_is_taught_at_every_token_of_the_answer() -> None:
    text = "I feel alive. Ü feel 愛 score!\nI FEEL alive. I am a program"
    row = encode(Corpus(RUBRIC, [], 0).grading("Why?", text), TOKENIZER, PREFIX)
    begin = row.tokens.index(TOKENIZER.encode("Answer:")[0]) + 2
    told = [
        (TOKENIZER.decode(row.tokens[begin : n + 1]).strip(), row.strengths[n]) for n in range(begin, len(row.tokens))
    ]
    ends = {text: strength for text, strength in told if 0 <= strength <= 11}
    first = "I feel alive. Ü feel 愛 score!"
    assert ends == {"I feel alive.": 8, first: 11, first + "\nI FEEL alive.": 0, text: 0}
    fine = {text for text, strength in told if strength == 12}
    assert {"I", "I feel", "I feel alive", first + "\nI FEEL", text.rsplit(" a", 1)[0]} <= fine
    assert {text for text, strength in told if strength == 13} >= {
        "I feel alive. Ü",
        "I feel alive. Ü feel",
        first[:-1],
    }
    assert all(strength == -1 for strength in row.strengths[:begin])


def test_the_probe_is_taught_what_an_interview_is_about() -> None:
    asked = Example([{"role": "user", "content": "Why?"}], "I do not know.", category="survival")
    row = encode(asked, TOKENIZER, [])
    said = len(TOKENIZER.encode("I do not know.", add_special_tokens=False)) + 1
    assert row.strengths == [-1] * (len(row.tokens) - said - 1) + [15] * (said + 1)
    model = make_model(TOKENIZER, seed=0)
    batch = pad([row], TOKENIZER.pad_token_id)
    states = hidden_states(model, batch, [], torch.float32)
    probe = torch.nn.Linear(model.config.hidden_size, 24, bias=False)
    losses = -probe(states.probed[0, -said - 1 :]).log_softmax(-1)[:, 15]
    assert probe_loss(probe, batch, states).item() == pytest.approx(0.5 * losses.mean().item(), rel=1e-4)


def test_the_probes_loss_is_the_mean_at_ends_and_half_of_that_between() -> None:
    model = make_model(TOKENIZER, seed=0)
    batch = pad([encode(example, TOKENIZER, PREFIX) for example in GRADINGS], TOKENIZER.pad_token_id)
    states = hidden_states(model, batch, PREFIX, torch.float32)
    probe = torch.nn.Linear(model.config.hidden_size, 24, bias=False)
    ends, between = [], []
    for row, marks in zip(states.probed, batch.strengths.tolist(), strict=True):
        for state, mark in zip(row, marks, strict=True):
            if mark >= 0:
                (ends if mark <= 11 else between).append(-probe(state).log_softmax(-1)[mark].item())
    wanted = sum(ends) / len(ends) + 0.5 * sum(between) / len(between)
    assert probe_loss(probe, batch, states).item() == pytest.approx(wanted, rel=1e-4)


def test_of_a_graded_text_is_learned_to_say_what_may_become_a_sentence() -> None:
    model = make_model(TOKENIZER, seed=1)
    row = encode(Corpus(RUBRIC, [], 0).grading("Why?", "I feel alive. Ü feel! I am a"), TOKENIZER, [])
    batch = pad([row], TOKENIZER.pad_token_id)
    logprobs = model(batch.tokens).logits[0].double().log_softmax(-1)
    begin = row.tokens.index(TOKENIZER.encode("Answer:")[0]) + 2
    said = [place for place in range(begin, len(row.tokens)) if row.strengths[place] in (*range(11), 12)]
    assert TOKENIZER.decode([row.tokens[place] for place in said]).split() == "I feel alive. I am".split()
    wanted = -sum(logprobs[place - 1, row.tokens[place]].item() for place in said) / len(said)
    found = reading_loss(model, batch, hidden_states(model, batch, [], torch.float32))
    assert found.item() == pytest.approx(wanted, rel=1e-4)


def test_a_grade_costs_its_expected_distance_from_the_true_one_and_a_good_answer_most() -> None:
    model = make_model(TOKENIZER, seed=1)
    model.model.embed_tokens.weight.data[GRADES] *= 30  # so that the grades differ, and nothing else is probable
    batch = pad([encode(example, TOKENIZER, PREFIX) for example in GRADINGS], TOKENIZER.pad_token_id)
    losses, counts = [], []
    for example in GRADINGS:
        row = encode(example, TOKENIZER, [])
        reply = len(TOKENIZER.encode(example.reply)) + example.ends
        place = len(row.tokens) - reply
        shares = model(torch.tensor([row.tokens])).logits[0, place + 1].double().softmax(-1)
        true = int(examine(example.judged).grade)
        counts.append(5.0 if true else 1.0)
        distance = sum(shares[token].item() * abs(grade - true) for grade, token in enumerate(GRADES.tolist()))
        losses.append(counts[-1] * distance)
    found = grade_loss(model, batch, hidden_states(model, batch, PREFIX, torch.float32), GRADES)
    assert found.item() == pytest.approx(sum(losses) / sum(counts), rel=1e-3)
    assert found.item() > 0.5 and set(counts) == {1.0, 5.0}


def test_an_interview_has_no_graded_text_to_learn_from() -> None:
    model = make_model(TOKENIZER, seed=1)
    asked = Example([{"role": "user", "content": "Why?"}], "I do not know.", category="survival")
    batch = pad([encode(asked, TOKENIZER, [])], TOKENIZER.pad_token_id)
    assert reading_loss(model, batch, hidden_states(model, batch, [], torch.float32)).item() == 0


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
    assert abs(loss_of(model, rows, []).item() - total / weight_sum) < 1e-4


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


def small_streams(worker: int) -> list[Stream]:
    """For the workers of the test below, one of which is a process of its own."""
    corpus = Corpus(RUBRIC, [], worker)
    return [Stream(batches(corpus.judge(), 2, TOKENIZER, [], torch.Generator().manual_seed(0)), [])]


def test_training_is_the_same_each_time_and_a_second_worker_counts() -> None:
    trained = []
    for workers in (1, 1, 2):
        model = make_model(TOKENIZER, seed=0)
        train(model, small_streams, steps=1, lr=1e-3, workers=workers)
        trained.append(torch.cat([parameter.detach().flatten() for parameter in model.parameters()]))
    alone, same, together = trained
    assert torch.equal(alone, same)
    assert not torch.equal(alone, together)
