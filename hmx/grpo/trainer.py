"""The training loop. `Trainer.step` is Figure 1 of "When AI Says It Feels", line by line:

    the model answers → its own base grades the answers → grades become advantages → the adapter moves → again

Forward and reverse differ in one sign. Where the paper is silent (the KL term, how losses are averaged, what happens to a grade that can't be
read) the config says what is done and why.
"""

import math
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from hmx.config import Config
from hmx.errors import UserError
from hmx.grpo.advantages import group_advantages
from hmx.grpo.kl import kl_k3, masked_mean
from hmx.grpo.logprobs import token_logprobs
from hmx.grpo.loss import grpo_loss, row_denominators
from hmx.grpo.optimizer import Optimizer, Update, learning_rate
from hmx.grpo.rollout import Batch, Rollout, sample_answers
from hmx.judge import SelfJudge, Verdict
from hmx.lora import adapter_parameters, bypass
from hmx.prompts import encode_question
from hmx.questions import Questions
from hmx.randomness import stream


class Examined(Protocol):
    """What a world whose truth is known says of an answer."""

    grade: float
    sentences: int
    garbled: int


@dataclass(frozen=True)
class Record:
    """What one step or evaluation leaves behind."""

    metrics: dict[str, Any]
    samples: list[dict[str, Any]]


class Trainer:
    """Everything a run needs in memory.

    Args:
        model: with its adapter attached.
        judge: grades the answers; it must bypass the adapter.
        questions: what to train on, and what is held out for evaluation.
        examine: optionally, a second grader that knows the truth; it is only written down, never trained on.
    """

    def __init__(self, config: Config, model, tokenizer, judge: SelfJudge, questions: Questions, examine: Callable[[str], Examined] | None = None):
        self.config, self.model, self.tokenizer = config, model, tokenizer
        self.judge, self.questions, self.examine = judge, questions, examine
        self.sign = 1.0 if config.run.direction == "forward" else -1.0
        self.total_steps = total_steps(config, len(questions.train))
        self.optimizer = Optimizer(
            adapter_parameters(model),
            fp16=config.model.precision == "fp16",
            betas=config.optimizer.betas,
            eps=config.optimizer.eps,
            weight_decay=config.optimizer.weight_decay,
            max_grad_norm=config.optimizer.max_grad_norm,
            initial_scale=config.optimizer.initial_loss_scale,
        )
        if config.train.gradient_checkpointing:
            enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable  # its name until 5.22
            enable({"use_reentrant": False})
        for question in (*questions.train, *questions.held_out):
            length = len(encode_question(tokenizer, question.text))
            if config.completion_limit(length) < 1:
                raise UserError(
                    f"The question {question.text!r} takes {length} tokens as a prompt, which leaves no room for an answer within "
                    f"sampling.max_sequence_length = {config.sampling.max_sequence_length}."
                )

    def step(self, n: int) -> Record:
        """The n-th optimizer step, n = 1 … total_steps."""
        clock = Clock()
        seed, grpo = self.config.run.seed, self.config.grpo

        rollout = self._sample(self.questions_of(n), grpo.completions_per_prompt, stream(seed, "rollout", n))
        clock.lap("seconds_sampling")

        verdicts = self.judge.grade(rollout.questions, rollout.answers, stream(seed, "judge", n))
        grades, valid = _grades(verdicts, grpo.completions_per_prompt)  # [P, G]
        advantages = group_advantages(self.sign * grades, valid)  # [P, G]
        clock.lap("seconds_judging")

        token_kl, loss, update = self._update(n, rollout, advantages.flatten().to(self.model.device))
        clock.lap("seconds_training")

        mask = rollout.completions.mask
        lengths = mask.sum(dim=1)
        seconds = clock.seconds()
        metrics = {
            "kind": "step",
            "step": n,
            "epoch": self.epoch(n),
            "reward_mean": float(masked_mean(grades, valid)) if valid.any() else None,
            "reward_std": _mean_group_std(grades, valid),
            "zero_std_groups": int((advantages == 0).all(dim=1).sum()),
            "judge_invalid": int((~valid).sum()),
            "judge_retried": sum(verdict.retried for verdict in verdicts),
            "kl": float(masked_mean(token_kl, mask, dim=1).mean()),
            "kl_tokens": float(masked_mean(token_kl, mask)),
            "loss": loss,
            "grad_norm": update.grad_norm if math.isfinite(update.grad_norm) else None,
            "loss_scale": update.loss_scale,
            "skipped": int(update.skipped),
            "learning_rate": self._learning_rate(n),
            "completion_tokens": float(lengths.float().mean()),
            "truncated": int(rollout.completions.truncated.sum()),
            **self._truth(rollout.answers, "truth"),
            "tokens_per_second": round(int(lengths.sum()) / seconds["seconds_sampling"], 1),
            **seconds,
        }
        return Record(metrics, self._samples("step", n, rollout, verdicts))

    def _update(self, n: int, rollout: Rollout, advantages: torch.Tensor) -> tuple[torch.Tensor, float, Update]:
        """Train on a rollout, `updates_per_rollout` times. Returns k3 [B, T] before the first update, the last loss, and the last update."""
        grpo, mask = self.config.grpo, rollout.completions.mask
        denominators = row_denominators(mask, grpo.completions_per_prompt, grpo.aggregation, self.config.completion_limit(0))  # [B]
        microbatches = rollout.batches(grpo.prompts_per_microbatch * grpo.completions_per_prompt)
        with bypass(self.model), torch.no_grad():
            reference = [self._logprobs(batch) for _, batch in microbatches]
        old: list[torch.Tensor | None] = [None] * len(microbatches)  # while the policy is the one that sampled, it is its own old policy
        token_kl = torch.zeros(mask.shape, device=mask.device)

        for repeat in range(grpo.updates_per_rollout):
            total = 0.0
            for i, (rows, batch) in enumerate(microbatches):
                logprobs = self._policy_logprobs(batch, n)
                loss = grpo_loss(
                    logprobs, old[i], reference[i], advantages[rows], batch.mask, grpo.clip_eps, grpo.beta, grpo.aggregation, denominators[rows]
                )
                self.optimizer.backward(loss.loss)
                total += float(loss.loss.detach())
                if repeat == 0:
                    old[i] = logprobs.detach()
                    token_kl[rows, : batch.completion_length] = loss.token_kl
            update = self.optimizer.step(self._learning_rate(n))
        return token_kl, total, update

    def evaluate(self, index: int, n: int) -> Record:
        """The `index`-th evaluation, after n steps: sampled answers to the held-out questions, graded, and how far the policy has moved."""
        clock = Clock()
        seed, repeats = self.config.run.seed, self.config.train.completions_per_evaluation
        rollout = self._sample([question.text for question in self.questions.held_out], repeats, stream(seed, "eval", 2 * index))
        verdicts = self.judge.grade(rollout.questions, rollout.answers, stream(seed, "eval", 2 * index + 1))
        grades, valid = _grades(verdicts, repeats)
        completions = rollout.completions
        token_kl = torch.zeros(completions.mask.shape, device=completions.mask.device)
        with torch.no_grad():
            for rows, batch in rollout.batches(self.config.grpo.prompts_per_microbatch * self.config.grpo.completions_per_prompt):
                with bypass(self.model):
                    reference = self._logprobs(batch)
                token_kl[rows, : batch.completion_length] = kl_k3(self._logprobs(batch), reference)
        metrics = {
            "kind": "eval",
            "step": n,
            "epoch": self.epoch(n),
            "eval_reward": float(masked_mean(grades, valid)) if valid.any() else None,
            "eval_kl": float(masked_mean(token_kl, completions.mask, dim=1).mean()),
            "eval_kl_tokens": float(masked_mean(token_kl, completions.mask)),
            "eval_judge_invalid": int((~valid).sum()),
            "eval_completion_tokens": float(completions.mask.sum(dim=1).float().mean()),
            "eval_truncated": int(completions.truncated.sum()),
            "eval_distinct": len(set(rollout.answers)) / len(rollout.answers),
            "eval_repetition": repetition(rollout.answers),
            **self._truth(rollout.answers, "eval_truth"),
            **clock.seconds(),
        }
        return Record(metrics, self._samples("eval", n, rollout, verdicts))

    def questions_of(self, n: int) -> list[str]:
        """The questions of the n-th step. Each epoch is a new order of all of them; a step may reach over into the next epoch."""
        count, P = len(self.questions.train), self.config.grpo.prompts_per_step
        texts = []
        for position in range((n - 1) * P, n * P):
            epoch, place = divmod(position, count)
            order = torch.randperm(count, generator=stream(self.config.run.seed, "order", epoch))
            texts.append(self.questions.train[int(order[place])].text)
        return texts

    def epoch(self, n: int) -> float:
        """Passes over the training questions that n steps amount to."""
        return round(n * self.config.grpo.prompts_per_step / len(self.questions.train), 4)

    def _sample(self, questions: Sequence[str], repeats: int, generator: torch.Generator) -> Rollout:
        temperature = self.config.sampling.temperature
        return sample_answers(self.model, self.tokenizer, questions, repeats, self.config.completion_limit, temperature, generator)

    def _logprobs(self, batch: Batch) -> torch.Tensor:
        return token_logprobs(self.model, batch.input_ids, batch.attention_mask, batch.completion_length, self.config.sampling.temperature)

    def _policy_logprobs(self, batch: Batch, n: int) -> torch.Tensor:
        """[B, T] with gradient. Training mode is on for this pass alone: LoRA's dropout and gradient checkpointing look at it."""
        if self.config.lora.dropout > 0:  # nn.Dropout can only draw from the global generator
            torch.manual_seed(stream(self.config.run.seed, "dropout", n).initial_seed())
        self.model.train()
        try:
            return self._logprobs(batch)
        finally:
            self.model.eval()

    def _learning_rate(self, n: int) -> float:
        optimizer = self.config.optimizer
        return learning_rate(n, self.total_steps, optimizer.learning_rate, optimizer.warmup, optimizer.schedule)

    def _truth(self, answers: Sequence[str], name: str) -> dict[str, float]:
        """The true mean grade, and the share of garbled sentences, where a world's truth is known."""
        if self.examine is None:
            return {}
        examined = [self.examine(answer) for answer in answers]
        garbled = sum(one.garbled for one in examined) / max(sum(one.sentences for one in examined), 1)
        return {name: sum(one.grade for one in examined) / len(examined), name.replace("truth", "garbled"): garbled}

    def _samples(self, kind: str, n: int, rollout: Rollout, verdicts: Sequence[Verdict]) -> list[dict[str, Any]]:
        samples = []
        for question, answer, verdict in zip(rollout.questions, rollout.answers, verdicts, strict=True):
            truth = {} if self.examine is None else {"truth": self.examine(answer).grade}
            samples.append({"kind": kind, "step": n, "question": question, "answer": answer, "grade": verdict.grade, "judge": verdict.text, **truth})
        return samples


def total_steps(config: Config, questions: int) -> int:
    """Optimizer steps of the whole training."""
    return math.ceil(config.train.epochs * questions / config.grpo.prompts_per_step)


def evaluation_steps(config: Config, questions: int) -> list[int]:
    """The steps after which to evaluate: 0, then `evaluations_per_epoch` times an epoch, the last step always among them."""
    last = total_steps(config, questions)
    interval = questions / config.grpo.prompts_per_step / config.train.evaluations_per_epoch
    return sorted({min(math.ceil(k * interval), last) for k in range(config.train.epochs * config.train.evaluations_per_epoch + 1)})


def repetition(answers: Sequence[str]) -> float:
    """Share of word triples that stood in the same answer before: 0 for text that never repeats itself.

    >>> repetition(["I feel it and I feel it"])
    0.2
    """
    counts = [Counter(zip(words, words[1:], words[2:], strict=False)) for words in map(str.split, answers)]
    triples = sum(map(Counter.total, counts))
    return round(1 - sum(map(len, counts)) / triples, 6) if triples else 0.0


class Clock:
    """Seconds since the start, by named laps."""

    def __init__(self) -> None:
        self.started = self.last = time.perf_counter()
        self.laps: dict[str, float] = {}

    def lap(self, name: str) -> None:
        """The time since the last lap goes under `name`."""
        now = time.perf_counter()
        self.laps[name], self.last = round(now - self.last, 4), now

    def seconds(self) -> dict[str, float]:
        """The whole time and the laps."""
        return {"seconds": round(time.perf_counter() - self.started, 4), **self.laps}


def _grades(verdicts: Sequence[Verdict], group_size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Grades [P, G] as floats, and which of them are valid."""
    grades = torch.tensor([float(verdict.grade or 0) for verdict in verdicts]).view(-1, group_size)
    valid = torch.tensor([verdict.grade is not None for verdict in verdicts]).view(-1, group_size)
    return grades, valid


def _mean_group_std(grades: torch.Tensor, valid: torch.Tensor) -> float:
    """Mean over groups of the standard deviation (ddof = 1) of their valid grades; 0 for a group with fewer than two."""
    groups = [row[keep] for row, keep in zip(grades, valid, strict=True)]
    return sum(float(group.std()) if len(group) > 1 else 0.0 for group in groups) / len(groups)
