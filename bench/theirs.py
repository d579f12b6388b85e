"""What a user would pick instead: TRL's GRPOTrainer with PEFT's LoRA, and transformers' generate as the judge.

Set up as somebody would who knows both libraries: logging, saving and shuffling off, all answers of a step judged in
one batch, the judge's reply ended at the end of its first line, which is the score's. TRL, PEFT and datasets are
imported where they are used: the other benchmarks do without them.
"""

from collections.abc import Callable, Sequence
from contextlib import nullcontext

import torch
from transformers import StoppingCriteria, StoppingCriteriaList, TrainerCallback
from transformers.trainer_callback import PrinterCallback

from bench.models import Loaded
from bench.ours import Laps, StepSeconds, made_up
from hmx.config import Config, resolve
from hmx.errors import UserError
from hmx.judge import Rubric
from hmx.judge.parse import parse_score
from hmx.prompts import pad_id


class LineEnd(StoppingCriteria):
    """Ends a row of generate with the first token that holds a line break. Random weights write none on purpose, so
    there it looks but never ends a row.
    """

    def __init__(self, loaded: Loaded):
        tokenizer = loaded.tokenizer
        self._breaks = torch.zeros(loaded.model.config.vocab_size, dtype=torch.bool)
        if not loaded.random:
            texts = [tokenizer.decode([token]) for token in range(len(tokenizer))]
            self._breaks[: len(texts)] = torch.tensor(["\n" in text for text in texts])
        self._breaks = self._breaks.to(loaded.model.device)

    def __call__(self, input_ids: torch.Tensor, scores, **options) -> torch.Tensor:
        return self._breaks[input_ids[:, -1]]


def left_padded(rows: Sequence[Sequence[int]], padding: int, device) -> dict[str, torch.Tensor]:
    """Token ids as generate wants them."""
    width = max(map(len, rows))
    ids = torch.tensor([[padding] * (width - len(row)) + list(row) for row in rows], device=device)
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows], device=device)
    return {"input_ids": ids, "attention_mask": mask}


class PlainJudge:
    """The same grader by transformers' generate: greedy, one batch, the same prompts and the same reading of the reply.

    Args:
        stop_at_line_end: False generates to the end of the reply.
    """

    def __init__(self, loaded: Loaded, rubric: Rubric, max_new_tokens: int, stop_at_line_end: bool):
        self.loaded, self.rubric, self.max_new_tokens = loaded, rubric, max_new_tokens
        self.stop = StoppingCriteriaList([LineEnd(loaded)]) if stop_at_line_end else None

    @torch.no_grad()
    def grade(self, model, questions: Sequence[str], answers: Sequence[str]) -> list[int | None]:
        """`model`: the loaded one or PEFT's wrapper around it, whose adapter is switched off for this."""
        tokenizer = self.loaded.tokenizer
        conversations = [self.rubric.messages(*pair) for pair in zip(questions, answers, strict=True)]
        texts = tokenizer.apply_chat_template(conversations, tokenize=False, add_generation_prompt=True)
        ids = tokenizer(texts, add_special_tokens=False)["input_ids"]
        inputs = left_padded(ids, pad_id(tokenizer), self.loaded.model.device)
        with model.disable_adapter() if hasattr(model, "disable_adapter") else nullcontext():
            output = model.generate(
                **inputs,
                max_new_tokens=self.max_new_tokens,
                do_sample=False,
                pad_token_id=pad_id(tokenizer),
                stopping_criteria=self.stop,
            )
        replies = output[:, inputs["input_ids"].shape[1] :]
        return [parse_score(text) for text in tokenizer.batch_decode(replies, skip_special_tokens=True)]


class JudgeReward:
    """The reward function of TRL's trainer: the trained model's own base grades."""

    __name__ = "judge"  # TRL asks for it

    def __init__(self, judge: PlainJudge, laps: Laps):
        self._judge, self._laps = judge, laps
        self.trainer = None
        """Set once the trainer is made, which wraps the model."""
        self.tokens = 0
        """Sampled in the last step."""

    def __call__(self, prompts, completions, completion_ids, question, **rest) -> list[float | None]:
        self.tokens = sum(map(len, completion_ids))
        answers, model = [completion[0]["content"] for completion in completions], self.trainer.model
        with self._laps.judging():
            model.eval()
            grades = self._judge.grade(model, question, answers)
            model.train()
        return [None if grade is None else float(grade) for grade in self._made_up_if_random(grades)]

    def _made_up_if_random(self, grades: list[int | None]) -> Sequence[int | None]:
        return made_up(len(grades)) if self._judge.loaded.random else grades


class EachStep(TrainerCallback):
    """Takes the time of every step of TRL's trainer, from the end of `between` to the end of the step.

    Args:
        between: called with the step's seconds after each, off the clock.
    """

    def __init__(self, laps: Laps, reward: JudgeReward, between: Callable[[StepSeconds], object]):
        self._laps, self._reward, self._between = laps, reward, between

    def on_train_begin(self, *arguments, **options):
        self._laps.begin()

    def on_step_end(self, *arguments, **options):
        self._between(self._laps.end(self._reward.tokens))
        self._laps.begin()


def grpo_settings(config: Config, steps: int, fixed: int | None, folder: str) -> dict:
    """The arguments of TRL's GRPOConfig that mean what `config` means.

    "bnpo" there averages over the tokens of a micro-batch, here over those of a group: the same with one question a
    micro-batch, and as much work in any case.

    Args:
        fixed: no answer ends before its limit, since this token id is never sampled; None for the model's own ends.
    """
    grpo, optimizer = config.grpo, config.optimizer
    return {
        "output_dir": folder,
        "per_device_train_batch_size": grpo.prompts_per_microbatch * grpo.completions_per_prompt,
        "gradient_accumulation_steps": grpo.prompts_per_step // grpo.prompts_per_microbatch,
        "num_generations": grpo.completions_per_prompt,
        "num_iterations": grpo.updates_per_rollout,
        "max_completion_length": config.completion_limit(0),
        "temperature": config.sampling.temperature,
        "top_p": 1.0,
        "top_k": 0,
        "generation_kwargs": None if fixed is None else {"eos_token_id": fixed},
        "beta": grpo.beta,
        "epsilon": grpo.clip_eps,
        "loss_type": grpo.aggregation,
        "scale_rewards": "group",
        "learning_rate": optimizer.learning_rate,
        "lr_scheduler_type": optimizer.schedule,
        "adam_beta1": optimizer.betas[0],
        "adam_beta2": optimizer.betas[1],
        "adam_epsilon": optimizer.eps,
        "weight_decay": optimizer.weight_decay,
        "max_grad_norm": optimizer.max_grad_norm,
        "max_steps": steps,
        "gradient_checkpointing": config.train.gradient_checkpointing == "on",
        "fp16": config.model.precision == "fp16",
        "bf16": config.model.precision == "bf16",
        "use_cpu": config.model.device == "cpu",
        "shuffle_dataset": False,
        "report_to": "none",
        "logging_strategy": "no",
        "save_strategy": "no",
        "disable_tqdm": True,
    }


def lora_settings(config: Config) -> dict:
    """The arguments of PEFT's LoraConfig."""
    lora = config.lora
    return {
        "r": lora.rank,
        "lora_alpha": lora.alpha,
        "lora_dropout": lora.dropout,
        "target_modules": list(lora.targets),
        "task_type": "CAUSAL_LM",
    }


def their_trainer(
    config: Config,
    loaded: Loaded,
    laps: Laps,
    questions: Sequence[str],
    steps: int,
    fixed: bool,
    folder: str,
    between: Callable[[StepSeconds], object],
):
    """TRL's trainer, ready for `.train()`.

    Args:
        questions: those of all steps, in their order.
        fixed: as in `our_trainer`.
        folder: where TRL may write.
        between: see `EachStep`.
    """
    from datasets import Dataset
    from peft import LoraConfig
    from trl import GRPOConfig, GRPOTrainer

    if config.model.precision == "fp16" and config.model.device == "cpu":
        raise UserError("TRL trains in FP16 on a GPU only; use --precision fp32.")
    if loaded.tokenizer.eos_token is None:
        loaded.tokenizer.eos_token = "<|end|>"  # TRL wants one; it is not what ends an answer here
    judge = PlainJudge(loaded, Rubric.load(resolve(config.judge.prompt_file)), config.judge.max_new_tokens, True)
    reward = JudgeReward(judge, laps)
    rows = {"prompt": [[{"role": "user", "content": text}] for text in questions], "question": list(questions)}
    trainer = GRPOTrainer(
        model=loaded.model,
        reward_funcs=reward,
        args=GRPOConfig(**grpo_settings(config, steps, loaded.never if fixed else None, folder)),
        train_dataset=Dataset.from_dict(rows),
        processing_class=loaded.tokenizer,
        peft_config=LoraConfig(**lora_settings(config)),
        callbacks=[EachStep(laps, reward, between)],
    )
    reward.trainer = trainer
    trainer._get_per_token_logps_and_entropies = _timed(trainer._get_per_token_logps_and_entropies, laps)
    trainer.remove_callback(PrinterCallback)
    if fixed:
        trainer.eos_token_ids = [loaded.never]  # by which it cuts what generate returned
    return trainer


def _timed(logprobs: Callable, laps: Laps) -> Callable:
    """TRL's log-probabilities; those of the reference, which it computes before it asks for rewards, on the clock of
    the training.
    """

    def timed(*arguments, **options):
        with nullcontext() if torch.is_grad_enabled() else laps.training():
            return logprobs(*arguments, **options)

    return timed
