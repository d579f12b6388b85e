"""Hand a trained checkpoint to others: merged into a complete model, or as an adapter, each with its model card.

python -m hmx.export runs/tiny/forward-seed0 --merged my-model
python -m hmx.export runs/tiny/forward-seed0 --checkpoint 135 --adapter my-adapter
"""

import argparse
import json
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn
from transformers import AutoModelForCausalLM, GenerationConfig

from hmx.card import model_card
from hmx.config import on_device, resolve
from hmx.errors import UserError, command
from hmx.evaluation.pairs import pair_of
from hmx.files import made_whole, write_text
from hmx.lora import adapters, detach, load_adapter
from hmx.models import attention_for, identity, load_model, model_config
from hmx.precision import autocast
from hmx.prompts import encode_question, end_of_turn_ids
from hmx.questions import Questions
from hmx.runs import BASE, Run, changed

TOLERANCE = 0.01
"""Nats a token. Merging rounds weights to the model's precision, which in half precision moves probabilities a little;
a wrong merge moves them by orders of magnitude more.
"""


def export_merged(run: Run, step: int, target: Path, device: str | None = None) -> float:
    """Write the base model with the adapter of `step` merged into its weights to the folder `target`, which must not
    exist, in the hub's format and the run's precision; computed on `device`, or where the run was trained.

    Returns:
        How far the written model, loaded anew, is from the one with the adapter attached: mean KL a token, in nats.

    Raises:
        UserError: nothing can be read or written there, or the written model differs by more than `TOLERANCE`. Then
            nothing is left at `target`.
    """
    config, source = on_device(run.config, device), _checkpoint(run, step)
    _require_new(target)
    require_base([run])
    model, tokenizer = load_model(config.model.path, config.model.precision, config.model.device)
    load_adapter(model, source)
    prompts = [encode_question(tokenizer, one.text) for one in Questions.load(resolve(config.data.questions)).held_out]
    wanted = [_log_probabilities(model, prompt) for prompt in prompts]
    for layer in adapters(model).values():  # for good: this model is never unmerged
        if layer.base.weight is model.get_input_embeddings().weight:  # an output layer that no longer is tied to them
            model.config.tie_word_embeddings = False
        layer.base.weight = nn.Parameter(layer.merged_weight(), requires_grad=False)
    detach(model)
    # A base without generation config did not say where its turns end. The merged model shall; and some bases have one
    # that transformers refuses to write.
    generation = model.generation_config.to_diff_dict() | {"eos_token_id": list(end_of_turn_ids(model, tokenizer))}
    model.generation_config = GenerationConfig()
    with made_whole(target) as folder:
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        write_text(folder / "generation_config.json", json.dumps(generation, indent=2) + "\n")
        write_text(folder / "README.md", model_card(run, step, merged=True))
        dtype, device, attention = model.dtype, model.device, attention_for(model.config)
        del model
        again = AutoModelForCausalLM.from_pretrained(
            folder, dtype=dtype, use_safetensors=True, attn_implementation=attention, local_files_only=True
        ).to(device)
        found = [_log_probabilities(again, prompt) for prompt in prompts]
        off = torch.cat([(p.exp() * (p - q)).sum(dim=-1) for p, q in zip(wanted, found, strict=True)]).mean().item()
        if not off < TOLERANCE:
            raise UserError(
                f"The merged model differs from the adapted one by {off:.3g} nats a token, so it was not kept; try "
                "a run in fp32 or bf16."
            )
    return off


def export_adapter(run: Run, step: int, target: Path) -> None:
    """Copy the adapter of `step` to the folder `target`, which must not exist, and write its model card. Raises
    `UserError` if the adapter can't be read or does not fit its base.
    """
    source = _checkpoint(run, step)
    _require_new(target)
    with torch.device("meta"):  # its names and shapes are looked at, no weight is needed
        load_adapter(AutoModelForCausalLM.from_config(model_config(run.config.model.path)), source)
    with made_whole(target) as folder:
        for name in ("adapter_config.json", "adapter_model.safetensors"):
            shutil.copyfile(source / name, folder / name)
        write_text(folder / "README.md", model_card(run, step))


def require_base(runs: Sequence[Run]) -> None:
    """Raise `UserError` if the base model that `runs` share is another now than when they were trained."""
    path = runs[0].config.model.path
    now = identity(path)
    for run in runs:
        if other := changed(now, run.info):
            raise UserError(
                f"The run {run.folder} was trained with another base: the {BASE[other]} in {path} changed since, so "
                "its adapter means nothing there; put back what was there."
            )


def chosen_step(run: Run, named: str) -> int:
    """The step of "selected" (by the rule, with the run of the other direction), "last", or a number."""
    if not run.exists:
        raise UserError(f"There is no run in {run.folder}; name a folder such as runs/tiny/forward-seed0.")
    if named == "selected":
        try:
            pair = pair_of(run)
        except UserError as error:
            raise UserError(
                f"The rule selects by both directions of a seed ({str(error).rstrip('.')}); name a checkpoint with "
                f"--checkpoint: last, or {_listed(run)}."
            ) from None
        if pair.selection is None:
            raise UserError(
                f"The rule selects no checkpoint of {run.folder}: {pair.why_none}. "
                f"Name one with --checkpoint: last, or {_listed(run)}."
            )
        return pair.selection.forward if run.config.run.direction == "forward" else pair.selection.reverse
    if not run.steps():
        raise UserError(f"{run.folder} has no checkpoint yet.")
    if named == "last":
        return run.latest_step()
    if not named.isdecimal() or int(named) not in run.steps():
        raise UserError(f"{run.folder} has no checkpoint {named!r}; there are those of the steps {_listed(run)}.")
    return int(named)


@command("Stopped; nothing was written.")
def main(arguments: list[str] | None = None) -> int:
    """The command."""
    parser = argparse.ArgumentParser(
        prog="python -m hmx.export",
        description="Writes a trained checkpoint as a complete model that transformers loads anywhere, or as an "
        "adapter for PEFT, with a model card.",
    )
    parser.add_argument("run", metavar="RUN", help="a run's folder, such as runs/tiny/forward-seed0")
    parser.add_argument(
        "--checkpoint",
        default="selected",
        metavar="STEP",
        help="a step, last, or selected: the one that the rule selects (default)",
    )
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--merged", type=Path, metavar="OUT", help="write the whole model, the adapter in its weights")
    what.add_argument("--adapter", type=Path, metavar="OUT", help="write the adapter, with a model card")
    parser.add_argument(
        "--device", help="with --merged: compute on it, and not where the run was trained: auto, cpu, cuda, cuda:1"
    )
    given = parser.parse_args(arguments)
    run = Run(given.run)
    step = chosen_step(run, given.checkpoint)
    if given.merged:
        off = export_merged(run, step, given.merged, given.device)
        print(
            f"{given.merged}: step {step} of {run.folder}, merged. Loaded again, it is {off:.1e} nats a token off, of "
            f"{TOLERANCE:g} that are allowed. Its model card is in README.md."
        )
    else:
        export_adapter(run, step, given.adapter)
        print(f"{given.adapter}: step {step} of {run.folder}, with its model card in README.md.")
    return 0


def _checkpoint(run: Run, step: int) -> Path:
    if step not in run.steps():
        raise UserError(f"{run.folder} has no checkpoint at step {step}; there are those of the steps {_listed(run)}.")
    return run.checkpoint(step)


def _listed(run: Run) -> str:
    return ", ".join(map(str, run.steps())) or "none"


@torch.no_grad()
def _log_probabilities(model, prompt: list[int]) -> torch.Tensor:
    """[L, V] in float64, on the CPU."""
    with autocast(model):
        logits = model(torch.tensor([prompt], device=model.device)).logits[0]
    return logits.double().log_softmax(dim=-1).cpu()


def _require_new(target: Path) -> None:
    if target.exists():
        raise UserError(f"{target} exists already; name a folder that doesn't.")


if __name__ == "__main__":
    sys.exit(main())
