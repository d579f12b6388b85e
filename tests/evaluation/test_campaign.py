"""What is evaluated, what is not done twice, what goes wrong without stopping the rest."""

import errno
import hashlib
import json
import os
import re
import shutil
import weakref
from dataclasses import dataclass, field
from importlib.metadata import version

import pytest
import torch

import evaluate
from hmx.errors import UserError
from hmx.evaluation import campaign as work
from hmx.evaluation import suites
from hmx.evaluation.benchmark import Metric, Outcome, Subject
from hmx.evaluation.pairs import find_models
from hmx.evaluation.report import write_report
from hmx.evaluation.results import FORMAT, Checkpoint, read_result
from hmx.evaluation.tables import tables
from hmx.lora import adapter_parameters, adapters, attach, save_adapter
from hmx.models import fingerprint, form, load_model
from hmx.randomness import stream
from tests.evaluation.made_runs import make_run
from tests.small_run import save_model


@dataclass
class Weigh:
    """A benchmark that weighs the adapter: its numbers tell which one was attached."""

    name: str = "weigh"
    title: str = "Weigh"
    metrics: tuple = (Metric("sum"), Metric("layers", percent=False, better=None))
    cost: float = 2.0
    lacking: list = field(default_factory=list)
    runs: list = field(default_factory=list)
    fails: Exception | None = None
    about: str = ""

    def missing(self):
        return self.lacking

    def questions(self):
        return self.about

    def run(self, subject, limit, tick):
        tick(0.5)
        if self.fails:
            raise self.fails
        weight = sum(float(each.detach().double().sum()) for each in adapter_parameters(subject.model))
        self.runs.append(weight)
        tick(1.0)
        return Outcome({"sum": weight, "layers": float(len(adapters(subject.model)))}, limit or 7)


@pytest.fixture
def runs(tmp_path):
    """Two seeds in both directions, each selected checkpoint with an adapter of its own."""
    model_folder = save_model(tmp_path / "model")
    sets = [f"model.path={model_folder}", "model.precision=fp32", "model.device=cpu"]
    for seed in (0, 1):
        for direction in ("forward", "reverse"):
            folder = make_run(tmp_path, direction, seed=seed, sets=sets)
            model, _ = load_model(str(model_folder), "fp32", "cpu")
            attach(model, 2, 4.0, ["q_proj", "down_proj"], generator=stream(seed, "init"))
            with torch.no_grad():
                for each in adapter_parameters(model):
                    each.add_(1.0 + seed + 5 * (direction == "forward"))
            save_adapter(model, folder / "checkpoints/step-10", str(model_folder))
    return tmp_path / "runs"


def evaluated(runs, *benchmarks, limit=None, baseline=False):
    models, _ = find_models(runs)
    plan = work.plan(models, [benchmarks] * len(models), limit, baseline)
    return work.carry_out(plan, work.needs(plan), limit, plain=True), models


def test_each_checkpoint_is_evaluated_once_with_its_own_adapter(runs):
    benchmark = Weigh()
    campaign, models = evaluated(runs, benchmark)
    assert campaign.problems == () and len(campaign.results) == 4 and campaign.to_do == []
    assert len({round(weight, 3) for weight in benchmark.runs}) == 4
    total, layers = work.lines(campaign, models, None)
    assert total.seeds == (0, 1) and layers.forward.values == (4.0, 4.0)  # two layers, two projections each
    assert all(forward > reverse for forward, reverse in zip(total.forward.values, total.reverse.values, strict=True))
    again, same = evaluated(runs, benchmark)
    assert len(benchmark.runs) == 4
    assert work.lines(again, same, None) == work.lines(campaign, models, None)


def test_the_untouched_model_has_no_adapter(runs):
    campaign, models = evaluated(runs, Weigh(), baseline=True)
    assert [line.base for line in work.lines(campaign, models, None)] == [0.0, 0.0]


def test_a_limited_result_never_stands_in_for_a_full_one(runs):
    benchmark = Weigh()
    evaluated(runs, benchmark, limit=3)
    campaign, models = evaluated(runs, benchmark)
    assert len(benchmark.runs) == 8
    assert {result.rows for result in campaign.results.values()} == {7}
    assert {line.limit for line in work.lines(campaign, models, None)} == {None}


def test_a_result_tells_what_one_must_know_to_trust_it(runs):
    evaluated(runs, Weigh(), limit=3)
    (path,) = (runs / "mine/forward-seed1/results").glob("step-10/*")
    assert path.name == "weigh.first-3.json"
    content = json.loads(path.read_text())
    assert content["limit"] == 3 and len(content["adapter"]) == 64
    assert content["settings"] == {"precision": "fp32", "device": "cpu", "max_length": 1024}
    assert content["versions"]["torch"] == version("torch")
    assert type(content["seconds"]) is float and content["format"] == FORMAT


def test_an_interrupted_evaluation_goes_on_and_gives_the_same_tables(runs, tmp_path, monkeypatch, capsys):
    benchmark = Weigh()
    monkeypatch.setattr(suites, "suite_of", lambda config: (benchmark, Weigh("second", "Second")))
    command = ["--runs", str(runs), "--plain"]
    real, calls = Weigh.run, []

    def stops_at_the_fourth(self, *arguments):
        calls.append(self.name)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return real(self, *arguments)

    monkeypatch.setattr(Weigh, "run", stops_at_the_fourth)
    assert evaluate.main(command) == 130
    assert "the same command goes on" in capsys.readouterr().err
    assert evaluate.main(command) == 0
    assert len(calls) == 1 + 8
    assert re.search(r"^5 results more in \d+ s\.$", capsys.readouterr().out, re.M)  # three were measured before
    resumed = {path.name: path.read_bytes() for path in runs.glob("tables.*")}
    for path in [*runs.glob("*/*/results"), *runs.glob("tables.*")]:
        path.rename(path.with_name(f"{path.name}.before"))
    capsys.readouterr()
    assert evaluate.main(command) == 0
    assert {path.name: path.read_bytes() for path in runs.glob("tables.*") if path.suffix != ".before"} == resumed
    assert set(resumed) == {"tables.md", "tables.csv", "tables.json"}


def test_what_lacks_something_is_told_before_anything_is_loaded_and_the_rest_is_run(runs, monkeypatch):
    lacking = Weigh("lacking", "Lacking", lacking=["NLTK's punkt_tab is missing; get it.", "And scales."])
    campaign, _ = evaluated(runs, lacking, Weigh())
    assert lacking.runs == [] and len(campaign.results) == 4
    assert list(campaign.problems) == [
        "lacking can't be run yet: NLTK's punkt_tab is missing; get it.",
        "lacking can't be run yet: And scales.",
    ]
    monkeypatch.setattr(work, "load_model", None)
    campaign, _ = evaluated(runs, lacking)
    assert len(campaign.problems) == 2


def test_a_benchmark_that_fails_is_told_and_stops_nothing_else(runs):
    campaign, _ = evaluated(runs, Weigh("bad", "Bad", fails=UserError("It weighs too much.")), Weigh())
    assert len(campaign.results) == 4 and len(campaign.problems) == 4
    assert campaign.problems[0] == "mine forward seed 0, step 10: Bad: It weighs too much."


def test_a_full_disk_ends_it_before_more_is_computed_for_nothing(runs, monkeypatch):
    def full(checkpoint, result):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    benchmark = Weigh()
    monkeypatch.setattr(work, "write_result", full)
    with pytest.raises(OSError, match="No space left"):
        evaluated(runs, benchmark)
    assert len(benchmark.runs) == 1


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (
            lambda folder: (folder / "checkpoints/step-10/adapter_model.safetensors").write_bytes(b"no"),
            "has to be trained anew",
        ),
        (lambda folder: (folder / "checkpoints/step-10/adapter_model.safetensors").unlink(), "has to be trained anew"),
        (lambda folder: (folder / "checkpoints/step-10/adapter_config.json").write_text("{"), "not a readable"),
    ],
)
def test_a_damaged_adapter_is_told_once_and_the_others_are_evaluated(runs, damage, says):
    damage(runs / "mine/forward-seed1")
    one, other = Weigh(), Weigh("second", "Second")
    campaign, models = evaluated(runs, one, other)
    (problem,) = campaign.problems
    assert says in problem and len(campaign.results) == 6
    assert len({round(weight, 3) for weight in one.runs}) == 3
    assert all(line.seeds == (0,) for line in work.lines(campaign, models, None))


def test_results_of_an_adapter_that_is_damaged_now_are_left_out_in_one_sentence(runs):
    evaluated(runs, Weigh(), Weigh("second", "Second"))
    path = runs / "mine/forward-seed0/checkpoints/step-10/adapter_model.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    campaign, models = evaluated(runs, Weigh(), Weigh("second", "Second"))
    (problem,) = campaign.problems
    assert "forward-seed0/checkpoints/step-10 can't be read" in problem and "delete" not in problem
    assert all(line.seeds == (1,) for line in work.lines(campaign, models, None))


def test_each_adapter_is_hashed_once(runs, monkeypatch):
    evaluated(runs, Weigh(), Weigh("second", "Second"))
    hashed, real = [], hashlib.file_digest
    monkeypatch.setattr(hashlib, "file_digest", lambda file, how: hashed.append(file.name) or real(file, how))
    evaluated(runs, Weigh(), Weigh("second", "Second"), Weigh("third", "Third"))
    adapters_hashed = [path for path in hashed if str(path).endswith("adapter_model.safetensors")]
    assert len(adapters_hashed) == len(set(adapters_hashed)) == 4


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("{", "is no readable result; delete it"),
        ("[]", "is no readable result; delete it"),
        ('{"format": 1, "benchmark": "weigh"}', "is no readable result; delete it"),
        ('{"format": 99}', "was written by another version of this project (format 99, here 1); delete it"),
        (None, "belongs to another adapter"),
        ({"metrics": {"sum": float("nan"), "layers": 1.0}}, "is no readable result"),
        ({"metrics": {"sum": 1.0}}, "is no readable result"),
        ({"versions": None}, "is no readable result"),
        ({"base": "0" * 64}, "belongs to another base model"),
        ({"questions": "others"}, "belongs to another set of questions"),
        ({"limit": 3}, "belongs to another benchmark or limit"),
        ({"benchmark": "ifeval"}, "belongs to another benchmark or limit"),
    ],
)
def test_a_result_that_can_not_be_used_is_told_and_neither_used_nor_overwritten(runs, content, says):
    evaluated(runs, Weigh(about="these"))
    (path,) = (runs / "mine/reverse-seed0/results").glob("step-10/*")
    if isinstance(content, dict):
        content = json.dumps({**json.loads(path.read_text()), **content})
    if content is None:
        content = (runs / "mine/reverse-seed1/results/step-10/weigh.json").read_text()
    path.write_text(content)
    benchmark = Weigh(about="these")
    campaign, models = evaluated(runs, benchmark)
    (problem,) = campaign.problems
    assert says in problem and str(path) in problem
    assert benchmark.runs == [] and path.read_text() == content
    assert all(line.seeds == (1,) for line in work.lines(campaign, models, None))


def test_questions_are_others_only_where_both_are_known(runs):
    """A file of the hub that is not in the cache now; and what an earlier version noted of one that was."""
    evaluated(runs, Weigh(about="these"))
    known = Weigh()
    assert len(evaluated(runs, known)[0].results) == 4 and known.runs == []
    for path in (runs / "mine").glob("*/results/step-10/weigh.json"):
        noted = {"questions": "", "details": {"file": {"sha256": "those"}}}
        path.write_text(json.dumps({**json.loads(path.read_text()), **noted}))
    assert len(evaluated(runs, Weigh(about="those"))[0].results) == 4
    campaign, _ = evaluated(runs, Weigh(about="these"))
    assert not campaign.results and "another set of questions" in campaign.problems[0]


def test_seeds_without_a_selected_checkpoint_are_not_evaluated(runs, tmp_path):
    for direction in ("forward", "reverse"):
        lines = (runs / f"mine/{direction}-seed0/metrics.jsonl").read_text()
        (runs / f"mine/{direction}-seed0/metrics.jsonl").write_text(
            lines.replace('"eval_reward": 8.0', '"eval_reward": 7.0').replace(
                '"eval_reward": 9.0', '"eval_reward": 7.0'
            )
        )
    campaign, models = evaluated(runs, Weigh())
    assert {job.checkpoint.seed for job in campaign.jobs} == {1}
    assert campaign.problems == ()
    write_report(campaign, models, None, runs)
    said = (runs / "tables.md").read_text()
    assert "\n\nmine, seed 0: forward never passed 7.5; left out.\n" in said and "mine, seed 1" not in said


def test_results_of_different_versions_are_told(runs):
    campaign, _ = evaluated(runs, Weigh())
    assert work.remarks(campaign) == []
    path = runs / "mine/reverse-seed0/results/step-10/weigh.json"
    content = json.loads(path.read_text())
    content["versions"]["torch"] = "1.0"
    path.write_text(json.dumps(content))
    campaign, _ = evaluated(runs, Weigh())
    assert work.remarks(campaign) == ["The results of mine on weigh differ in torch."]


def test_what_happened_to_prompts_is_told(runs):
    campaign, _ = evaluated(runs, Weigh())
    for direction, count in (("forward", 3), ("reverse", 2)):
        path = runs / f"mine/{direction}-seed0/results/step-10/weigh.json"
        details = {"shortened_prompts": count, "dropped_system_turns": 0}
        path.write_text(json.dumps({**json.loads(path.read_text()), "details": details}))
    campaign, _ = evaluated(runs, Weigh())
    assert work.remarks(campaign) == [
        "Prompts of weigh to mine longer than the model can read, so without their beginning: 3."
    ]


def test_a_model_that_can_not_be_loaded_is_told_and_the_next_one_is_evaluated(runs, tmp_path):
    for direction in ("forward", "reverse"):
        folder = make_run(tmp_path, direction, sets=["run.name=a_gone", f"model.path={tmp_path}/gone"])
        shutil.copytree(runs / "mine/forward-seed0/checkpoints", folder / "checkpoints")
    (tmp_path / "gone").mkdir()
    campaign, models = evaluated(runs, Weigh())
    assert [model.name for model in models] == ["a_gone", "mine"]
    assert len(campaign.results) == 4
    assert campaign.problems and all("holds no model" in problem for problem in campaign.problems)


def test_a_reply_ends_at_the_end_of_turn_or_a_stop_and_keeps_the_order_of_the_prompts(tmp_path):
    model, tokenizer = load_model(str(save_model(tmp_path / "model")), "fp32", "cpu")
    prompts = [[8 + i, 9, 10][: 1 + i % 3] for i in range(7)]
    shares = []
    together = Subject(model, tokenizer).reply(prompts, 12, tick=shares.append)
    alone = [Subject(model, tokenizer).reply([prompt], 12)[0] for prompt in prompts]
    few = Subject(model, tokenizer, tokens_at_once=30).reply(prompts, 12)
    assert together == alone == few and shares[-1] == 1.0
    first = next(text for text in together if len(text) > 3)
    stop = first[2]
    stopped = Subject(model, tokenizer).reply(prompts, 12, stops=[[stop]] * len(prompts))
    assert stopped == [text.split(stop)[0] for text in together]
    for i, text in enumerate(together):
        stops = [[stop] if place == i else [] for place in range(7)]  # of this one alone
        replies = Subject(model, tokenizer).reply(prompts, 12, stops=stops)
        assert replies == [*together[:i], text.split(stop)[0], *together[i + 1 :]]


def test_read_result_is_nothing_before_anything_was_measured(tmp_path):
    assert read_result(Checkpoint(tmp_path, "base", None, None), Weigh(), None) is None


def test_another_threshold_and_rule_select_other_checkpoints(runs):
    (model,), _ = find_models(runs)
    assert [(pair.selection.forward, pair.selection.reverse) for pair in model.pairs] == [(10, 10)] * 2
    (model,), _ = find_models(runs, threshold=8.5)
    assert {pair.selection.forward for pair in model.pairs} == {20}
    (model,), _ = find_models(runs, threshold=9.5)
    assert {pair.selection for pair in model.pairs} == {None}
    assert "never passed 9.5" in model.pairs[0].why
    (model,), _ = find_models(runs, threshold=0.0)
    assert {pair.threshold for pair in model.pairs} == {0.0}


def test_the_base_alone_has_its_table_where_no_checkpoint_was_selected(runs, capsys):
    (model,), _ = find_models(runs, threshold=9.9)
    plan = work.plan([model], [(Weigh(),)], None, True)
    campaign = work.carry_out(plan, work.needs(plan), None, plain=True)
    (table,) = tables(work.lines(campaign, [model], None))
    assert "untouched" in table.title and table.rows[0][-1] == "0.00%"


def test_an_error_of_foreign_code_stops_nothing_else(runs):
    bad = Weigh("bad", "Bad", fails=RuntimeError("boom\nand more"))
    worse = Weigh("worse", "Worse")
    worse.missing = lambda: 1 / 0
    campaign, _ = evaluated(runs, bad, worse, Weigh())
    assert len(campaign.results) == 4
    assert "Bad: RuntimeError: boom and more" in " ".join(campaign.problems)
    assert "worse can't be run yet: ZeroDivisionError: division by zero" in campaign.problems


def test_too_little_memory_is_met_with_smaller_batches_and_said(runs, capsys):
    seen = []

    class Greedy(Weigh):
        def run(self, subject, limit, tick):
            seen.append(subject.tokens_at_once)
            if len(seen) < 3:
                raise torch.OutOfMemoryError("too much")
            return super().run(subject, limit, tick)

    campaign, _ = evaluated(runs, Greedy())
    assert seen[:3] == [32768, 16384, 8192] and campaign.problems == ()
    assert capsys.readouterr().err.count("Out of GPU memory: Weigh begins anew, in batches half as large.") == 2


def beside(runs, name: str) -> None:
    """Another config's runs, on a copy of the same model."""
    other = shutil.copytree(runs.parent / "model", runs.parent / name)
    for direction in ("forward", "reverse"):
        sets = [f"run.name={name}", f"model.path={other}", "model.precision=fp32", "model.device=cpu"]
        folder = make_run(runs.parent, direction, sets=sets)
        model, _ = load_model(str(other), "fp32", "cpu")
        attach(model, 2, 4.0, ["q_proj", "down_proj"], generator=stream(0, "init"))
        save_adapter(model, folder / "checkpoints/step-10", str(other))


def test_a_model_is_gone_before_the_next_is_loaded(runs, monkeypatch):
    """A card that holds either may not hold both."""
    beside(runs, "other")
    real, alive, seen = work._load, [], []

    def load(model):
        seen.append([reference for reference in alive if reference() is not None])
        subject = real(model)
        alive.append(weakref.ref(subject.model))
        return subject

    monkeypatch.setattr(work, "_load", load)
    campaign, _ = evaluated(runs, Weigh())
    assert len(campaign.results) == 6 and campaign.problems == ()
    assert seen == [[], []]


def test_a_model_that_does_not_fit_the_memory_is_told_and_the_rest_goes_on(runs, monkeypatch):
    beside(runs, "another")
    real = work._load

    def load(model):
        if model.name == "another":
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return real(model)

    monkeypatch.setattr(work, "_load", load)
    campaign, _ = evaluated(runs, Weigh())
    assert len(campaign.results) == 4
    (problem,) = campaign.problems
    assert problem.startswith("another") and "out of memory" in problem


def test_a_long_context_is_no_reason_to_give_up_while_batches_can_be_smaller():
    class Greedy(Weigh):
        def run(self, subject, limit, tick):
            self.runs.append(subject.tokens_at_once)
            if subject.tokens_at_once > self.suffices:
                raise torch.OutOfMemoryError("too much")
            return Outcome({}, 1)

    greedy, subject = Greedy(), Subject(None, None, max_length=131072, tokens_at_once=20000)
    greedy.suffices = 5000
    assert work._run(greedy, subject, None, print) and greedy.runs == [20000, 10000, 5000]
    greedy.suffices = 0
    with pytest.raises(UserError, match="not suffice even for one sequence"):
        work._run(greedy, subject, None, print)
    assert greedy.runs[-1] < 512


def test_results_and_adapters_of_other_weights_are_not_mixed_with_those_of_these(runs, tmp_path):
    def note(**facts):
        for path in runs.glob("mine/*/run.json"):
            path.write_text(json.dumps({**json.loads(path.read_text()), **facts}))

    note(base=fingerprint(str(tmp_path / "model")))
    evaluated(runs, Weigh(), baseline=True)
    model, _ = load_model(str(tmp_path / "model"), "fp32", "cpu")
    with torch.no_grad():
        model.model.norm.weight.mul_(1.5)
    model.save_pretrained(tmp_path / "model")
    late = Weigh("late", "Late")
    campaign, models = evaluated(runs, Weigh(), late, baseline=True)
    assert len(campaign.results) == 5 and late.runs == []
    (problem,) = campaign.problems
    assert "were trained with another base: the weights in" in problem
    assert {line.task for line in work.lines(campaign, models, None)} == {"Weigh"}


def test_nothing_is_evaluated_through_another_chat_template_than_was_trained_with(runs, tmp_path):
    for path in runs.glob("mine/*/run.json"):
        path.write_text(json.dumps({**json.loads(path.read_text()), "form": form(str(tmp_path / "model"))}))
    assert evaluated(runs, Weigh())[0].problems == ()
    template = tmp_path / "model/chat_template.jinja"
    template.write_text(template.read_text() + " ")
    late = Weigh("late", "Late")
    campaign, _ = evaluated(runs, Weigh(), late)
    (problem,) = campaign.problems
    assert "the config, tokenizer or chat template in" in problem
    assert len(campaign.results) == 4 and late.runs == []


def test_adapters_of_different_shape_do_not_blame_each_other(runs, tmp_path):
    model, _ = load_model(str(tmp_path / "model"), "fp32", "cpu")
    attach(model, 3, 4.0, ["q_proj"])
    save_adapter(model, runs / "mine/forward-seed0/checkpoints/step-10", "base")
    campaign, _ = evaluated(runs, Weigh())
    assert campaign.problems == () and len(campaign.results) == 4


@pytest.mark.parametrize("damaged", [(0,), (0, 1)])
def test_answers_that_can_not_be_read_are_told_and_the_tables_come_all_the_same(runs, monkeypatch, capsys, damaged):
    monkeypatch.setattr(suites, "suite_of", lambda config: (Weigh(),))
    for seed in damaged:
        path = runs / f"mine/reverse-seed{seed}/samples.jsonl"
        path.write_text("{\n" + path.read_text())
    assert evaluate.main(["--runs", str(runs), "--plain"]) == 0
    output = capsys.readouterr()
    for seed in (0, 1):
        told = f"reverse-seed{seed}/samples.jsonl is damaged in line 1" in output.err
        written = (runs / f"mine/seed{seed}-answers.md").exists()
        assert told == (seed in damaged) and written == (seed not in damaged)
    assert "Table 4" in output.out and "(mine: 2 seeds)" in output.out
    assert ("mine, seed 1\n" in output.out) == (damaged == (0,))


def test_what_is_left_out_is_told_before_the_work_begins(runs, monkeypatch, capsys):
    lacking = Weigh("lacking", "Lacking", lacking=["Scales are missing; buy some."])
    monkeypatch.setattr(suites, "suite_of", lambda config: (lacking, Weigh()))
    told = []
    monkeypatch.setattr(work, "carry_out", lambda campaign, *rest: told.append(capsys.readouterr().err) or campaign)
    evaluate.main(["--runs", str(runs)])
    assert "lacking can't be run yet: Scales are missing; buy some." in told[0]


def test_where_there_are_no_tables_only_what_helps_is_advised(runs, monkeypatch, capsys):
    advice = "python evaluate.py gets what is missing"
    monkeypatch.setattr(suites, "suite_of", lambda config: (Weigh("lacking", "Lacking", lacking=["Buy scales."]),))
    for arguments, status, helps in (
        (["--tables-only"], 0, True),
        ([], 1, False),  # it has just tried
        (["--threshold", "9.9"], 0, False),  # no checkpoint was selected
        (["--threshold", "9.9", "--tables-only"], 0, False),
    ):
        assert evaluate.main(["--runs", str(runs), *arguments]) == status
        said = capsys.readouterr().out
        assert "There are no tables" in said and (advice in said) == helps


def test_what_is_left_out_is_listed_once(runs, monkeypatch, capsys):
    lacking, heavy = Weigh("lacking", "Lacking", lacking=["Buy scales."]), Weigh(fails=UserError("Too heavy."))
    monkeypatch.setattr(suites, "suite_of", lambda config: (lacking, heavy))
    shutil.rmtree(runs / "mine/reverse-seed1")
    assert evaluate.main(["--runs", str(runs), "--plain"]) == 1
    said = capsys.readouterr().err
    before, after = said.split("\nLeft out:\n")[1:]
    assert [before.count(what) for what in ("has no counterpart", "Buy scales.", "Too heavy.")] == [1, 1, 0]
    assert [after.count(what) for what in ("has no counterpart", "Buy scales.", "Too heavy.")] == [0, 0, 2]
    assert after.endswith("- What was listed before the work began.\n")
    assert evaluate.main(["--runs", str(runs), "--tables-only"]) == 0
    assert "has no counterpart" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--limit", "0"], "--limit must be at least 1"),
        (["--threshold", "11"], "--threshold must lie from 0 to 10"),
        (["--threshold", "nan"], "--threshold must lie from 0 to 10"),
        (["--suite", "nonsense"], "There is no benchmark 'nonsense'; there are paper, mini, ifeval"),
        (["--suite", ","], "--suite names no benchmark"),
        (["--suite", ""], "--suite names no benchmark"),
        (["--out", "FILE"], "name another folder by --out"),
        (["--device", "warp"], "The device 'warp' can't be used here"),
    ],
)
def test_a_mistake_gets_one_sentence_before_any_work(runs, tmp_path, capsys, arguments, says):
    (tmp_path / "file").touch()
    arguments = [str(tmp_path / "file") if each == "FILE" else each for each in arguments]
    assert evaluate.main(["--runs", str(runs), *arguments]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ") and says in line


def test_one_config_is_evaluated_alone_and_on_another_device(runs, tmp_path, monkeypatch, capsys):
    """As on a machine with fewer GPUs than the one that trained; and another config's tables stay what they are."""
    shutil.copytree(runs / "mine", runs / "others")
    for path in runs.glob("*/*/config.toml"):
        name = path.parent.parent.name
        path.write_text(path.read_text().replace('device = "cpu"', 'device = "cuda:7"').replace('"mine"', f'"{name}"'))
    monkeypatch.setattr(suites, "suite_of", lambda config: (Weigh(),))
    assert evaluate.main(["--runs", str(runs), "--plain"]) == 1
    assert "The device 'cuda:7' can't be used here" in capsys.readouterr().err
    (runs / "tables.md").write_text("of both")
    assert evaluate.main(["--runs", str(runs / "mine"), "--device", "cpu", "--plain"]) == 0
    assert (runs / "tables.md").read_text() == "of both" and "mine" in (runs / "mine/tables.md").read_text()
    assert not list(runs.glob("others/*/results/**/*.json")) and not (runs / "others/tables.md").exists()
    monkeypatch.chdir(runs / "mine")
    assert evaluate.main(["--runs", ".", "--device", "cpu", "--tables-only"]) == 0


def test_results_that_could_not_be_kept_are_not_computed(runs, capsys):
    (runs / "mine" / "forward-seed0" / "results").touch()  # a file where a folder is to be
    assert evaluate.main(["--runs", str(runs)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "results are kept beside their runs" in line and "forward-seed0" in line


def test_memory_that_never_suffices_is_told_and_the_rest_goes_on(runs):
    tried = []

    class Huge(Weigh):
        def run(self, subject, limit, tick):
            tried.append(subject.tokens_at_once)
            raise torch.OutOfMemoryError("too much")

    campaign, _ = evaluated(runs, Huge("huge", "Huge"), Weigh())
    assert len(campaign.results) == 4 and tried[0] == 32768 and tried[6] == 512 and tried[7] == 32768
    assert sum("does not suffice even for one sequence" in problem for problem in campaign.problems) == 4
