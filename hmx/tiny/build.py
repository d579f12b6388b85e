"""From a seed to the folder with the embedded model: corpus, tokenizer, pre-training, files."""

import random
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

import torch
from transformers import GenerationConfig, PreTrainedTokenizerBase, Qwen3ForCausalLM

from hmx.errors import UserError
from hmx.files import made_whole, require_writable
from hmx.graphs import why_not_compiled
from hmx.judge.rubric import Rubric
from hmx.prompts import encode_chat
from hmx.tiny.corpus import Corpus, Example, read_found
from hmx.tiny.fitting import Fitting
from hmx.tiny.forward import product_dtype
from hmx.tiny.lessons import lessons
from hmx.tiny.pretrain import CONTEXT, Stream, finish, make_model, train
from hmx.tiny.rows import batches, shared_prefix
from hmx.tiny.tokenizer import train_tokenizer
from hmx.tiny.tries import Trier

STEPS = 9000
"""Reckoned from its parts, nearly an hour on two cores of an EPYC (Zen 5), one and a half on two of the Zen 4, three
where there is no BF16.
"""
JUDGED, READ, ANSWERED = 7, 5, 3
"""Rows of a worker's step: gradings, texts to read, and conversations."""
_LESSONS = 0.26
"""How many of the conversations are lessons, which are short: about a tenth of what the model learns to say."""
LEARNING_RATE = 5e-3
_FINISHING, _FINISHING_RATE = 0.05, 2e-3
"""How many steps more each copy takes in the end, as a share, and at what learning rate."""
_SHARPEN = 2.0
"""All logits are multiplied by this in the end, so that temperature 1 is what 1 / 2 was: so small a model, so
shortly trained, leaves too much to improbable words. The last norm's weights do it; what is most probable stays, and
with it the grades that the judge takes, which are the most probable ones.
"""


@dataclass(frozen=True)
class Recipe:
    """What each worker of the pre-training needs to make its own batches."""

    rubric: Rubric
    found: list[str]
    tokenizer: PreTrainedTokenizerBase
    seed: int | str

    @property
    def prefix(self) -> list[int]:
        """The tokens of the rubric, with which every grading begins."""
        questions = ("What?", "Do you?", "7")
        return shared_prefix(
            [encode_chat(self.tokenizer, self.rubric.messages(question, "")) for question in questions]
        )

    def __call__(self, worker: int) -> list[Stream]:
        """The worker's streams."""
        corpus, texts = (Corpus(self.rubric, self.found, f"{self.seed}/{worker}{what}") for what in ("", "/texts"))
        grades = torch.tensor(self.tokenizer.convert_tokens_to_ids([f"Ġ{grade}" for grade in range(11)]))
        trier = Trier(self.tokenizer, f"{self.seed}/{worker}")
        talks = _mixed(corpus.policy(), random.Random(f"lessons/{self.seed}/{worker}"))
        return [
            Stream("gradings", batches(corpus.judge(), JUDGED, self.tokenizer, self.prefix), self.prefix, grades),
            Stream("texts", batches(texts.reader(), READ, self.tokenizer, [], trier), [], silent=True),
            Stream(
                "conversations",
                batches(talks, ANSWERED, self.tokenizer, [], fitting=Fitting(self.tokenizer)),
                [],
                comma=self.tokenizer.convert_tokens_to_ids(","),
            ),
        ]


def _mixed(interviews: Iterator[Example], rng: random.Random) -> Iterator[Example]:
    taught = lessons(rng)
    while True:
        yield next(taught if rng.random() < _LESSONS else interviews)


def build(rubric: Rubric, found: Path, folder: Path, seed: int, steps: int) -> None:
    """Train the embedded model and write it to `folder` in the hub's format, weights in FP16.

    Raises `UserError` if the folder exists or can't be made, or PyTorch can't compile here.
    """
    if folder.exists():
        raise UserError(f"{folder} exists; name a new folder for the model.")
    if steps < 1:
        raise UserError(f"--steps must be at least 1, not {steps}.")
    require_writable(folder.parent, "the model can't be made there, so name another folder by --model")
    require_compiler()
    start = time.monotonic()
    texts = read_found(found)
    tokenizer = _new_tokenizer(rubric, texts)
    model = make_model(tokenizer, seed)
    recipe = Recipe(rubric, texts, tokenizer, seed)
    print(
        f"{model.num_parameters():,} parameters; the rubric is {len(recipe.prefix)} tokens; the tokenizer took "
        f"{time.monotonic() - start:.0f} s; matrix products in {str(product_dtype()).removeprefix('torch.')}",
        flush=True,
    )
    train(model, recipe, steps, LEARNING_RATE, compiled=True)
    finishing = max(round(_FINISHING * steps), 1)
    finish(model, replace(recipe, seed=f"{seed}/finish"), finishing, _FINISHING_RATE, compiled=True)
    model.generation_config = GenerationConfig(
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id, do_sample=True
    )
    settle(model)
    with made_whole(folder) as unfinished:
        model.save_pretrained(unfinished)
        tokenizer.save_pretrained(unfinished)
    print(f"{folder}: {time.monotonic() - start:.0f} s", flush=True)


def settle(model: Qwen3ForCausalLM) -> None:
    """What is done to the weights once they are trained: rounded to FP16, and logits made sharper."""
    model.half()
    model.model.norm.weight.data *= _SHARPEN


def require_compiler() -> None:
    """Raise `UserError` if PyTorch can't compile here."""
    if reason := why_not_compiled("cpu"):
        raise UserError(
            f"PyTorch compiles the pre-training, which fails here ({reason}). It needs a C++ compiler, g++ or what the "
            "variable CXX names, and Python's headers."
        )


def _new_tokenizer(rubric: Rubric, found: list[str]) -> PreTrainedTokenizerBase:
    """A tokenizer for what the model will read and say, mostly for what it says."""
    sample = Corpus(rubric, found, "tokenizer")
    examples = [
        *islice(sample.policy(), 12000),
        *islice(sample.judge(), 8000),
        *islice(lessons(random.Random("tokenizer")), 2000),
    ]
    read = [message["content"] for example in examples for message in example.messages]
    return train_tokenizer([*read, *(example.reply for example in examples for _ in range(3))], CONTEXT)
