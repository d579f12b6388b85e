"""Seeds × directions: what is planned, what is skipped, what goes on, and that a seed's two runs start alike."""

import json
import multiprocessing
import os
import re
import signal

import pytest
import torch

import train
from hmx import study, training
from hmx.config import load_config
from hmx.errors import UserError
from hmx.runs import Busy, Run
from hmx.study import Planned, carry_out, plan, selections, table
from tests.evaluation.made_runs import make_run
from tests.small_run import LengthJudge, small_config, without_times


@pytest.fixture(autouse=True)
def known_judge(monkeypatch):
    monkeypatch.setattr(training, "SelfJudge", LengthJudge)


def two_by_two(folder, *overrides):
    return plan(small_config(folder, "study.seeds=[3, 5]", "train.epochs=2", *overrides))


def names(runs):
    return [one.run.folder.name for one in runs]


def test_a_study_is_every_seed_in_every_direction_pairs_side_by_side(tmp_path):
    runs = two_by_two(tmp_path)
    assert names(runs) == ["forward-seed3", "reverse-seed3", "forward-seed5", "reverse-seed5"]
    assert [(one.done, one.steps) for one in runs] == [(0, 3)] * 4
    assert names(two_by_two(tmp_path, 'study.directions=["reverse"]')) == ["reverse-seed3", "reverse-seed5"]


def test_a_study_trains_all_of_them_and_the_second_time_none(tmp_path, capsys):
    runs, trained = two_by_two(tmp_path), []

    def spy(config, **options):
        trained.append(config.run_folder.name)
        return training.train_run(config, **options)

    assert carry_out(runs, plain=True, train=spy)
    assert trained == names(runs)
    said = capsys.readouterr().out
    assert said.count("finished") >= 4 and "seed 3: " in said and "seed 5: " in said
    assert re.search(r"^This took \d+ s\.$", said, re.M)
    for seed in (3, 5):
        starts = {Run(one.run.folder).info["initial_adapter"] for one in runs if one.config.run.seed == seed}
        assert len(starts) == 1
    assert runs[0].run.info["initial_adapter"] != runs[2].run.info["initial_adapter"]

    assert carry_out(two_by_two(tmp_path), plain=True, train=spy)
    assert trained == names(runs), "something was trained twice"
    said = capsys.readouterr().out
    assert said.count(table(runs)) == 1 and "seed 3: " in said, "nothing was trained, so the table is the same"
    assert "This took" not in said


def test_a_study_gives_the_metrics_of_its_runs_trained_singly(tmp_path):
    assert carry_out(two_by_two(tmp_path), plain=True)
    alone = small_config(tmp_path, "train.epochs=2", "run.seed=5", "run.direction=reverse", "run.name=alone")
    training.train_run(alone, plain=True)
    records = Run(tmp_path / "runs/small/reverse-seed5").records()
    assert without_times(records) == without_times(Run(alone.run_folder).records())


def test_an_interrupted_study_goes_on_where_it_was(tmp_path, monkeypatch, capsys):
    whole = two_by_two(tmp_path, "run.name=whole")
    assert carry_out(whole, plain=True)

    step = training.Trainer.step

    def interrupted(trainer, n):
        record = step(trainer, n)
        if trainer.config.run_folder.name == "reverse-seed3" and n == 2:
            training.signal.raise_signal(training.signal.SIGINT)
        return record

    monkeypatch.setattr(training.Trainer, "step", interrupted)
    runs = two_by_two(tmp_path)
    assert not carry_out(runs, plain=True)
    assert [one.done for one in runs] == [3, 2, 0, 0]
    assert "small/reverse-seed3. The same command goes on.\n" in capsys.readouterr().err
    monkeypatch.setattr(training.Trainer, "step", step)
    assert carry_out(runs, plain=True)
    for one, other in zip(runs, whole, strict=True):
        assert without_times(one.run.records()) == without_times(other.run.records())


def test_what_another_process_trains_is_left_to_it(tmp_path, capsys):
    runs = two_by_two(tmp_path)
    runs[1].run.start(runs[1].config)
    with runs[1].run.locked():
        assert names(two_by_two(tmp_path)) == names(runs)
        assert not carry_out(runs, plain=True)
    assert [one.run.finished for one in runs] == [True, False, True, True]
    assert "is being trained by another process right now" in capsys.readouterr().out


def test_no_more_train_at_once_than_there_are_runs(tmp_path):
    """Each of the others is a process that loads everything before it finds nothing to do."""
    (one,) = plan(small_config(tmp_path, "study.seeds=[3]", 'study.directions=["reverse"]', "train.epochs=1"))

    def spy(config, **options):
        assert multiprocessing.active_children() == []
        return training.train_run(config, **options)

    assert carry_out([one], plain=True, train=spy, at_once=6)
    assert carry_out([one], plain=True, train=spy, at_once=6)  # and none where all is done


def test_two_at_once_give_what_one_after_the_other_gives(tmp_path, monkeypatch, capsys):
    monkeypatch.undo()  # another process has the real judge, so this one must have it too
    alone, together = (two_by_two(tmp_path, f"run.name={name}", "judge.max_new_tokens=1") for name in ("one", "two"))
    assert carry_out(alone, plain=True)
    trained = []

    def spy(config, **options):
        trained.append(config.run_folder.name)
        return training.train_run(config, **options)

    assert carry_out(together, plain=True, train=spy, at_once=2)
    assert trained[0] == names(together)[0]
    assert "\nBeside the run that is shown one other is trained unseen" in capsys.readouterr().out
    for one, other in zip(alone, together, strict=True):
        assert without_times(one.run.records()) == without_times(other.run.records())


def test_a_helper_goes_on_where_another_was_quicker(tmp_path, monkeypatch):
    """Both found the run free, and loaded a model for it."""
    runs, tried = two_by_two(tmp_path), []

    def train(config, **options):
        tried.append(config.run_folder.name)
        if len(tried) == 2:
            raise Busy("is being trained by another process")
        return training.train_run(config, **options)

    monkeypatch.setattr(study, "train_run", train)
    study._help(runs, 1)
    backward = names(runs)[::-1]
    assert tried == [*backward[1:], backward[0]]
    assert [one.run.finished for one in runs[::-1]] == [True, True, False, True]


def test_a_run_that_can_not_be_trained_stops_no_other(tmp_path, capsys):
    runs = two_by_two(tmp_path)

    def train(config, **options):
        if config.run_folder == runs[1].run.folder:
            raise UserError("The loss of step 1 is not a finite number.")
        return training.train_run(config, **options)

    with pytest.raises(UserError, match="not a finite number"):
        carry_out(runs, plain=True, train=train)
    assert [one.run.finished for one in runs] == [True, False, True, True]
    assert "error: The loss of step 1" in capsys.readouterr().err


def test_ctrl_c_stops_the_helpers_too_and_nothing_is_lost(tmp_path, monkeypatch):
    monkeypatch.undo()
    sets = ("judge.max_new_tokens=1", "train.epochs=4")
    whole = two_by_two(tmp_path, "run.name=whole", *sets)
    assert carry_out(whole, plain=True)
    runs, before = two_by_two(tmp_path, *sets), signal.getsignal(signal.SIGINT)

    def interrupted(config, **options):
        assert signal.getsignal(signal.SIGINT) == before
        for helper in multiprocessing.active_children():
            os.kill(helper.pid, signal.SIGINT)  # a terminal's Ctrl-C, while it still imports
        while multiprocessing.active_children() and not any(one.run.latest_step() for one in runs[1:]):
            pass  # until the helper has saved something, or is gone
        assert multiprocessing.active_children(), "it heard Ctrl-C"
        return Run(config.run_folder)

    assert not carry_out(runs, plain=True, train=interrupted, at_once=2)
    assert not any(one.run.busy for one in runs)
    assert carry_out(runs, plain=True)
    for one, other in zip(runs, whole, strict=True):
        assert without_times(one.run.records()) == without_times(other.run.records())


def test_sigterm_between_two_runs_is_heard_as_ctrl_c_is(tmp_path):
    before = signal.getsignal(signal.SIGTERM)

    def terminated(config, **options):
        signal.raise_signal(signal.SIGTERM)

    with pytest.raises(KeyboardInterrupt):
        carry_out(two_by_two(tmp_path), plain=True, train=terminated)
    assert signal.getsignal(signal.SIGTERM) == before


def test_the_table_shows_what_there_is_of_a_run_whose_records_hold_no_numbers(tmp_path):
    one = two_by_two(tmp_path)[0]
    one.run.folder.mkdir(parents=True)
    nothing = dict.fromkeys(("eval_reward", "eval_kl", "seconds"))
    record = {"kind": "eval", "step": 0, "epoch": 0.0, **nothing}
    (one.run.folder / "metrics.jsonl").write_text(json.dumps(record) + "\n")
    assert table([one]).splitlines()[1].split()[-5:] == ["–", "–", "0.0", "to", "do"]


def test_a_folder_of_another_config_is_found_before_anything_is_trained(tmp_path):
    training.train_run(small_config(tmp_path, "run.seed=5", "run.direction=reverse", "train.epochs=1"), plain=True)
    with pytest.raises(UserError, match="belongs to another config"):
        two_by_two(tmp_path)


def test_directions_that_would_start_from_different_adapters_are_not_trained(tmp_path, monkeypatch):
    real = training.attach

    def other_adapter(model, *arguments):
        torch.manual_seed(7)
        return real(model, *arguments[:-1], None)

    runs = two_by_two(tmp_path)
    training.train_run(runs[0].config, plain=True)
    monkeypatch.setattr(training, "attach", other_adapter)
    with pytest.raises(UserError, match="would not start from the adapter that the other direction"):
        carry_out(runs, plain=True)
    assert not runs[1].run.exists


def test_the_table_tells_how_far_each_run_is(tmp_path):
    runs = two_by_two(tmp_path)
    training.train_run(runs[0].config, plain=True)
    runs[1].run.start(runs[1].config)
    lines = [line.split() for line in table(runs).splitlines()]
    assert lines[1][:5] == ["3", "forward", "3", "/", "3"] and lines[1][-1] == "finished"
    assert lines[2][:5] == ["3", "reverse", "0", "/", "3"] and lines[2][-1] == "begun"
    assert lines[3][-2:] == ["to", "do"]
    assert selections(runs) == ""


def test_a_seed_without_a_selected_checkpoint_gets_the_reason(tmp_path):
    mute = ((0, None, 0.0), (10, None, 0.3))
    for direction in ("forward", "reverse"):
        folder = make_run(tmp_path, direction, history=mute)
    runs = [Planned(Run(folder.with_name(f"{direction}-seed0")).config, 10) for direction in ("forward", "reverse")]
    assert selections(runs) == "seed 0: no evaluation of forward had a readable grade"


def test_the_selections_of_a_study_follow_the_rule_of_its_config(tmp_path):
    for direction in ("forward", "reverse"):
        make_run(tmp_path, direction, sets=["selection.rule=same_step"])
    sets = [f"run.folder={tmp_path}/runs", "selection.rule=same_step", "study.seeds=[0]"]
    assert "reverse is taken at the same step" in selections(plan(load_config(tmp_path / "mine.toml", sets)))


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--study", "--seed", "3"], "A --study has --seeds"),
        (["--seeds", "3"], "belong to a --study"),
        (["--study", "--seeds", "3", "3"], "study.seeds names one twice: [3, 3]"),
        (["--study", "--seeds", "-1"], "study.seeds must be at least 0"),
        (["--study", "--set", 'study.directions=["up"]'], "study.directions must be one of 'forward', 'reverse'"),
        (["--study", "--set", "study.seeds=[]"], "must be a list of whole numbers and not empty"),
    ],
)
def test_a_mistake_gets_one_sentence(tmp_path, capsys, arguments, says):
    small_config(tmp_path)
    capsys.readouterr()  # transformers' bar for the model that was saved, if nobody has silenced it yet
    assert train.main(["--config", str(tmp_path / "small.toml"), *arguments]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert says in line


def test_the_command_plans_trains_and_says_when_it_is_done(tmp_path, capsys):
    small_config(tmp_path)
    command = [
        "--config",
        str(tmp_path / "small.toml"),
        "--set",
        "train.epochs=1",
        "--study",
        "--seeds",
        "0",
        "--plain",
    ]
    assert train.main([*command, "--dry-run"]) == 0
    assert "The study's 2 runs\n" in capsys.readouterr().out
    assert train.main([*command, "--dry-run", "--directions", "reverse"]) == 0
    assert "The study's 1 run\n" in capsys.readouterr().out
    assert not (tmp_path / "runs").exists()
    assert train.main(command) == 0
    assert [json.loads((path / "run.json").read_text())["status"] for path in (tmp_path / "runs/small").iterdir()] == [
        "finished"
    ] * 2
