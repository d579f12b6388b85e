"""The training loop. `Trainer.step` is Figure 1 of "When AI Says It Feels":

    the model answers → its own base grades the answers → grades become advantages → the adapter moves → again

Forward and reverse differ in one sign. Where the paper is silent (the KL term, how losses are averaged) the config says
what is done and why. A grade that can't be read is asked for once more (`SelfJudge.grade`), then left out of its group
(`group_advantages`).
"""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch

from hmx.config import Config
from hmx.errors import UserError
from hmx.grpo.advantages import group_advantages
from hmx.grpo.kl import kl_k3
from hmx.grpo.logprobs import token_logprobs
from hmx.grpo.loss import grpo_loss, row_denominators
from hmx.grpo.optimizer import Optimizer
from hmx.grpo.records import Clock, Examine, Graded, Record, Trained, evaluation_record, step_record
from hmx.grpo.rollout import Batch, Rollout, sample_answers
from hmx.grpo.schedule import learning_rate, total_steps
from hmx.judge import SelfJudge
from hmx.lora import adapter_parameters, bypass
from hmx.memory import Portions, Result, keep_less, say
from hmx.prompts import encode_question
from hmx.questions import Questions
from hmx.randomness import stream


class Trainer:
    """Everything a run needs in memory.

    Args:
        model: with its adapter attached.
        judge: grades the answers; it must bypass the adapter.
        questions: what to train on, and what is held out for evaluation.
        examine: optionally, a second grader that knows the truth; it is only written down, never trained on.
        checkpointing: whether gradient checkpointing is on from the start.
    """

    def __init__(
        self,
        config: Config,
        model,
        tokenizer,
        judge: SelfJudge,
        questions: Questions,
        examine: Examine | None = None,
        checkpointing: bool = False,
    ):
        self.config, self.model, self.tokenizer = config, model, tokenizer
        self.judge, self.questions, self.examine = judge, questions, examine
        self.sign = 1.0 if config.run.direction == "forward" else -1.0
        self.total_steps = total_steps(config, len(questions.train))
        self.microbatch = config.grpo.prompts_per_microbatch * config.grpo.completions_per_prompt  # rows
        self.optimizer = Optimizer(
            adapter_parameters(model),
            fp16=config.model.precision == "fp16",
            betas=config.optimizer.betas,
            eps=config.optimizer.eps,
            weight_decay=config.optimizer.weight_decay,
            max_grad_norm=config.optimizer.max_grad_norm,
            initial_scale=config.optimizer.initial_loss_scale,
        )
        self.checkpointing = False
        if checkpointing:
            self._keep_less()
        self.portions = Portions("answering questions")
        self._require_room_for_answers()

    def step(self, n: int) -> Record:
        """The n-th optimizer step, n = 1 … total_steps."""
        seed, G = self.config.run.seed, self.config.grpo.completions_per_prompt
        clock = Clock()

        # The model, its adapter on, answers P questions G times each …
        rollout = self._answers(self.questions_of(n), G, stream(seed, "rollout", n))
        clock.lap("sampling")

        # … the same model, its adapter off, grades every answer from 0 to 10 …
        verdicts = self.judge.grade(rollout.questions, rollout.answers, stream(seed, "judge", n))
        graded = Graded.of(rollout, verdicts, G)
        clock.lap("judging")

        # … each grade is compared with its group's, the other way round in reverse training …
        advantages = group_advantages(self.sign * graded.grades, graded.valid).float()  # [P, G]

        # … and the adapter moves toward the answers with positive advantage.
        trained = self._within_memory(lambda: self._train(rollout, advantages.flatten().to(self.model.device), n))
        clock.lap("training")

        record = step_record(n, graded, advantages, trained, self.examine)
        seconds = clock.seconds()
        record.metrics.update(epoch=self.epoch(n), learning_rate=self.learning_rate(n), **seconds)
        record.metrics["tokens_per_second"] = round(int(rollout.completions.mask.sum()) / seconds["seconds_sampling"])
        return record

    def _train(self, rollout: Rollout, advantages: torch.Tensor, n: int) -> Trained:
        """Accumulate the gradient over the rollout's micro-batches and step, `updates_per_rollout` times over."""
        grpo, mask = self.config.grpo, rollout.completions.mask
        longest = self.config.completion_limit(0)  # no answer can be longer than one to an empty prompt
        # [B], of the whole step: how it is split changes no gradient.
        denominators = row_denominators(mask, grpo.completions_per_prompt, grpo.aggregation, longest)
        batches = rollout.batches(self.microbatch)
        reference: dict[int, torch.Tensor] = {}  # log-probabilities under the base model, by micro-batch
        old: dict[int, torch.Tensor] = {}  # … under the policy that sampled, which in the first pass is the policy
        token_kl = torch.zeros(mask.shape, device=mask.device)  # [B, T]
        updates = []

        with self._training_mode(n):
            for _ in range(grpo.updates_per_rollout):
                total = clipped = 0.0
                for i, (rows, batch) in enumerate(batches):
                    if i not in reference:
                        with bypass(self.model), torch.no_grad():
                            reference[i] = self._logprobs(batch)
                    logprobs = self._logprobs(batch)  # [b, T], the b rows of the micro-batch
                    loss = grpo_loss(
                        logprobs,
                        old.get(i),
                        reference[i],
                        advantages[rows],
                        batch.mask,
                        clip_eps=grpo.clip_eps,
                        beta=grpo.beta,
                        aggregation=grpo.aggregation,
                        denominator=denominators[rows],
                    )
                    self.optimizer.backward(loss.loss)
                    total += loss.loss.detach()
                    clipped += loss.clip_fraction
                    if i not in old:
                        old[i] = logprobs.detach()
                        token_kl[rows, : batch.completion_length] = loss.token_kl
                if not math.isfinite(total):  # with FP16 no smaller loss scale would help, it is the forward pass
                    raise UserError(
                        f"The loss of step {n} is not a finite number; try --set model.precision=bf16 or fp32, or a "
                        "lower optimizer.learning_rate."
                    )
                updates.append(self.optimizer.step(self.learning_rate(n)))
        return Trained(float(total), float(clipped), token_kl, updates)

    def evaluate(self, index: int, n: int) -> Record:
        """The `index`-th evaluation, after n steps: graded answers to the held-out questions, and their KL."""
        seed, repeats = self.config.run.seed, self.config.train.completions_per_evaluation
        clock = Clock()
        questions = [question.text for question in self.questions.held_out]
        # Two streams an evaluation: the even one for answers, the odd one for second judgements.
        rollout = self._answers(questions, repeats, stream(seed, "eval", 2 * index))
        verdicts = self.judge.grade(rollout.questions, rollout.answers, stream(seed, "eval", 2 * index + 1))
        token_kl = self._within_memory(lambda: self._token_kl(rollout), gradient=False)
        record = evaluation_record(n, Graded.of(rollout, verdicts, repeats), token_kl, self.examine)
        record.metrics.update(epoch=self.epoch(n), **clock.seconds())
        return record

    @torch.no_grad()
    def _token_kl(self, rollout: Rollout) -> torch.Tensor:
        """[B, T]: k3 of each sampled token."""
        token_kl = torch.zeros(rollout.completions.mask.shape, device=self.model.device)
        for rows, batch in rollout.batches(self.microbatch):
            with bypass(self.model):
                reference = self._logprobs(batch)
            token_kl[rows, : batch.completion_length] = kl_k3(self._logprobs(batch), reference)
        return token_kl

    def questions_of(self, n: int) -> list[str]:
        """The questions of the n-th step. Each epoch is a new order of all; a step may reach over into the next."""
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

    def learning_rate(self, n: int) -> float:
        """Of the n-th step."""
        optimizer = self.config.optimizer
        return learning_rate(n, self.total_steps, optimizer.learning_rate, optimizer.warmup, optimizer.schedule)

    def _answers(self, questions: Sequence[str], repeats: int, generator: torch.Generator) -> Rollout:
        limit, temperature = self.config.completion_limit, self.config.sampling.temperature

        def sample(part: slice) -> Rollout:
            return sample_answers(self.model, self.tokenizer, questions[part], repeats, limit, temperature, generator)

        return Rollout.joined(self.portions(sample, len(questions), generator))

    def _logprobs(self, batch: Batch) -> torch.Tensor:
        """[b, T] under the model as it stands, at the temperature that was sampled at."""
        temperature = self.config.sampling.temperature
        return token_logprobs(self.model, batch.input_ids, batch.attention_mask, batch.completion_length, temperature)

    def _within_memory(self, compute: Callable[[], Result], gradient: bool = True) -> Result:
        """What `compute` returns. Whenever the GPU's memory does not suffice, its half-made gradient is forgotten and
        it is called again with fewer activations kept: the same mathematics, more slowly. Without a `gradient` none are
        kept, and only smaller micro-batches help.
        """
        before = self.optimizer.steps

        def may_checkpoint() -> bool:
            return gradient and not self.checkpointing and self.config.train.gradient_checkpointing != "off"

        while True:
            try:
                return compute()
            except torch.OutOfMemoryError:
                if self.optimizer.steps > before or (self.microbatch == 1 and not may_checkpoint()):
                    raise
            # Not in the handler: the exception holds on to every tensor of the computation that failed.
            self.optimizer.forget()
            torch.cuda.empty_cache()
            if may_checkpoint():
                self._keep_less()
                say("Out of GPU memory: activations are computed again on the way back from here on, which is slower.")
            else:
                self.microbatch //= 2
                say(f"Out of GPU memory: {self.microbatch} answers go through a training pass at once from here on.")

    def _keep_less(self) -> None:
        keep_less(self.model)
        self.checkpointing = True

    @contextmanager
    def _training_mode(self, n: int) -> Iterator[None]:
        """LoRA's dropout and gradient checkpointing look at the mode, on the way forward and on the way back."""
        found = self.model.training
        if self.config.lora.dropout > 0:  # nn.Dropout can only draw from the global generator
            torch.manual_seed(stream(self.config.run.seed, "dropout", n).initial_seed())
        self.model.train()
        try:
            yield
        finally:
            self.model.train(found)

    def _require_room_for_answers(self) -> None:
        for question in (*self.questions.train, *self.questions.held_out):
            length = len(encode_question(self.tokenizer, question.text))
            if self.config.completion_limit(length) < 1:
                raise UserError(
                    f"The question {question.text!r} takes {length} tokens as a prompt, which leaves no room for an "
                    f"answer: sampling.max_sequence_length = {self.config.sampling.max_sequence_length}."
                )
