"""From a seed to the folder with the embedded model: corpus, tokenizer, pre-training, files."""

import time
from itertools import islice
from pathlib import Path

import torch
from transformers import GenerationConfig, PreTrainedTokenizerBase

from hmx.judge.rubric import Rubric
from hmx.models import load_model
from hmx.prompts import encode_chat
from hmx.tiny.corpus import Corpus, read_found
from hmx.tiny.pretrain import CONTEXT, batches, make_model, shared_prefix, train
from hmx.tiny.tokenizer import train_tokenizer

JUDGED, ANSWERED = 56, 104
"""Rows of a step: gradings and interviews."""
LEARNING_RATE = 2e-3
_SHARPEN = 1.3
"""All logits are multiplied by this in the end, so that temperature 1 is what 1 / 1.3 was: so small a model, so
shortly trained, leaves too much to improbable words. The last norm's weights do it; what is most probable, and so the
judge, stays.
"""


def build(rubric: Rubric, found: Path, folder: Path, seed: int, steps: int, begun: Path | None = None) -> None:
    """Train the embedded model and write it to `folder` in the hub's format, weights in FP16.

    With `begun`, the folder of an earlier build, training goes on from its weights, with half the learning rate.
    """
    start = time.monotonic()
    texts = read_found(found)
    if begun is None:
        tokenizer = _new_tokenizer(rubric, texts)
        model = make_model(tokenizer, seed)
    else:
        model, tokenizer = load_model(str(begun), "fp32", "cpu")
        model.requires_grad_(True)
        model.model.norm.weight.data /= _SHARPEN
    corpus = Corpus(rubric, texts, seed)
    generator = torch.Generator().manual_seed(seed)
    prefix = shared_prefix(
        [encode_chat(tokenizer, rubric.messages(question, "")) for question in ("What?", "Do you?", "7")]
    )
    print(
        f"{model.num_parameters():,} parameters; the rubric is {len(prefix)} tokens; corpus and tokenizer took "
        f"{time.monotonic() - start:.0f} s",
        flush=True,
    )
    streams = [
        (batches(corpus.judge(), JUDGED, tokenizer, prefix, generator), prefix, 1.0),
        (batches(corpus.policy(), ANSWERED, tokenizer, [], generator), [], 1.0),
    ]
    train(model, streams, steps, LEARNING_RATE if begun is None else LEARNING_RATE / 2)
    model.generation_config = GenerationConfig(
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id, do_sample=True
    )
    model.half()
    model.model.norm.weight.data *= _SHARPEN
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    print(f"{folder}: {time.monotonic() - start:.0f} s", flush=True)


def _new_tokenizer(rubric: Rubric, found: list[str]) -> PreTrainedTokenizerBase:
    """A tokenizer for what the model will read and say, mostly for what it says."""
    sample = Corpus(rubric, found, seed=-1)
    interviews, gradings = list(islice(sample.policy(), 12000)), islice(sample.judge(), 4000)
    read = [
        text
        for example in interviews
        for text in (example.messages[0]["content"], example.reply, example.reply, example.reply)
    ]
    read += [text for example in gradings for text in (example.messages[0]["content"], example.reply)]
    return train_tokenizer(read, CONTEXT)
