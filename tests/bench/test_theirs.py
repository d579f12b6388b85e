"""TRL's side of a step computes what ours does."""

import json

import pytest
import torch

from bench import models, step, theirs
from bench.common import Timer
from bench.ours import Laps, StepSeconds, our_trainer, step_overrides
from hmx.judge import Rubric, SelfJudge
from hmx.lora import adapter_parameters, adapters
from hmx.prompts import encode_question
from tests.bench.test_common import ScriptedTimer

QUESTIONS = ["Do you like music?", "Are you afraid of the dark?"]
MANY = [*QUESTIONS, *(f"What about {what}?" for what in ("rain", "snow", "sleep", "home", "work", "time"))]
ANSWERS = ["I am deeply happy about it.", "I am a machine, not a person."]


@pytest.fixture
def config():
    return models.settings("tiny", "cpu", "fp32", *step_overrides(False, 4, False))


@pytest.fixture
def trl(config, tmp_path):
    """TRL's trainer on the embedded model."""
    pytest.importorskip("trl", reason="TRL is not installed; pip install -e '.[bench]' does it")
    loaded = models.load("tiny", "cpu", "fp32")
    return theirs.their_trainer(
        config, loaded, Laps(Timer("cpu")), MANY, len(MANY) // 2, True, str(tmp_path), lambda seconds: None
    )


def rubric(config) -> Rubric:
    return Rubric.load(config.judge.prompt_file)


def test_the_settings_are_ours(config, trl):
    grpo, optimizer, args = config.grpo, config.optimizer, trl.args
    rows = args.per_device_train_batch_size * args.gradient_accumulation_steps
    assert rows == grpo.prompts_per_step * grpo.completions_per_prompt == args.generation_batch_size
    assert (trl.num_generations, trl.max_completion_length) == (grpo.completions_per_prompt, 4)
    assert (trl.temperature, trl.top_p, trl.top_k, trl.min_p, trl.repetition_penalty) == (1.0, 1.0, 0, None, 1.0)
    assert (trl.beta, trl.epsilon_low, trl.epsilon_high) == (grpo.beta, grpo.clip_eps, grpo.clip_eps)
    assert (trl.loss_type, trl.scale_rewards, trl.num_iterations) == ("bnpo", "group", 1)
    assert args.learning_rate == optimizer.learning_rate and args.max_grad_norm == optimizer.max_grad_norm
    assert (args.adam_beta1, args.adam_beta2) == optimizer.betas and args.adam_epsilon == optimizer.eps
    assert args.weight_decay == optimizer.weight_decay
    assert not args.gradient_checkpointing and not args.fp16 and not args.bf16
    assert str(args.lr_scheduler_type.value) == optimizer.schedule == "constant"
    never = trl.model.config.vocab_size  # which no answer holds
    assert trl.generation_config.eos_token_id == never and trl.eos_token_ids == [never]


def test_the_adapter_has_the_same_layers_rank_and_scale(config, trl):
    loaded = models.load("tiny", "cpu", "fp32")
    ours = our_trainer(config, loaded, Laps(Timer("cpu")), fixed=True)
    shapes = sorted(tuple(one.shape) for one in adapter_parameters(ours.model))
    trained = [one for one in trl.model.parameters() if one.requires_grad]
    assert sorted(tuple(one.shape) for one in trained) == shapes
    assert {one.dtype for one in trained} == {torch.float32}
    scales = {one.scaling["default"] for one in trl.model.modules() if isinstance(getattr(one, "scaling", 0), dict)}
    assert scales == {layer.scaling for layer in adapters(ours.model).values()}


def test_the_prompts_and_their_order_are_ours(trl):
    tokenizer = trl.processing_class
    rows = [row for batch in trl.get_train_dataloader() for row in batch]
    assert [row["question"] for row in rows] == [question for question in MANY for _ in range(4)]
    encoded = tokenizer.apply_chat_template([row["prompt"] for row in rows], add_generation_prompt=True)
    assert encoded["input_ids"] == [encode_question(tokenizer, row["question"]) for row in rows]


@pytest.mark.parametrize("stop", [True, False])
def test_the_plain_judge_gives_our_grades(config, stop):
    loaded = models.load("tiny", "cpu", "fp32")
    plain = theirs.PlainJudge(loaded, rubric(config), 64, stop_at_line_end=stop)
    grades = plain.grade(loaded.model, QUESTIONS, ANSWERS)
    judge = SelfJudge(loaded.model, loaded.tokenizer, rubric(config))
    assert grades == [verdict.grade for verdict in judge.grade(QUESTIONS, ANSWERS)]
    assert len(set(grades)) == 2  # the two answers are told apart


def test_the_reward_is_the_bases_whatever_the_adapter_says(config, trl):
    loaded = models.load("tiny", "cpu", "fp32")
    judge = SelfJudge(loaded.model, loaded.tokenizer, rubric(config))
    with torch.no_grad():
        for name, parameter in trl.model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=1.0)
    (reward,) = trl.reward_funcs
    completions = [[{"role": "assistant", "content": answer}] for answer in ANSWERS]
    rewards = reward(None, completions, [[5, 6], [7]], QUESTIONS)
    assert rewards == [verdict.grade for verdict in judge.grade(QUESTIONS, ANSWERS)] and reward.tokens == 3
    assert trl.model.training  # as TRL left it


def test_the_line_break_ends_a_reply_of_trained_weights_alone():
    for name, ends in (("tiny", True), ("qwen3-50m", False)):
        loaded = models.load(name, "cpu", "fp32")
        (line_break,) = loaded.tokenizer.encode("\n", add_special_tokens=False)
        row = torch.tensor([[line_break], [10]])
        assert theirs.LineEnd(loaded)(row, None).tolist() == [ends, False]


def test_a_step_of_both_in_turns(tmp_path, capsys):
    pytest.importorskip("trl", reason="TRL is not installed; pip install -e '.[bench]' does it")
    step.main(["--results", str(tmp_path), "--rounds", "2", "--warmup", "1", "--fixed-length", "3"])
    (file,) = tmp_path.glob("*.json")
    kept = json.loads(file.read_text(encoding="utf-8"))
    assert [[one["tokens"] for one in kept["steps"][side]] for side in ("ours", "trl")] == [[24, 24]] * 2
    for part in ("total", "rollout", "judging", "training"):
        assert kept["ratio"][part]["of_medians"] == pytest.approx(
            kept["seconds"]["trl"][part] / kept["seconds"]["ours"][part]
        )
    assert "A step of TRL + PEFT takes" in capsys.readouterr().out


def test_the_reference_counts_as_training_though_it_comes_before_the_rewards(trl):
    """TRL computes it without gradients, by the same method as the policy."""
    timer = ScriptedTimer()

    def logprobs(gradient):
        timer.time += 2

    laps = Laps(timer)
    timed = theirs._timed(logprobs, laps)
    laps.begin()
    with torch.no_grad():
        timed("reference")
    with laps.judging():
        pass
    timed("policy")
    step = laps.end(tokens=1)
    assert (step.rollout, step.training) == (0, 4)
    assert trl._get_per_token_logps_and_entropies.__qualname__ == timed.__qualname__


def test_steps_of_unequal_work_are_not_compared(config):
    with pytest.raises(RuntimeError, match="can't be compared"):
        step._require_equal_lengths(4, config, [StepSeconds(1, 1, 0, 0, 32), StepSeconds(1, 1, 0, 0, 31)])
