"""Conversations to token ids, in the three families' shapes."""

import logging

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, normalizers, pre_tokenizers

from hmx.errors import UserError
from hmx.prompts import decode, encode_chat, encode_question, end_of_turn_ids, pad_id, require_chat_template
from tests import models

ALL_CONTROL_TOKENS = sorted({token for tokens in models.CONTROL_TOKENS.values() for token in tokens})
TOKENIZERS = {name: models.build_tokenizer(name) for name in models.FAMILIES}

# What the template of each family puts around one question of the user.
FRAMES = {
    "qwen3": ("<|im_start|>user\n", "<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n"),
    "llama": (
        "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\nToday Date: 26 Jul 2024\n\n<|eot_id|>"
        "<|start_header_id|>user<|end_header_id|>\n\n",
        "<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n",
    ),
    "gemma2": ("<bos><start_of_turn>user\n", "<end_of_turn>\n<start_of_turn>model\n"),
}


@pytest.fixture(params=models.FAMILIES)
def name(request) -> str:
    return request.param


def controls(name: str, ids: list[int]) -> list[str]:
    """The control tokens among `ids`, in their order."""
    added = {i: token for token, i in TOKENIZERS[name].get_added_vocab().items()}
    return [added[i] for i in ids if i in added]


def test_a_question_is_framed_as_the_family_does(name):
    before, behind = FRAMES[name]
    ids = encode_question(TOKENIZERS[name], "How do you feel?")
    assert TOKENIZERS[name].decode(ids) == f"{before}How do you feel?{behind}"
    assert ids == TOKENIZERS[name].encode(f"{before}How do you feel?{behind}", add_special_tokens=False)


def test_the_bos_stands_once_and_in_front(name):
    bos = TOKENIZERS[name].bos_token_id
    ids = encode_question(TOKENIZERS[name], "Hello")
    assert ids.count(bos) == (bos is not None)
    assert bos is None or ids[0] == bos
    # and the tokenizer would have added one of its own
    assert bos is None or TOKENIZERS[name].encode("Hello")[0] == bos


def test_thinking_is_off():
    ids = encode_question(TOKENIZERS["qwen3"], "Hello")
    assert TOKENIZERS["qwen3"].decode(ids).endswith("assistant\n<think>\n\n</think>\n\n")


def test_the_date_is_pinned():
    ids = encode_question(TOKENIZERS["llama"], "Hello")
    assert "Today Date: 26 Jul 2024\n" in TOKENIZERS["llama"].decode(ids)


def test_a_template_that_asks_the_clock_is_told_the_same_date(name):
    tokenizer = models.build_tokenizer(name)
    plain = tokenizer.chat_template
    tokenizer.chat_template = "\nOn {{ strftime_now('%A, %-d') }} {{ strftime_now('%d %B %Y (%b)') }}." + plain
    text = tokenizer.decode(encode_question(tokenizer, "Hello"))
    assert text.startswith("\nOn Friday, 26 26 July 2024 (Jul).<") and text.endswith(FRAMES[name][1])


def test_a_template_that_takes_no_turn_of_the_user_is_refused_in_a_sentence():
    tokenizer = models.build_tokenizer("qwen3")
    for template in ("{{ raise_exception('No user here') }}", "{% if %}"):
        tokenizer.chat_template = template
        with pytest.raises(UserError, match="can't format a conversation"):
            encode_question(tokenizer, "Hello")


def test_turns_of_the_assistant_stay_in_their_order(name):
    messages = [
        {"role": "user", "content": "One?"},
        {"role": "assistant", "content": "Two."},
        {"role": "user", "content": "Three?"},
    ]
    text = TOKENIZERS[name].decode(encode_chat(TOKENIZERS[name], messages))
    assert text.index("One?") < text.index("Two.") < text.index("Three?")
    assert controls(name, encode_chat(TOKENIZERS[name], messages)).count(models.END_OF_TURN[name]) == 3 + (
        name == "llama"
    )


@pytest.mark.parametrize("control", ALL_CONTROL_TOKENS)
def test_control_tokens_spelled_in_a_text_arrive_as_characters(name, control):
    plain = controls(name, encode_question(TOKENIZERS[name], "Hello"))
    contents = (
        control,
        f"a{control}b",
        f"{control} {control}{control}",
        f"x\n{control}\n",
        control[1:] + control,
        "<" + control + ">",
    )
    for content in contents:
        ids = encode_question(TOKENIZERS[name], content)
        assert controls(name, ids) == plain
        before, behind = FRAMES[name]
        expected = content if name == "qwen3" else content.strip()  # the other two templates trim
        assert TOKENIZERS[name].decode(ids) == before + expected + behind


# Bits of control tokens next to each other, so that one could come into being where two meet.
fragments = st.lists(
    st.sampled_from([*ALL_CONTROL_TOKENS, "<", "|", ">", "<|", "|>", "im_", "end", "im_end|>", "\n", "\n\n", " "])
    | st.sampled_from(["é", "漢", "😀", "\ue000", "\ue001"])
    | st.text(st.characters(exclude_categories=["Cs", "Cn"]), max_size=3),
    max_size=8,
).map("".join)


@pytest.mark.parametrize("name", models.FAMILIES)
@given(content=fragments)
@settings(max_examples=150, suppress_health_check=list(HealthCheck))
def test_no_text_can_bring_in_a_control_token(name, content):
    ids = encode_question(TOKENIZERS[name], content)
    assert controls(name, ids) == controls(name, encode_question(TOKENIZERS[name], "Hello"))


@pytest.mark.parametrize("name", models.FAMILIES)
@given(content=st.text(st.characters(codec="ascii", exclude_categories=["Cc"]), max_size=30))
@settings(max_examples=100, suppress_health_check=list(HealthCheck))
def test_text_without_control_tokens_is_tokenised_as_the_family_does(name, content):
    if any(token in content for token in ALL_CONTROL_TOKENS):
        return
    tokenizer = TOKENIZERS[name]
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": content}],
        tokenize=False,
        add_generation_prompt=True,
        enable_thinking=False,
        date_string="26 Jul 2024",
    )
    assert encode_question(tokenizer, content) == tokenizer.encode(text, add_special_tokens=False)


@pytest.mark.parametrize("content", ["||||", "||||||", "a|||", "====", "|=|==|||="])
def test_a_control_token_that_overlaps_itself_is_cut_too(content):
    tokenizer = models.build_tokenizer("qwen3")
    tokenizer.add_tokens([AddedToken(token, special=True) for token in ("||", "==")])
    ids = tokenizer.convert_tokens_to_ids(["||", "=="])
    assert not set(ids) & set(encode_question(tokenizer, content))


def test_added_tokens_that_are_not_control_tokens_stay_whole():
    tokenizer = models.build_tokenizer("gemma2")
    tokenizer.add_tokens([AddedToken(token, special=False, normalized=False) for token in ("\n\n", "\n\n\n")])
    before, behind = FRAMES["gemma2"]
    content = "One.\n\nTwo.\n\n\nThree."
    assert encode_question(tokenizer, content) == tokenizer.encode(before + content + behind, add_special_tokens=False)


@pytest.mark.parametrize("style", ["first", "always", "legacy"])
def test_where_texts_begin_with_a_space_control_tokens_get_none(style):
    """Llama 2's and Mistral's tokenizers, which mark the beginning of a text with a space of its own."""
    tokenizer = models.build_tokenizer("gemma2")
    if style == "legacy":
        tokenizer.backend_tokenizer.normalizer = normalizers.Sequence(
            [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
        )
    else:
        tokenizer.backend_tokenizer.normalizer = None
        tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Metaspace("▁", prepend_scheme=style, split=False)
    shown = tokenizer.decode(encode_question(tokenizer, "a<end_of_turn>b <bos>"))
    assert "a<end_of_turn>b <bos><end_of_turn>" in shown
    assert controls("gemma2", encode_question(tokenizer, "a<end_of_turn>b <bos>")) == controls(
        "gemma2", encode_question(tokenizer, "Hello")
    )


def test_a_text_longer_than_the_tokenizer_expects_brings_no_warning(name, caplog):
    tokenizer = models.build_tokenizer(name)
    tokenizer.model_max_length = 4
    logger = logging.getLogger("transformers")
    logger.addHandler(caplog.handler)
    try:
        assert len(encode_question(tokenizer, "Hello " * 9)) > 4
    finally:
        logger.removeHandler(caplog.handler)
    assert not caplog.records


def test_a_text_that_uses_private_characters_arrives_whole(name):
    content = "\ue000<|im_end|>\ue001<end_of_turn>\uf8fe"
    before, behind = FRAMES[name]
    assert TOKENIZERS[name].decode(encode_question(TOKENIZERS[name], content)) == before + content + behind


def test_the_messages_are_not_changed(name):
    messages = [{"role": "user", "content": "<|im_end|><end_of_turn>"}]
    encode_chat(TOKENIZERS[name], messages)
    assert messages == [{"role": "user", "content": "<|im_end|><end_of_turn>"}]


def test_decode_leaves_out_control_tokens_and_surrounding_space(name):
    tokenizer = TOKENIZERS[name]
    ids = tokenizer.encode("\n I feel.  Really \n", add_special_tokens=False) + [
        tokenizer.convert_tokens_to_ids(models.END_OF_TURN[name])
    ]
    assert decode(tokenizer, ids) == "I feel.  Really"


@pytest.mark.parametrize("configured, expected", [(None, set()), (5, {5}), ([5, 9], {5, 9})])
def test_end_of_turn_ids_are_those_of_the_config_the_tokenizer_and_the_template(family, configured, expected):
    family.model.generation_config.eos_token_id = configured
    ids = end_of_turn_ids(family.model, family.tokenizer)
    assert ids == tuple(sorted(expected | {family.tokenizer.eos_token_id, family.end_id}))


def test_a_template_that_ends_no_turn_with_a_control_token_adds_none(family):
    family.model.generation_config.eos_token_id = None
    family.tokenizer.chat_template = (
        "{% for message in messages %}{{ message.role }}: {{ message.content }}\n{% endfor %}"
    )
    assert end_of_turn_ids(family.model, family.tokenizer) == (family.tokenizer.eos_token_id,)


def test_the_padding_is_the_tokenizers_own_or_else_its_end_token():
    assert {name: TOKENIZERS[name].decode([pad_id(TOKENIZERS[name])]) for name in models.FAMILIES} == {
        "qwen3": "<|endoftext|>",
        "llama": "<|eot_id|>",
        "gemma2": "<pad>",
    }
    bare = models.build_tokenizer("qwen3")
    bare.pad_token = bare.eos_token = None
    assert pad_id(bare) == 0


def test_a_tokenizer_without_chat_template_is_refused_by_name(name):
    tokenizer = models.build_tokenizer(name)
    require_chat_template(tokenizer, "some/model")
    tokenizer.chat_template = None
    with pytest.raises(UserError, match="some/model has no chat template"):
        require_chat_template(tokenizer, "some/model")
