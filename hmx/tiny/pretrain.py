"""Pre-training of the embedded model, from nothing, on two CPU cores.

Four things make it fast enough for a CPU:

* All gradings begin with the same rubric, which is longer than what follows it. So the rubric is run once a step, and
  every grading of the batch attends to its keys and values, as if each had been run alone.
* The forward pass is written for short examples, packed into rows of one length, and compiled, with matrix products in
  BF16 where the processor has it (`hmx.tiny.forward`).
* Texts that are only read teach the layers below the last, so they skip the last.
* Two processes each make their own batches and gradients; by the mean of these each moves its part of the weights,
  which they share. How many processes there are belongs to the recipe: the weights do not depend on how many cores
  work on it.

In the end `finish` lets copies go on alone for a while, and takes the mean of all weights.

Of an interview it is learned what is said and, beside the very word, that it is one of those which could stand there
(`hmx.tiny.fitting`). Of a grading mainly the grade is learned, and the text that is graded as far as it is well-formed.
How far a grade is from the truth counts too, and not only whether it is the very one: by likelihood alone every
doubtful text gets a 0, which is more probable than any one of the other ten grades, though not than all of them
together.

One number says little about a text of fifty tokens. So a `Tutor` also teaches what should be found out on the way to it
(`hmx.tiny.tutor`).
"""

import copy
import multiprocessing
import signal
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from multiprocessing.synchronize import Barrier

import torch
from torch import nn
from torch.nn import functional as F
from tqdm import tqdm
from transformers import PreTrainedTokenizerBase, Qwen3Config, Qwen3ForCausalLM

from hmx.tiny.forward import States, hidden_states, layer_forward, product_dtype
from hmx.tiny.muon import Muon
from hmx.tiny.rows import Batch
from hmx.tiny.tutor import Tutor, well_formed

CONTEXT = 2048
_RISE, _FALL = 100, 3500
"""Steps in which the learning rate goes up, and comes down."""
_PATIENCE = 600
"""Seconds that workers wait for each other; the first time they compile."""
_TEACH = 1.0
"""Weight of the loss of the tutor's strengths."""
_PREDICT, _COMPARE, _BREAK = 2.0, 8.0, 4.0
"""Weights of the losses of predicting, of comparing, and of telling what breaks a sentence."""
_NEAR = 0.5
"""Weight of a grade's distance from the truth."""
_MERCY = 2.5
"""How much more it counts where the truth is not 0: to take a good answer for a garbled one is the worse mistake."""
_FIT = 2.0
"""Weight of the loss of what could stand at the places of an interview."""
_READ = 1.0
"""Weight of the loss on the texts that are graded, where they are well-formed: more sentences to learn the language
from, and more varied ones than the interviewee's.
"""


def make_model(tokenizer: PreTrainedTokenizerBase, seed: int) -> Qwen3ForCausalLM:
    """An untrained model of 3.0 million parameters."""
    config = Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=192,
        intermediate_size=512,
        num_hidden_layers=5,
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


def token_loss(model: Qwen3ForCausalLM, batch: Batch, states: States) -> tuple[torch.Tensor, torch.Tensor]:
    """Weighted mean cross-entropy of the tokens to be said; and the mean one of the tokens of graded texts up to which
    a sentence is well-formed, 0 if there are none. Logits are computed only where there is something to learn.
    """
    weights, labels = batch.weights[:, 1:], batch.strengths[:, 1:]
    read = well_formed(labels) & ~batch.tried[:, 1:]
    learned = (weights > 0) | read
    losses = F.cross_entropy(_logits(model, states, learned), batch.tokens[:, 1:][learned], reduction="none")
    said = (losses * weights[learned]).sum() / weights.sum()
    return said, (losses * read[learned]).sum() / max(int(read.sum()), 1)


def grade_loss(model: Qwen3ForCausalLM, batch: Batch, states: States, grades: torch.Tensor) -> torch.Tensor:
    """Mean distance of the grades that the judge would draw from the true ones; `grades` [11] are their tokens.

    The mean is a weighted one: true grades above 0 count `_MERCY` times. It is least when all probability is on the
    median of what the grade may be, each above 0 weighted so. That it is a grade at all is for `token_loss` to teach.
    """
    targets = batch.tokens[:, 1:]
    graded = (batch.weights[:, 1:] > 0) & torch.isin(targets, grades)
    shares = _logits(model, states, graded)[:, grades].softmax(-1)
    truth = (targets[graded][:, None] == grades).int().argmax(-1, keepdim=True)
    distances = (shares * (torch.arange(len(grades)) - truth).abs()).sum(-1)
    counts = torch.where(truth[:, 0] > 0, _MERCY, 1.0)
    return (distances * counts).sum() / counts.sum()


def fitting_loss(model: Qwen3ForCausalLM, batch: Batch, states: States, comma: int) -> torch.Tensor:
    """Mean of -log of the probability that a token of an interview is one that could stand there, if it is no comma; 0
    if of no token it is known which could.
    """
    rows, places = batch.placed.unbind(1)
    logits = _logits(model, states, (rows, places - 1))
    logits[:, comma] = -torch.inf
    fitting = logits.masked_fill(~batch.fitting, -torch.inf)
    return (logits.logsumexp(-1) - fitting.logsumexp(-1)).sum() / max(len(logits), 1)


def _logits(
    model: Qwen3ForCausalLM, states: States, learned: torch.Tensor | tuple[torch.Tensor, torch.Tensor]
) -> torch.Tensor:
    """The logits [N, V] of the N tokens among a row's second to last that are learned: a mask [R, L - 1], or their rows
    and places.
    """
    return (states.last[:, :-1][learned] @ model.lm_head.weight.to(states.last.dtype).T).float()


@dataclass(frozen=True)
class Stream:
    """Batches without end, and the prefix behind which they stand."""

    name: str
    batches: Iterator[Batch]
    prefix: list[int]
    grades: torch.Tensor | None = None
    """In gradings, the tokens of the grades, 0 to 10."""
    comma: int | None = None
    """In conversations, the token of a comma; it is learned there what could stand in an interviewee's reply."""
    silent: bool = False
    """Whether its texts are only read: there is no reply to learn, and all they teach goes through the tutor."""


def train(
    model: Qwen3ForCausalLM,
    streams: Callable[[int], list[Stream]],
    steps: int,
    lr: float,
    workers: int = 2,
    compiled: bool = False,
) -> None:
    """Train `model`; in each step every worker takes a batch from each of its streams.

    Worker 0 is this process, the others are made for it; `streams` must be picklable. They share the weights, hand
    their gradients over in shared memory, and each moves its part of the weights. With `compiled` the layers are
    compiled, for which there must be a C++ compiler. Raises `RuntimeError` if another worker fails, or if a gradient is
    not finite.
    """
    _together(_work, workers, model, streams, steps, lr, compiled, "pre-training")


def finish(
    model: Qwen3ForCausalLM,
    streams: Callable[[int], list[Stream]],
    steps: int,
    lr: float,
    copies: int = 6,
    compiled: bool = False,
) -> None:
    """Train copies of `model` further, each alone on the batches of one worker, and let it have the mean of their
    weights and its own: a "model soup" (Wortsman et al., 2022). What the copies learn alike stays, what each owes to
    its own batches is mostly noise and goes. All else is as in `train`, with a new tutor.
    """
    _together(_work_alone, copies, model, streams, steps, lr, compiled, "finishing")


def _together(work: Callable, workers: int, model: Qwen3ForCausalLM, *settings) -> None:
    """Let each worker do its part of the `work`, with the model, a new tutor and as many numbers for each worker as
    these have parameters in memory that they share.
    """
    tutor = Tutor(model.config.hidden_size).share_memory()
    model.share_memory().train()
    numbers = sum(parameter.numel() for module in (model, tutor) for parameter in module.parameters())
    processes = multiprocessing.get_context("spawn")
    barrier = processes.Barrier(workers, timeout=_PATIENCE)
    shared = model, tutor, *settings, torch.zeros(workers, numbers).share_memory_(), barrier
    helpers = [processes.Process(target=_help, args=(work, worker, *shared)) for worker in range(1, workers)]
    threads = torch.get_num_threads()
    try:
        for helper in helpers:
            helper.start()
        work(0, *shared)
    except threading.BrokenBarrierError:
        raise RuntimeError(
            "another worker of the pre-training has failed, and what it said stands above, or it did not answer for "
            f"{_PATIENCE} s"
        ) from None
    finally:
        barrier.abort()
        for helper in helpers:
            if helper.pid:
                helper.join()
        torch.set_num_threads(threads)
    model.eval()


def _help(work: Callable, worker: int, *shared) -> None:
    """Any worker but the first, in a process of its own: Ctrl-C is for the first, which stops the others."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    barrier = shared[-1]
    try:
        work(worker, *shared)
    except threading.BrokenBarrierError:  # another has stopped, and says why
        pass
    except BaseException:
        barrier.abort()  # whoever waits must not wait for ever
        raise


def _work(
    worker: int,
    model: Qwen3ForCausalLM,
    tutor: Tutor,
    make_streams: Callable[[int], list[Stream]],
    steps: int,
    lr: float,
    compiled: bool,
    part: str,
    gradients: torch.Tensor,
    barrier: Barrier,
) -> None:
    """Compute gradients, and by the mean of all workers' move a part of the weights: each some of the layers' matrices,
    by Muon, and the last worker all else, by AdamW.
    """
    torch.set_num_threads(1)  # sums over other numbers of threads round differently
    workers = len(gradients)
    streams = make_streams(worker)
    layer = torch.compile(layer_forward, dynamic=False) if compiled else layer_forward
    dtype = product_dtype()
    inner = [parameter for parameter in model.model.layers.parameters() if parameter.ndim == 2]
    vectors = [parameter for parameter in model.parameters() if parameter.ndim == 1]
    optimizers: list[torch.optim.Optimizer] = [Muon(inner[worker::workers], lr=lr, weight_decay=0.1, dtype=dtype)]
    if worker == workers - 1:
        words = {"params": [model.model.embed_tokens.weight], "weight_decay": 0.1}
        others = {"params": [*vectors, *tutor.parameters()], "weight_decay": 0.0}
        optimizers.append(torch.optim.AdamW([words, others], lr=lr, betas=(0.9, 0.98)))
    schedules = [
        torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _rate(step, steps)) for optimizer in optimizers
    ]
    parameters = [*model.parameters(), *tutor.parameters()]
    helping = multiprocessing.parent_process() is not None
    averages = dict.fromkeys([*(stream.name for stream in streams), "strengths", "breaks", "surprise", "misfits"], 0.0)
    bar = tqdm(range(steps), desc=part, unit="step", mininterval=5.0, disable=helping)
    for step in bar:
        losses = _gradient(model, tutor, streams, gradients[worker], layer, dtype)
        for name, value in zip(averages, losses, strict=True):
            averages[name] += (value - averages[name]) / min(step + 1, 50)
        barrier.wait()
        _point(parameters, gradients.mean(0))
        torch.nn.utils.clip_grad_norm_(parameters, 1.0, error_if_nonfinite=True)
        for optimizer, schedule in zip(optimizers, schedules, strict=True):
            optimizer.step()
            schedule.step()
        for parameter in parameters:
            parameter.grad = None
        barrier.wait()
        shown = " ".join(f"{name} {average:.3f}" for name, average in averages.items())
        bar.set_postfix_str(f"losses: {shown}", refresh=False)


def _work_alone(
    worker: int, model: Qwen3ForCausalLM, tutor: Tutor, make_streams: Callable[[int], list[Stream]], *others
) -> None:
    """Do all the work on a copy; once all are trained, the model gets the mean of its weights and theirs."""
    *settings, weights, barrier = others
    own = copy.deepcopy(model)
    alone = own, copy.deepcopy(tutor), lambda _: make_streams(worker)
    _work(0, *alone, *settings, torch.zeros_like(weights[:1]), barrier)
    vector = nn.utils.parameters_to_vector(own.parameters()).detach()
    weights[worker, : len(vector)] = vector
    barrier.wait()
    if worker == 0:
        whole = nn.utils.parameters_to_vector(model.parameters()).detach() + weights[:, : len(vector)].sum(0)
        nn.utils.vector_to_parameters(whole / (1 + len(weights)), model.parameters())


def _rate(step: int, steps: int) -> float:
    """The learning rate's share of its highest: up in `_RISE` steps, then level, and down in the last `_FALL`, or all
    the way in a training that is shorter.
    """
    return min((step + 1) / _RISE, 1.0, (steps - step) / min(_FALL, steps))


def _gradient(
    model: Qwen3ForCausalLM,
    tutor: Tutor,
    streams: list[Stream],
    gradient: torch.Tensor,
    layer: Callable,
    dtype: torch.dtype,
) -> list[float]:
    """Write the gradient on the next batches into `gradient`; returns the streams' losses, on what is replied or, where
    nothing is, on what the tutor has them predict, and the tutor's other losses: of the strengths, of what breaks
    sentences, of the surprise, and of what doesn't fit in conversations.
    """
    parameters = [*model.parameters(), *tutor.parameters()]
    _point(parameters, gradient.zero_())
    losses, strengths, breaks, surprise, misfits = [], 0.0, 0.0, 0.0, 0.0
    for stream in streams:
        batch = next(stream.batches)
        depth = len(model.model.layers) - 1 if stream.silent else None
        states = hidden_states(model, batch, stream.prefix, dtype, layer, depth)
        if stream.silent:
            learned, compared = tutor.surprise_loss(model.lm_head.weight, batch, states)
            surprise += compared.item()
            loss = _PREDICT * learned + _COMPARE * compared
        else:
            learned, read = token_loss(model, batch, states)
            loss = learned + _READ * read
        losses.append(learned.item())
        if stream.grades is not None:
            loss = loss + _NEAR * grade_loss(model, batch, states, stream.grades)
        if stream.comma is not None:
            misfit = fitting_loss(model, batch, states, stream.comma)
            misfits += misfit.item()
            loss = loss + _FIT * misfit
        if (batch.strengths >= 0).any():
            known, broken = tutor.strength_loss(batch, states), tutor.break_loss(batch, states)
            strengths += known.item()
            breaks += broken.item()
            loss = loss + _TEACH * known + _BREAK * broken
        loss.backward()
    return [*losses, strengths, breaks, surprise, misfits]


def _point(parameters: list[nn.Parameter], gradient: torch.Tensor) -> None:
    """Let the gradient of each parameter be its part of `gradient`, to which a backward pass then adds."""
    for parameter, part in zip(parameters, gradient.split([one.numel() for one in parameters]), strict=True):
        parameter.grad = part.view_as(parameter)
