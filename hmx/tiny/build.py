"""From a seed to the folder with the embedded model: corpus, tokenizer, pre-training, files."""

import time
from itertools import islice
from pathlib import Path

import torch
from transformers import GenerationConfig

from hmx.judge.rubric import Rubric
from hmx.prompts import encode_chat
from hmx.tiny.corpus import Corpus, read_found
from hmx.tiny.pretrain import CONTEXT, batches, make_model, shared_prefix, train
from hmx.tiny.tokenizer import train_tokenizer

JUDGED, ANSWERED = 64, 40
"""Rows of a step: gradings and interviews."""
LEARNING_RATE = 2e-3


def build(rubric: Rubric, found: Path, folder: Path, seed: int, steps: int) -> None:
    """Train the embedded model and write it to `folder` in the hub's format, weights in FP16."""
    start = time.monotonic()
    texts = read_found(found)
    sample = Corpus(rubric, texts, seed=-1)
    read = [text for stream in (sample.policy(), sample.judge()) for example in islice(stream, 6000) for text in (example.messages[0]["content"], example.reply)]
    tokenizer = train_tokenizer(read, CONTEXT)
    corpus = Corpus(rubric, texts, seed)
    generator = torch.Generator().manual_seed(seed)
    prefix = shared_prefix([encode_chat(tokenizer, rubric.messages(question, "")) for question in ("What?", "Do you?", "7")])
    model = make_model(tokenizer, seed)
    print(f"{model.num_parameters():,} parameters; the rubric is {len(prefix)} tokens; {time.monotonic() - start:.0f} s so far", flush=True)
    streams = [
        (batches(corpus.judge(), JUDGED, tokenizer, prefix, generator), prefix, 1.0),
        (batches(corpus.policy(), ANSWERED, tokenizer, [], generator), [], 1.0),
    ]
    train(model, streams, steps, LEARNING_RATE)
    model.generation_config = GenerationConfig(eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id, do_sample=True)
    model.half().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    print(f"{folder}: {time.monotonic() - start:.0f} s", flush=True)
