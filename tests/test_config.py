"""The config: every mistake gets one sentence that names it, and what is resolved can be read again."""

import dataclasses
import tomllib
from pathlib import Path

import pytest

from hmx.config import Config, load_config, resolve, to_toml
from hmx.errors import UserError

CONFIGS = sorted((Path(__file__).parent.parent / "configs").glob("*.toml"))


def write(folder: Path, text: str) -> Path:
    path = folder / "mine.toml"
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[train]\nepoch = 3", "there is no key train.epoch; did you mean epochs?"),
        ("[trian]\nepochs = 3", "there is no section [trian]; did you mean train?"),
        ("[train]\nepochs = '3'", "train.epochs must be a whole number, not '3'"),
        ("[train]\nepochs = true", "train.epochs must be a whole number, not True"),
        ("[train]\nepochs = 1.5", "train.epochs must be a whole number, not 1.5"),
        ("[train]\nepochs = 0", "train.epochs must be at least 1, not 0"),
        ("[train]\nepochs = 10_001", "train.epochs must be at most 10000, not 10001"),
        ("[train]\nevaluations_per_epoch = 1001", "train.evaluations_per_epoch must be at most 1000, not 1001"),
        ("[grpo]\ncompletions_per_prompt = 1", "grpo.completions_per_prompt must be at least 2, not 1"),
        ("[grpo]\nclip_eps = 1", "grpo.clip_eps must be less than 1, not 1.0"),
        ("[grpo]\naggregation = 'gpro'", "must be one of 'bnpo', 'grpo', 'dr_grpo', not 'gpro'; did you mean grpo?"),
        (
            "[grpo]\nprompts_per_step = 3\nprompts_per_microbatch = 2",
            "must be a multiple of grpo.prompts_per_microbatch",
        ),
        ("[optimizer]\nlearning_rate = inf", "optimizer.learning_rate must be a number"),
        ("[optimizer]\nlearning_rate = 0", "optimizer.learning_rate must be more than 0"),
        ("[optimizer]\nbetas = [0.9]", "optimizer.betas must hold 2 numbers"),
        ("[optimizer]\nbetas = [0.9, 1.0]", "optimizer.betas must be less than 1"),
        ("[lora]\ntargets = []", "lora.targets must be a list of texts and not empty"),
        ("[selection]\nthreshold = 11", "selection.threshold must be at most 10"),
        ("[run]\ndirection = 'forwards'", "must be one of 'forward', 'reverse', not 'forwards'; did you mean forward?"),
        ("[model]\nprecision = 'float16'", "model.precision must be one of 'fp32', 'fp16', 'bf16', not 'float16'."),
        ("[run]\nname = 'a/b'", "must be the name of one folder"),
        ("train = 3", "[train] must be a section with keys"),
        ("[train\nepochs = 3", "is not valid TOML"),
        (f"[lora]\nalpha = 1{'0' * 5000}", "is not valid TOML"),
        (f"[lora]\nalpha = {'[' * 3000}", "is not valid TOML"),
        (f"[lora]\nalpha = 1{'0' * 400}", "lora.alpha must be a number"),
        ("[sampling]\ntemperature = 1e-310", "sampling.temperature must be at least 0.01"),
        ("[optimizer]\nlearning_rate = 1e300", "optimizer.learning_rate must be a number"),
        ('[run]\nname = "a\\u0000b"', "run.name must be a text in quotes"),
    ],
)
def test_a_mistake_in_a_config_gets_its_sentence(tmp_path, text, says):
    with pytest.raises(UserError) as caught:
        load_config(write(tmp_path, text))
    assert says in str(caught.value)
    assert "mine.toml" in str(caught.value) or "must" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_byte_order_mark_is_no_part_of_a_config(tmp_path):
    path = write(tmp_path, "[train]\nepochs = 3\n")
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert load_config(path).train.epochs == 3


def test_a_missing_config_names_those_that_are_there(tmp_path):
    write(tmp_path, "")
    with pytest.raises(UserError, match=r"other.toml can't be read .*mine.toml"):
        load_config(tmp_path / "other.toml")


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("epochs=3", "is not of the form section.key=value"),
        ("train.epochs", "is not of the form section.key=value"),
        ("train.epoch=3", "did you mean epochs?"),
        ("train.epochs=three", "must be a whole number, not 'three'"),
        ("run.name=caf\udce9", "must be a text in quotes"),
        (f"train.epochs={'[' * 3000}", "must be a whole number"),
    ],
)
def test_a_mistake_in_an_override_gets_its_sentence(tmp_path, override, says):
    with pytest.raises(UserError) as caught:
        load_config(write(tmp_path, ""), [override])
    assert says in str(caught.value)


def test_overrides_win_over_the_file_and_need_no_quotes(tmp_path):
    path = write(tmp_path, "[train]\nepochs = 3\n[model]\npath = 'somewhere'")
    config = load_config(path, ["train.epochs=7", "model.path=some/folder", "lora.alpha=8", "lora.targets=['q_proj']"])
    assert (config.train.epochs, config.model.path, config.lora.alpha, config.lora.targets) == (
        7,
        "some/folder",
        8.0,
        ("q_proj",),
    )
    assert isinstance(config.lora.alpha, float)
    assert config.run.name == "mine"


@pytest.mark.parametrize("name", ["4", "4e-5", "true", "2024-05-01", "'4'", "four"])
def test_a_text_on_the_command_line_may_look_like_something_else(tmp_path, name):
    assert load_config(write(tmp_path, ""), [f"run.name={name}"]).run.name == name.strip("'")


def test_a_tilde_is_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    config = load_config(write(tmp_path, '[run]\nfolder = "~/runs"\n'))
    assert config.run_folder.parent.parent == tmp_path / "runs"
    assert resolve("~/models/mine") == tmp_path / "models/mine"


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_config_of_the_project_loads_and_survives_being_written(path, tmp_path):
    config = load_config(path)
    assert config.run.name == path.stem
    again = load_config(write(tmp_path, to_toml(config)))
    assert dataclasses.replace(again, study=config.study) == config  # a run's file does not hold its study


@pytest.mark.parametrize("path", [path for path in CONFIGS if path.stem != "tiny"], ids=lambda path: path.stem)
def test_the_papers_configs_hold_every_key_commented_and_table_2(path):
    text = path.read_text(encoding="utf-8")
    written, config = tomllib.loads(text), load_config(path)
    assert {name: set(keys) for name, keys in written.items()} == {
        section.name: {option.name for option in dataclasses.fields(section.type)}
        for section in dataclasses.fields(Config)
    }
    for line in text.splitlines():
        if "=" in line.split("#")[0] and not line.startswith(
            ("folder", "questions", "betas", "eps", "weight_decay", "max_grad_norm")
        ):
            assert "#" in line, f"no comment: {line}"
    gemma, qwen_8b = path.stem == "gemma-2-2b", path.stem == "qwen3-8b"
    assert config.lora.rank == 16
    assert config.optimizer.learning_rate == (1e-5 if gemma else 2e-5)
    assert config.model.precision == "fp16"
    assert config.sampling.temperature == 1.0
    assert config.sampling.max_sequence_length == 4096
    assert config.sampling.max_completion_length == (128 if qwen_8b else 0)
    grpo = config.grpo
    assert (grpo.prompts_per_step, grpo.completions_per_prompt, grpo.prompts_per_microbatch) == (2, 4, 1)
    assert config.selection.threshold == 7.5


def test_the_answer_may_take_what_the_prompt_leaves(tmp_path):
    config = load_config(write(tmp_path, "[sampling]\nmax_sequence_length = 100\nmax_completion_length = 30"))
    assert [config.completion_limit(prompt) for prompt in (10, 70, 80, 100)] == [30, 30, 20, 0]
    config = load_config(write(tmp_path, "[sampling]\nmax_sequence_length = 100"))
    assert [config.completion_limit(prompt) for prompt in (10, 70)] == [90, 30]


def test_a_path_is_seen_from_the_working_directory_first(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert resolve("data/rubric.toml").is_file()  # the project's own
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "rubric.toml").write_text("mine")
    assert resolve("data/rubric.toml").read_text() == "mine"
    assert resolve("no/such/file") == tmp_path / "no/such/file" == resolve(f"{tmp_path}/no/such/file")
