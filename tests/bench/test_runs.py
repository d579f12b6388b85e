"""The smallest run of each benchmark, from its command line to its JSON."""

import importlib
import json
import time
from pathlib import Path

import pytest
import torch

from bench import __main__ as whole
from bench import common, growth, study, train
from bench.ours import Laps
from hmx.errors import UserError
from tests.bench.test_common import ScriptedTimer


def result(folder: Path, name: str, *arguments: str) -> dict:
    """What `python -m bench.<name>` keeps."""
    module = importlib.import_module(f"bench.{name}")
    module.main(["--results", str(folder), "--rounds", "1", "--warmup", "0", *arguments])
    (file,) = folder.glob("*.json")
    return json.loads(file.read_text(encoding="utf-8"))


def test_a_step_is_divided_at_the_judge():
    timer = ScriptedTimer()
    laps = Laps(timer)
    laps.begin()
    timer.time += 2
    with laps.training():  # as TRL computes the reference before it asks for rewards
        timer.time += 4
    with laps.judging():
        timer.time += 3
    timer.time += 5
    step = laps.end(tokens=7)
    assert (step.total, step.rollout, step.judging, step.training, step.tokens) == (14, 2, 3, 9, 7)


def test_a_step_of_ours(tmp_path, capsys):
    kept = result(tmp_path, "step", "--ours-only", "--fixed-length", "3")
    (step,) = kept["steps"]["ours"]
    assert step["tokens"] == 24 and kept["steps"]["trl"] == [] and kept["ratio"] == {}
    assert step["total"] == pytest.approx(step["rollout"] + step["judging"] + step["training"])
    assert "ours" in capsys.readouterr().out


def test_sampling_beside_transformers(tmp_path, capsys):
    kept = result(tmp_path, "generate", "--batches", "1", "3", "--tokens", "10", "--bandwidth", "--adapter")
    one, three = kept["rows"]
    assert (one["tokens"], three["tokens"]) == (10, 30) and kept["copy_bytes_per_second"] > 0
    for row in (one, three):
        seconds = row["seconds"]
        assert row["ours_tokens_per_second"] == pytest.approx(row["tokens"] / seconds["ours"]["median"])
        assert row["ratio"]["of_medians"] == pytest.approx(
            seconds["transformers"]["median"] / seconds["ours"]["median"]
        )
        later = seconds["ours"]["median"] - seconds["beginning"]["median"]
        assert row["decode_step_seconds"] == pytest.approx(later / (10 - 8))
        assert row["share_of_limit"] == pytest.approx(row["limit_seconds"] / row["decode_step_seconds"])
    assert "share" in capsys.readouterr().out


def test_the_embedded_judge_gives_the_same_grades_whoever_generates(tmp_path):
    (row,) = result(tmp_path, "judge", "--answers", "6")["rows"]
    assert row["same_grades"] == 6 and all(grade in range(11) for grade in row["grades"])
    assert set(row["seconds"]) == {"ours", "whole reply", "score line"}


def test_the_training_pass_and_its_memory(tmp_path):
    (row,) = result(tmp_path, "train", "--lengths", "4")["rows"]
    assert row["tokens"] == 32 and len(row["seconds"]) == 1
    assert row["peak"] > 10 * 2**20  # FP32 weights of the embedded model alone take 9 MiB
    assert row["estimate"] > 9 * 2**20


def test_answers_that_are_given_have_their_length_and_train_the_adapter(tmp_path):
    arguments = common.parser("train", "", rounds=2).parse_args([])
    arguments.checkpointing = False
    common.prepare(arguments)
    measured = train.measure(arguments, 5)
    assert measured["length"] == 5 and measured["tokens"] == 40 and len(measured["seconds"]) == 2


def test_growth(tmp_path):
    kept = result(tmp_path, "growth", "--lengths", "2", "4", "--groups", "2", "--models", "tiny")
    tokens = [point["tokens"] for point in kept["series"]["tokens an answer"]]
    assert tokens == [16, 32]
    assert [point["tokens"] for point in kept["series"]["answers a question"]] == [8]
    assert [point["label"] for point in kept["series"]["model"]] == ["tiny", "tiny"]
    assert growth.exponent([(16, 0.5), (32, 1.0)]) == pytest.approx(1.0)
    assert growth.exponent([(16, 0.5), (64, 8.0)]) == pytest.approx(2.0)


def test_evaluation_beside_lm_evals_own_model(tmp_path):
    pytest.importorskip("lm_eval", reason="lm-eval is not installed")
    kept = result(tmp_path, "evaluation", "--contexts", "2", "--replies", "3", "--hflm-batches", "4")
    choices, replies = kept["multiple choice"], kept["replies"]
    assert choices["requests"] == 24 and choices["fastest"] == "HFLM at 4"
    assert float(choices["agreement"].removeprefix("within ")) < 1e-3
    assert replies["agreement"] == kept["few-shot replies"]["agreement"] == "3 of 3 alike"


def test_the_hours_of_a_study_are_what_its_parts_take_as_often_as_they_are_asked_for(tmp_path, capsys):
    kept = result(tmp_path, "study", "--length", "2", "--replies", "2")
    hours, rates = kept["hours"], kept["rates"]
    assert hours["training: 10 runs of 225 steps"] == pytest.approx(2250 * kept["step"] / 3600)
    assert hours["their evaluations: 11 each"] == pytest.approx(110 * kept["evaluation"] / 3600)
    assert hours["BBQ: 11 models"] == pytest.approx(11 * 58_492 / rates["contexts"] / 3600)
    assert f"{sum(hours.values()):.2f}" in capsys.readouterr().out


def test_the_rates_of_a_studys_benchmarks():
    """Of a subject that takes 1 s to begin replies, 2 s for every further token of them, and 4 s for all choices."""
    asked = []

    class Scripted:
        tokenizer = range(50)

        def reply(self, prompts, limit):
            asked.append((len(prompts), len(prompts[0]), limit))

    def seconds(action):
        asked.clear()
        action()
        return 1 + 2 * (asked[0][2] - 1) if asked else 4

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(study, "likelihoods", lambda subject, requests: None)
        rates = study.measure(Scripted(), 5, 3, seconds)
    assert rates == study.Rates(read=4000, written=3 * 4 / 8, contexts=3 / 4)


def test_a_memory_cap_needs_a_gpu():
    with pytest.raises(UserError, match="needs a GPU"):
        result(Path("."), "memory", "--cap", "16")


@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        ("step", ("--ours-only", "--fixed-length", "0")),
        ("generate", ("--tokens", "1")),
        ("generate", ("--tokens", "8", "--bandwidth")),
        ("judge", ("--answers", "0")),
        ("train", ("--lengths", "0")),
        ("growth", ("--groups", "1")),
        ("evaluation", ("--replies", "0")),
        ("study", ("--replies", "0")),
    ],
)
def test_sizes_that_measure_nothing_are_refused(tmp_path, name, wrong):
    if name == "evaluation":
        pytest.importorskip("lm_eval", reason="lm-eval is not installed")
    with pytest.raises(UserError, match="at least"):
        result(tmp_path, name, *wrong)


def test_results_that_could_not_be_kept_are_not_measured(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="name another folder by --results"):
        result(tmp_path / "file", "judge")


# -- the whole set -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("device", whole.SETS)
def test_every_command_of_the_set_is_understood(device, monkeypatch):
    """Each is parsed by its own benchmark, which is stopped where it would begin."""

    class Parsed(Exception):
        pass

    def stop(given):
        raise Parsed

    for command in whole.SETS[device]:
        name, *options = command.split()
        module = importlib.import_module(f"bench.{name}")
        monkeypatch.setattr(module, "prepare", stop)
        with pytest.raises(Parsed):
            module.main([*options, "--device", device])


def test_what_is_not_installed_is_left_out_and_said(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(whole, "NEEDS", {"step": ("no_such_package",), "evaluation": ("no_such_package",)})
    outcome = whole.carry_out("evaluation --contexts 2", "cpu", tmp_path)
    assert outcome.seconds is None and outcome.said == "left out: no_such_package is not installed"
    outcome = whole.carry_out("step --rounds 1 --warmup 0 --fixed-length 2", "cpu", tmp_path)
    assert outcome.seconds > 0 and outcome.said == "ours only: no_such_package is not installed"
    assert [file.name for file in tmp_path.iterdir()][0].startswith("step-tiny-2tok-cpu")


def test_what_there_is_no_time_for_is_stopped_or_left_out(tmp_path):
    now = time.perf_counter()
    outcome = whole.carry_out("judge --model tiny", "cpu", tmp_path, now + 0.01)  # Python alone takes longer to start
    assert outcome.seconds > 0 and outcome.said == "stopped: no time left"
    outcome = whole.carry_out("judge --model tiny", "cpu", tmp_path, now)
    assert outcome.seconds is None and outcome.said == "left out: no time left"
    assert not list(tmp_path.iterdir())


def test_the_set_says_which_benchmarks_there_are(capsys):
    assert whole.main(["--only", "stepp"]) == 2 and "they are evaluation, generate" in capsys.readouterr().err
    assert whole.main(["--only", "memory"]) == 2 and "no benchmark for cpu is called" in capsys.readouterr().err
    assert whole.main(["--list", "--only", "judge"]) == 0
    assert capsys.readouterr().out.startswith("python -m bench.judge --model tiny")


def test_the_set_of_a_gpu_that_is_not_there_is_not_begun(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(whole, "carry_out", None)
    assert whole.main(["--device", "cuda", "--within", "10", "--results", str(tmp_path)]) == 2
    assert capsys.readouterr().err == "error: This PyTorch finds no CUDA device here; use --device cpu.\n"
    assert whole.main(["--device", "cuda", "--list"]) == 0


def test_results_of_another_machine_are_not_mixed_with_this_ones(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(whole, "carry_out", lambda command, *rest: whole.Outcome(command, 1.0, ""))
    kept = tmp_path / "judge-tiny-cpu-fp32-1t.json"
    kept.write_text(json.dumps({"machine": {"cpu": "an abacus", "gpu": None}}))
    asked = ["--only", "judge", "--results", str(tmp_path)]
    assert whole.main(asked) == 2
    assert "was measured on another machine (an abacus, and this is" in capsys.readouterr().err
    kept.write_text(json.dumps({"machine": {"cpu": common.cpu(), "gpu": None}}))
    assert whole.main(asked) == 0
