"""Looking through runs: what can be compared, and the sentence for what can't."""

import json
import shutil

import pytest

from hmx.errors import UserError
from hmx.evaluation import campaign
from hmx.evaluation.pairs import find_models, pair_of
from hmx.evaluation.report import found
from hmx.runs import Run
from tests.evaluation.made_runs import make_run, only_pair


def test_a_seed_counts_once_it_was_trained_in_both_directions(tmp_path):
    make_run(tmp_path, "forward")
    with pytest.raises(UserError, match="yet. .*forward-seed0 has no counterpart reverse-seed0, .* too. Run python"):
        find_models(tmp_path / "runs")
    make_run(tmp_path, "reverse")
    pair = only_pair(tmp_path)
    assert (pair.name, pair.seed) == ("mine", 0)
    assert (pair.selection.forward, pair.selection.reverse) == (10, 10)
    assert pair.selection.further_than_forward


def test_no_runs_at_all_tell_what_to_run_first(tmp_path):
    with pytest.raises(UserError, match="yet. Run python train.py --config configs/tiny.toml --study"):
        find_models(tmp_path)
    with pytest.raises(UserError, match="There is no folder .*rnus. Run python train.py --config"):
        find_models(tmp_path / "rnus")


def test_runs_from_different_adapters_are_not_compared(tmp_path):
    make_run(tmp_path, "forward")
    make_run(tmp_path, "reverse", adapter="other")
    with pytest.raises(UserError, match="did not start from the same adapter"):
        find_models(tmp_path / "runs")


def test_runs_of_different_settings_are_not_compared(tmp_path):
    make_run(tmp_path, "forward")
    make_run(tmp_path, "reverse", sets=["grpo.beta=0.9"])
    with pytest.raises(UserError, match="had different settings"):
        find_models(tmp_path / "runs")


def test_runs_of_different_devices_are_compared(tmp_path):
    make_run(tmp_path, "forward", sets=["model.device=cpu"])
    make_run(tmp_path, "reverse", sets=["model.device=cuda:1", "model.threads=2", "model.compile=true"])
    assert only_pair(tmp_path).selection


def test_what_is_odd_gets_a_sentence_and_the_other_seeds_are_found(tmp_path):
    for seed in (0, 10, 2):
        make_run(tmp_path, "forward", seed=seed)
        make_run(tmp_path, "reverse", seed=seed)
    make_run(tmp_path, "reverse", seed=3)
    make_run(tmp_path, "forward", seed=4)
    make_run(tmp_path, "reverse", seed=4, history=[(0, 1.0, 0.0)])
    (tmp_path / "runs/mine/reverse-seed4/metrics.jsonl").write_text("")
    for direction in ("forward", "reverse"):
        make_run(tmp_path, direction, seed=5, sets=["grpo.beta=0.9"])
        make_run(tmp_path, direction, seed=6)
    (tmp_path / "runs/mine/forward-seed6/config.toml").write_text("[run]\nseed = 'six'\n")
    (tmp_path / "runs/notes").mkdir()
    (model,), odd = find_models(tmp_path / "runs")
    assert [pair.seed for pair in model.pairs] == [0, 2, 10]
    three, four, five, six = odd
    assert "reverse-seed3 has no counterpart forward-seed3" in three
    assert "reverse-seed4 has no evaluation yet" in four
    assert "forward-seed5 was trained with other settings than" in five and "forward-seed0" in five
    assert "run.seed must be a whole number" in six


def test_a_run_that_was_copied_is_not_taken_for_another(tmp_path, monkeypatch):
    folder = make_run(tmp_path, "forward")
    make_run(tmp_path, "reverse")
    for name in ("my-best", "forward-seed0-old"):
        with pytest.raises(UserError, match=f"{name} holds the run forward-seed0"):
            pair_of(Run(shutil.copytree(folder, folder.with_name(name))))
    assert pair_of(Run(folder)).selection.forward == 10
    monkeypatch.chdir(folder)
    assert pair_of(Run(".")).selection.forward == 10


def test_why_a_pair_has_no_checkpoint(tmp_path):
    make_run(tmp_path, "forward")
    make_run(tmp_path, "reverse", history=((0, 3.0, 0.0),))
    assert "reverse has not come so far" in only_pair(tmp_path).why
    assert only_pair(tmp_path).shown == (0, 0)  # the last step that both have


def test_why_a_pair_without_a_readable_grade_has_no_checkpoint(tmp_path):
    for direction in ("forward", "reverse"):
        make_run(tmp_path, direction, history=((0, None, 0.0), (10, None, 0.3)))
    assert "selected (no evaluation of forward had a readable grade); the last" in only_pair(tmp_path).why


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda run: (run / "metrics.jsonl").write_bytes(b"{\n" + (run / "metrics.jsonl").read_bytes()), "line 1"),
        (lambda run: (run / "metrics.jsonl").write_text("[1]\n[2]\n"), "is damaged in line 1"),
        (lambda run: (run / "metrics.jsonl").write_bytes(b"\xff\xfe\n"), "is damaged in line 1"),
        (lambda run: (run / "metrics.jsonl").write_text('{"kind": "eval", "step": 0}\n'), "is damaged in line 1"),
        (lambda run: (run / "run.json").write_text("[]"), "run.json does not say from which adapter"),
        (
            lambda run: (run / "metrics.jsonl").write_text(
                '{"kind": "eval", "step": 0, "epoch": 0, "eval_reward": "3.0", "eval_kl": 0.0}\n'
            ),
            "is damaged in line 1",
        ),
        (lambda run: run.rename(run.with_name("forward-seed7")), "holds the run forward-seed0"),
    ],
)
def test_a_damaged_run_gets_a_sentence_and_the_others_are_found(tmp_path, damage, says):
    for direction in ("forward", "reverse"):
        make_run(tmp_path, direction)
        make_run(tmp_path, direction, seed=1)
    (tmp_path / "runs/mine/forward-seed0/metrics.jsonl").touch()
    damage(tmp_path / "runs/mine/forward-seed0")
    if "holds" in says:
        (tmp_path / "runs/mine/reverse-seed0").rename(tmp_path / "runs/mine/reverse-seed7")
    (model,), (sentence,) = find_models(tmp_path / "runs")
    assert [pair.seed for pair in model.pairs] == [1] and says in sentence


def test_a_last_line_that_was_cut_off_counts_as_not_written(tmp_path):
    for direction in ("forward", "reverse"):
        path = make_run(tmp_path, direction) / "metrics.jsonl"
        path.write_text(path.read_text() + '{"kind": "eval", "st')
    assert only_pair(tmp_path).selection.forward == 10


def test_a_kl_that_was_no_number_counts_as_far_away(tmp_path):
    make_run(tmp_path, "forward")
    make_run(tmp_path, "reverse", history=((0, 3.0, 0.0), (5, 2.0, 0.1), (10, 1.0, None)))
    assert only_pair(tmp_path).selection.reverse == 5


@pytest.mark.parametrize("what", ["base", "rubric", "questions"])
def test_directions_that_read_different_things_are_not_compared(tmp_path, what):
    for direction in ("forward", "reverse"):
        path = make_run(tmp_path, direction) / "run.json"
        path.write_text(json.dumps({"initial_adapter": "same", what: direction}))
    with pytest.raises(UserError, match=f"did not have the same {'base model' if what == 'base' else what}"):
        find_models(tmp_path / "runs")
    path.write_text(json.dumps({"initial_adapter": "same"}))  # as an earlier version left it
    assert only_pair(tmp_path).selection.forward == 10
    for direction in ("forward", "reverse"):
        path = make_run(tmp_path, direction, seed=1) / "run.json"
        path.write_text(json.dumps({"initial_adapter": "same", what: "another"}))
    _, (sentence,) = find_models(tmp_path / "runs")
    assert "forward-seed1 did not have the same" in sentence and sentence.endswith("so it is left out.")


def test_only_the_papers_rule_has_an_exception(tmp_path):
    """Under the other rule it is nothing special that reverse has moved further."""
    make_run(tmp_path, "forward")
    make_run(tmp_path, "reverse")
    models = {rule: find_models(tmp_path / "runs", None, rule)[0] for rule in ("paper", "same_step")}
    assert "the exception" in found(models["paper"]) and "the exception" not in found(models["same_step"])
    marked = {rule: campaign._chosen(model.pairs[0]).exception for rule, (model,) in models.items()}  # in the tables
    assert marked == {"paper": True, "same_step": False}
