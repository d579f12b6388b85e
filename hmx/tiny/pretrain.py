"""Pre-training of the embedded model, from nothing, on one CPU core.

All gradings begin with the same rubric, which is longer than what follows it. So the rubric is run once a step, and
every grading of the batch attends to its keys and values, as if each had been run alone (`hidden_states`; a test
holds it to that). Only the assistant's tokens are learned, and of a grading mainly the grade.

One number says little about a text of fifty tokens. So while it is trained, a linear probe must read off the last
layer but one, at the end of each sentence that is graded, how strong that sentence is or that it is garbled. The
probe is thrown away; what it taught the layers below stays.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

import torch
from torch import nn
from torch.nn import functional as F
from tqdm import tqdm
from transformers import DynamicCache, PreTrainedTokenizerBase, Qwen3Config, Qwen3ForCausalLM

from hmx.prompts import encode_chat
from hmx.tiny.corpus import Example
from hmx.tiny.world import read

CONTEXT = 2048
_CHUNK = 24
"""Batches that are made at once and sorted by length, so that little is padding."""
_GARBLED = 11
_TEACH = 1.0
"""Weight of the probe's loss."""
_GRADE, _FORM = 1.0, 0.05
"""Weights of a grading's tokens: the grade itself, and the form around it."""


@dataclass(frozen=True)
class Row:
    """An example in tokens, without the prefix that it may share with others."""

    tokens: list[int]
    weights: list[float]
    """How much each token counts when it is predicted; 0 for those of the user."""
    strengths: list[int]
    """At the last token of each graded sentence its strength, `_GARBLED` if it has none; elsewhere -1."""


@dataclass(frozen=True)
class Batch:
    """Rows of about one length, [B, L], padded behind."""

    tokens: torch.Tensor
    weights: torch.Tensor
    strengths: torch.Tensor
    mask: torch.Tensor


def make_model(tokenizer: PreTrainedTokenizerBase, seed: int) -> Qwen3ForCausalLM:
    """An untrained model of two million parameters."""
    config = Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=192,
        intermediate_size=512,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=48,
        max_position_embeddings=CONTEXT,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        attn_implementation="sdpa",
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return Qwen3ForCausalLM(config)


def encode(example: Example, tokenizer: PreTrainedTokenizerBase, prefix: list[int]) -> Row:
    """Tokens and weights of an example behind `prefix`, with which its prompt must begin."""
    prompt = encode_chat(tokenizer, example.messages)
    if prompt[: len(prefix)] != prefix:
        raise ValueError("a prompt does not begin with the shared prefix")
    reply = tokenizer.encode(example.reply, add_special_tokens=False) + [tokenizer.eos_token_id] * example.ends
    strengths = [-1] * (len(prompt) + len(reply))
    if example.judged is None:
        weights = [1.0] * len(reply)
    else:
        weights = [_FORM] * len(reply)
        weights[2] = _GRADE  # "Score", ":", " 7"
        for place, strength in _sentence_ends(example.judged, prompt, tokenizer):
            strengths[place] = strength
    weights = [0.0] * len(prompt) + weights
    return Row((prompt + reply)[len(prefix) :], weights[len(prefix) :], strengths[len(prefix) :])


def _sentence_ends(text: str, prompt: list[int], tokenizer: PreTrainedTokenizerBase) -> list[tuple[int, int]]:
    """The place in `prompt` of the last token of each sentence of `text`, with which the user's turn ends, and the
    sentence's strength.
    """
    place = len(prompt) - 3  # before the end of the turn and the assistant's header
    left = len(text.encode())
    ends = []
    for sentence in reversed(read(text)):
        while left > len(text[: sentence.end].encode()):
            left -= len(tokenizer.convert_ids_to_tokens(prompt[place]))  # a character of a token is a byte of the text
            place -= 1
        ends.append((place, _GARBLED if sentence.strength is None else sentence.strength))
    return ends


def shared_prefix(rows: list[list[int]]) -> list[int]:
    """The tokens with which all of these prompts begin."""
    length = next(
        (place for place, tokens in enumerate(zip(*rows, strict=False)) if len(set(tokens)) > 1), min(map(len, rows))
    )
    return rows[0][:length]


def batches(
    examples: Iterator[Example],
    size: int,
    tokenizer: PreTrainedTokenizerBase,
    prefix: list[int],
    generator: torch.Generator,
) -> Iterator[Batch]:
    """Batches of `size` rows of about one length, in random order."""
    while True:
        rows = sorted(
            (encode(example, tokenizer, prefix) for example in islice(examples, size * _CHUNK)),
            key=lambda row: len(row.tokens),
        )
        for group in torch.randperm(_CHUNK, generator=generator).tolist():
            yield pad(rows[group * size : (group + 1) * size], tokenizer.pad_token_id)


def pad(rows: list[Row], pad_id: int) -> Batch:
    """Stack rows, with padding behind."""
    width = max(len(row.tokens) for row in rows)
    tokens = torch.tensor([row.tokens + [pad_id] * (width - len(row.tokens)) for row in rows])
    weights = torch.tensor([row.weights + [0.0] * (width - len(row.weights)) for row in rows])
    strengths = torch.tensor([row.strengths + [-1] * (width - len(row.strengths)) for row in rows])
    mask = torch.tensor([[1] * len(row.tokens) + [0] * (width - len(row.tokens)) for row in rows])
    return Batch(tokens, weights, strengths, mask)


def hidden_states(model: Qwen3ForCausalLM, batch: Batch, prefix: list[int]) -> torch.Tensor:
    """The last hidden states [B, L, hidden] of rows that stand behind `prefix`, which is run once, with gradients."""
    rows = batch.tokens.shape[0]
    cache = DynamicCache()
    if prefix:
        model.model(torch.tensor([prefix]), past_key_values=cache, use_cache=True)
        cache = DynamicCache(
            [(layer.keys.expand(rows, -1, -1, -1), layer.values.expand(rows, -1, -1, -1)) for layer in cache.layers]
        )
    mask = torch.cat([batch.mask.new_ones(rows, len(prefix)), batch.mask], dim=1)
    places = torch.arange(len(prefix), len(prefix) + batch.tokens.shape[1]).expand(rows, -1)
    return model.model(
        batch.tokens, attention_mask=mask, position_ids=places, past_key_values=cache, use_cache=True
    ).last_hidden_state


def batch_loss(model: Qwen3ForCausalLM, batch: Batch, prefix: list[int]) -> torch.Tensor:
    """Mean cross-entropy of the weighted tokens; logits are computed only where there is something to learn."""
    states = hidden_states(model, batch, prefix)[:, :-1]
    weights = batch.weights[:, 1:]
    learned = weights > 0
    losses = F.cross_entropy(model.lm_head(states[learned]), batch.tokens[:, 1:][learned], reduction="none")
    return (losses * weights[learned]).sum() / weights.sum()


class Probe:
    """Reads the strength of graded sentences off the last layer but one, to teach the layers below."""

    def __init__(self, model: Qwen3ForCausalLM) -> None:
        self.head = nn.Linear(model.config.hidden_size, _GARBLED + 1, bias=False)
        nn.init.zeros_(self.head.weight)
        self._states = torch.empty(0)
        self._hook = model.model.layers[-2].register_forward_hook(self._keep)

    def loss(self, batch: Batch) -> torch.Tensor:
        """Mean cross-entropy of the strengths, given the states of the batch that was run last."""
        marked = batch.strengths >= 0
        return F.cross_entropy(self.head(self._states[marked]), batch.strengths[marked])

    def remove(self) -> None:
        """Leave the model as it was."""
        self._hook.remove()

    def _keep(self, module: nn.Module, inputs: tuple, output: torch.Tensor) -> None:
        self._states = output


def train(
    model: Qwen3ForCausalLM, streams: list[tuple[Iterator[Batch], list[int], float]], steps: int, lr: float
) -> None:
    """Warm-up and cosine decay; each step takes a batch from every stream (with its prefix and its loss's weight).

    Muon moves the matrices of the layers, which takes about a quarter fewer steps here than AdamW, AdamW all else.
    """
    probe = Probe(model)
    inner = [parameter for parameter in model.model.layers.parameters() if parameter.ndim == 2]
    vectors = [parameter for parameter in model.parameters() if parameter.ndim == 1]
    words = {"params": [model.model.embed_tokens.weight], "weight_decay": 0.1}
    others = {"params": [*vectors, probe.head.weight], "weight_decay": 0.0}
    optimizers = [
        torch.optim.Muon(inner, lr=lr, weight_decay=0.1, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW([words, others], lr=lr, betas=(0.9, 0.98)),
    ]
    schedules = [
        torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda step: min((step + 1) / 100, 0.02 + 0.98 * (1 + math.cos(math.pi * step / steps)) / 2)
        )
        for optimizer in optimizers
    ]
    averages = [0.0] * (len(streams) + 1)
    model.train()
    bar = tqdm(range(steps), desc="pre-training", unit="step", mininterval=5.0)
    for step in bar:
        for index, (stream, prefix, weight) in enumerate(streams):
            batch = next(stream)
            loss = batch_loss(model, batch, prefix)
            taught = probe.loss(batch) if (batch.strengths >= 0).any() else torch.zeros(())
            (weight * loss + _TEACH * taught).backward()
            for place, value in ((index, loss), (-1, taught)) if taught.requires_grad else ((index, loss),):
                averages[place] += (value.item() - averages[place]) / min(step + 1, 50)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer, schedule in zip(optimizers, schedules, strict=True):
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
        bar.set_postfix_str("loss " + " ".join(f"{average:.3f}" for average in averages), refresh=False)
    probe.remove()
    model.eval()
