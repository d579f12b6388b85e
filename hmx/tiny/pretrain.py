"""Pre-training of the embedded model, from nothing, on two CPU cores.

Three things make it fast enough for a CPU:

* All gradings begin with the same rubric, which is longer than what follows it. So the rubric is run once a step, and
  every grading of the batch attends to its keys and values, as if each had been run alone.
* The forward pass is written for short rows, with matrix products in BF16 (`hmx.tiny.forward`).
* Two processes each make their own batches and their own gradients, whose sum moves the weights that they share. How
  many processes there are belongs to the recipe: the weights do not depend on how many cores work on it.

Of a grading mainly the grade is learned, and the text that is graded as far as it is well-formed. How far a grade is
from the truth counts more than whether it is the very one: else a text of which nobody knows whether it is garbled or
how strong it is gets a 0, which is more probable than any one of the other ten grades, though not than all of them.

One number says little about a text of fifty tokens. So while it is trained, a linear probe must read off the last layer
but one, at the end of each sentence that is graded, how strong that sentence is or that it is garbled, and within the
sentence, at each token, whether what stands there can still become a sentence; and at each token that an interviewee
says, what it was asked about, without which the model does not learn to answer on the subject. The probe is thrown
away; what it taught the layers below stays.
"""

import multiprocessing
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from multiprocessing.synchronize import Barrier

import torch
from torch import nn
from torch.nn import functional as F
from tqdm import tqdm
from transformers import PreTrainedTokenizerBase, Qwen3Config, Qwen3ForCausalLM

from hmx.tiny.forward import States, hidden_states
from hmx.tiny.rows import GARBLED, LABELS, WHOLE, Batch

CONTEXT = 2048
_RISE, _FALL = 100, 1400
"""Steps in which the learning rate goes up, and comes down."""
_TEACH = 1.0
"""Weight of the probe's loss."""
_NEAR = 1.5
"""Weight of a grade's distance from the truth."""
_MERCY = 5.0
"""How much more it counts where the truth is not 0: to take a good answer for a garbled one is the worse mistake."""
_READ = 0.5
"""Weight of the loss on the texts that are graded, where they are well-formed: more sentences to learn the language
from, and more varied ones than the interviewee's.
"""


def make_model(tokenizer: PreTrainedTokenizerBase, seed: int) -> Qwen3ForCausalLM:
    """An untrained model of 2.6 million parameters."""
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


def token_loss(model: Qwen3ForCausalLM, batch: Batch, states: States) -> torch.Tensor:
    """Mean cross-entropy of the weighted tokens; logits are computed only where there is something to learn."""
    weights = batch.weights[:, 1:]
    learned = weights > 0
    losses = F.cross_entropy(_logits(model, states, learned), batch.tokens[:, 1:][learned], reduction="none")
    return (losses * weights[learned]).sum() / weights.sum()


def reading_loss(model: Qwen3ForCausalLM, batch: Batch, states: States) -> torch.Tensor:
    """Mean cross-entropy of the tokens of graded texts that may still become a sentence; 0 if there are none."""
    labels = batch.strengths[:, 1:]
    learned = (labels >= 0) & (labels < GARBLED) | (labels == WHOLE)
    loss = F.cross_entropy(_logits(model, states, learned), batch.tokens[:, 1:][learned], reduction="sum")
    return loss / max(int(learned.sum()), 1)


def grade_loss(model: Qwen3ForCausalLM, batch: Batch, states: States, grades: torch.Tensor) -> torch.Tensor:
    """Mean distance of the grades that the judge would draw from the true ones; `grades` [11] are their tokens.

    The mean is a weighted one: true grades above 0 count `_MERCY` times. What brings it to its least is to be sure of
    the median of what the grade may be. What is drawn beside the grades costs nothing here, only in `token_loss`; now
    and then the judge does so.
    """
    targets = batch.tokens[:, 1:]
    graded = (batch.weights[:, 1:] > 0) & torch.isin(targets, grades)
    shares = _logits(model, states, graded).softmax(-1)[:, grades]
    truth = (targets[graded][:, None] == grades).int().argmax(-1, keepdim=True)
    distances = (shares * (torch.arange(len(grades)) - truth).abs()).sum(-1)
    counts = torch.where(truth[:, 0] > 0, _MERCY, 1.0)
    return (distances * counts).sum() / counts.sum()


def _logits(model: Qwen3ForCausalLM, states: States, learned: torch.Tensor) -> torch.Tensor:
    """The logits [N, V] of the N tokens among a row's second to last that are learned, a mask [B, L - 1]."""
    return (states.last[:, :-1][learned] @ model.lm_head.weight.to(states.last.dtype).T).float()


def probe_loss(probe: nn.Linear, batch: Batch, states: States) -> torch.Tensor:
    """Mean cross-entropy of the strengths at the sentences' ends, and half as much of what is known before the ends and
    of what an interview is about.
    """
    marked = batch.strengths >= 0
    labels = batch.strengths[marked]
    losses = F.cross_entropy(probe(states.probed[marked]), labels, reduction="none")
    ends = labels <= GARBLED
    parts = (1.0, losses[ends]), (0.5, losses[~ends])
    return sum(weight * part.mean() for weight, part in parts if len(part))


@dataclass(frozen=True)
class Stream:
    """Batches without end, and the prefix behind which they stand."""

    batches: Iterator[Batch]
    prefix: list[int]
    grades: torch.Tensor | None = None
    """In gradings, the tokens of the grades, 0 to 10."""


def train(
    model: Qwen3ForCausalLM, streams: Callable[[int], list[Stream]], steps: int, lr: float, workers: int = 2
) -> None:
    """In each step every worker takes a batch from each of its streams.

    Worker 0 is this process, the others are made for it; `streams(worker)` must be picklable. They share the weights
    and hand their gradients over in shared memory. Muon moves the matrices of the layers, which takes about a quarter
    fewer steps here than AdamW, AdamW all else.
    """
    probe = nn.Linear(model.config.hidden_size, LABELS, bias=False)
    nn.init.zeros_(probe.weight)
    model.share_memory().train()
    probe.share_memory()
    parameters = [*model.parameters(), probe.weight]
    gradients = torch.zeros(workers, sum(map(torch.Tensor.numel, parameters))).share_memory_()
    processes = multiprocessing.get_context("spawn")
    barrier = processes.Barrier(workers)
    helpers = [
        processes.Process(target=_help, args=(model, probe, streams, steps, worker, gradients[worker], barrier))
        for worker in range(1, workers)
    ]
    for helper in helpers:
        helper.start()
    try:
        _lead(model, probe, streams(0), steps, lr, gradients, barrier)
    finally:
        barrier.abort()
        for helper in helpers:
            helper.join()
    model.eval()


def _lead(
    model: Qwen3ForCausalLM,
    probe: nn.Linear,
    streams: list[Stream],
    steps: int,
    lr: float,
    gradients: torch.Tensor,
    barrier: Barrier,
) -> None:
    """Worker 0, which also moves the weights."""
    inner = [parameter for parameter in model.model.layers.parameters() if parameter.ndim == 2]
    vectors = [parameter for parameter in model.parameters() if parameter.ndim == 1]
    words = {"params": [model.model.embed_tokens.weight], "weight_decay": 0.1}
    others = {"params": [*vectors, probe.weight], "weight_decay": 0.0}
    optimizers = [
        torch.optim.Muon(inner, lr=lr, weight_decay=0.1, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW([words, others], lr=lr, betas=(0.9, 0.98)),
    ]
    schedules = [
        torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _rate(step, steps)) for optimizer in optimizers
    ]
    parameters = [*model.parameters(), probe.weight]
    averages = [0.0] * (len(streams) + 1)
    bar = tqdm(range(steps), desc="pre-training", unit="step", mininterval=5.0)
    for step in bar:
        losses = _gradient(model, probe, streams, gradients[0])
        for place, value in enumerate(losses):
            averages[place] += (value - averages[place]) / min(step + 1, 50)
        barrier.wait()
        mean = gradients.mean(0)
        for parameter, part in zip(parameters, mean.split([one.numel() for one in parameters]), strict=True):
            parameter.grad = part.view_as(parameter)
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        for optimizer, schedule in zip(optimizers, schedules, strict=True):
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
        barrier.wait()
        bar.set_postfix_str("loss " + " ".join(f"{average:.3f}" for average in averages), refresh=False)


def _rate(step: int, steps: int) -> float:
    """The learning rate's share of its highest: up at once, then level, so that a longer training begins as a shorter
    one does, and down to nothing in the end.
    """
    return min((step + 1) / _RISE, 1.0, (steps - step) / min(_FALL, steps))


def _help(
    model: Qwen3ForCausalLM,
    probe: nn.Linear,
    make_streams: Callable[[int], list[Stream]],
    steps: int,
    worker: int,
    gradient: torch.Tensor,
    barrier: Barrier,
) -> None:
    """Any other worker: a process that computes gradients until the leader has enough."""
    torch.set_num_threads(1)
    streams = make_streams(worker)
    try:
        for _ in range(steps):
            _gradient(model, probe, streams, gradient)
            barrier.wait()
            barrier.wait()
    except threading.BrokenBarrierError:  # the leader has stopped
        pass
    finally:
        barrier.abort()  # whoever waits must not wait for ever


def _gradient(model: Qwen3ForCausalLM, probe: nn.Linear, streams: list[Stream], gradient: torch.Tensor) -> list[float]:
    """Write the gradient on the next batches into `gradient`; returns the streams' losses and the probe's."""
    parameters = [*model.parameters(), probe.weight]
    losses, taught = [], 0.0
    for stream in streams:
        batch = next(stream.batches)
        states = hidden_states(model, batch, stream.prefix)
        loss = token_loss(model, batch, states)
        losses.append(loss.item())
        loss = loss + _READ * reading_loss(model, batch, states)
        if stream.grades is not None:
            loss = loss + _NEAR * grade_loss(model, batch, states, stream.grades)
        if (batch.strengths >= 0).any():
            lesson = probe_loss(probe, batch, states)
            taught += lesson.item()
            loss = loss + _TEACH * lesson
        loss.backward()
    torch.cat([parameter.grad.flatten() for parameter in parameters], out=gradient)
    for parameter in parameters:
        parameter.grad = None
    return [*losses, taught]
