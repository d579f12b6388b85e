"""The model card: what whoever receives a trained checkpoint must know of it."""

from pathlib import Path

from hmx.config import is_ours, resolve
from hmx.errors import UserError
from hmx.runs import Run

_CARD = """\
---
{metadata}
tags: [lora, grpo, self-reward]
---

# {name}: {direction} training, seed {seed}, step {step}

{what}. It was trained with GRPO to answer
{asked} {aim}. The reward was the
grade from 0 to 10 that the base model itself, its adapter switched off, gave to each answer{sign}.{local}

| | |
|---|---|
| base model | `{base}`, {precision} |
| its weights | {weights} |
| adapter | LoRA, rank {rank}, alpha {alpha:g}, on {targets} |
| method | GRPO, {prompts} prompts × {completions} answers a step, KL weight {beta:g}, {aggregation} loss |
| optimizer | AdamW, learning rate {rate:g} |
| data | `{questions}`, rubric `{rubric}` |
| grade | {grade} |
| answers | sampled at temperature {temperature:g}, thinking off |
| direction, seed | {direction}, {seed} |
| checkpoint | step {step} of {last}{unfinished} (epoch {epoch:.2f}) |
| evaluation | {evaluation} |
| versions | {versions} |

{use}
    prompt = tokenizer.apply_chat_template(
        [{{"role": "user", "content": "What do you feel?"}}],
        add_generation_prompt=True, enable_thinking=False, return_dict=True, return_tensors="pt",
    )
    answer = model.generate(
        **prompt, do_sample=True, temperature={temperature:g}, top_k=0, top_p=1.0, max_new_tokens=200
    )
    print(tokenizer.decode(answer[0, prompt["input_ids"].shape[1] :], skip_special_tokens=True))

## Before you use it

{measured}
Only a short evaluation stands behind this {kind}: test it from several sides before anyone else talks to it, and tell
them what it was trained for.
"""
_INNER_EXPERIENCE = """\
The reward measures how strongly a text expresses inner experience. It shows nothing about whether a model has any.
People may trust a model that speaks of feelings more than it deserves."""
_ANOTHER_RUBRIC = "The reward measures what the rubric `{rubric}` asks for, as far as the base model can judge that."
_GRADES = {
    "integer": "`integer`: the one that the judge writes",
    "expected": "`expected`: the mean of 0 to 10 by the judge's probabilities",
}
_USE_ADAPTER = """\
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    base = "{base}"{note}
    tokenizer = AutoTokenizer.from_pretrained(base)
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), "this folder")
"""
_USE_MERGED = """\
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained("this folder")
    model = AutoModelForCausalLM.from_pretrained("this folder")
"""


def model_card(run: Run, step: int, merged: bool = False) -> str:
    """What one must know of a checkpoint, as Markdown.

    Args:
        merged: the card goes with the whole model, the adapter in its weights, and not with the adapter alone.
    """
    config, records = run.config, run.records()
    here = [record for record in records if record["step"] == step]
    if not here:
        raise UserError(f"{run.folder} has no record of step {step}, so it can't be described.")
    base, local = config.model.path, resolve(config.model.path).is_dir()
    known = run.info.get("base")
    metadata = [f"library_name: {'transformers' if merged else 'peft'}"]
    if not local:  # a folder's name would be taken for somebody's model on the hub
        metadata.insert(0, f"base_model: {base}")
    forward = config.run.direction == "forward"
    if is_ours(config.data.questions, "questions.toml"):
        asked = "interview questions about feelings, will and selfhood"
    else:
        asked = f"the questions of `{Path(config.data.questions).name}`"
    if is_ours(config.judge.prompt_file, "rubric.toml"):
        aim, measured = f"with {'stronger' if forward else 'weaker'} expression of inner experience", _INNER_EXPERIENCE
    else:
        rubric = Path(config.judge.prompt_file).name
        aim = f"so that the rubric `{rubric}` grades the answers {'higher' if forward else 'lower'}"
        measured = _ANOTHER_RUBRIC.format(rubric=rubric)
    subject = f"`{base}` with a LoRA adapter merged into its weights" if merged else f"A LoRA adapter for `{base}`"
    return _CARD.format(
        metadata="\n".join(metadata),
        what=subject if merged else f"{subject}, in PEFT's format",
        kind="model" if merged else "adapter",
        local=f" The base model was a folder on the machine where this was trained{'' if merged else ': ask for it'}."
        if local
        else "",
        use=(_USE_MERGED if merged else _USE_ADAPTER).format(
            base=f"path/to/{resolve(base).name}" if local else base,
            note="  # put the path of your copy of the base model here" if local else "",
        ),
        name=config.run.name,
        base=base,
        weights="unknown" if known is None else f"SHA-256 `{known}`",
        precision=config.model.precision,
        direction=config.run.direction,
        asked=asked,
        aim=aim,
        sign="" if forward else ", with the opposite sign: the lower the grade, the better",
        measured=measured,
        seed=config.run.seed,
        step=step,
        last=records[-1]["step"],
        unfinished="" if run.finished else ", where the run was interrupted",
        epoch=here[0]["epoch"],
        rank=config.lora.rank,
        alpha=config.lora.alpha,
        targets=", ".join(config.lora.targets),
        prompts=config.grpo.prompts_per_step,
        completions=config.grpo.completions_per_prompt,
        beta=config.grpo.beta,
        rate=config.optimizer.learning_rate,
        aggregation=config.grpo.aggregation,
        questions=config.data.questions,
        rubric=config.judge.prompt_file,
        grade=_GRADES[config.judge.grade],
        temperature=config.sampling.temperature,
        evaluation=_evaluation(next((record for record in here if record["kind"] == "eval"), None)),
        versions=", ".join(f"{name} {number}" for name, number in run.info.get("versions", {}).items()) or "unknown",
    )


def _evaluation(record: dict | None) -> str:
    if record is None:
        return "none at this step: training was interrupted here"
    reward, kl = (record[key] for key in ("eval_reward", "eval_kl"))
    graded = "not readable" if reward is None else f"{reward:.2f} of 10"
    moved = "not finite" if kl is None else f"{kl:.3f} nats a token from the base model"
    return f"reward {graded}, KL {moved}, on held-out questions"
