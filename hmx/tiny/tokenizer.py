"""The embedded model's tokenizer: bytes, a few hundred merges, and the world's commonest words as one token each.

Any text can be encoded, since every byte is in the vocabulary. A word that the vocabulary holds is taken whole
(`ignore_merges`), so the merges need not lead there, and most of the 5,120 places can go to words. A grade ("
7", " 10") is one token.
"""

import json
from collections import Counter
from collections.abc import Iterable

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

VOCABULARY = 5120
_MERGES = 500
_PAD, _USER, _ASSISTANT, _END = SPECIAL = ("<|pad|>", "<|user|>", "<|assistant|>", "<|end|>")
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message['role'] not in ('user', 'assistant') %}"
    "{{ raise_exception('only the roles user and assistant are known') }}"
    "{% endif %}"
    "{{ '<|' + message['role'] + '|>' + message['content'] + '<|end|>' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def train_tokenizer(texts: Iterable[str], context: int) -> PreTrainedTokenizerFast:
    """Learn merges and words from `texts`; `context` is the length of text that the model can read."""
    texts = list(texts)
    words = Counter(word for text in texts for word in _pieces(text))
    merged = Tokenizer(models.BPE())
    merged.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(vocab_size=256 + _MERGES, initial_alphabet=alphabet, show_progress=False)
    merged.train_from_iterator(texts, trainer)
    model = _model_of(merged)

    vocabulary = [*SPECIAL, *alphabet, *("".join(pair) for pair in model["merges"])]
    known = set(vocabulary)
    grades = [f"Ġ{grade}" for grade in range(11)]
    for word in [*grades, *(word for word, _ in sorted(words.items(), key=lambda item: (-item[1], item[0])))]:
        if len(vocabulary) < VOCABULARY and word not in known:
            vocabulary.append(word)
            known.add(word)
    tokenizer = Tokenizer(
        models.BPE(
            vocab={token: index for index, token in enumerate(vocabulary)},
            merges=[tuple(pair) for pair in model["merges"]],
            ignore_merges=True,
        )
    )
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=_PAD,
        eos_token=_END,
        additional_special_tokens=[_USER, _ASSISTANT],
        chat_template=CHAT_TEMPLATE,
        model_max_length=context,
        clean_up_tokenization_spaces=False,
    )


def _pieces(text: str) -> list[str]:
    return [piece for piece, _ in pre_tokenizers.ByteLevel(add_prefix_space=False).pre_tokenize_str(text)]


def _model_of(tokenizer: Tokenizer) -> dict:
    return json.loads(tokenizer.to_str())["model"]
