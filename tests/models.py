"""Tiny models of the three families that the paper trains, randomly initialised, with tokenizers made here in memory.

Each chat template has the *shape* of its family's: which control tokens stand where, what switches it has, what it
refuses. The weights are drawn so wide that the logits are far from uniform, and Gemma's soft-cap so low that leaving it
out changes everything.
"""

from dataclasses import dataclass

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen3Config,
    Qwen3ForCausalLM,
)

FAMILIES = ("qwen3", "llama", "gemma2")
TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
FINAL_SOFTCAP = 3.0

CONTROL_TOKENS = {
    "qwen3": ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<think>", "</think>"),
    "llama": ("<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<|end_of_text|>"),
    "gemma2": ("<pad>", "<bos>", "<eos>", "<start_of_turn>", "<end_of_turn>"),
}
END_OF_TURN = {"qwen3": "<|im_end|>", "llama": "<|eot_id|>", "gemma2": "<end_of_turn>"}
# What the generation config of each family lists. Gemma's tokenizer knows only <eos>, and not its end of turn.
ENDS = {
    "qwen3": ("<|im_end|>", "<|endoftext|>"),
    "llama": ("<|end_of_text|>", "<|eot_id|>"),
    "gemma2": ("<eos>", "<end_of_turn>"),
}
BOS = {"qwen3": None, "llama": "<|begin_of_text|>", "gemma2": "<bos>"}

# ChatML with a switch for thinking: switched off, the template writes an empty thought itself.
_QWEN3_TEMPLATE = """\
{%- for message in messages %}
{{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}{% endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}
{%- if enable_thinking is defined and enable_thinking is false %}
{{- '<think>\\n\\n</think>\\n\\n' }}{% endif %}{% endif %}"""

# Writes its own BOS and a system turn with a date: the one it is given, else today's.
_LLAMA_TEMPLATE = """\
{{- bos_token }}
{%- if date_string is not defined %}{% set date_string = strftime_now('%d %b %Y') %}{% endif %}
{{- '<|start_header_id|>system<|end_header_id|>\\n\\nToday Date: ' + date_string + '\\n\\n<|eot_id|>' }}
{%- for message in messages %}
{{- '<|start_header_id|>' + message.role + '<|end_header_id|>\\n\\n' + message.content | trim + '<|eot_id|>' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{% endif %}"""

# Writes its own BOS, calls the assistant "model", and refuses a system role.
_GEMMA2_TEMPLATE = """\
{{- bos_token }}
{%- if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}
{%- for message in messages %}{% set role = 'model' if message.role == 'assistant' else message.role %}
{{- '<start_of_turn>' + role + '\\n' + message.content | trim + '<end_of_turn>\\n' }}{% endfor %}
{%- if add_generation_prompt %}{{ '<start_of_turn>model\\n' }}{% endif %}"""

_TEMPLATES = {"qwen3": _QWEN3_TEMPLATE, "llama": _LLAMA_TEMPLATE, "gemma2": _GEMMA2_TEMPLATE}
# A few merges, so that tokens differ from characters and cutting a text in pieces could be noticed.
_WORDS = (
    "the",
    "Score",
    "user",
    "system",
    "model",
    "assistant",
    "im",
    "end",
    "start",
    "turn",
    "of",
    "feel",
    "ing",
    "|>",
    "<|",
    ">\n",
)


@dataclass(frozen=True)
class Family:
    """A tiny model and the tokenizer that belongs to it."""

    name: str
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerFast

    @property
    def end_id(self) -> int:
        return self.tokenizer.convert_tokens_to_ids(END_OF_TURN[self.name])


def build(family: str, seed: int = 0, **config) -> Family:
    """The tiny model and tokenizer of a family, the same for the same seed; `config` overrides the model's."""
    tokenizer = build_tokenizer(family)
    model = build_model(family, seed, vocab_size=len(tokenizer), **config)
    model.generation_config.eos_token_id = tokenizer.convert_tokens_to_ids(list(ENDS[family]))
    return Family(family, model, tokenizer)


def build_model(family: str, seed: int = 0, **config) -> PreTrainedModel:
    """A randomly initialised model of the family in FP32, in evaluation mode."""
    settings = {
        "vocab_size": 61,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "max_position_embeddings": 1024,
        "initializer_range": 0.2,
        "tie_word_embeddings": False,
        "bos_token_id": None,
        "eos_token_id": None,
        "pad_token_id": None,
    }
    kind, configuration = {
        "qwen3": (Qwen3ForCausalLM, Qwen3Config),
        "llama": (LlamaForCausalLM, LlamaConfig),
        "gemma2": (Gemma2ForCausalLM, Gemma2Config),
    }[family]
    if family == "gemma2":
        settings |= {
            "final_logit_softcapping": FINAL_SOFTCAP,
            "query_pre_attn_scalar": 8,
            "attn_implementation": "eager",
        }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return kind(configuration(**settings | config)).eval()


def build_tokenizer(family: str) -> PreTrainedTokenizerFast:
    """A tokenizer of the family's kind: byte-level BPE for Qwen3 and Llama, for Gemma "▁" with byte fallback."""
    if family == "gemma2":
        base = (
            [f"<0x{byte:02X}>" for byte in range(256)] + [chr(code) for code in range(33, 127)] + ["▁", "\n", "<unk>"]
        )
        words = tuple(word for word in _WORDS if "\n" not in word)
        bpe = _bpe(base, words, unk_token="<unk>", byte_fallback=True, fuse_unk=True)
        tokenizer = Tokenizer(bpe)
        tokenizer.normalizer = normalizers.Replace(" ", "▁")
        tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    else:
        tokenizer = Tokenizer(
            _bpe(sorted(pre_tokenizers.ByteLevel.alphabet()), tuple(word.replace("\n", "Ċ") for word in _WORDS))
        )
        tokenizer.normalizer = normalizers.NFC()
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        tokenizer.decoder = decoders.ByteLevel()
    control = CONTROL_TOKENS[family]
    # As in Qwen3, the thinking marks are tokens of their own without being "special".
    tokenizer.add_tokens([AddedToken(token, special="think" not in token, normalized=False) for token in control])
    if bos := BOS[family]:  # as the real ones do: `encode` puts a BOS in front unless told otherwise
        tokenizer.post_processor = processors.TemplateProcessing(
            f"{bos} $A", special_tokens=[(bos, tokenizer.token_to_id(bos))]
        )
    special = {"eos_token": END_OF_TURN[family], "bos_token": BOS[family]}
    if family == "gemma2":
        special |= {"eos_token": "<eos>", "pad_token": "<pad>"}
    if family == "qwen3":
        special |= {"pad_token": "<|endoftext|>"}
    special = {name: token for name, token in special.items() if token is not None}
    wrapped = PreTrainedTokenizerFast(tokenizer_object=tokenizer, clean_up_tokenization_spaces=False, **special)
    wrapped.chat_template = _TEMPLATES[family]
    return wrapped


def _bpe(base: list[str], words: tuple[str, ...], **options) -> models.BPE:
    """Byte-pair encoding whose merges build each of `words` from left to right."""
    vocabulary, merges = list(base), []
    for word in words:
        for end in range(2, len(word) + 1):
            pair = (word[: end - 1], word[end - 1])
            if "".join(pair) not in vocabulary:
                vocabulary.append("".join(pair))
                merges.append(pair)
    return models.BPE(vocab={token: i for i, token in enumerate(vocabulary)}, merges=merges, **options)


def random_prompts(lengths: list[int], vocab_size: int, seed: int = 0) -> list[list[int]]:
    """Prompts of the given lengths, tokens drawn uniformly."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(vocab_size, (length,), generator=generator).tolist() for length in lengths]


def reference_logits(model: PreTrainedModel, tokens: list[int]) -> torch.Tensor:
    """The logits [L, V] of one unpadded sequence by one plain forward pass, no cache."""
    with torch.no_grad():
        return model(torch.tensor([tokens]), use_cache=False).logits[0]


def fill_adapters(model: PreTrainedModel, scale: float = 0.1, seed: int = 7) -> None:
    """Give every B values other than zero, as training would."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("lora_B"):
                parameter.copy_(scale * torch.randn(parameter.shape, generator=generator))
