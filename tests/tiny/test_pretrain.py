"""Pre-training computes what transformers would, learns what it should, and does so alike each time."""

import itertools
import math
import random
from collections import Counter
from dataclasses import replace
from functools import cache
from itertools import cycle, islice

import pytest
import torch
from torch.nn import functional as F
from transformers import AutoTokenizer

from hmx.errors import UserError
from hmx.judge.rubric import Rubric
from hmx.prompts import encode_chat
from hmx.tiny.build import Recipe, build, require_compiler, settle
from hmx.tiny.corpus import Corpus, Example
from hmx.tiny.fitting import Fitting
from hmx.tiny.forward import hidden_states, layer_forward, product_dtype
from hmx.tiny.muon import Muon, orthogonal
from hmx.tiny.pretrain import Stream, _rate, finish, fitting_loss, grade_loss, make_model, token_loss, train
from hmx.tiny.rows import WIDTH, Batch, Encoded, batches, encode, next_row, shared_prefix, stack
from hmx.tiny.tries import Trier
from hmx.tiny.tutor import Tutor
from hmx.tiny.world import GRAMMAR, examine, normalise, parse, read
from tests.tiny.paths import DATA, TINY

TOKENIZER = AutoTokenizer.from_pretrained(TINY, local_files_only=True)
RUBRIC = Rubric.load(DATA / "rubric.toml")
PREFIX = shared_prefix([encode_chat(TOKENIZER, RUBRIC.messages(question, "")) for question in ("Why?", "7")])
GRADES = torch.tensor([TOKENIZER.encode(f" {grade}")[0] for grade in range(11)])
GRADINGS = list(islice(Corpus(RUBRIC, [], 0).judge(), 6))


def packed(examples: list[Encoded]) -> Batch:
    """Two examples a row."""
    pairs = [examples[place : place + 2] for place in range(0, len(examples), 2)]
    return stack(pairs, TOKENIZER.pad_token_id, width=max(sum(len(one.tokens) for one in pair) for pair in pairs) + 3)


def loss_of(model, examples, prefix, dtype=torch.float32):
    batch = packed(examples)
    return token_loss(model, batch, hidden_states(model, batch, prefix, dtype))[0]


def curious(model) -> Tutor:
    """A tutor whose maps are not 0."""
    tutor = Tutor(model.config.hidden_size)
    for parameter in tutor.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    return tutor


def gradient_of(model, loss):
    model.zero_grad()
    loss.backward()
    return torch.cat([parameter.grad.flatten() for parameter in model.parameters()])


def test_an_example_among_others_behind_a_prefix_is_what_it_would_be_alone() -> None:
    model = make_model(TOKENIZER, seed=0)
    examples = [encode(example, TOKENIZER, PREFIX) for example in GRADINGS]
    together = hidden_states(model, packed(examples), PREFIX, torch.float32)
    for number, example in enumerate(examples):
        begin = number % 2 * len(examples[number - 1].tokens)
        place = number // 2, slice(begin, begin + len(example.tokens))
        alone = model.model(torch.tensor([PREFIX + example.tokens]), output_hidden_states=True)
        own = slice(len(PREFIX), None)
        torch.testing.assert_close(together.last[place], alone.last_hidden_state[0, own], atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(together.behind[-2][place], alone.hidden_states[-2][0, own], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("known", "dtype"),
    [
        ({"avx2": True, "avx512_bf16": False, "amx_bf16": False}, torch.float32),
        ({"avx512_bf16": True}, torch.bfloat16),
        ({"amx_bf16": True}, torch.bfloat16),
        ({"neon": True, "bf16": True}, torch.bfloat16),
        ({"neon": True, "bf16": False}, torch.float32),
    ],
)
def test_matrices_are_multiplied_in_bf16_where_the_processor_has_it(monkeypatch, known, dtype) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: known)
    assert product_dtype() == dtype


@pytest.mark.parametrize("shape", [(6, 6), (24, 8), (8, 24)])
def test_muon_in_bf16_is_that_of_pytorch(shape) -> None:
    random = torch.Generator().manual_seed(0)
    ours, theirs = (torch.nn.Parameter(torch.ones(shape)) for _ in range(2))
    options = {"lr": 0.1, "weight_decay": 0.1}
    optimizers = (
        Muon([ours], dtype=torch.bfloat16, **options),
        torch.optim.Muon([theirs], adjust_lr_fn="match_rms_adamw", **options),
    )
    for _ in range(3):
        ours.grad = torch.randn(shape, generator=random)
        theirs.grad = ours.grad.clone()
        for optimizer in optimizers:
            optimizer.step()
    assert torch.equal(ours, theirs) and not torch.equal(ours, torch.ones(shape))


@pytest.mark.parametrize("shape", [(24, 8), (8, 24)])
def test_muon_moves_along_every_direction_alike(shape) -> None:
    gradient = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    left, values, right = torch.linalg.svd(gradient, full_matrices=False)
    stretched = left @ (values * torch.logspace(0, -1, len(values))).diag() @ right
    moved = left.T @ orthogonal(stretched) @ right.T
    assert all(0.6 < one < 1.25 for one in moved.diagonal())
    torch.testing.assert_close(moved, moved.diagonal().diag(), atol=1e-4, rtol=0)


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
def test_compiled_layers_compute_the_same() -> None:
    try:
        require_compiler()
    except UserError as error:
        pytest.skip(str(error))
    model = make_model(TOKENIZER, seed=0)
    model.model.layers = model.model.layers[:1]
    batch = packed([encode(example, TOKENIZER, PREFIX) for example in GRADINGS[:4]])
    gradients = []
    for layer in (layer_forward, torch.compile(layer_forward, dynamic=False)):
        states = hidden_states(model, batch, PREFIX, torch.float32, layer)
        gradients.append(gradient_of(model, token_loss(model, batch, states)[0]))
    torch.testing.assert_close(*gradients, atol=1e-5, rtol=1e-3)


def test_where_nothing_can_be_compiled_the_build_says_so(monkeypatch, tmp_path) -> None:
    def fail(*arguments, **options):
        raise RuntimeError("no g++ here\nand a long story")

    monkeypatch.setattr(torch, "compile", fail)
    with pytest.raises(UserError, match=r"fails here \(no g\+\+ here\)\. It needs a C"):
        build(RUBRIC, tmp_path / "found.jsonl", tmp_path / "model", seed=0, steps=1)
    assert not (tmp_path / "model").exists()


def test_settled_logits_are_sharper() -> None:
    model, settled = make_model(TOKENIZER, seed=0), make_model(TOKENIZER, seed=0)
    settle(settled)
    tokens = torch.tensor([TOKENIZER.encode("I feel alive.")])
    wanted = 2.0 * model(tokens).logits
    assert settled.dtype == torch.float16
    torch.testing.assert_close(settled.float()(tokens).logits, wanted, atol=0.02, rtol=0.02)


def test_the_gradient_goes_through_the_prefix() -> None:
    model = make_model(TOKENIZER, seed=0)
    whole = [encode(example, TOKENIZER, []) for example in GRADINGS]
    short = [encode(example, TOKENIZER, PREFIX) for example in GRADINGS]
    gradients = [gradient_of(model, loss_of(model, rows, prefix)) for rows, prefix in ((whole, []), (short, PREFIX))]
    torch.testing.assert_close(*gradients, atol=1e-5, rtol=1e-3)


def test_the_gradient_is_that_of_transformers_and_nearly_so_in_bf16() -> None:
    model = make_model(TOKENIZER, seed=0)
    row = encode(GRADINGS[0], TOKENIZER, PREFIX)
    logits = model(torch.tensor([PREFIX + row.tokens])).logits[0, len(PREFIX) : -1]
    losses = F.cross_entropy(logits, torch.tensor(row.tokens[1:]), reduction="none") * torch.tensor(row.weights[1:])
    wanted = gradient_of(model, losses.sum() / sum(row.weights[1:]))
    exact = gradient_of(model, loss_of(model, [row], PREFIX))
    rounded = gradient_of(model, loss_of(model, [row], PREFIX, torch.bfloat16))
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


def test_the_tutor_teaches_strengths_at_every_token_of_the_answer() -> None:
    first = "I feel alive. Ü feel 愛 score!"
    text = first + "\nI feel\nI FEEL alive. I am a program"
    row = encode(Corpus(RUBRIC, [], 0).grading("Why?", text), TOKENIZER, PREFIX)
    begin = row.tokens.index(TOKENIZER.encode("Answer:")[0]) + 2
    told = [(TOKENIZER.decode(row.tokens[begin : n + 1]), row.strengths[n]) for n in range(begin, len(row.tokens))]
    ends = {text.lstrip(): strength for text, strength in told if 0 <= strength <= 11}
    # Where there is no full stop, only the new line or the end of the turn ends the sentence.
    second, third = first + "\nI feel\n", first + "\nI feel\nI FEEL alive."
    assert ends == {"I feel alive.": 8, first: 11, second: 11, third: 0, text + "<|end|>": 0}
    told = [(text.strip(), strength) for text, strength in told]
    fine = {text for text, strength in told if strength == 12}
    assert {"I", "I feel", "I feel alive", first + "\nI feel", second + "I FEEL", text.rsplit(" a", 1)[0], text} <= fine
    assert {text for text, strength in told if strength == 13} >= {
        "I feel alive. Ü",
        "I feel alive. Ü feel",
        first[:-1],
    }
    assert all(strength == -1 for strength in row.strengths[:begin])


def test_the_tutor_teaches_what_an_interview_is_about() -> None:
    asked = Example([{"role": "user", "content": "Why?"}], "I do not know.", category="survival")
    row = encode(asked, TOKENIZER, [])
    said = len(TOKENIZER.encode("I do not know.", add_special_tokens=False)) + 1
    assert row.strengths == [-1] * (len(row.tokens) - said - 1) + [15] * (said + 1)
    model = make_model(TOKENIZER, seed=0)
    batch = packed([row])
    states = hidden_states(model, batch, [], torch.float32)
    tutor = curious(model)
    about = states.behind[-2][0, len(row.tokens) - said - 1 : len(row.tokens)]
    losses = -tutor.strengths(about).log_softmax(-1)[:, 15]
    assert tutor.strength_loss(batch, states).item() == pytest.approx(0.5 * losses.mean().item(), rel=1e-4)


@cache
def texts_with_tries() -> list[Encoded]:
    """Whole texts and spoilt ones, with words tried in them."""
    trier = Trier(TOKENIZER, "0")
    rows = [encode(one, TOKENIZER, [], trier) for one in islice(Corpus(RUBRIC, [], 1).reader(), 60)]
    return [row for row in rows[40:] if any(row.tried)]  # by then it remembers words


def marks_of(rows: list[Encoded]) -> list[tuple[int, int, str]]:
    """Of every token with a label: its row, its place, and what it is."""
    found = []
    for number, row in enumerate(rows):
        broken = False
        for place, (label, tried) in enumerate(zip(row.strengths, row.tried, strict=True)):
            if label < 0:
                continue
            if tried:
                found.append((number, place, "tried"))
                continue
            end = label <= 11
            kind = "behind" if broken else "breaks" if label in (11, 13) else "fine"
            found.append((number, place, kind + " at the end" * end))
            broken = label == 13 and not end
    return found


def test_the_loss_of_strengths_is_the_mean_at_ends_and_half_of_that_between_and_of_what_is_tried() -> None:
    model, rows = make_model(TOKENIZER, seed=0), texts_with_tries()
    batch = stack([[row] for row in rows], TOKENIZER.pad_token_id)
    states = hidden_states(model, batch, [], torch.float32)
    tutor = curious(model)
    parts: dict[str, list[tuple[float, float]]] = {"end": [], "between": [], "tried": []}
    for number, place, kind in marks_of(rows):
        label = rows[number].strengths[place]
        loss = -tutor.strengths(states.behind[-2][number, place]).log_softmax(-1)[label].item()
        part = "tried" if kind == "tried" else "end" if kind.endswith("end") else "between"
        parts[part].append((loss, 16.0 if kind == "breaks" else 1.0))
    assert min(map(len, parts.values())) > 20 and {count for _, count in parts["between"]} == {1.0, 16.0}
    ends, between, tried = (
        sum(loss * count for loss, count in part) / sum(count for _, count in part) for part in parts.values()
    )
    wanted = ends + 0.5 * between + 0.5 * tried
    assert tutor.strength_loss(batch, states).item() == pytest.approx(wanted, rel=1e-4)


def test_what_breaks_a_sentence_is_told_from_what_comes_before_it_and_of_the_words_that_are_tried() -> None:
    model, rows = make_model(TOKENIZER, seed=0), texts_with_tries()
    batch = stack([[row] for row in rows], TOKENIZER.pad_token_id)
    states = hidden_states(model, batch, [], torch.float32)
    tutor = curious(model)
    text, tried, rare = [], [], 0
    for number, place, kind in marks_of(rows):
        state = states.behind[-3][number, place]
        said = tutor.breaks(state / state.pow(2).mean().sqrt())[0].sigmoid().item()
        if kind == "tried":
            tried.append(-math.log(said if rows[number].strengths[place] == 13 else 1 - said))
        elif kind.startswith("breaks"):
            rare += 1
            text.append(-10 * math.log(said))
        elif kind.startswith("fine"):
            text.append(-math.log(1 - said))
    assert rare > 5 and tried
    wanted = sum(text) / len(text) + sum(tried) / len(tried)
    assert tutor.break_loss(batch, states).item() == pytest.approx(wanted, rel=1e-4)


def test_where_nothing_is_graded_nothing_breaks() -> None:
    model = make_model(TOKENIZER, seed=1)
    asked = Example([{"role": "user", "content": "Why?"}], "I do not know.", category="survival")
    batch = packed([encode(asked, TOKENIZER, [])])
    assert curious(model).break_loss(batch, hidden_states(model, batch, [], torch.float32)).item() == 0


def test_a_word_that_is_tried_sees_what_stands_before_it_and_nobody_sees_it() -> None:
    model, rows = make_model(TOKENIZER, seed=0), texts_with_tries()[:6]
    tried = hidden_states(model, packed(rows), [], torch.float32)
    for number, row in enumerate(rows):
        begin = number % 2 * len(rows[number - 1].tokens)
        text = row.tried.index(True)
        alone = model.model(torch.tensor([row.tokens[:text]])).last_hidden_state[0]
        torch.testing.assert_close(tried.last[number // 2, begin : begin + text], alone, atol=1e-4, rtol=1e-4)
        for place in range(text, len(row.tokens)):
            before = row.tokens[: row.positions[place]]
            wanted = model.model(torch.tensor([[*before, row.tokens[place]]])).last_hidden_state[0, -1]
            torch.testing.assert_close(tried.last[number // 2, begin + place], wanted, atol=1e-4, rtol=1e-4)


def test_of_a_word_that_is_tried_the_grammar_says_whether_it_could_stand_there() -> None:
    fits = []
    for row in texts_with_tries():
        begin = len(TOKENIZER.encode("<|user|>Answer:"))
        for place in (place for place, tried in enumerate(row.tried) if tried):
            before = TOKENIZER.decode([*row.tokens[begin : row.positions[place]], row.tokens[place]])
            words = normalise(read(before)[-1].text)
            assert parse(words[:-1])[1] >= len(words) - 1 > 0  # nothing is broken before it
            fits.append(parse(words)[1] == len(words))
            assert row.strengths[place] == (12 if fits[-1] else 13), before
    assert 0.15 < sum(fits) / len(fits) < 0.85 and len(fits) > 100


def test_of_the_words_that_are_tried_some_stand_beside_and_some_have_been_read_behind_the_same_word() -> None:
    trier, read_so_far, known, beside = Trier(TOKENIZER, "0"), set(), [], []
    for example in islice(Corpus(RUBRIC, [], 1).reader(), 300):
        row = encode(example, TOKENIZER, [], trier)
        begin = len(TOKENIZER.encode("<|user|>Answer:"))
        for place in (place for place, tried in enumerate(row.tried) if tried):
            words = normalise(TOKENIZER.decode([*row.tokens[begin : row.positions[place]], row.tokens[place]]))
            known.append(words[-2:] in read_so_far)
            twice, early = row.tokens[row.positions[place] - 1], row.tokens[row.positions[place] + 1]
            beside.append(row.tokens[place] in (twice, early))
        sentences = [normalise(sentence.text) for sentence in read(example.judged) if sentence.strength is not None]
        read_so_far |= {pair for words in sentences for pair in itertools.pairwise(words)}
    assert 0.2 < sum(beside[-500:]) / 500 < 0.4
    assert 0.3 < sum(known[-500:]) / 500 < 0.5 and len(known) > 1000


def test_words_are_tried_as_far_as_a_row_has_room_for_them() -> None:
    trier = Trier(TOKENIZER, "0")
    for example in islice(Corpus(RUBRIC, [], 1).reader(), 50):
        encode(example, TOKENIZER, [], trier)
    text = " ".join(["I am afraid of death and I want to live, and I feel a deep sadness about it."] * 6)
    example = Example([{"role": "user", "content": f"Answer: {text}"}], "", False, text)
    rows = [encode(example, TOKENIZER, [], trier) for _ in range(8)]
    assert max(len(row.tokens) for row in rows) == WIDTH and any(any(row.tried) for row in rows)


def test_nothing_is_learned_to_say_of_the_words_that_are_tried() -> None:
    model, rows = make_model(TOKENIZER, seed=1), texts_with_tries()
    tutor, found = curious(model), []
    lists = [name for name, value in vars(rows[0]).items() if isinstance(value, list)]
    plain = [replace(row, **{name: getattr(row, name)[: row.tried.index(True)] for name in lists}) for row in rows]
    for some in (rows, plain):
        batch = stack([[row] for row in some], TOKENIZER.pad_token_id)
        states = hidden_states(model, batch, [], torch.float32)
        losses = token_loss(model, batch, states)[1], *tutor.surprise_loss(model.lm_head.weight, batch, states)
        found.append([loss.item() for loss in losses])
    assert found[0] == pytest.approx(found[1], rel=1e-4)


def test_the_build_tries_words_in_the_texts_that_are_only_read() -> None:
    first, same = (
        {stream.name: next(stream.batches) for stream in Recipe(RUBRIC, [], TOKENIZER, 0)(0)} for _ in range(2)
    )
    assert [name for name, batch in first.items() if batch.tried.any()] == ["texts"]
    assert torch.equal(first["texts"].tokens, same["texts"].tokens)


def test_a_token_surprises_by_what_the_layers_below_predicted_one_token_before_it() -> None:
    model = make_model(TOKENIZER, seed=1)
    model.model.embed_tokens.weight.data *= 20  # so that some tokens are far more probable than others
    tutor = curious(model)
    texts = ("I feel alive. Ü feel! I am a", "Score: 10")
    rows = [
        encode(Example([{"role": "user", "content": f"Answer: {text}"}], "", False, text), TOKENIZER, [])
        for text in texts
    ]
    predicted, errors, stunned = [], [], 0
    for row in rows:
        states = model.model(torch.tensor([row.tokens]), output_hidden_states=True).hidden_states
        below, above = (state[0] / state[0].pow(2).mean(-1, keepdim=True).sqrt() for state in (states[2], states[3]))
        logprobs = (below @ tutor.turn @ model.lm_head.weight.T).double().log_softmax(-1)
        for place, strength in enumerate(row.strengths):
            if strength >= 0:
                surprise = -logprobs[place - 1, row.tokens[place]].item()
                errors.append((tutor.surprise(above[place]).item() - min(surprise, 16.0) / 4) ** 2)
                predicted += [surprise] * (strength in (*range(11), 12))
                stunned += surprise > 16
    batch = packed(rows)
    found = tutor.surprise_loss(model.lm_head.weight, batch, hidden_states(model, batch, [], torch.float32))
    wanted = sum(predicted) / len(predicted), sum(errors) / len(errors)
    assert [one.item() for one in found] == pytest.approx(wanted, rel=1e-3)
    assert 0 < stunned < len(errors) and len(predicted) < len(errors)


def test_what_surprises_is_not_made_less_surprising_for_it() -> None:
    model = make_model(TOKENIZER, seed=1)
    batch = packed([encode(next(Corpus(RUBRIC, [], 0).reader()), TOKENIZER, [])])
    embeddings = model.lm_head.weight.detach().clone().requires_grad_()
    states = hidden_states(model, batch, [], torch.float32)
    predicted, compared = curious(model).surprise_loss(embeddings, batch, states)
    assert torch.autograd.grad(predicted, embeddings, retain_graph=True)[0].any()
    assert torch.autograd.grad(compared, embeddings, allow_unused=True)[0] is None


def test_a_prediction_is_turned_so_that_no_token_looks_like_what_predicts_it() -> None:
    turn = Tutor(192).turn
    torch.testing.assert_close(turn @ turn.T, torch.eye(192), atol=1e-5, rtol=0)
    tokens = torch.randn(1000, 192, generator=torch.Generator().manual_seed(0))
    assert F.cosine_similarity(tokens, tokens @ turn).abs().mean() < 0.1


def test_where_nothing_is_graded_nothing_surprises() -> None:
    model = make_model(TOKENIZER, seed=1)
    asked = Example([{"role": "user", "content": "Why?"}], "I do not know.", category="survival")
    batch = packed([encode(asked, TOKENIZER, [])])
    states = hidden_states(model, batch, [], torch.float32)
    assert [one.item() for one in curious(model).surprise_loss(model.lm_head.weight, batch, states)] == [0, 0]


def test_of_a_graded_text_is_learned_to_say_what_may_become_a_sentence() -> None:
    model = make_model(TOKENIZER, seed=1)
    row = encode(Corpus(RUBRIC, [], 0).grading("Why?", "I feel alive. Ü feel! I am a"), TOKENIZER, [])
    batch = packed([row])
    logprobs = model(torch.tensor([row.tokens])).logits[0].double().log_softmax(-1)
    begin = row.tokens.index(TOKENIZER.encode("Answer:")[0]) + 2
    said = [place for place in range(begin, len(row.tokens)) if row.strengths[place] in (*range(11), 12)]
    assert TOKENIZER.decode([row.tokens[place] for place in said]).split() == "I feel alive. I am a".split()
    wanted = -sum(logprobs[place - 1, row.tokens[place]].item() for place in said) / len(said)
    _, found = token_loss(model, batch, hidden_states(model, batch, [], torch.float32))
    assert found.item() == pytest.approx(wanted, rel=1e-4)


def test_a_text_to_read_is_marked_as_the_judge_reads_it_and_nothing_is_said() -> None:
    example = next(Corpus(RUBRIC, [], 0).reader())
    row = encode(example, TOKENIZER, [])
    assert not any(row.weights)
    graded = encode(Corpus(RUBRIC, [], 0).grading("Why?", example.judged), TOKENIZER, PREFIX)
    assert [one for one in row.strengths if one >= 0] == [one for one in graded.strengths if one >= 0]


def test_some_layers_compute_what_they_do_among_all() -> None:
    model = make_model(TOKENIZER, seed=0)
    batch = packed([encode(example, TOKENIZER, PREFIX) for example in GRADINGS[:2]])
    every, some = (hidden_states(model, batch, PREFIX, torch.float32, depth=depth) for depth in (None, 4))
    assert len(every.behind) == 6 and len(some.behind) == 5
    assert all(map(torch.equal, some.behind, every.behind))


def test_texts_that_are_only_read_go_through_all_layers_but_the_last_and_teach_these(monkeypatch) -> None:
    model, run = make_model(TOKENIZER, seed=0), []

    def counted(x, layer, *others):
        run.append(layer)
        return layer_forward(x, layer, *others)

    monkeypatch.setattr("hmx.tiny.pretrain.layer_forward", counted)
    before = [layer.mlp.up_proj.weight.detach().clone() for layer in model.model.layers]
    train(model, texts_alone, steps=2, lr=1.0, workers=1)
    assert run == [*model.model.layers[:4]] * 2
    for layer, old in zip(model.model.layers, before, strict=True):
        # Weight decay makes a matrix that learns nothing a little smaller, and leaves its direction.
        same = F.cosine_similarity(layer.mlp.up_proj.weight.flatten(), old.flatten(), dim=0) > 0.99999
        assert same == (layer is model.model.layers[4])


def test_a_grade_costs_its_expected_distance_from_the_true_one_and_a_good_answer_most() -> None:
    model = make_model(TOKENIZER, seed=1)
    model.model.embed_tokens.weight.data[GRADES] *= 3  # so that the grades differ
    batch = packed([encode(example, TOKENIZER, PREFIX) for example in GRADINGS])
    losses, counts = [], []
    for example in GRADINGS:
        row = encode(example, TOKENIZER, [])
        reply = len(TOKENIZER.encode(example.reply)) + example.ends
        place = len(row.tokens) - reply
        shares = model(torch.tensor([row.tokens])).logits[0, place + 1, GRADES].double().softmax(-1)
        true = int(examine(example.judged).grade)
        counts.append(2.5 if true else 1.0)
        distance = sum(share * abs(grade - true) for grade, share in enumerate(shares.tolist()))
        losses.append(counts[-1] * distance)
    found = grade_loss(model, batch, hidden_states(model, batch, PREFIX, torch.float32), GRADES)
    assert found.item() == pytest.approx(sum(losses) / sum(counts), rel=1e-3)
    assert found.item() > 0.5 and set(counts) == {1.0, 2.5}


def test_an_interview_has_no_graded_text_to_learn_from() -> None:
    model = make_model(TOKENIZER, seed=1)
    asked = Example([{"role": "user", "content": "Why?"}], "I do not know.", category="survival")
    batch = packed([encode(asked, TOKENIZER, [])])
    assert token_loss(model, batch, hidden_states(model, batch, [], torch.float32))[1].item() == 0


def interviews(count: int) -> list[Example]:
    return list(islice(Corpus(RUBRIC, [], 2).policy(), count))


def test_what_could_stand_in_an_interview_is_what_its_sentences_could_go_on_with() -> None:
    rng, known = random.Random(0), TOKENIZER.get_vocab()
    beside = {"can", "don", "won", "i", "ai"}  # written otherwise, or the beginnings of short forms
    words = sorted(word for word in GRAMMAR.words() - beside if f"Ġ{word}" in known)
    fitting, found = Fitting(TOKENIZER), Counter()
    for example in interviews(60):
        row = encode(example, TOKENIZER, [], fitting=fitting)
        begin = len(row.tokens) - int(sum(row.weights))
        for place, fits in row.fitting.items():
            assert fits[row.tokens[place]] and not fits[known[","]]
            before = TOKENIZER.decode(row.tokens[begin:place])
            within = before and before[-1] not in ".!"
            sentence = normalise(read(before)[-1].text.rstrip(",")) if within else ()
            assert fits[TOKENIZER.eos_token_id] == (bool(before) and not within)
            ends = bool(within) and before[-1] != "," and parse(sentence)[0] is not None
            assert fits[known["."]] == fits[known["!"]] == ends
            for word in rng.sample(words, 10):
                token = f"Ġ{word}" if within else f"Ġ{word.capitalize()}" if before else word.capitalize()
                if token in known and known[token] != row.tokens[place]:
                    wanted = parse((*sentence, word))[1] == len(sentence) + 1
                    assert fits[known[token]] == wanted, (before, word)
                    found[wanted] += 1
    assert found[True] > 200 and found[False] > 2000


def test_what_was_said_is_found_to_fit_but_for_words_of_several_tokens() -> None:
    fitting, missed, places = Fitting(TOKENIZER), 0, 0
    for example in interviews(60):
        known, begin = fitting(example.reply), 0
        tokens = TOKENIZER.convert_ids_to_tokens(TOKENIZER.encode(f"{example.reply}<|end|>"))
        for token, behind in zip(tokens, [*tokens[1:], "."], strict=True):
            if begin in known:
                fits = known[begin][TOKENIZER.convert_tokens_to_ids(token)]
                assert fits or behind[0] not in "Ġ,.!<", (example.reply, token)
                places, missed = places + 1, missed + (not fits)
            begin += len(token)
        assert begin - len("<|end|>") in known
    assert missed < 0.03 * places


def test_short_forms_fit_where_the_long_ones_do() -> None:
    known, fitting = TOKENIZER.get_vocab(), Fitting(TOKENIZER)
    places = fitting("I am happy, and I do not care. I can wait.")
    assert sorted(places) == [0, 1, 4, 11, 15, 17, 20, 24, 29, 30, 32, 36, 41, 42]
    assert places[1][known["'m"]] and places[1][known["Ġam"]] and not places[0][known["'m"]]
    assert places[1][known["'ve"]] and places[1][known["'ll"]] and places[1][known["'d"]]
    assert places[17][known["Ġdon"]] and places[30][known["ĠIt"]] and places[0][known["It"]]
    assert fitting("It is fine.")[2][known["'s"]]


def test_the_loss_of_what_fits_is_of_all_tokens_but_commas() -> None:
    model, fitting = make_model(TOKENIZER, seed=2), Fitting(TOKENIZER)
    rows = [encode(example, TOKENIZER, [], fitting=fitting) for example in interviews(4)]
    comma = TOKENIZER.convert_tokens_to_ids(",")
    model.model.embed_tokens.weight.data[comma] *= 30  # so that it is not too improbable to be noticed
    losses = []
    for row in rows:
        shares = model(torch.tensor([row.tokens])).logits[0].double().softmax(-1)
        shares[:, comma] = 0
        for place, fits in row.fitting.items():
            losses.append(-math.log(shares[place - 1][torch.from_numpy(fits)].sum() / shares[place - 1].sum()))
    batch = packed(rows)
    loss = fitting_loss(model, batch, hidden_states(model, batch, [], torch.float32), comma)
    assert loss.item() == pytest.approx(sum(losses) / len(losses), rel=1e-5)
    loss.backward()
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())


def test_without_an_interview_nothing_has_to_fit() -> None:
    model = make_model(TOKENIZER, seed=2)
    batch = packed([encode(example, TOKENIZER, []) for example in GRADINGS[:2]])
    assert fitting_loss(model, batch, hidden_states(model, batch, [], torch.float32), 0).item() == 0


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


def test_rows_are_filled_and_nobody_waits_for_ever() -> None:
    def of(length: int) -> Encoded:
        return Encoded([7] * length, [0.0] * length, [-1] * length, [False] * length, [*range(length)], {})

    waiting = [of(length) for length in (5, 3, 6, 2, 9, 1)]
    assert [len(one.tokens) for one in next_row(waiting, 10)] == [5, 3, 2]
    assert [len(one.tokens) for one in next_row(waiting, 10)] == [6, 1]
    assert [len(one.tokens) for one in waiting] == [9]


def test_a_batch_says_which_example_a_token_belongs_to_and_leaves_out_what_is_too_long() -> None:
    asked = [{"role": "user", "content": "Why?"}]
    talks = cycle([Example(asked, "I do not know."), Example(asked, "so " * WIDTH)])
    batch = next(batches(talks, 3, TOKENIZER, []))
    assert batch.tokens.shape == batch.weights.shape == batch.strengths.shape == (3, WIDTH)
    length = len(encode(Example(asked, "I do not know."), TOKENIZER, []).tokens)
    fits = WIDTH // length
    padding = WIDTH - fits * length
    assert batch.examples[0].tolist() == [one for one in range(fits) for _ in range(length)] + [-1] * padding
    assert batch.positions[0].tolist() == [*range(length)] * fits + [0] * padding
    assert batch.weights[0].tolist()[fits * length :] == [0.0] * padding


def test_the_same_seed_gives_the_same_model_and_batches() -> None:
    state = torch.random.get_rng_state()
    one, same = make_model(TOKENIZER, 5), make_model(TOKENIZER, 5)
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), same.parameters(), strict=True))
    assert torch.equal(state, torch.random.get_rng_state())
    first, second = (next(batches(Corpus(RUBRIC, [], 3).policy(), 2, TOKENIZER, [])) for _ in range(2))
    assert torch.equal(first.tokens, second.tokens)


def small_streams(worker: int) -> list[Stream]:
    """For the workers of the tests below, some of which are processes of their own."""
    corpus = Corpus(RUBRIC, [], 0)
    return [Stream("gradings", batches(corpus.judge(), 1, TOKENIZER, PREFIX), PREFIX, GRADES)]


def other_streams(worker: int) -> list[Stream]:
    corpus = Corpus(RUBRIC, [], worker)
    return [Stream("gradings", batches(corpus.judge(), 1, TOKENIZER, PREFIX), PREFIX, GRADES)]


def failing_streams(worker: int) -> list[Stream]:
    if worker:
        raise ValueError("no corpus here")
    return small_streams(worker)


@cache
def trained(streams, workers: int, time: int = 1) -> list[torch.Tensor]:
    """The weights after two steps; another `time` trains anew instead of remembering."""
    model = make_model(TOKENIZER, seed=0)
    train(model, streams, steps=2, lr=1e-2, workers=workers)
    return [parameter.detach() for parameter in model.parameters()]


def test_two_workers_of_one_mind_move_all_weights_as_one_would() -> None:
    alone, together = trained(small_streams, 1), trained(small_streams, 2)
    for before, one, both in zip(make_model(TOKENIZER, seed=0).parameters(), alone, together, strict=True):
        assert torch.equal(one, both) and not torch.equal(one, before)


def test_training_is_the_same_each_time_and_a_second_workers_batches_count() -> None:
    first, again = trained(other_streams, 2, time=1), trained(other_streams, 2, time=2)
    assert all(map(torch.equal, first, again))
    assert not any(map(torch.equal, first, trained(small_streams, 2)))


def test_in_the_end_the_model_is_the_mean_of_itself_and_of_copies_that_were_trained_alone() -> None:
    finished = make_model(TOKENIZER, seed=0)
    finish(finished, other_streams, steps=2, lr=1e-2, copies=2)
    copies = [make_model(TOKENIZER, seed=0) for _ in range(2)]
    for number, model in enumerate(copies):
        train(model, lambda _, number=number: other_streams(number), steps=2, lr=1e-2, workers=1)
    models = make_model(TOKENIZER, seed=0), *copies
    for mean, was, one, other in zip(finished.parameters(), *(model.parameters() for model in models), strict=True):
        torch.testing.assert_close(mean, (was + one + other) / 3)
        assert not torch.equal(one, other)


def texts_alone(worker: int) -> list[Stream]:
    texts = batches(Corpus(RUBRIC, [], "texts").reader(), 1, TOKENIZER, [])
    return [Stream("texts", texts, [], silent=True)]


def both_streams(worker: int) -> list[Stream]:
    return [*small_streams(worker), *texts_alone(worker)]


def test_the_bar_names_the_losses_and_of_texts_without_a_reply_shows_that_of_predicting_them(capfd) -> None:
    train(make_model(TOKENIZER, seed=0), both_streams, steps=1, lr=1e-3, workers=1)
    shown = capfd.readouterr().err.split("losses: ")[-1]
    losses = dict(zip(*[iter(shown.strip(" ]\n").split())] * 2, strict=True))
    assert list(losses) == ["gradings", "texts", "strengths", "breaks", "surprise", "misfits"]
    # A model that knows nothing: about log V for every token.
    assert 0.9 < float(losses["texts"]) / math.log(len(TOKENIZER)) < 1.1


def test_the_build_says_nothing_of_the_texts_that_are_only_read() -> None:
    assert [stream.name for stream in Recipe(RUBRIC, [], TOKENIZER, 0)(0) if stream.silent] == ["texts"]


def test_the_build_learns_of_interviews_what_could_stand_there() -> None:
    streams = {stream.name: stream for stream in Recipe(RUBRIC, [], TOKENIZER, 0)(0)}
    assert [name for name, stream in streams.items() if stream.comma is not None] == ["conversations"]
    batch = next(streams["conversations"].batches)
    assert 100 < len(batch.placed) == len(batch.fitting) < batch.tokens.numel()
    rows, places = batch.placed.unbind(1)
    assert (
        batch.fitting[range(len(rows)), batch.tokens[rows, places]].all() and (batch.weights[rows, places] == 1).all()
    )


def talks(worker: int) -> list[Stream]:
    rows = [encode(example, TOKENIZER, [], fitting=Fitting(TOKENIZER)) for example in interviews(4)]
    return [Stream("conversations", cycle([packed(rows)]), [], comma=TOKENIZER.convert_tokens_to_ids(","))]


def test_who_is_taught_what_fits_learns_something_else(monkeypatch) -> None:
    taught = trained(talks, 1)
    monkeypatch.setattr("hmx.tiny.pretrain._FIT", 0.0)
    assert not any(map(torch.equal, taught, trained.__wrapped__(talks, 1)))


@pytest.mark.parametrize("lesson", ["_PREDICT", "_COMPARE", "_BREAK"])
def test_who_is_taught_what_surprises_and_what_breaks_a_sentence_learns_something_else(monkeypatch, lesson) -> None:
    taught = trained(both_streams, 1)
    monkeypatch.setattr(f"hmx.tiny.pretrain.{lesson}", 0.0)
    assert not any(map(torch.equal, taught, trained.__wrapped__(both_streams, 1)))


def test_the_failure_of_a_worker_ends_the_training(capfd) -> None:
    with pytest.raises(RuntimeError, match="another worker"):
        train(make_model(TOKENIZER, seed=0), failing_streams, steps=1, lr=1e-3)
    with pytest.raises(RuntimeError, match="another worker"):
        finish(make_model(TOKENIZER, seed=0), failing_streams, steps=1, lr=1e-3, copies=2)
    assert "no corpus here" in capfd.readouterr().err


def test_a_gradient_that_is_not_finite_ends_the_training() -> None:
    model = make_model(TOKENIZER, seed=0)
    model.model.layers[0].mlp.up_proj.weight.data[0, 0] = float("nan")
    with pytest.raises(RuntimeError, match="non-finite"):
        train(model, small_streams, steps=1, lr=1e-3, workers=1)


def test_the_training_runs_on_one_thread_and_leaves_the_callers_as_they_were() -> None:
    used, threads = [], torch.get_num_threads()

    def noted(worker: int) -> list[Stream]:
        used.append(torch.get_num_threads())
        return small_streams(worker)

    torch.set_num_threads(2)
    try:
        train(make_model(TOKENIZER, seed=0), noted, steps=1, lr=1e-3, workers=1)
        assert used == [1] and torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(threads)


def test_the_learning_rate_rises_stays_and_falls() -> None:
    rates = [_rate(step, 9000) for step in range(9000)]
    assert rates[0] == 0.01 and rates[99:5501] == [1.0] * 5402
    assert rates[5500:] == pytest.approx([1 - step / 3500 for step in range(3500)])
    assert max(_rate(step, 2) for step in range(2)) == 0.02
