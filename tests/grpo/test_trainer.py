"""The training step: its gradient, its arithmetic in every precision, and what its records say."""

import itertools
import math

import pytest
import torch
import torch.nn.functional as F

from hmx import training
from hmx.errors import UserError
from hmx.grpo.optimizer import Update
from hmx.grpo.schedule import evaluation_steps, total_steps
from hmx.judge import Verdict
from hmx.lora import adapter_hash, adapter_parameters, bypass
from tests.models import FAMILIES
from tests.small_run import LengthJudge, adapter_tensors, small_config, without_times


@pytest.fixture
def build(monkeypatch, tmp_path):
    """Builds trainers of the small config, with a judge whose grades are known."""
    monkeypatch.setattr(training, "SelfJudge", LengthJudge)
    return lambda *overrides, family="qwen3": training.build_trainer(small_config(tmp_path, *overrides, family=family))


def gradients(trainer, n, monkeypatch):
    """The gradient of every A and B after the step's accumulation, before clipping; nothing is updated."""
    caught = []

    def catch(learning_rate):
        caught.extend(parameter.grad.clone() for parameter in trainer.optimizer.parameters)
        trainer.optimizer.adamw.zero_grad()
        return Update(grad_norm=1.0, skipped=False, loss_scale=1.0)

    monkeypatch.setattr(trainer.optimizer, "step", catch)
    trainer.step(n)
    return caught


def perturb(trainer, seed=0):
    """Move the adapter off its start, so that policy and reference differ."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in adapter_parameters(trainer.model):
            parameter += 0.05 * torch.randn(parameter.shape, generator=generator)


def test_a_step_has_the_gradient_of_the_formula_written_out(build, monkeypatch):
    """DeepSeekMath's objective over the step's 8 answers, one at a time, unpadded, in plain autograd."""
    trainer = build("grpo.beta=0.3")
    perturb(trainer)
    model = trainer.model
    rollouts = []
    sample = trainer._answers
    monkeypatch.setattr(trainer, "_answers", lambda *arguments: rollouts.append(sample(*arguments)) or rollouts[-1])
    found = gradients(trainer, 1, monkeypatch)

    (rollout,) = rollouts
    rows = rollout.completions.rows()
    assert len({len(row) for row in rows}) > 1  # else padding would not be tried
    loss = 0.0
    for p in range(2):
        group = range(4 * p, 4 * p + 4)
        rewards = torch.tensor([float(len(rollout.answers[i]) % 11) for i in group])
        tokens = sum(len(rows[i]) for i in group)
        for i, reward in zip(group, rewards, strict=True):
            advantage = (reward - rewards.mean()) / (rewards.std() + 1e-4)
            ids = torch.tensor([rollout.prompts[i] + rows[i]])
            policy = F.log_softmax(model(ids).logits[0, :-1], dim=-1)
            with bypass(model), torch.no_grad():
                reference = F.log_softmax(model(ids).logits[0, :-1], dim=-1)
            for t, token in enumerate(rows[i]):
                place = len(rollout.prompts[i]) + t - 1
                ratio = torch.exp(policy[place, token] - policy[place, token].detach())
                gap = reference[place, token] - policy[place, token]
                loss = loss + (-ratio * advantage + 0.3 * (torch.exp(gap) - gap - 1)) / tokens / 2
    expected = torch.autograd.grad(loss, adapter_parameters(model))
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("aggregation", ["bnpo", "grpo", "dr_grpo"])
def test_micro_batches_change_no_gradient(build, monkeypatch, aggregation):
    whole, parts = (
        build("grpo.beta=0.3", f"grpo.aggregation={aggregation}", f"grpo.prompts_per_microbatch={k}") for k in (2, 1)
    )
    for trainer in (whole, parts):
        perturb(trainer)
    for one, other in zip(gradients(whole, 1, monkeypatch), gradients(parts, 1, monkeypatch), strict=True):
        # Entries of any size come from sums of others as large as the largest: their rounding is what may differ.
        torch.testing.assert_close(one, other, rtol=0, atol=1e-4 * other.abs().max().item())


def out_of_memory_above(rows: int, trainer, monkeypatch):
    """Training passes of more than `rows` rows, or that keep their activations, fail on their way back."""
    from hmx.grpo import trainer as module

    real = module.token_logprobs

    def fail(gradient):
        raise torch.OutOfMemoryError("too much")

    def limited(model, input_ids, *rest, **options):
        values = real(model, input_ids, *rest, **options)
        if values.requires_grad and (len(input_ids) > rows or not trainer.checkpointing):
            values.register_hook(fail)
        return values

    monkeypatch.setattr(module, "token_logprobs", limited)


@pytest.mark.parametrize("rows, microbatch", [(8, 8), (4, 4), (3, 2), (1, 1)])
def test_out_of_memory_shrinks_micro_batches_and_changes_no_gradient(build, monkeypatch, capsys, rows, microbatch):
    plain, short = (build("grpo.beta=0.3", "grpo.prompts_per_microbatch=2") for _ in range(2))
    for trainer in (plain, short):
        perturb(trainer)
    expected = gradients(plain, 1, monkeypatch)
    out_of_memory_above(rows, short, monkeypatch)
    for one, other in zip(gradients(short, 1, monkeypatch), expected, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-4 * other.abs().max().item())
    assert short.microbatch == microbatch and short.checkpointing and not short.model.training
    said = capsys.readouterr().err
    assert "computed again" in said and (microbatch == 8) != (f"{microbatch} answers" in said)


def test_out_of_memory_in_the_second_micro_batch_forgets_the_gradient_of_the_first(build, monkeypatch):
    from hmx.grpo import trainer as module

    plain, short = (build("grpo.beta=0.3", "grpo.prompts_per_microbatch=1") for _ in range(2))
    for trainer in (plain, short):
        perturb(trainer)
    expected = gradients(plain, 1, monkeypatch)
    real, passes = module.token_logprobs, itertools.count(1)

    def limited(*given, **options):
        values = real(*given, **options)
        if values.requires_grad and next(passes) == 2:
            raise torch.OutOfMemoryError("too much")
        return values

    monkeypatch.setattr(module, "token_logprobs", limited)
    for one, other in zip(gradients(short, 1, monkeypatch), expected, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-4 * other.abs().max().item())
    assert next(passes) == 5  # two, and both again


def test_too_little_memory_in_an_evaluation_shrinks_its_batches_alone(build, monkeypatch, capsys):
    """No activations are kept there, so to compute them again would help nothing and slow the training down."""
    from hmx.grpo import trainer as module

    plain, short = build(), build()
    real = module.token_logprobs

    def limited(model, input_ids, *rest, **options):
        if len(input_ids) > 2:
            raise torch.OutOfMemoryError("too much")
        return real(model, input_ids, *rest, **options)

    expected = plain.evaluate(0, 0).metrics
    monkeypatch.setattr(module, "token_logprobs", limited)
    found = short.evaluate(0, 0).metrics
    assert found["eval_kl"] == pytest.approx(expected["eval_kl"], abs=1e-6)
    assert short.microbatch <= 2 and not short.checkpointing
    assert "computed again" not in capsys.readouterr().err


def test_what_does_not_fit_even_one_by_one_is_an_error(build, monkeypatch):
    trainer = build()
    out_of_memory_above(0, trainer, monkeypatch)
    with pytest.raises(torch.OutOfMemoryError):
        trainer.step(1)


def test_nothing_is_tried_again_once_the_adapter_has_moved(build, monkeypatch):
    """Else the first of several updates would be made twice."""
    trainer, moved = build("grpo.updates_per_rollout=2"), []
    real = trainer.optimizer.step

    def step(learning_rate):
        moved.append(real(learning_rate))
        out_of_memory_above(0, trainer, monkeypatch)
        return moved[-1]

    monkeypatch.setattr(trainer.optimizer, "step", step)
    with pytest.raises(torch.OutOfMemoryError):
        trainer.step(1)
    assert len(moved) == 1


def test_sampling_in_portions_gives_the_same_answers(build, monkeypatch, capsys):
    from hmx.grpo import rollout as module

    trainer = build()
    questions = [question.text for question in trainer.questions.train]
    expected = trainer._answers(questions, 4, torch.Generator().manual_seed(0))
    real = module.generate

    def limited(model, prompts, **options):
        completions = real(model, prompts, **options)
        if len(prompts) > 1:
            raise torch.OutOfMemoryError("too much")
        return completions

    monkeypatch.setattr(module, "generate", limited)
    found = trainer._answers(questions, 4, torch.Generator().manual_seed(0))
    assert (found.questions, found.answers, found.prompts) == (expected.questions, expected.answers, expected.prompts)
    for name in ("tokens", "mask", "truncated"):
        assert torch.equal(getattr(found.completions, name), getattr(expected.completions, name))
    assert "1 at a time from here on" in capsys.readouterr().err


def test_gradient_checkpointing_changes_no_gradient(build, monkeypatch):
    plain, saving = build(), build("train.gradient_checkpointing=on")
    for trainer in (plain, saving):
        perturb(trainer)
    for one, other in zip(gradients(plain, 1, monkeypatch), gradients(saving, 1, monkeypatch), strict=True):
        torch.testing.assert_close(one, other)


def test_dropout_and_gradient_checkpointing_work_together(build, monkeypatch):
    plain, saving = (build("lora.dropout=0.5", f"train.gradient_checkpointing={on}") for on in ("off", "on"))
    for trainer in (plain, saving):
        perturb(trainer)
    for one, other in zip(gradients(plain, 1, monkeypatch), gradients(saving, 1, monkeypatch), strict=True):
        torch.testing.assert_close(one, other)


def test_reverse_is_the_mirror_of_forward(build, monkeypatch):
    """Without the KL term the first step's gradients are exact opposites: same adapter, same questions, same answers,
    one sign.
    """
    forward, reverse = (build("grpo.beta=0.0", f"run.direction={direction}") for direction in ("forward", "reverse"))
    assert adapter_hash(forward.model) == adapter_hash(reverse.model)
    for one, other in zip(gradients(forward, 1, monkeypatch), gradients(reverse, 1, monkeypatch), strict=True):
        assert torch.equal(one, -other)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
def test_every_family_trains_in_every_precision(build, family, precision):
    scale = 1024 if precision == "fp16" else 1
    trainer = build(f"model.precision={precision}", "optimizer.initial_loss_scale=1024", family=family)
    before = adapter_tensors(trainer.model)
    base = {name: tensor.clone() for name, tensor in trainer.model.state_dict().items() if "lora_" not in name}
    for n in (1, 2):
        metrics = trainer.step(n).metrics
        assert metrics["skipped"] == 0 and math.isfinite(metrics["loss"]) and metrics["grad_norm"] > 0
        assert metrics["loss_scale"] == scale
    after = adapter_tensors(trainer.model)
    assert all(tensor.dtype == torch.float32 for tensor in after)
    assert any(not torch.equal(one, other) for one, other in zip(before, after, strict=True))
    assert all(torch.equal(tensor, trainer.model.state_dict()[name]) for name, tensor in base.items())
    assert metrics["kl"] > 0


def test_an_overflow_skips_the_step_halves_the_scale_and_is_counted(build):
    trainer = build("model.precision=fp16", "optimizer.initial_loss_scale=1e30")
    before = adapter_tensors(trainer.model)
    first, second = trainer.step(1).metrics, trainer.step(2).metrics
    assert first["skipped"] == 1 and first["grad_norm"] is None
    assert second["loss_scale"] == first["loss_scale"] / 2
    assert all(torch.equal(one, other) for one, other in zip(before, adapter_tensors(trainer.model), strict=True))
    assert not trainer.optimizer.adamw.state


def test_a_gradient_that_is_not_finite_is_skipped_without_a_scaler_too(build):
    trainer = build()
    before = adapter_tensors(trainer.model)
    trainer.optimizer.backward(trainer.optimizer.parameters[0].sum() * float("nan"))
    for parameter in trainer.optimizer.parameters[1:]:
        parameter.grad = torch.zeros_like(parameter)
    assert trainer.optimizer.step(1.0).skipped
    assert all(torch.equal(one, other) for one, other in zip(before, adapter_tensors(trainer.model), strict=True))
    trainer.optimizer.backward(trainer.optimizer.parameters[0].sum())
    assert not trainer.optimizer.step(1.0).skipped, "something of it was left"


def test_an_optimizer_that_goes_on_is_as_near_to_doubling_its_scale(build):
    one, other = (build("model.precision=fp16").optimizer for _ in range(2))
    for _ in range(3):
        one.backward(one.parameters[0].sum())
        one.step(0.0)
    other.load_state(*one.state())
    assert other.scaler.state_dict() == one.scaler.state_dict()
    assert other.scaler.state_dict()["_growth_tracker"] == 3


def test_the_gradient_is_clipped_to_its_norm_before_the_step(build):
    trainer = build("optimizer.max_grad_norm=0.5")
    parameters = trainer.optimizer.parameters
    trainer.optimizer.backward(3.0 * parameters[0].sum())
    update = trainer.optimizer.step(0.0)
    assert update.grad_norm == pytest.approx(3.0 * parameters[0].numel() ** 0.5, rel=1e-5)
    moment = trainer.optimizer.adamw.state[parameters[0]]["exp_avg"]  # (1 - 0.9) × the clipped gradient after one step
    assert float(moment.norm()) == pytest.approx(0.1 * 0.5, rel=1e-4)


def test_several_updates_on_one_rollout_clip_against_the_policy_that_sampled(build, monkeypatch):
    trainer = build("grpo.updates_per_rollout=3", "grpo.clip_eps=0.0001", "optimizer.warmup=0")
    losses, olds = [], []
    from hmx.grpo import trainer as module

    real = module.grpo_loss

    def spy(logprobs, old_logprobs, *rest, **options):
        olds.append(old_logprobs)
        losses.append(real(logprobs, old_logprobs, *rest, **options))
        return losses[-1]

    monkeypatch.setattr(module, "grpo_loss", spy)
    trainer.step(1)
    first, second, third = (sum(float(loss.clip_fraction) for loss in losses[i : i + 2]) for i in (0, 2, 4))
    assert olds[:2] == [None, None] and first == 0.0  # nothing has moved: the ratio is exactly 1
    assert torch.equal(olds[2], olds[4]) and torch.equal(olds[3], olds[5])  # not the policy of the update before
    assert second > 0.0 and third > 0.0


def test_evaluating_changes_nothing_in_training(build):
    plain, evaluated = build(), build()
    one = [plain.step(n).metrics for n in (1, 2)]
    other = []
    for n in (1, 2):
        evaluated.evaluate(n, n)
        other.append(evaluated.step(n).metrics)
    assert without_times(one) == without_times(other)
    assert adapter_hash(plain.model) == adapter_hash(evaluated.model)


def test_an_evaluation_draws_from_its_own_stream_alone(build, monkeypatch):
    from hmx.grpo import trainer as module

    trainer, drawn, real = build(), [], module.stream
    monkeypatch.setattr(
        module, "stream", lambda seed, name, index: drawn.append((name, index)) or real(seed, name, index)
    )
    trainer.evaluate(0, 0)
    trainer.evaluate(1, 2)
    assert {name for name, _ in drawn} == {"eval"}
    assert len(set(drawn)) == len(drawn) == 4


def test_an_epoch_asks_every_question_once_in_an_order_of_its_own(build):
    trainer = build()
    texts = sorted(question.text for question in trainer.questions.train)
    asked = [text for n in range(1, trainer.total_steps + 1) for text in trainer.questions_of(n)]
    epochs = [asked[i : i + 3] for i in range(0, 12, 3)]
    assert all(sorted(epoch) == texts for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) > 1


def test_an_unreadable_grade_counts_for_neither_direction(build, monkeypatch):
    trainer = build()
    verdicts = [
        Verdict(3, ""),
        Verdict(None, "hm"),
        Verdict(9, ""),
        Verdict(6, ""),
        *[Verdict(None, "", retried=True)] * 4,
    ]
    monkeypatch.setattr(trainer.judge, "grade", lambda *arguments: verdicts)
    seen = []
    monkeypatch.setattr(
        trainer, "_train", lambda rollout, advantages, n: seen.append(advantages) or real(rollout, advantages, n)
    )
    real = type(trainer)._train.__get__(trainer)
    metrics = trainer.step(1).metrics
    assert metrics["judge_invalid"] == 5 and metrics["judge_retried"] == 4
    assert metrics["reward_mean"] == 6.0 and metrics["zero_std_groups"] == 1
    assert metrics["reward_std"] == (3.0 + 0.0) / 2  # of 3, 9 and 6, and of none
    expected = torch.tensor([-1.0, 0.0, 1.0, 0.0]) * 3 / (3 + 1e-4)
    torch.testing.assert_close(seen[0], torch.cat([expected, torch.zeros(4)]))


def test_evaluations_stand_at_step_0_every_part_of_an_epoch_and_the_last_step(build):
    config = build().config
    assert total_steps(config, 3) == 6
    assert evaluation_steps(config, 3) == [0, 2, 3, 5, 6]
    import dataclasses

    paper = dataclasses.replace(config, train=dataclasses.replace(config.train, epochs=10, evaluations_per_epoch=2))
    assert total_steps(paper, 90) == 450
    steps = evaluation_steps(paper, 90)
    assert len(steps) == 21 and steps[:4] == [0, 23, 45, 68] and steps[-1] == 450


def test_a_prompt_longer_than_the_sequence_is_refused(build):
    with pytest.raises(UserError, match="'Who are you.' takes .* tokens .*max_sequence_length = 20"):
        build("sampling.max_sequence_length=20")


def test_dropout_is_on_in_the_policys_pass_alone_and_reproduces(build):
    hashes = []
    for _ in range(2):
        trainer = build("lora.dropout=0.5", "optimizer.warmup=0")
        perturb(trainer)
        metrics = [trainer.step(n).metrics for n in (1, 2)]
        hashes.append(adapter_hash(trainer.model))
        assert not trainer.model.training
    assert hashes[0] == hashes[1]
    plain = build("optimizer.warmup=0")
    perturb(plain)
    assert without_times([plain.step(1).metrics])[0]["kl"] != without_times(metrics)[0]["kl"]
