"""What a step and an evaluation write down, recomputed row by row; and that what the config says is what is done."""

import itertools
import math
from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch

from hmx import training
from hmx.decoder import Decoder
from hmx.errors import UserError
from hmx.grpo import trainer as module
from hmx.lora import bypass
from tests import models
from tests.grpo.test_trainer import perturb
from tests.small_run import LengthJudge, small_config


@pytest.fixture
def build(monkeypatch, tmp_path):
    """Builds trainers of the small config, off their start, that keep the rollouts they sample in `rollouts`."""
    monkeypatch.setattr(training, "SelfJudge", LengthJudge)

    def make(*overrides, **options):
        trainer = training.build_trainer(small_config(tmp_path, *overrides, **options))
        perturb(trainer)
        trainer.rollouts, sample = [], trainer._answers
        monkeypatch.setattr(
            trainer, "_answers", lambda *given: trainer.rollouts.append(sample(*given)) or trainer.rollouts[-1]
        )
        return trainer

    return make


def row_kls(trainer, rollout, temperature: float = 1.0) -> list[list[float]]:
    """k3 of every sampled token of every row, by plain forward passes in float64."""
    rows = []
    for prompt, completion in zip(rollout.prompts, rollout.completions.rows(), strict=True):
        scored = []
        for adapter in (nullcontext(), bypass(trainer.model)):
            with adapter:
                logits = models.reference_logits(trainer.model, prompt + completion)
            logprobs = (logits.double() / temperature).log_softmax(dim=-1)
            scored.append([float(logprobs[len(prompt) + t - 1, token]) for t, token in enumerate(completion)])
        rows.append([math.exp(r - p) - 1 - (r - p) for p, r in zip(*scored, strict=True)])
    return rows


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("kind", ["step", "eval"])
def test_the_kl_that_is_logged_is_k3_over_the_rows_and_over_the_tokens(build, kind, temperature):
    trainer = build(f"sampling.temperature={temperature}", "grpo.updates_per_rollout=2")  # a step's is before the first
    metrics = (trainer.step(1) if kind == "step" else trainer.evaluate(0, 0)).metrics
    unmoved = build(f"sampling.temperature={temperature}")
    rows = row_kls(unmoved, trainer.rollouts[0], temperature)
    assert len({len(row) for row in rows}) > 1  # else the two means would be the same
    prefix = "" if kind == "step" else "eval_"
    by_row = sum(sum(row) / len(row) for row in rows) / len(rows)
    by_token = sum(map(sum, rows)) / sum(map(len, rows))
    assert metrics[f"{prefix}kl"] == pytest.approx(by_row, rel=1e-3) and by_row > 1e-4
    assert metrics[f"{prefix}kl_tokens"] == pytest.approx(by_token, rel=1e-3)


def test_lengths_truncation_and_spread_are_those_of_the_answers(build):
    trainer = build("sampling.max_completion_length=3")
    metrics = trainer.step(1).metrics
    rollout = trainer.rollouts[0]
    ends = set(range(8, len(trainer.tokenizer), 8)) | {trainer.tokenizer.eos_token_id}
    lengths = [len(row) for row in rollout.completions.rows()]
    assert metrics["completion_tokens"] == pytest.approx(sum(lengths) / 8)
    cut = sum(len(row) == 3 and row[-1] not in ends for row in rollout.completions.rows())
    assert metrics["truncated"] == cut > 0
    grades = torch.tensor([float(len(answer) % 11) for answer in rollout.answers]).view(2, 4)
    assert metrics["reward_std"] == pytest.approx(float(grades.std(dim=1).mean()))
    assert metrics["reward_mean"] == pytest.approx(float(grades.mean()))


def test_garbled_is_a_share_of_all_sentences_however_they_are_spread_over_the_answers(build):
    trainer, looked = build(), itertools.count()
    examined = (SimpleNamespace(grade=8, sentences=3, garbled=0), SimpleNamespace(grade=0, sentences=1, garbled=1))
    trainer.examine = lambda answer: examined[next(looked) % 2]
    metrics = trainer.evaluate(0, 0).metrics
    assert (metrics["eval_truth"], metrics["eval_garbled"]) == (4.0, 0.25)  # two answers of each kind


def test_the_optimizer_gets_what_the_config_says_at_every_step(build):
    trainer = build(
        "optimizer.learning_rate=0.4",
        "optimizer.warmup=0.3",
        "optimizer.betas=[0.8,0.95]",
        "optimizer.eps=1e-5",
        "optimizer.weight_decay=0.02",
    )
    rates = []
    for n in range(1, 7):
        record = trainer.step(n)
        [group] = trainer.optimizer.adamw.param_groups
        rates.append(group["lr"])
        assert record.metrics["learning_rate"] == group["lr"]
        assert (group["betas"], group["eps"], group["weight_decay"]) == ((0.8, 0.95), 1e-5, 0.02)
    # 0.3 · 6 steps are 2 of warm-up, rounded up; then 4 quarters on the way to 0.
    assert rates == pytest.approx([0.0, 0.2, 0.4, 0.3, 0.2, 0.1])


def test_the_gradient_is_unscaled_before_it_is_clipped(build):
    """Else the loss scale of FP16 would decide how much is clipped."""
    found = []
    for scale in (1, 1024):
        trainer = build("model.precision=fp16", f"optimizer.initial_loss_scale={scale}", "optimizer.max_grad_norm=1e-3")
        norm = trainer.step(1).metrics["grad_norm"]
        moments = torch.cat([state["exp_avg"].flatten() for state in trainer.optimizer.adamw.state.values()])
        found.append((norm, float(moments.norm())))
    assert found[1][0] == pytest.approx(found[0][0], rel=0.02)
    assert found[0][1] == pytest.approx(1e-4, rel=0.02) and found[1][1] == pytest.approx(1e-4, rel=0.02)


def test_of_several_updates_the_last_ones_loss_and_gradient_are_written_down(build, monkeypatch):
    trainer, updates, losses = build("grpo.updates_per_rollout=3", "grpo.beta=0.3"), [], []
    step, loss = trainer.optimizer.step, module.grpo_loss
    monkeypatch.setattr(trainer.optimizer, "step", lambda rate: updates.append(step(rate)) or updates[-1])
    monkeypatch.setattr(module, "grpo_loss", lambda *given, **more: losses.append(loss(*given, **more)) or losses[-1])
    metrics = trainer.step(1).metrics
    first, _, third = (sum(float(one.loss) for one in losses[i : i + 2]) for i in (0, 2, 4))  # two micro-batches each
    assert metrics["loss"] == pytest.approx(third) != pytest.approx(first)
    assert metrics["grad_norm"] == updates[2].grad_norm != updates[0].grad_norm


def test_of_several_updates_all_that_were_skipped_are_counted(build, monkeypatch):
    trainer = build("grpo.updates_per_rollout=2")
    step = trainer.optimizer.step

    def overflowing(rate):
        if trainer.optimizer.steps == 0:
            trainer.optimizer.parameters[0].grad.fill_(float("inf"))
        return step(rate)

    monkeypatch.setattr(trainer.optimizer, "step", overflowing)
    metrics = trainer.step(1).metrics
    assert metrics["skipped"] == 1 and metrics["grad_norm"] is not None  # the last one was not


def test_the_clip_and_the_constant_denominator_reach_the_loss(build, monkeypatch):
    trainer, calls = build("grpo.aggregation=dr_grpo", "grpo.clip_eps=0.37", "sampling.max_completion_length=0"), []
    real = module.grpo_loss
    monkeypatch.setattr(module, "grpo_loss", lambda *given, **more: calls.append(more) or real(*given, **more))
    trainer.step(1)
    assert {call["clip_eps"] for call in calls} == {0.37}
    assert {float(value) for call in calls for value in call["denominator"]} == {8.0 * 400}  # rows × longest possible


def test_every_step_draws_from_streams_of_its_own(build, monkeypatch):
    trainer, drawn, given = build("lora.dropout=0.5"), [], []
    real, grade = module.stream, trainer.judge.grade
    monkeypatch.setattr(
        module, "stream", lambda seed, name, index: drawn.append((name, index)) or real(seed, name, index)
    )
    monkeypatch.setattr(trainer.judge, "grade", lambda *passed: given.append(passed[2]) or grade(*passed))
    for n in (1, 2):
        trainer.step(n)
        for name in ("rollout", "judge", "dropout"):
            assert (name, n) in drawn
    assert given[0].initial_seed() == real(0, "judge", 1).initial_seed() != given[1].initial_seed()


def test_checkpointing_leaves_the_written_out_forward_pass_in_use(build):
    trainer = build("train.gradient_checkpointing=on")
    assert trainer.checkpointing
    with torch.no_grad():
        assert Decoder.of(trainer.model) is not None


def test_a_loss_that_is_not_finite_ends_the_run_with_a_sentence(build, monkeypatch):
    trainer = build()
    real = module.token_logprobs
    monkeypatch.setattr(module, "token_logprobs", lambda *given, **more: real(*given, **more) * float("nan"))
    with pytest.raises(UserError, match="loss of step 1 is not a finite number"):
        trainer.step(1)
