"""Checkpoints for others: the merged model loads anywhere and says the same, the adapter has its card."""

import json
import re
import shutil

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from hmx import export, training
from hmx.card import model_card
from hmx.lora import LoRALinear, load_adapter
from hmx.models import fingerprint, load_model
from hmx.runs import Run
from tests.models import FAMILIES, build
from tests.small_run import LengthJudge, small_config

IDS = torch.tensor([[9, 10, 11, 12, 13]])


@pytest.fixture
def trained(tmp_path, monkeypatch):
    """Trains a small run of a family and returns it."""
    monkeypatch.setattr(training, "SelfJudge", LengthJudge)

    def train(family="qwen3", *overrides):
        config = small_config(tmp_path, "train.epochs=2", *overrides, family=family)
        return training.train_run(config, plain=True)

    return train


@torch.no_grad()
def logits(model):
    return model(IDS).logits.float()


@pytest.mark.parametrize("family", FAMILIES)
def test_a_merged_model_is_the_adapted_one_and_needs_nothing_of_ours(trained, tmp_path, capsys, family):
    run = trained(family)
    assert export.main([str(run.folder), "--checkpoint", "last", "--merged", str(tmp_path / "out")]) == 0
    assert re.search(r"it is [0-9.e-]+ nats a token off, of 0\.01 that are allowed\.", capsys.readouterr().out)
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "out", attn_implementation="eager")
    assert AutoTokenizer.from_pretrained(tmp_path / "out").chat_template
    assert not any("lora" in name for name, _ in merged.named_parameters())
    adapted, _ = load_model(run.config.model.path, "fp32", "cpu")
    base = logits(adapted)
    load_adapter(adapted, run.checkpoint(run.latest_step()))
    torch.testing.assert_close(logits(merged), logits(adapted), rtol=0, atol=1e-4)
    assert (logits(adapted) - base).abs().max() > 1e-3, "the adapter does nothing"
    assert sorted(path.name for path in (tmp_path / "out").glob("*.safetensors")) == ["model.safetensors"]
    weights, card = (tmp_path / "out" / name for name in ("model.safetensors", "README.md"))
    assert weights.stat().st_mode == card.stat().st_mode  # who may read one may read the other


def test_half_precision_is_kept_and_close_enough(trained, tmp_path, capsys):
    run = trained("qwen3", "model.precision=bf16")
    assert export.main([str(run.folder), "--checkpoint", "last", "--merged", str(tmp_path / "out")]) == 0
    assert json.loads((tmp_path / "out/config.json").read_text())["dtype"] == "bfloat16"


def test_a_merge_that_went_wrong_is_not_kept(trained, tmp_path, monkeypatch, capsys):
    run = trained()
    monkeypatch.setattr(LoRALinear, "merged_weight", lambda layer: layer.base.weight.detach() * 1.5)
    assert export.main([str(run.folder), "--checkpoint", "last", "--merged", str(tmp_path / "out")]) == 2
    assert "differs from the adapted one by" in capsys.readouterr().err
    assert not list(tmp_path.glob("*out*"))


def test_an_adapter_goes_out_with_its_card_and_peft_loads_it(trained, tmp_path):
    run = trained("qwen3", "run.direction=reverse", "run.seed=3")
    assert export.main([str(run.folder), "--checkpoint", "last", "--adapter", str(tmp_path / "out")]) == 0
    card = (tmp_path / "out/README.md").read_text(encoding="utf-8")
    last = run.records(kind="eval")[-1]
    for fact in (
        f"A LoRA adapter for `{run.config.model.path}`, in PEFT's format",
        "was a folder on the machine where this was trained: ask for it",
        f"SHA-256 `{fingerprint(run.config.model.path)}`",
        "reverse training, seed 3, step 3",
        "weaker expression",
        "gave to each answer, with the opposite sign: the lower the grade, the better.",
        f"reward {last['eval_reward']:.2f} of 10",
        f"KL {last['eval_kl']:.3f}",
        "questions.toml",
        "torch ",
        "shows nothing about whether a model has any",
    ):
        assert fact in card, fact
    assert not re.search(r"\{\w*\}", card) and "base_model:" not in card
    PeftModel.from_pretrained(load_model(run.config.model.path, "fp32", "cpu")[0], tmp_path / "out")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "README.md",
        "adapter_config.json",
        "adapter_model.safetensors",
    ]


def test_the_selected_checkpoint_is_the_default(trained, tmp_path, capsys):
    forward = trained("qwen3", "selection.threshold=0")
    command = [str(forward.folder), "--adapter", str(tmp_path / "out")]
    assert export.main(command) == 2
    said = capsys.readouterr().err
    assert "has no counterpart" in said and "--checkpoint: last, or 0, " in said
    reverse = trained("qwen3", "selection.threshold=0", "run.direction=reverse")
    assert export.main(command) == 0
    first = next(one for one in forward.records(kind="eval") if one["step"] > 0 and one["eval_reward"] > 0)
    assert f"step {first['step']} of" in capsys.readouterr().out
    assert export.chosen_step(reverse, "selected") <= first["step"]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["no/run", "--merged", "out"], "There is no run in no/run"),
        (["RUN", "--merged", "out"], "forward never passed 7.5. Name one with --checkpoint: last"),
        (["RUN", "--checkpoint", "2", "--merged", "out"], "has no checkpoint '2'; there are those of the steps 0, 2"),
        (["RUN", "--checkpoint", "soon", "--merged", "out"], "has no checkpoint 'soon'"),
        (["RUN", "--checkpoint", "last", "--merged", "there"], "there exists already"),
    ],
)
def test_a_mistake_gets_one_sentence(trained, tmp_path, monkeypatch, capsys, arguments, says):
    monkeypatch.chdir(tmp_path)
    forward, reverse = trained(), trained("qwen3", "run.direction=reverse")
    assert reverse.finished
    if "'2'" in says:
        shutil.rmtree(forward.checkpoint(2), ignore_errors=True)
        says = "has no checkpoint '2'; there are those of the steps 0"
    (tmp_path / "there").mkdir()
    assert export.main([str(forward.folder) if each == "RUN" else each for each in arguments]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()[-1:]
    assert line.startswith("error: ") and says in line
    assert not (tmp_path / "out").exists()


def test_a_run_that_never_was_has_no_card():
    with pytest.raises(export.UserError, match="can't be read"):
        model_card(Run("no/run"), 7)


@pytest.mark.parametrize("what", ["--merged", "--adapter"])
def test_the_code_of_the_card_runs(trained, tmp_path, monkeypatch, capsys, what):
    run = trained()
    assert export.main([str(run.folder), "--checkpoint", "last", what, str(tmp_path / "out")]) == 0
    card = (tmp_path / "out/README.md").read_text(encoding="utf-8")
    code = "\n".join(line[4:] for line in card.splitlines() if line.startswith("    ") or not line)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "out").rename(tmp_path / "this folder")
    capsys.readouterr()
    exec(code.replace("path/to/model", run.config.model.path), {})
    assert capsys.readouterr().out.endswith("\n")


def test_a_model_from_the_hub_is_named_where_the_hub_looks_for_it(trained):
    run = trained()
    settings = run.folder / "config.toml"
    settings.write_text(settings.read_text().replace(run.config.model.path, "some/model"))
    card = model_card(run, 3)
    assert card.startswith("---\nbase_model: some/model\nlibrary_name: peft\n") and "was a folder" not in card
    assert "library_name: transformers" in model_card(run, 3, merged=True)


@pytest.mark.parametrize(
    ("direction", "stronger", "higher"), [("forward", "stronger", "higher"), ("reverse", "weaker", "lower")]
)
def test_a_card_says_of_questions_and_rubric_what_is_true_of_them(trained, direction, stronger, higher):
    run = trained("qwen3", f"run.direction={direction}", "judge.grade=expected")
    card = model_card(run, 3)
    assert f"the questions of `questions.toml` with {stronger} expression of inner experience. The" in card
    assert "`expected`: the mean" in card and run.config.model.path not in card.split("from peft")[1]
    settings = run.folder / "config.toml"
    written = settings.read_text().replace(run.config.data.questions, "data/questions.toml")
    settings.write_text(written.replace("data/rubric.toml", "mine/humour.txt"))
    card = model_card(run, 3)
    assert "questions about feelings, will and selfhood so that the rubric `humour.txt` grades the answers" in card
    assert f"answers {higher}. The reward" in card and "measures what the rubric `humour.txt` asks for" in card
    assert "inner experience" not in card and not re.search(r"\{\w*\}", card)


def test_a_checkpoint_of_an_interruption_has_a_card_without_evaluation(trained):
    run = trained()
    metrics = run.folder / "metrics.jsonl"
    kept = [line for line in metrics.read_text().splitlines() if json.loads(line) != run.records(kind="eval")[-1]]
    metrics.write_text("\n".join(kept) + "\n")
    assert "| evaluation | none at this step" in model_card(run, 3)
    assert "where the run was interrupted" not in model_card(run, 3)
    run.note(status="interrupted")
    assert "| step 3 of 3, where the run was interrupted (" in model_card(run, 3)


@pytest.mark.parametrize("what", ["--merged", "--adapter"])
@pytest.mark.parametrize("file", ["adapter_config.json", "adapter_model.safetensors"])
@pytest.mark.parametrize("damage", ["gone", "half", "another rank"])
def test_a_damaged_adapter_does_not_go_out(trained, tmp_path, capsys, what, file, damage):
    run = trained()
    path = run.checkpoint(3) / file
    if damage == "gone":
        path.unlink()
    elif damage == "half":
        path.write_bytes(path.read_bytes()[:80])
    else:
        config = run.checkpoint(3) / "adapter_config.json"
        config.write_text(json.dumps(json.loads(config.read_text()) | {"r": 3}))
    assert export.main([str(run.folder), "--checkpoint", "3", what, str(tmp_path / "out")]) == 2
    assert re.search("not a readable LoRA adapter|does not fit this model", capsys.readouterr().err)
    assert not list(tmp_path.glob("*out*"))


def test_an_adapter_is_not_merged_into_other_weights_than_it_was_trained_on(trained, tmp_path, capsys):
    run = trained()
    build("qwen3", seed=5).model.save_pretrained(run.config.model.path)
    assert export.main([str(run.folder), "--checkpoint", "last", "--merged", str(tmp_path / "out")]) == 2
    assert (
        "was trained with another base: the weights in" in capsys.readouterr().err and not (tmp_path / "out").exists()
    )


def test_nothing_is_loaded_to_learn_that_the_folder_is_there(trained, tmp_path, monkeypatch, capsys):
    run = trained()
    monkeypatch.setattr(export, "load_model", None)
    for what in ("--merged", "--adapter"):
        assert export.main([str(run.folder), "--checkpoint", "last", what, str(tmp_path)]) == 2
        assert "exists already" in capsys.readouterr().err


@pytest.mark.parametrize("targets", ['["q_proj", "up_proj"]', '["q_proj", "lm_head"]'])
def test_tied_embeddings_are_merged_rightly_even_where_the_output_layer_is_adapted(trained, tmp_path, targets):
    made = build("qwen3", tie_word_embeddings=True)
    made.model.save_pretrained(tmp_path / "model")
    made.tokenizer.save_pretrained(tmp_path / "model")
    run = trained("qwen3", f"lora.targets={targets}")
    assert export.export_merged(run, 3, tmp_path / "out") < 1e-8
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert torch.equal(merged.get_input_embeddings().weight, made.model.get_input_embeddings().weight)
    tied = merged.get_output_embeddings().weight is merged.get_input_embeddings().weight
    assert tied == ("lm_head" not in targets)
    assert json.loads((tmp_path / "out/config.json").read_text())["tie_word_embeddings"] == tied


def test_the_merged_model_says_where_its_turns_end_even_if_its_base_did_not(trained, tmp_path):
    made = build("gemma2")
    made.model.save_pretrained(tmp_path / "model")
    made.tokenizer.save_pretrained(tmp_path / "model")
    told = tmp_path / "model/generation_config.json"
    told.write_text(json.dumps({"do_sample": False, "temperature": 0.6}))  # which transformers would not write
    run = trained("gemma2")
    export.export_merged(run, 3, tmp_path / "out")
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert made.end_id in merged.generation_config.eos_token_id


def test_the_device_of_the_training_need_not_be_here(trained, tmp_path, capsys):
    run = trained("qwen3")
    path = run.folder / "config.toml"
    path.write_text(path.read_text().replace('device = "cpu"', 'device = "cuda:7"'))
    command = [str(run.folder), "--checkpoint", "3", "--merged", str(tmp_path / "out")]
    assert export.main(command) == 2 and "by model.device or --device" in capsys.readouterr().err
    assert export.main([*command, "--device", "cpu"]) == 0


def test_ctrl_c_leaves_nothing(trained, tmp_path, monkeypatch, capsys):
    def interrupted(*arguments, **options):
        raise KeyboardInterrupt

    run = trained()
    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", interrupted)
    assert export.main([str(run.folder), "--checkpoint", "last", "--merged", str(tmp_path / "out")]) == 130
    assert "Stopped" in capsys.readouterr().err and not list(tmp_path.glob("*out*"))


def test_a_full_disk_gets_a_sentence(trained, tmp_path, monkeypatch, capsys):
    def full(*arguments):
        raise OSError(28, "No space left on device")

    run = trained()
    monkeypatch.setattr(export.shutil, "copyfile", full)
    assert export.main([str(run.folder), "--checkpoint", "last", "--adapter", str(tmp_path / "out")]) == 2
    assert "No space left on device" in capsys.readouterr().err and not list(tmp_path.glob("*out*"))
