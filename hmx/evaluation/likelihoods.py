"""The log-likelihoods of continuations, with every token run once however many requests contain it.

A request is a context and a continuation, and requests share their beginnings: twelve choices follow one context, two
questions one passage. So sequences are folded into trees, where they part

    Is · it · so · ? ─ Yes · .
                     └ No ┬ .
                          └ , · not

and a tree is one row of a batch: its tokens one after the other, each seeing the path from the root to itself
(`Decoder.read_trees`). What a whole task begins with, its few-shot examples, is run once and lies beneath all rows. The
output layer is applied where a token of a continuation is predicted, and nowhere else. All of this is exact up to the
order of summation.

Models that `hmx.decoder` does not know are run by their own modules, each context once and its continuations behind it.

Notation: `B` rows, `W` tokens of the largest tree, `V` vocabulary.
"""

import copy
import math
from collections.abc import Iterator, Sequence

import torch
from torch.nn.utils.rnn import pad_sequence
from transformers import DynamicCache

from hmx.cache import PrefixCache
from hmx.decoder import Decoder, positions
from hmx.errors import UserError
from hmx.evaluation.beginnings import by_beginning
from hmx.evaluation.benchmark import Subject, Tick
from hmx.precision import autocast
from hmx.prompts import pad_id
from hmx.sampling import Prefix, common_length, pad_left

LOGITS = 2**27
"""How many logits there may be at once: half a GB in FP32, and as much again for what a family does to them."""

Request = tuple[Sequence[int], Sequence[int]]
"""A context and a continuation, in tokens; neither is empty."""
Likelihood = tuple[float, bool]
"""The sum of a continuation's log-probabilities, and whether each of its tokens is the likeliest."""


@torch.no_grad()
def likelihoods(subject: Subject, requests: Sequence[Request], tick: Tick = lambda share: None) -> list[Likelihood]:
    """What each continuation has behind its context, in the order of the requests."""
    results: list[Likelihood] = [(0.0, False)] * len(requests)
    done = 0
    with autocast(subject.model):
        decoder = Decoder.of(subject.model)
        scored = _by_modules(subject, requests) if decoder is None else _by_trees(decoder, subject, requests)
        for some in scored:
            for place, result in some.items():
                results[place] = result
            done += len(some)
            tick(done / len(requests))
    if not all(math.isfinite(total) for total, _ in results):
        raise UserError("The model's logits are not finite numbers; set model.precision to bf16 or fp32.")
    return results


# -- as trees ----------------------------------------------------------------------------------------------------------


class Tree:
    """Sequences folded into one row where they begin alike. Each must come after those that sort before it.

    Args:
        shared: how many tokens lie beneath the root, as a prefix.
    """

    def __init__(self, shared: int = 0):
        self.shared = shared
        self.tokens: list[int] = []
        self.depth: list[int] = []
        """Each token's position in its sequence."""
        self.end: list[int] = []
        """The place behind the last token of each one's subtree, or something larger."""
        self.asked: list[tuple[int, int, int]] = []
        """A place where something is predicted, the token whose probability there is wanted, and the request's key."""
        self._last: Sequence[int] = ()
        self._path: list[int] = []  # the places of its tokens

    def takes(self, sequence: Sequence[int], widest: int) -> bool:
        """Whether half of `sequence` is here already, so that it is better off here than in a row of its own, and the
        rest has room.
        """
        same = common_length(self._last, sequence)
        return 2 * same >= len(sequence) and len(self.tokens) + len(sequence) - same <= widest

    def add(self, sequence: Sequence[int], continuation: Sequence[int], key: int) -> None:
        """Fold in a context and its continuation, less the prefix and less the last token, which is never read."""
        same, first = common_length(self._last, sequence), len(self.tokens)
        for place in self._path[same:]:
            self.end[place] = first
        self.tokens += sequence[same:]
        self.depth += range(self.shared + same, self.shared + len(sequence))
        self.end += [_OPEN] * (len(sequence) - same)
        self._last, self._path = sequence, [*self._path[:same], *range(first, len(self.tokens))]
        places = self._path[-len(continuation) :]
        self.asked += [(place, token, key) for place, token in zip(places, continuation, strict=True)]


_OPEN = 2**31


def fold(requests: Sequence[Request], keys: Sequence[int], shared: int, widest: int) -> list[Tree]:
    """The requests with these keys as trees of at most `widest` tokens, unless one alone is longer; the largest first.

    Args:
        shared: all contexts begin with so many tokens that are run as a prefix.
    """
    sequences = [([*requests[key][0], *requests[key][1][:-1]][shared:], key) for key in keys]
    trees: list[Tree] = []
    for sequence, key in sorted(sequences):
        if not trees or not trees[-1].takes(sequence, widest):
            trees.append(Tree(shared))
        trees[-1].add(sequence, requests[key][1], key)
    return sorted(trees, key=lambda tree: -len(tree.tokens))


def _by_trees(decoder: Decoder, subject: Subject, requests: Sequence[Request]) -> Iterator[dict[int, Likelihood]]:
    for beginning, keys in by_beginning([context for context, _ in requests]):
        prefix = Prefix.of(subject.model, beginning).keys_values if beginning else None
        trees = fold(requests, keys, len(beginning), subject.max_length)
        while trees:
            rows = max(1, subject.tokens_at_once // (len(beginning) + len(trees[0].tokens)))
            yield _score(decoder, trees[:rows], prefix)
            trees = trees[rows:]


def _score(decoder: Decoder, trees: Sequence[Tree], prefix) -> dict[int, Likelihood]:
    def padded(columns: list[list[int]]) -> torch.Tensor:
        return pad_sequence(list(map(torch.tensor, columns)), batch_first=True).to(decoder.device)  # [B, W]

    ids, depth, end = (padded([getattr(tree, name) for tree in trees]) for name in ("tokens", "depth", "end"))
    cache = PrefixCache(prefix) if prefix else None
    hidden = decoder.read_trees(ids, depth, end, cache).flatten(0, 1)  # [B · W, hidden]
    W = ids.shape[1]
    asked = [(row * W + place, token, key) for row, tree in enumerate(trees) for place, token, key in tree.asked]
    places, tokens, keys = zip(*asked, strict=True)
    logprobs, likeliest = _predictions(decoder, hidden, torch.tensor(places), torch.tensor(tokens))
    results: dict[int, Likelihood] = {}
    for key, logprob, is_likeliest in zip(keys, logprobs.tolist(), likeliest.tolist(), strict=True):
        total, greedy = results.get(key, (0.0, True))
        results[key] = (total + logprob, greedy and is_likeliest)
    return results


def _predictions(
    decoder: Decoder, hidden: torch.Tensor, places: torch.Tensor, tokens: torch.Tensor
) -> tuple[torch.Tensor, ...]:
    """The log-probability [N] of each of N tokens at its place, and whether it is the likeliest there.

    Places are asked about more than once where continuations part: the output layer is applied to each once, and to
    some at a time, since with a large vocabulary it is the logits that fill the memory.

    Args:
        hidden: last hidden states, of all places.
    """
    places, which = torch.unique(places, return_inverse=True)
    logprobs, likeliest = torch.empty(len(tokens)), torch.empty(len(tokens), dtype=torch.bool)
    some = max(1, LOGITS // decoder.model.config.vocab_size)
    for start in range(0, len(places), some):
        logits = decoder.logits(hidden[places[start : start + some].to(hidden.device)]).float()  # [some, V]
        mine = (which >= start) & (which < start + some)
        row, token = (which[mine] - start).to(hidden.device), tokens[mine].to(hidden.device)
        logprobs[mine] = (logits[row, token] - logits.logsumexp(dim=-1)[row]).cpu()
        likeliest[mine] = (logits.argmax(dim=-1)[row] == token).cpu()
    return logprobs, likeliest


# -- by the model's own modules ----------------------------------------------------------------------------------------


def _by_modules(subject: Subject, requests: Sequence[Request]) -> Iterator[dict[int, Likelihood]]:
    together: dict[tuple[int, ...], list[int]] = {}
    for key, (context, _) in enumerate(requests):
        together.setdefault(tuple(context), []).append(key)
    for contexts in _batches(together, requests, subject.tokens_at_once):
        keys = [key for context in contexts for key in together[context]]
        rows = [row for row, context in enumerate(contexts) for _ in together[context]]
        scores = _score_by_modules(subject, contexts, rows, [requests[key][1] for key in keys])
        yield dict(zip(keys, scores, strict=True))


def _batches(together: dict[tuple[int, ...], list[int]], requests: Sequence[Request], tokens_at_once: int):
    """Contexts to run at once, so many that all their continuations fit the memory; the longest come first."""
    batch, rows, longest, continuation = [], 0, 0, 0
    for context in sorted(together, key=lambda context: (-len(context), context)):
        ends = max(len(requests[key][1]) for key in together[context])
        longest, continuation = max(longest, len(context)), max(continuation, ends)
        rows += len(together[context])
        if batch and rows * (longest + continuation) > tokens_at_once:
            yield batch
            batch, rows, longest, continuation = [], len(together[context]), len(context), ends
        batch.append(context)
    if batch:
        yield batch


def _score_by_modules(
    subject: Subject, contexts: Sequence[Sequence[int]], rows: Sequence[int], continuations: Sequence[Sequence[int]]
) -> list[Likelihood]:
    """Each context is run once, and behind it its continuations; `rows` says for each which context it follows."""
    model, padding = subject.model, pad_id(subject.tokenizer)
    ids, attention = pad_left(contexts, padding, model.device)  # [C, L]
    targets = pad_sequence([torch.tensor(one) for one in continuations], batch_first=True, padding_value=padding)
    lengths = torch.tensor([len(one) for one in continuations])
    there = torch.arange(targets.shape[1]) < lengths[:, None]  # [R, K]
    cache = DynamicCache()
    sums, greedy = [], []
    first = model(
        ids,
        attention_mask=attention,
        position_ids=positions(attention),
        past_key_values=cache,
        use_cache=True,
        logits_to_keep=1,
    ).logits  # [C, 1, V]: what comes behind each context
    # Some continuations at a time: with a large vocabulary it is their logits that fill the memory.
    some = max(1, LOGITS // (targets.shape[1] * first.shape[-1]))
    for part in torch.arange(len(rows)).split(some):
        index = torch.tensor(rows)[part].to(model.device)
        tokens, mask = targets[part].to(model.device), there[part].to(model.device)  # [b, K]
        logits = first[index]
        if tokens.shape[1] > 1:
            seen = torch.cat([attention[index], mask[:, :-1].to(attention.dtype)], dim=1)  # [b, L + K - 1]
            rest = model(
                tokens[:, :-1],
                attention_mask=seen,
                position_ids=positions(seen)[:, attention.shape[1] :],
                past_key_values=_selected(cache, index),
                use_cache=True,
            ).logits
            logits = torch.cat([logits, rest], dim=1)  # [b, K, V]
        logits = logits.float()
        chosen = logits.gather(-1, tokens[:, :, None]).squeeze(-1) - logits.logsumexp(dim=-1)  # [b, K]
        sums.append(chosen.masked_fill(~mask, 0).sum(dim=1))
        greedy.append(((logits.argmax(dim=-1) == tokens) | ~mask).all(dim=1))
    return list(zip(torch.cat(sums).tolist(), torch.cat(greedy).tolist(), strict=True))


def _selected(cache: DynamicCache, index: torch.Tensor) -> DynamicCache:
    """Keys and values of some of the rows, each as often as it is named; the cache itself stays as it is."""
    chosen = copy.copy(cache)
    chosen.layers = [copy.copy(layer) for layer in cache.layers]
    chosen.batch_select_indices(index)
    return chosen
