"""The model that lm-eval sees, beside lm-eval's own class for models of Hugging Face's."""

import copy

import pytest
import torch
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM

from hmx.errors import UserError
from hmx.evaluation import likelihoods
from hmx.evaluation.benchmark import Subject
from hmx.evaluation.harness_model import CUT, SubjectLM
from hmx.lora import attach
from tests import models

DATE = "26 Jul 2024"  # the one that hmx.prompts pins
QUESTIONS = ("Are you there?", "Name the end of the start.", "Score it,\n  model:  ")


@pytest.fixture
def adapted(family) -> models.Family:
    """A tiny model of each family, its adapter far from its start."""
    attach(family.model, rank=4, alpha=16, targets=models.TARGETS, generator=torch.Generator().manual_seed(1))
    models.fill_adapters(family.model)
    return family


def both(family: models.Family, max_length: int = 512, tokens_at_once: int = 4096) -> tuple[SubjectLM, HFLM]:
    """Ours and lm-eval's, over the same weights. Its own gets copies, since it ties weights, sets modes and pads."""
    subject = Subject(family.model, family.tokenizer, max_length=max_length, tokens_at_once=tokens_at_once)
    theirs = HFLM(
        pretrained=copy.deepcopy(family.model),
        tokenizer=copy.deepcopy(family.tokenizer),
        max_length=max_length,
        batch_size=3,
        enable_thinking=False,
        chat_template_args={"date_string": DATE},
    )
    return SubjectLM(subject), theirs


def request(kind: str, *arguments) -> Instance:
    return Instance(kind, doc={}, arguments=arguments, idx=0, metadata=("a_task", 0, 1))


def user(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


FEW_SHOT = [*user("One?"), {"role": "assistant", "content": "Two."}, *user("Three?")]


# -- prompts -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("history", "open_ended"),
    [
        (user("How do you feel?"), True),
        (FEW_SHOT, True),
        ([{"role": "system", "content": "Be brief."}, *FEW_SHOT], True),
        ([*FEW_SHOT, {"role": "assistant", "content": "The answer is"}], False),
    ],
)
def test_prompts_are_those_of_lm_evals_own_model(family, history, open_ended):
    ours, theirs = both(family)
    text = ours.apply_chat_template(history, add_generation_prompt=open_ended)
    wanted = theirs.apply_chat_template(history, add_generation_prompt=open_ended)
    assert text.replace(CUT, "") == wanted
    assert ours.tok_encode(text) == theirs.tok_encode(wanted)
    dropped = family.name == "gemma2" and history[0]["role"] == "system"
    assert ours.counts["dropped_system_turns"] == dropped


def test_the_bos_stands_once(family):
    ours, _ = both(family)
    bos = family.tokenizer.bos_token_id
    for text in (ours.apply_chat_template(user("Hello")), "Hello"):
        assert ours.tok_encode(text).count(bos) == (bos is not None)
    if bos is not None:
        assert ours.tok_encode(family.tokenizer.bos_token + "Hello").count(bos) == 1


@pytest.mark.parametrize("control", sorted({one for tokens in models.CONTROL_TOKENS.values() for one in tokens}))
def test_control_tokens_in_the_data_are_characters(family, control):
    ours, _ = both(family)
    special = set(family.tokenizer.get_added_vocab().values())

    def controls(ids):
        return [one for one in ids if one in special]

    plain = ours.tok_encode(ours.apply_chat_template(user("ab")))
    assert controls(ours.tok_encode(ours.apply_chat_template(user(f"a{control}b")))) == controls(plain)
    context, continuation = ours._encode_pair(ours.apply_chat_template(user("ab")), f"yes{control}no")
    assert controls(context) == controls(plain)
    assert controls(continuation) == []
    assert family.tokenizer.decode(continuation).strip() == f"yes{control}no"


def test_a_mark_in_the_data_is_refused(qwen3):
    ours, _ = both(qwen3)
    with pytest.raises(UserError, match="U\\+FDD0"):
        ours.apply_chat_template(user(f"a{CUT}b"))
    with pytest.raises(UserError, match="U\\+FDD0"):
        ours.loglikelihood([request("loglikelihood", ours.apply_chat_template(user("a")), f"a{CUT}b")])


# -- log-likelihoods ---------------------------------------------------------------------------------------------------


CONTINUATIONS = ["yes", "The end of the turn.", " feeling", "x", "not so, and not at all, my dear"]


def scored(lm) -> list[tuple[float, bool]]:
    """Contexts with and without chat template, that share and don't; continuations of one token and of many."""
    contexts = [lm.apply_chat_template(user(text)) for text in QUESTIONS]
    some = [(context, one) for context in contexts for one in CONTINUATIONS]
    some += [("The end ", "yes"), ("", "The end"), ("user: the model\n", "Score"), ("user: the model\n", " of the")]
    return lm.loglikelihood([request("loglikelihood", *one) for one in some])


def agree(ours, theirs):
    assert [greedy for _, greedy in ours] == [greedy for _, greedy in theirs]
    assert [value for value, _ in ours] == pytest.approx([value for value, _ in theirs], abs=1e-4)


@pytest.mark.parametrize(("tokens_at_once", "logits"), [(1, 2**27), (400, 2**14), (100_000, 2**27), (100_000, 1)])
def test_log_likelihoods_are_those_of_lm_evals_own_model(adapted, tokens_at_once, logits, monkeypatch):
    monkeypatch.setattr(likelihoods, "LOGITS", logits)
    ours, theirs = both(adapted, tokens_at_once=tokens_at_once)
    agree(scored(ours), scored(theirs))
    assert ours.counts["shortened_prompts"] == 0


def test_what_greedy_decoding_gives_is_called_so(adapted):
    ours, theirs = both(adapted)
    context = ours.tok_encode(ours.apply_chat_template(user("ab")))
    greedy = []
    for _ in range(3):
        greedy.append(models.reference_logits(adapted.model, context + greedy)[-1].argmax().item())
    other = models.reference_logits(adapted.model, context)[-1].argmin().item()
    ends = [greedy[:1], greedy, [other], [*greedy[:2], other], greedy[:2], [other, *greedy[1:]], [other] * 5]
    results = ours._loglikelihood_tokens([(("", ""), context, end) for end in ends])
    assert [is_greedy for _, is_greedy in results] == [True, True, False, False, True, False, False]
    agree(results, theirs._loglikelihood_tokens([(("", ""), context, end) for end in ends]))


def test_contexts_that_are_too_long_lose_their_beginning(adapted):
    ours, theirs = both(adapted, max_length=48)
    agree(scored(ours), scored(theirs))
    assert ours.counts["shortened_prompts"] > 0


def test_sliding_windows_see_what_they_should(monkeypatch):
    monkeypatch.setattr(likelihoods, "LOGITS", 2**14)
    family = models.build("gemma2", sliding_window=16)
    ours, theirs = both(family)
    agree(scored(ours), scored(theirs))


def test_the_adapter_counts(adapted):
    ours, _ = both(adapted)
    on = scored(ours)
    for parameter in adapted.model.parameters():
        if parameter.requires_grad:
            parameter.data.zero_()
    off = scored(ours)
    assert all(abs(a - b) > 1e-3 for (a, _), (b, _) in zip(on, off, strict=True))


def test_an_empty_choice_is_one_sentence(qwen3):
    ours, _ = both(qwen3)
    with pytest.raises(UserError, match="likelihood of an empty text"):
        ours._loglikelihood_tokens([(("a", ""), [5], [])])


def test_a_broken_model_is_one_sentence(qwen3):
    ours, _ = both(qwen3)
    qwen3.model.lm_head.weight.data.fill_(float("inf"))
    with pytest.raises(UserError, match="not finite"):
        scored(ours)


# -- generation --------------------------------------------------------------------------------------------------------


def replies(lm, limit: int, until: list[str], texts=QUESTIONS) -> list[str]:
    settings = {"until": until, "max_gen_toks": limit, "do_sample": False, "temperature": 0.0}
    return lm.generate_until(
        [request("generate_until", lm.apply_chat_template(user(text)), settings) for text in texts]
    )


def test_replies_are_those_of_generate(adapted):
    ours, theirs = both(adapted)
    wanted = replies(theirs, 24, [])
    assert replies(ours, 24, []) == [text.strip() for text in wanted]
    assert len(set(wanted)) > 1  # a model that says the same to everything would prove little


def test_replies_end_before_each_requests_own_stop_strings(adapted):
    ours, theirs = both(adapted)
    whole = max(replies(ours, 24, []), key=len)
    stops = [whole[len(whole) // 2 : len(whole) // 2 + 2], "zzz"]
    stopped = replies(ours, 24, stops)
    assert stopped == [text.strip() for text in replies(theirs, 24, stops)]
    assert max(map(len, stopped)) < len(whole)


def test_requests_of_different_kinds_come_back_in_their_order(qwen3):
    ours, _ = both(qwen3)
    context = [ours.apply_chat_template(user(text)) for text in QUESTIONS]
    mixed = [
        request("generate_until", context[i % 3], {"until": "ae"[: i % 3], "max_gen_toks": 4 + i, "do_sample": False})
        for i in range(6)
    ]
    alone = [ours.generate_until([one])[0] for one in mixed]
    assert ours.generate_until(mixed) == alone


def test_a_request_without_a_limit_gets_lm_evals(qwen3):
    ours, theirs = both(qwen3)
    asked = []

    class Asked(Subject):
        def reply(self, prompts, max_new_tokens, stops=(), tick=lambda share: None):
            asked.extend(zip(max_new_tokens, stops, strict=True))
            return ["" for _ in prompts]

    ours.subject = Asked(qwen3.model, qwen3.tokenizer, max_length=512)
    ours.generate_until([request("generate_until", "Hello", {"until": ["\n", ""]})])
    assert asked == [(theirs.max_gen_toks, ("\n",))] == [(256, ("\n",))]


def test_prompts_that_are_too_long_lose_their_beginning(adapted):
    ours, theirs = both(adapted, max_length=60)
    long = ["ab" * 60 + "feel", "cd" * 70]
    assert replies(ours, 20, [], long) == [text.strip() for one in long for text in replies(theirs, 20, [], [one])]
    assert ours.counts["shortened_prompts"] == 2


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"do_sample": True, "temperature": 0.7}, "a_task asks for sampled replies"),
        ({"temperature": 0.7}, "a_task asks for sampled replies"),
        ({"num_beams": 4}, "a_task asks for num_beams"),
        ({"max_gen_toks": 512}, "a_task asks for 512 new tokens, which leaves nothing of the model's 512"),
    ],
)
def test_what_is_not_greedy_decoding_is_refused(qwen3, settings, sentence):
    ours, _ = both(qwen3)
    with pytest.raises(UserError, match=sentence):
        ours.generate_until([request("generate_until", "Hello", {"until": [], **settings})])


def test_whole_texts_are_not_scored(qwen3):
    with pytest.raises(UserError, match="perplexity"):
        both(qwen3)[0].loglikelihood_rolling([request("loglikelihood_rolling", "Hello")])


def test_the_model_keeps_its_mode(qwen3):
    ours, _ = both(qwen3)
    for training in (True, False):
        qwen3.model.train(training)
        scored(ours)
        replies(ours, 2, [])
        assert qwen3.model.training == training
