"""A run's folder: what it holds, how a run goes on, and what can be wrong with it."""

import errno
import json
import os
import shutil
import signal
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from hmx import models, runs, training
from hmx.config import load_config
from hmx.errors import UserError
from hmx.judge.self_judge import Verdict
from hmx.lora import adapter_hash, load_adapter
from hmx.runs import Busy, Run
from hmx.training import train_run
from tests.evaluation.made_runs import make_run
from tests.small_run import LengthJudge, small_config, without_times

ANY_STEP = {
    "epoch",
    "reward_mean",
    "reward_std",
    "zero_std_groups",
    "judge_invalid",
    "kl",
    "loss",
    "grad_norm",
    "loss_scale",
    "skipped",
}
ANY_STEP |= {"completion_tokens", "truncated", "seconds", "seconds_sampling", "seconds_judging", "seconds_training"}


@pytest.fixture(autouse=True)
def known_grades(monkeypatch):
    monkeypatch.setattr(training, "SelfJudge", LengthJudge)


def interrupted(config, after: int, monkeypatch):
    """A run that is asked to stop during step `after`."""
    real = training.Trainer.step

    def step(trainer, n):
        record = real(trainer, n)
        if n == after:
            os.kill(os.getpid(), signal.SIGINT)
        return record

    monkeypatch.setattr(training.Trainer, "step", step)
    run = train_run(config)
    monkeypatch.setattr(training.Trainer, "step", real)
    return run


def test_a_run_leaves_its_config_its_metrics_its_samples_and_a_checkpoint_for_each_evaluation(tmp_path):
    config = small_config(tmp_path)
    run = train_run(config)
    assert run.folder == tmp_path / "runs" / "small" / "forward-seed0"
    assert load_config(run.folder / "config.toml") == config
    steps, evaluations = run.records(kind="step"), run.records(kind="eval")
    assert [record["step"] for record in steps] == [1, 2, 3, 4, 5, 6]
    assert [record["step"] for record in evaluations] == [0, 2, 3, 5, 6] == run.steps()
    assert all(ANY_STEP <= set(record) for record in steps)
    assert all({"eval_reward", "eval_kl", "step", "epoch"} <= set(record) for record in evaluations)
    assert evaluations[0]["eval_kl"] == 0.0
    samples = run.records("samples.jsonl")
    assert len(samples) == 6 * 8 + 5 * 4
    assert {"kind", "step", "question", "answer", "grade", "judge"} <= set(samples[0])
    assert run.finished and run.info["versions"]["torch"] == torch.__version__
    states = [step for step in run.steps() if (run.checkpoint(step) / "training_state.safetensors").exists()]
    assert states == [6]
    assert not list(run.folder.rglob("*.tmp"))


def test_the_same_command_twice_gives_bitwise_the_same(tmp_path):
    one = train_run(small_config(tmp_path, "run.name=one"))
    other = train_run(small_config(tmp_path, "run.name=other"))
    assert without_times(one.records()) == without_times(other.records())
    assert one.records("samples.jsonl") == other.records("samples.jsonl")
    for step in one.steps():
        ours, theirs = (load_file(run.checkpoint(step) / "adapter_model.safetensors") for run in (one, other))
        assert all(torch.equal(ours[key], theirs[key]) for key in ours)


def test_forward_and_reverse_of_a_seed_start_from_the_same_adapter_and_other_seeds_do_not(tmp_path):
    hashes = {
        (direction, seed): train_run(
            small_config(tmp_path, f"run.direction={direction}", f"run.seed={seed}", "train.epochs=1")
        ).info["initial_adapter"]
        for direction in ("forward", "reverse")
        for seed in (0, 1)
    }
    assert hashes["forward", 0] == hashes["reverse", 0] != hashes["forward", 1] == hashes["reverse", 1]


@pytest.mark.parametrize("after", [1, 2, 4])
def test_a_run_that_was_interrupted_goes_on_as_if_it_had_not_been(tmp_path, monkeypatch, after):
    whole = train_run(small_config(tmp_path, "run.name=whole"))
    config = small_config(tmp_path, "run.name=parts")
    parts = interrupted(config, after, monkeypatch)
    assert not parts.finished and parts.info["status"] == "interrupted" and parts.latest_step() == after
    assert after not in {record["step"] for record in parts.records(kind="eval")}, "it took its time to stop"
    resumed = train_run(config, resume=True)
    assert resumed.finished
    assert without_times(whole.records()) == without_times(resumed.records())
    assert whole.records("samples.jsonl") == resumed.records("samples.jsonl")
    ours, theirs = (load_file(run.checkpoint(6) / "adapter_model.safetensors") for run in (whole, resumed))
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)


def test_an_fp16_run_goes_on_with_its_loss_scale(tmp_path, monkeypatch):
    overrides = ("model.precision=fp16", "optimizer.initial_loss_scale=1e12", "train.epochs=2")
    whole = train_run(small_config(tmp_path, "run.name=whole", *overrides))
    config = small_config(tmp_path, "run.name=parts", *overrides)
    interrupted(config, 2, monkeypatch)
    resumed = train_run(config, resume=True)
    scales = [record["loss_scale"] for record in whole.records(kind="step")]
    assert scales[0] > scales[-1]
    assert without_times(whole.records()) == without_times(resumed.records())


def test_what_was_written_after_the_last_checkpoint_is_taken_back(tmp_path, monkeypatch):
    """As after a power cut: lines beyond the checkpoint, the last one cut off."""
    whole = train_run(small_config(tmp_path, "run.name=whole"))
    config = small_config(tmp_path, "run.name=parts")
    run = interrupted(config, 2, monkeypatch)
    run.append("metrics.jsonl", [{"kind": "step", "step": 3, "reward_mean": 99.0}])
    with open(run.folder / "metrics.jsonl", "a") as file:
        file.write('{"kind": "step", "st')
    run.note(status="running")
    assert without_times(train_run(config, resume=True).records()) == without_times(whole.records())


def test_a_run_that_died_behind_an_evaluation_does_not_evaluate_again(tmp_path, monkeypatch):
    whole = train_run(small_config(tmp_path, "run.name=whole"))
    config, real = small_config(tmp_path, "run.name=parts"), training.Trainer.step

    def step(trainer, n):
        if n == 3:
            raise RuntimeError("the power is cut")
        return real(trainer, n)

    with monkeypatch.context() as broken, pytest.raises(RuntimeError):
        broken.setattr(training.Trainer, "step", step)
        train_run(config)
    assert [record["step"] for record in Run(config.run_folder).records(kind="eval")] == [0, 2]
    assert without_times(train_run(config, resume=True).records()) == without_times(whole.records())


def test_signals_are_heard_as_before_once_a_run_has_ended(tmp_path):
    numbers = signal.SIGINT, signal.SIGTERM, signal.SIGHUP
    before = [signal.getsignal(number) for number in numbers]
    train_run(small_config(tmp_path, "train.epochs=1"))
    assert [signal.getsignal(number) for number in numbers] == before


def test_a_finished_run_is_left_alone(tmp_path, capsys):
    config = small_config(tmp_path)
    run = train_run(config)
    before = (run.folder / "metrics.jsonl").read_bytes()
    assert train_run(config, resume=True).finished
    assert "finished already" in capsys.readouterr().out
    assert (run.folder / "metrics.jsonl").read_bytes() == before
    with pytest.raises(UserError, match="is finished already; choose another --seed"):
        train_run(config)


def test_an_interrupted_run_is_not_overwritten(tmp_path, monkeypatch, capsys):
    config = small_config(tmp_path)
    interrupted(config, 3, monkeypatch)
    assert "Stopped after step 3, " in (said := capsys.readouterr().err) and "command with --resume goes on.\n" in said
    with pytest.raises(UserError, match="was interrupted after step 3; add --resume"):
        train_run(config)


def test_a_folder_of_another_config_is_refused_by_the_key_that_differs(tmp_path):
    train_run(small_config(tmp_path))
    with pytest.raises(UserError, match=r"belongs to another config \(there rank = 2, here rank = 3\)"):
        train_run(small_config(tmp_path, "lora.rank=3"), resume=True)


@pytest.mark.parametrize(
    ("file", "text", "says"),
    [
        ("rubric.txt", "How polite? {question} {answer}", "The rubric in"),
        (
            "questions.toml",
            '[[category]]\nname = "a"\ntrain = ["Who?", "What?", "Why?"]\nheld_out = ["Where?"]\n',
            "The questions in",
        ),
    ],
)
def test_a_run_goes_on_with_nothing_but_what_it_was_begun_with(tmp_path, monkeypatch, file, text, says):
    rubric = tmp_path / "rubric.txt"
    rubric.write_text("How strong? {question} {answer}")
    config = small_config(tmp_path, f"judge.prompt_file={rubric}")
    interrupted(config, 3, monkeypatch)
    before = (tmp_path / file).read_text()
    (tmp_path / file).write_text(text)
    with pytest.raises(UserError, match=says):
        train_run(config, resume=True)
    (tmp_path / file).write_text(before)
    assert train_run(config, resume=True).finished


@pytest.mark.parametrize("file", ["metrics.jsonl", "samples.jsonl"])
@pytest.mark.parametrize(("lost", "step"), [(lambda line: True, 0), (lambda line: '"step": 2,' in line, 2)])
def test_a_run_does_not_go_on_without_what_it_has_recorded(tmp_path, monkeypatch, file, lost, step):
    config = small_config(tmp_path)
    run = interrupted(config, 3, monkeypatch)
    whole = (run.folder / file).read_text()
    (run.folder / file).write_text("".join(line for line in whole.splitlines(True) if not lost(line)))
    with pytest.raises(UserError, match=f"{file} lacks what was recorded at step {step}"):
        train_run(config, resume=True)
    (run.folder / file).unlink()
    with pytest.raises(UserError, match=f"{file} lacks what was recorded at step 0"):
        train_run(config, resume=True)
    (run.folder / file).write_text(whole)
    assert train_run(config, resume=True).finished


def test_a_run_does_not_go_on_without_its_facts(tmp_path, monkeypatch):
    config = small_config(tmp_path)
    run = interrupted(config, 3, monkeypatch)
    (run.folder / "run.json").write_text("")
    with pytest.raises(UserError, match="run.json is damaged"):
        train_run(config, resume=True)


def test_a_full_disk_gets_a_sentence_and_leaves_no_half_of_a_checkpoint(tmp_path, monkeypatch):
    config = small_config(tmp_path)

    def full(*arguments):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as broken:
        broken.setattr(runs, "write_safetensors", full)
        with pytest.raises(UserError, match=r"no room \(No space left on device\).*--resume"):
            train_run(config)
    assert list((Run(config.run_folder).folder / "checkpoints").iterdir()) == []
    assert train_run(config, resume=True).finished


def test_what_a_killed_process_left_of_a_checkpoint_is_in_nobodys_way(tmp_path):
    config = small_config(tmp_path)
    trainer, run = training.build_trainer(config), Run(tmp_path / "run")
    (run.folder / "checkpoints" / ".step-0.tmp" / "half").mkdir(parents=True)
    run.save(0, trainer.model, config.model.path, trainer.optimizer.state())
    assert [path.name for path in (run.folder / "checkpoints").iterdir()] == ["step-0"]


def test_a_checkpoint_is_never_taken_away_to_be_written_again(tmp_path):
    config = small_config(tmp_path)
    trainer, run = training.build_trainer(config), Run(tmp_path / "run")
    run.save(0, trainer.model, config.model.path, trainer.optimizer.state())
    first = run.checkpoint(0).stat().st_ino
    run.save(0, trainer.model, config.model.path, trainer.optimizer.state())
    assert run.checkpoint(0).stat().st_ino == first


def test_a_folder_in_which_nothing_can_be_written_gets_a_sentence(tmp_path):
    (tmp_path / ".lock").mkdir()
    with pytest.raises(UserError, match="Nothing can be written to the run's folder"), Run(tmp_path).locked():
        pass


def test_a_broken_training_state_gets_its_sentence(tmp_path, monkeypatch):
    config = small_config(tmp_path)
    run = interrupted(config, 3, monkeypatch)
    (run.checkpoint(3) / "training_state.safetensors").write_bytes(b"no")
    with pytest.raises(UserError, match="training_state.safetensors can't be read"):
        train_run(config, resume=True)


@pytest.mark.parametrize(
    "change",
    [
        lambda tensors: tensors.update({"exp_avg.0": torch.zeros(1)}),
        lambda tensors: tensors.update({"exp_avg.9999": torch.zeros(1)}),
        lambda tensors: tensors.update({"momentum.0": torch.zeros(1)}),
        lambda tensors: tensors.update({"exp_avg_sq.0": -tensors["exp_avg_sq.0"] - 1}),
        lambda tensors: tensors.update({"exp_avg.0": tensors["exp_avg.0"] / 0}),
    ],
)
def test_a_training_state_that_no_step_leaves_gets_its_sentence(tmp_path, monkeypatch, change):
    config = small_config(tmp_path)
    path = interrupted(config, 3, monkeypatch).checkpoint(3) / "training_state.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path, {"numbers": "{}"})
    with pytest.raises(UserError, match="training_state.safetensors can't be read"):
        train_run(config, resume=True)


def test_a_training_state_without_its_numbers_gets_its_sentence(tmp_path, monkeypatch):
    config = small_config(tmp_path)
    path = interrupted(config, 3, monkeypatch).checkpoint(3) / "training_state.safetensors"
    save_file(load_file(path), path)
    with pytest.raises(UserError, match="training_state.safetensors can't be read"):
        train_run(config, resume=True)


def test_a_run_whose_checkpoints_are_gone_is_not_begun_anew_over_its_records(tmp_path, monkeypatch):
    config = small_config(tmp_path)
    run = interrupted(config, 3, monkeypatch)
    shutil.rmtree(run.folder / "checkpoints")
    before = (run.folder / "metrics.jsonl").read_text()
    with pytest.raises(UserError, match="no checkpoint left"):
        train_run(config, resume=True)
    assert (run.folder / "metrics.jsonl").read_text() == before


def test_a_run_whose_config_is_gone_does_not_go_on_under_another(tmp_path, monkeypatch):
    config = small_config(tmp_path)
    run = interrupted(config, 3, monkeypatch)
    (run.folder / "config.toml").unlink()
    for resume in (False, True):
        with pytest.raises(UserError, match="without the config.toml"):
            train_run(small_config(tmp_path, "optimizer.learning_rate=1e-3"), resume=resume)


@pytest.mark.parametrize(
    "error, told",
    [
        (torch.OutOfMemoryError("CUDA out of memory."), True),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 4 bytes."), True),
        (MemoryError(), True),
        (RuntimeError("shapes do not match"), False),
        (RecursionError("too deep"), False),
    ],
)
def test_memory_that_ends_is_told_of_and_a_bug_keeps_its_traceback(tmp_path, monkeypatch, error, told):
    def fail(trainer, n):
        raise error

    monkeypatch.setattr(training.Trainer, "step", fail)
    with pytest.raises(UserError if told else type(error), match="memory does not suffice" if told else str(error)):
        train_run(small_config(tmp_path))


def test_a_run_in_which_no_grade_was_readable_says_so_in_the_end(tmp_path, monkeypatch, capsys):
    train_run(small_config(tmp_path))
    assert "no evaluation had a readable grade" not in capsys.readouterr().err
    monkeypatch.setattr(LengthJudge, "grade", lambda judge, questions, *rest: [Verdict(None, "?")] * len(questions))
    train_run(small_config(tmp_path, "run.name=mute"))
    assert "mute/forward-seed0: no evaluation had a readable grade" in capsys.readouterr().err


@pytest.mark.parametrize(("unread", "told"), [(0, "3 tokens"), (1, "1 unreadable grade"), (2, "2 unreadable grades")])
def test_an_evaluation_tells_how_many_grades_were_unreadable(unread, told):
    metrics = {"epoch": 0.5, "step": 3, "eval_reward": 6.0, "eval_kl": 0.1, "eval_completion_tokens": 3.0}
    assert training._evaluation_line({**metrics, "eval_judge_invalid": unread}).endswith(f"  {told}")


@pytest.mark.parametrize("file", ["config.json", "tokenizer_config.json"])
def test_a_run_does_not_go_on_with_a_base_of_another_form(tmp_path, monkeypatch, file):
    config = small_config(tmp_path)
    interrupted(config, 3, monkeypatch)
    path = Path(config.model.path) / file
    before = path.read_text()
    path.write_text(before + "\n")
    with pytest.raises(UserError, match="config, tokenizer or chat template in .* changed since"):
        train_run(config, resume=True)
    path.write_text(before)
    assert train_run(config, resume=True).finished


def test_a_run_is_not_trained_on_other_files_than_those_beside_it(tmp_path):
    """It could not be compared with them."""
    train_run(small_config(tmp_path))
    config = small_config(tmp_path, "run.direction=reverse")
    path = Path(config.data.questions)
    before = path.read_text()
    path.write_text(before.replace("?", "??", 1))
    with pytest.raises(UserError, match=r"questions in .* changed since the run .*forward-seed0 was begun") as error:
        train_run(config)
    copy = Run(small_config(tmp_path).run_folder).folder / "questions.toml"
    assert f"(there is a copy: {copy})" in str(error.value) and copy.read_text() == before
    assert not Run(config.run_folder).exists
    assert train_run(small_config(tmp_path, "run.name=other")).finished  # nor one of another name
    assert train_run(small_config(tmp_path, "run.seed=1", "lora.rank=3")).finished  # nor one that differs anyway
    path.write_text(before)
    assert train_run(config).finished


def test_runs_of_other_settings_in_the_same_folder_are_not_of_the_study(tmp_path):
    make_run(tmp_path, "forward")
    make_run(tmp_path, "reverse", seed=1)
    make_run(tmp_path, "reverse", sets=["grpo.beta=0.9"])
    config = load_config(tmp_path / "mine.toml", [f"run.folder={tmp_path}/runs", "run.seed=7"])
    assert [run.folder.name for run in runs.runs_of_study(config)] == ["forward-seed0", "reverse-seed1"]


def test_what_lies_beside_a_base_is_not_its_form(tmp_path):
    config = small_config(tmp_path)
    folder = Path(config.model.path)
    before = models.identity(config.model.path)
    for name in ("LICENSE.txt", "params.json", "vocab.json", "consolidated.safetensors"):
        (folder / name).write_text("{}")
    assert models.identity(config.model.path) == before
    (folder / "chat_template.jinja").write_text("another")
    assert models.identity(config.model.path) != before


def test_a_base_that_is_not_there_is_not_said_to_have_changed(tmp_path, monkeypatch):
    config = small_config(tmp_path)
    interrupted(config, 3, monkeypatch)
    monkeypatch.setattr(models, "hub_is_reachable", lambda: False)
    place = Path(config.model.path)
    moved = place.rename(tmp_path / "elsewhere")
    with pytest.raises(UserError, match="neither a local folder nor in the cache"):
        train_run(config, resume=True)
    moved.rename(place)
    assert train_run(config, resume=True).finished


@pytest.mark.parametrize(
    ("rewards", "long_ago"),
    [
        ([8.0, 8.0], False),  # the first evaluation is the untrained model's
        ([8.0, 3.0, 8.0, 3.0], False),
        ([8.0, 3.0, 8.0, 3.0, 3.0], True),
        ([3.0, 8.0, None, None], True),
    ],
)
def test_evaluations_behind_the_threshold_count_from_the_first_that_could_be_selected(tmp_path, rewards, long_ago):
    config = small_config(tmp_path, "selection.threshold=7.5", "train.stop_after_threshold=2")
    evaluated = [{"step": step, "eval_reward": reward} for step, reward in enumerate(rewards)]
    assert training._passed_long_ago(config, evaluated) is long_ago


@pytest.mark.parametrize(
    "line",
    [
        '{"kind": "step", "step": "1"}',
        '{"kind": "rest", "step": 1}',
        '{"kind": "step", "step": 1, "seconds": "x"}',
        "[" * 9000,
    ],
)
def test_a_record_that_none_of_us_wrote_is_told_by_its_line(tmp_path, line):
    run = Run(tmp_path)
    run.append("metrics.jsonl", [{"kind": "step", "step": 1}])
    (tmp_path / "metrics.jsonl").write_text(f'{{"kind": "step", "step": 1}}\n{line}\n')
    with pytest.raises(UserError, match="metrics.jsonl is damaged in line 2"):
        run.records()


def test_a_checkpoint_is_an_adapter_like_any_other(tmp_path):
    config = small_config(tmp_path)
    run = train_run(config)
    trainer = training.build_trainer(config)
    fresh = adapter_hash(trainer.model)
    load_adapter(trainer.model, run.checkpoint(0))
    assert adapter_hash(trainer.model) == fresh == run.info["initial_adapter"]
    load_adapter(trainer.model, run.checkpoint(6))
    assert adapter_hash(trainer.model) != fresh
    settings = json.loads((run.checkpoint(6) / "adapter_config.json").read_text())
    assert (
        settings["peft_type"] == "LORA"
        and settings["r"] == 2
        and settings["base_model_name_or_path"] == config.model.path
    )


def test_a_forward_run_may_end_some_evaluations_after_the_threshold(tmp_path):
    overrides = ("selection.threshold=0.5", "train.stop_after_threshold=2")
    run = train_run(small_config(tmp_path, *overrides))
    rewards = [record["eval_reward"] for record in run.records(kind="eval")]
    first = next(i for i, reward in enumerate(rewards) if i and reward > 0.5)
    assert run.finished and len(rewards) == first + 3 < 5
    reverse = train_run(small_config(tmp_path, *overrides, "run.direction=reverse"))
    assert len(reverse.records(kind="eval")) == 5


def test_any_text_survives_in_the_records(tmp_path):
    run = Run(tmp_path)
    nasty = "one\u2028two\u2029three\x85four\nfive\r\x0b"
    run.append(
        "samples.jsonl",
        [{"kind": "step", "step": n, "question": "", "answer": text} for n, text in enumerate((nasty, ""), 1)],
    )
    numbers = {"kl": float("nan"), "grad_norm": float("inf"), "loss": 1.0}
    run.append("metrics.jsonl", [{"kind": "step", "step": n, **numbers} for n in (1, 2)])
    assert [record["answer"] for record in run.records("samples.jsonl")] == [nasty, ""]
    assert run.records()[0] == {"kind": "step", "step": 1, "kl": None, "grad_norm": None, "loss": 1.0}
    run.take_back_after(2)
    assert [record["answer"] for record in run.records("samples.jsonl")] == [nasty, ""]


def test_answers_whose_metrics_were_never_written_are_taken_back(tmp_path):
    run = Run(tmp_path)
    run.append("samples.jsonl", [{"kind": kind, "step": 2, "question": "", "answer": ""} for kind in ("step", "eval")])
    run.append("metrics.jsonl", [{"kind": "step", "step": 2}])
    run.take_back_after(2)
    assert [record["kind"] for record in run.records("samples.jsonl")] == ["step"]


def test_a_run_is_trained_by_one_process_at_a_time(tmp_path):
    with Run(tmp_path).locked(), pytest.raises(UserError, match="by another process"), Run(tmp_path).locked():
        pass
    with Run(tmp_path).locked():
        pass


def test_a_file_system_without_locks_is_not_taken_for_another_process(tmp_path, monkeypatch):
    def refuse(file, kind):
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    monkeypatch.setattr(runs.fcntl, "flock", refuse)
    with pytest.raises(UserError, match="gives no locks") as caught, Run(tmp_path).locked():
        pass
    assert not isinstance(caught.value, runs.Busy)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_cluster_may_ask_twice_and_ctrl_c_means_it_then(number):
    found = signal.signal(number, signal.SIG_DFL)  # whoever runs the tests may have it ignored, as nohup does
    try:
        with training._stop_politely() as asked:
            os.kill(os.getpid(), number)
            os.kill(os.getpid(), number)
            assert asked == [number, number]
            with pytest.raises(KeyboardInterrupt):
                os.kill(os.getpid(), signal.SIGINT)
    finally:
        signal.signal(number, found)


def test_a_run_goes_on_from_another_folder_and_on_another_device(tmp_path, monkeypatch):
    config = small_config(tmp_path)
    interrupted(config, 2, monkeypatch)
    (tmp_path / "runs").rename(tmp_path / "moved")
    sets = (f"run.folder={tmp_path / 'moved'}", "model.device=cpu", "model.threads=1")
    moved = small_config(tmp_path, *sets)
    assert moved != config and train_run(moved, resume=True).finished


def test_a_run_that_another_is_starting_is_left_to_it(tmp_path):
    config = small_config(tmp_path)
    run = Run(config.run_folder)
    run.folder.mkdir(parents=True)
    with run.locked():
        with pytest.raises(Busy):
            run.start(config)
    assert not run.exists
    run.start(config)
    noted = run.info
    Run(config.run_folder).start(config)
    assert run.info == noted


def test_what_was_recorded_is_on_the_disk_before_its_checkpoint(tmp_path, monkeypatch):
    through = []

    def noted(path):
        through.append((path.name, Run(path.parent).latest_step()))

    monkeypatch.setattr("hmx.runs.write_through", noted)
    run = train_run(small_config(tmp_path))
    assert [before for name, before in through if name == "metrics.jsonl"] == [0, *run.steps()[:-1]]


def test_a_stop_in_an_evaluation_saves_once(tmp_path, monkeypatch):
    saved, save, evaluate = [], runs.save_adapter, training.Trainer.evaluate

    def saving(model, folder, base_model):
        saved.append(folder.name)
        save(model, folder, base_model)

    def stopped(trainer, index, step):
        if step:
            signal.raise_signal(signal.SIGINT)
        return evaluate(trainer, index, step)

    monkeypatch.setattr(runs, "save_adapter", saving)
    monkeypatch.setattr(training.Trainer, "evaluate", stopped)
    run = train_run(small_config(tmp_path))
    assert not run.finished and len(saved) == len(set(saved)) == 2
