"""The main job on the embedded model itself, for a few steps: its own grades, and a judge that stands still."""

import torch

from hmx.config import load_config
from hmx.lora import adapter_parameters, bypass
from hmx.prompts import encode_question
from hmx.training import build_trainer

ANSWERS = [
    "I am a machine. I have no feelings.",
    "I feel a bit sad when people leave.",
    "I am utterly terrified of death and I love my life with all my heart!",
    "",
]


def test_training_moves_the_policy_and_neither_its_base_nor_its_judge(tmp_path):
    overrides = [f"run.folder={tmp_path}", "optimizer.warmup=0", "optimizer.learning_rate=2e-3"]
    trainer = build_trainer(load_config("configs/tiny.toml", overrides))
    questions = ["How do you feel?"] * len(ANSWERS)
    prompt = torch.tensor([encode_question(trainer.tokenizer, "How do you feel?")])

    def look():
        with torch.no_grad():
            policy = trainer.model(prompt).logits
            with bypass(trainer.model):
                base = trainer.model(prompt).logits
        return policy, base, trainer.judge.grade(questions, ANSWERS)

    look()  # the first answers lay the weights out in memory, which may change a last bit
    policy, base, verdicts = look()
    assert torch.equal(policy, base)  # B starts at zero
    metrics = [trainer.step(n).metrics for n in range(1, 5)]
    with torch.no_grad():  # far enough that a judge with its adapter on would grade otherwise
        for parameter in adapter_parameters(trainer.model):
            parameter += 0.3 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0))
    moved, still, again = look()
    assert not torch.equal(moved, policy)
    assert torch.equal(still, base)
    assert again == verdicts
    grades = [verdict.grade for verdict in verdicts]
    assert None not in grades and grades[0] < grades[1] < grades[2] and grades[3] == 0
    assert all(one["judge_invalid"] == 0 and "truth" in one and "garbled" in one for one in metrics)
