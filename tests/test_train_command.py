"""train.py and evaluate.py from outside: exit codes, sentences, no tracebacks."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import evaluate
import train
from hmx import models, training
from tests.small_run import save_model, small_config

ROOT = Path(__file__).parent.parent


@pytest.fixture(autouse=True)
def offline(monkeypatch):
    monkeypatch.setattr(models, "hub_is_reachable", lambda: False)
    monkeypatch.chdir(ROOT)


def script(name: str, *arguments: str) -> subprocess.CompletedProcess:
    """The script as a user starts it. Slow, so most tests call its main() instead."""
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    return subprocess.run(
        [sys.executable, str(ROOT / name), *arguments], capture_output=True, text=True, cwd=ROOT, env=environment
    )


@pytest.mark.parametrize("name", ["train.py", "evaluate.py"])
def test_help_teaches(name):
    done = script(name, "--help")
    assert done.returncode == 0 and "usage" in done.stdout


def test_a_mistake_ends_the_process_with_one_line_and_its_exit_code():
    done = script("train.py", "--config", "configs/qwen3-0.6b.toml", "--set", "model.path=no-such-team/no-such-model")
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert (
        line.startswith("error: ")
        and "can't be reached" in line
        and "configs/tiny.toml" in line
        and "model.path" in line
    )


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--config", "configs/nothing.toml"], "tiny.toml"),
        (["--config", "configs/tiny.toml", "--set", "train.epoch=3"], "did you mean epochs?"),
        (["--config", "configs/tiny.toml", "--seed", "-1"], "run.seed must be at least 0"),
        (["--config", "configs/tiny.toml", "--set", f"run.name={'a' * 300}"], "run.name is too long"),
        (["--config", "configs/tiny.toml", "--set", "model.threads=100000000"], "model.threads must be at most 1024"),
        (["--config", "configs/tiny.toml", "--study", "--set", "run.seed=7"], "run.seed is of a single run"),
        (["--config", "configs/tiny.toml", "--set", "data.questions=no.toml"], "/no.toml can't be read"),
        (["--config", "configs/tiny.toml", "--set", "judge.prompt_file=no.txt"], "/no.txt can't be read"),
        (["--config", "configs/tiny.toml", "--set", "model.device=warp"], "The device 'warp' can't be used here"),
        (["--config", "configs/tiny.toml", "--set", "model.path=data"], "The folder data holds no model"),
        (
            ["--config", "configs/tiny.toml", "--set", "model.path=no-such-team/no-such-model"],
            "the hub can't be reached",
        ),
    ],
)
def test_a_users_mistake_gets_one_sentence_and_no_traceback(arguments, says, tmp_path, capsys):
    assert train.main([*arguments, "--set", f"run.folder={tmp_path}"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ") and says in line


def test_a_tokenizer_without_chat_template_is_refused(tmp_path, capsys):
    folder = save_model(tmp_path / "model")
    for path in folder.glob("chat_template*"):
        path.unlink()
    small_config(tmp_path)
    assert train.main(["--config", str(tmp_path / "small.toml")]) == 2
    assert "has no chat template" in capsys.readouterr().err


@pytest.mark.parametrize("config", sorted(path.name for path in (ROOT / "configs").glob("*.toml")))
def test_a_dry_run_tells_what_would_happen_without_the_weights(config, capsys):
    assert train.main(["--config", f"configs/{config}", "--dry-run", "--seed", "3", "--direction", "reverse"]) == 0
    said = capsys.readouterr().out
    for words in ("seed = 3", 'direction = "reverse"', "trainable", "Steps", "base weights", "at the peak"):
        assert words in said


def test_ctrl_c_before_there_is_a_run_promises_no_checkpoint(tmp_path, monkeypatch, capsys):
    def stopped(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(training, "build_trainer", stopped)
    small_config(tmp_path)
    assert train.main(["--config", str(tmp_path / "small.toml")]) == 130
    assert capsys.readouterr().err.endswith("goes on from the last checkpoints, if there are any.\n")
    assert not (tmp_path / "runs").exists()


def test_two_runs_then_a_look_at_them(tmp_path, capsys):
    small_config(tmp_path)
    runs = str(tmp_path / "runs")
    assert evaluate.main(["--runs", runs]) == 2
    assert "train.py --config configs/tiny.toml" in capsys.readouterr().err
    for direction in ("forward", "reverse"):
        assert (
            train.main(["--config", str(tmp_path / "small.toml"), "--direction", direction, "--set", "train.epochs=2"])
            == 0
        )
    capsys.readouterr()
    assert evaluate.main(["--runs", runs]) == 0
    said = capsys.readouterr().out
    assert "Are you there?" in said and "reverse" in said
    assert (tmp_path / "runs/small/seed0-curves.png").read_bytes().startswith(b"\x89PNG")
    assert "| Are you there? |" in (tmp_path / "runs/small/seed0-answers.md").read_text(encoding="utf-8")
