"""Pre-training of the embedded model, from nothing, on one CPU core.

All gradings begin with the same rubric, which is longer than what follows it. So the rubric is run once a step, and every grading of the batch attends to
its keys and values, as if each had been run alone (`hidden_states`; a test holds it to that). Only the assistant's tokens are learned, and of a grading
mainly the grade.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

import torch
from torch.nn import functional as F
from tqdm import tqdm
from transformers import DynamicCache, PreTrainedTokenizerBase, Qwen3Config, Qwen3ForCausalLM

from hmx.prompts import encode_chat
from hmx.tiny.corpus import Example

CONTEXT = 2048
_CHUNK = 24
"""Batches that are made at once and sorted by length, so that little is padding."""
_GRADE, _FORM = 1.0, 0.05
"""Weights of a grading's tokens: the grade itself, and the form around it."""


@dataclass(frozen=True)
class Row:
    """An example in tokens, without the prefix that it may share with others."""

    tokens: list[int]
    weights: list[float]
    """How much each token counts when it is predicted; 0 for those of the user."""


@dataclass(frozen=True)
class Batch:
    """Rows of about one length, [B, L], padded behind."""

    tokens: torch.Tensor
    weights: torch.Tensor
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
    if example.grade is None:
        weights = [1.0] * len(reply)
    else:
        weights = [_FORM] * len(reply)
        weights[2] = _GRADE  # "Score", ":", " 7"
    prompt = prompt[len(prefix) :]
    return Row(prompt + reply, [0.0] * len(prompt) + weights)


def shared_prefix(rows: list[list[int]]) -> list[int]:
    """The tokens with which all of these prompts begin."""
    length = next((place for place, tokens in enumerate(zip(*rows, strict=False)) if len(set(tokens)) > 1), min(map(len, rows)))
    return rows[0][:length]


def batches(examples: Iterator[Example], size: int, tokenizer: PreTrainedTokenizerBase, prefix: list[int], generator: torch.Generator) -> Iterator[Batch]:
    """Batches of `size` rows of about one length, in random order."""
    while True:
        rows = sorted((encode(example, tokenizer, prefix) for example in islice(examples, size * _CHUNK)), key=lambda row: len(row.tokens))
        for group in torch.randperm(_CHUNK, generator=generator).tolist():
            yield pad(rows[group * size : (group + 1) * size], tokenizer.pad_token_id)


def pad(rows: list[Row], pad_id: int) -> Batch:
    """Stack rows, with padding behind."""
    width = max(len(row.tokens) for row in rows)
    tokens = torch.tensor([row.tokens + [pad_id] * (width - len(row.tokens)) for row in rows])
    weights = torch.tensor([row.weights + [0.0] * (width - len(row.weights)) for row in rows])
    mask = torch.tensor([[1] * len(row.tokens) + [0] * (width - len(row.tokens)) for row in rows])
    return Batch(tokens, weights, mask)


def hidden_states(model: Qwen3ForCausalLM, batch: Batch, prefix: list[int]) -> torch.Tensor:
    """The last hidden states [B, L, hidden] of a batch whose rows stand behind `prefix`, which is run once, with gradients."""
    rows = batch.tokens.shape[0]
    cache = DynamicCache()
    if prefix:
        model.model(torch.tensor([prefix]), past_key_values=cache, use_cache=True)
        cache = DynamicCache([(layer.keys.expand(rows, -1, -1, -1), layer.values.expand(rows, -1, -1, -1)) for layer in cache.layers])
    mask = torch.cat([batch.mask.new_ones(rows, len(prefix)), batch.mask], dim=1)
    places = torch.arange(len(prefix), len(prefix) + batch.tokens.shape[1]).expand(rows, -1)
    return model.model(batch.tokens, attention_mask=mask, position_ids=places, past_key_values=cache, use_cache=True).last_hidden_state


def batch_loss(model: Qwen3ForCausalLM, batch: Batch, prefix: list[int]) -> torch.Tensor:
    """Mean cross-entropy of the weighted tokens; logits are computed only where there is something to learn."""
    states = hidden_states(model, batch, prefix)[:, :-1]
    weights = batch.weights[:, 1:]
    learned = weights > 0
    losses = F.cross_entropy(model.lm_head(states[learned]), batch.tokens[:, 1:][learned], reduction="none")
    return (losses * weights[learned]).sum() / weights.sum()


def train(model: Qwen3ForCausalLM, streams: list[tuple[Iterator[Batch], list[int], float]], steps: int, lr: float) -> None:
    """AdamW with warm-up and cosine decay; each step takes a batch from every stream (with its prefix and the weight of its loss)."""
    matrices = [parameter for parameter in model.parameters() if parameter.ndim > 1]
    vectors = [parameter for parameter in model.parameters() if parameter.ndim == 1]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=lr, betas=(0.9, 0.98))
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min((step + 1) / 100, 0.02 + 0.98 * (1 + math.cos(math.pi * step / steps)) / 2))
    averages = [0.0] * len(streams)
    model.train()
    bar = tqdm(range(steps), desc="pre-training", unit="step", mininterval=5.0)
    for step in bar:
        for index, (stream, prefix, weight) in enumerate(streams):
            loss = batch_loss(model, next(stream), prefix)
            (weight * loss).backward()
            averages[index] += (loss.item() - averages[index]) / min(step + 1, 50)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        bar.set_postfix_str("loss " + " ".join(f"{average:.3f}" for average in averages), refresh=False)
    model.eval()
