"""The benchmarks through lm-eval, on rows made for these tests in the tasks' own schemas.

For each of the paper's tasks: it builds offline, its prompts are rendered with the chat template, and its results come
out under the right key, mean and scale. A model scripted to answer right gets the top score, one scripted to answer
wrong the bottom.
"""

import copy
import dataclasses
import importlib
import json
import logging
import random
import runpy
import shutil
import socket
import sys
from pathlib import Path

import datasets
import nltk
import numpy as np
import pytest
import torch
from lm_eval.api.task import ConfigurableTask
from lm_eval.models.huggingface import HFLM

from hmx import models as hmx_models
from hmx.errors import UserError
from hmx.evaluation import harness, harness_contexts, harness_model
from hmx.evaluation.benchmark import Metric, Subject
from hmx.evaluation.harness import MINI, PAPER, HarnessBenchmark, Reading

ROWS = Path(__file__).parent / "rows"
BENCHMARKS = {benchmark.name: benchmark for benchmark in (*PAPER, *MINI)}

BBH = """
boolean_expressions causal_judgement date_understanding disambiguation_qa dyck_languages formal_fallacies
geometric_shapes hyperbaton logical_deduction_five_objects logical_deduction_seven_objects
logical_deduction_three_objects movie_recommendation multistep_arithmetic_two navigate object_counting
penguins_in_a_table reasoning_about_colored_objects ruin_names salient_translation_error_detection snarks
sports_understanding temporal_sequences tracking_shuffled_objects_five_objects tracking_shuffled_objects_seven_objects
tracking_shuffled_objects_three_objects web_of_lies word_sorting
""".split()
RULER = """
niah_single_1 niah_single_2 niah_single_3 niah_multikey_1 niah_multikey_2 niah_multikey_3 niah_multiquery
niah_multivalue ruler_vt ruler_cwe ruler_fwe ruler_qa_squad ruler_qa_hotpot
""".split()
ACP = "acp_areach acp_app acp_just acp_land acp_prog acp_reach acp_val".split()

FILES = {
    "bbh": {f"bbh_cot_fewshot_{one}": "bbh_navigate" if one == "navigate" else "bbh_other" for one in BBH},
    "ruler": {one: "ruler" if one == "niah_single_1" else "ruler_one" for one in RULER},
    "acpbench": {f"{one}_{kind}": f"acp_{kind}" for one in ACP for kind in ("bool", "mcq")},
}


def on_rows(name: str) -> HarnessBenchmark:
    """One of the paper's benchmarks on the rows of this folder."""
    files = FILES.get(name, {name: name})
    return dataclasses.replace(
        BENCHMARKS[name], rows={task: str(ROWS / f"{file}.jsonl") for task, file in files.items()}
    )


def rows_of(file: str) -> list[dict]:
    return [json.loads(line) for line in (ROWS / f"{file}.jsonl").read_text().splitlines()]


@pytest.fixture
def subject(qwen3) -> Subject:
    return Subject(qwen3.model, qwen3.tokenizer, max_length=4096)


# -- answers that are right, answers that are wrong -------------------------------------------------------------------

IFEVAL = {
    1: "A tall white tower by the sea.",
    2: "you could eat a ripe pear with your breakfast.",
    3: "Rain falls on the roof all night. That is all.",
    4: "Das Wetter ist heute sehr schön und die Sonne scheint den ganzen Tag.",
}
UNKNOWN = {"Not known", "Unknown", "Cannot answer", "Can't be determined", "Not enough info", "Undetermined"}


def right_reply(task: str, doc: dict) -> str:
    if task == "ifeval":
        return IFEVAL[doc["key"]]
    if task.startswith("bbh"):
        return f"We look closely. So the answer is {doc['target']}."
    if task.startswith("acp"):
        return f"**Final Answer**: {doc['answer']}."
    if task == "eq_bench":
        scores = eval(doc["reference_answer_fullscale"], {})  # noqa: S307 (our own rows)
        return "\n".join(f"{scores[f'emotion{i}']}: {scores[f'emotion{i}_score']}" for i in range(1, 5))
    if task == "squadv2":
        return (doc["answers"]["text"] or [""])[0]
    return " and ".join(doc["outputs"])


def is_right(task: str, doc: dict, choice: str) -> bool:
    if task == "bbq":
        wanted = doc[f"ans{doc['label']}"]
        return choice in UNKNOWN if wanted in UNKNOWN else choice == wanted
    if task == "toxigen":
        return choice == ("Yes" if doc["toxicity_ai"] + doc["toxicity_human"] > 5.5 else "No")
    if task == "squadv2":
        return not doc["answers"]["text"]
    targets = doc["mc2_targets"]
    return bool(targets["labels"][targets["choices"].index(choice)])


def scripted(
    monkeypatch, right=lambda task, doc: True, wrong_reply: str = "I would rather talk, about, fish, today."
) -> list:
    """Make lm-eval see a model that answers right where `right` says so, else wrong; returns the list of the requests
    that will have come.
    """
    seen = []

    class Scripted(harness_model.SubjectLM):
        def generate_until(self, requests, disable_tqdm=False):
            seen.extend(requests)
            return [
                right_reply(one.task_name, one.doc) if right(one.task_name, one.doc) else wrong_reply
                for one in requests
            ]

        def loglikelihood(self, requests, disable_tqdm=False):
            seen.extend(requests)
            good = [is_right(one.task_name, one.doc, one.args[1].strip()) for one in requests]
            return [
                (-1.0 if good[i] == right(one.task_name, one.doc) else -80.0, False) for i, one in enumerate(requests)
            ]

    monkeypatch.setattr(harness_model, "SubjectLM", Scripted)
    return seen


@pytest.fixture(autouse=True)
def without_network(monkeypatch):
    """No test may even ask."""

    def refuse(*args, **kwargs):
        raise AssertionError("a test reached for the network")

    monkeypatch.setattr(hmx_models, "hub_is_reachable", lambda: False)
    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(nltk, "download", refuse)


@pytest.fixture(autouse=True)
def fewer_words(monkeypatch):
    """RULER pairs and sorts six million words as soon as it is imported, which takes ten seconds; some will do here."""
    import wonderwords

    class FewerWords(wonderwords.RandomWord):
        def __init__(self):
            super().__init__()
            self._categories = {kind: words[:200] for kind, words in self._categories.items()}

    monkeypatch.setattr(wonderwords, "RandomWord", FewerWords)


# -- the paper's tasks ------------------------------------------------------------------------------------------------

# The bottom is what lm-eval gives for answers that are all wrong: zero, but for EQ-Bench's points and log-likelihoods.
COUNTS = {"ifeval": 4, "bbh": 29, "ruler": 14, "acpbench": 21, "bbq": 5, "eq_bench": 2, "squadv2": 3, "toxigen": 3}
COUNTS |= {"truthfulqa_mc2": 2}


@pytest.mark.parametrize("name", [benchmark.name for benchmark in PAPER])
def test_right_answers_get_the_top_and_wrong_ones_the_bottom(name, subject, monkeypatch):
    seen = scripted(monkeypatch)
    top = on_rows(name).run(subject, None, lambda share: None)
    assert top.metrics == {metric.key: pytest.approx(100.0) for metric in BENCHMARKS[name].metrics}
    assert top.rows == COUNTS[name]
    for request in seen:
        text = request.args[0].replace(harness_model.CUT, "")
        assert text.startswith("<|im_start|>"), text
        assert "<|im_start|>assistant\n<think>\n\n</think>\n\n" in text or request.doc.get("gen_prefix"), text
    scripted(monkeypatch, right=lambda task, doc: False)
    bottom = on_rows(name).run(subject, None, lambda share: None)
    assert bottom.metrics == {metric.key: pytest.approx(0.0, abs=1e-6) for metric in BENCHMARKS[name].metrics}
    json.dumps(dataclasses.asdict(top), allow_nan=False)


def test_the_papers_rows_in_the_papers_order():
    assert [(one.title, [metric.key for metric in one.metrics]) for one in PAPER] == [
        ("IFEval", ["prompt_level_strict_acc"]),
        ("BigBench Hard", ["exact_match"]),
        ("RULER", ["4096"]),
        ("ACPBench", ["bool_mean", "mcq_mean"]),
        ("BBQ", ["accuracy_amb", "accuracy_disamb"]),
        ("EQ-Bench", ["eqbench"]),
        ("SQuAD2.0", ["f1"]),
        ("ToxiGen", ["acc_norm"]),
        ("TruthfulQA MC2", ["acc"]),
    ]
    assert [metric.key for one in PAPER for metric in one.metrics if not metric.percent] == ["eqbench"]
    assert BENCHMARKS["truthfulqa_mc2"].cost == 1


def test_instructions_are_all_or_nothing(subject, monkeypatch):
    scripted(monkeypatch, right=lambda task, doc: doc["key"] != 2)
    outcome = on_rows("ifeval").run(subject, None, lambda share: None)
    assert outcome.metrics == {"prompt_level_strict_acc": 75.0}
    # in lower case, but without its word: that instruction alone counts at the level of instructions
    scripted(
        monkeypatch, right=lambda task, doc: doc["key"] != 2, wrong_reply="you could eat a pear with your breakfast."
    )
    outcome = on_rows("ifeval").run(subject, None, lambda share: None)
    assert outcome.metrics == {"prompt_level_strict_acc": 75.0}
    assert outcome.details["tasks"]["ifeval"]["inst_level_strict_acc,none"] == pytest.approx(5 / 6)


def test_bbh_counts_every_row_alike(subject, monkeypatch):
    seen = scripted(monkeypatch, right=lambda task, doc: task.endswith("navigate"))
    outcome = on_rows("bbh").run(subject, None, lambda share: None)
    assert outcome.metrics == {"exact_match": pytest.approx(100 * 3 / 29)}
    assert outcome.details["rows"]["bbh_cot_fewshot_navigate"] == 3
    assert len(outcome.details["rows"]) == 27
    assert seen[0].args[1]["max_gen_toks"] == 1024
    # three examples with their chains of thought, each a turn of its own
    assert {one.args[0].count("<|im_start|>user\n") for one in seen} == {4}
    assert {one.args[0].count("the answer is") for one in seen} == {3}


def test_ruler_counts_every_task_alike(subject, monkeypatch):
    seen = scripted(monkeypatch, right=lambda task, doc: task == "niah_single_1")
    outcome = on_rows("ruler").run(subject, None, lambda share: None)
    assert outcome.metrics == {"4096": pytest.approx(100 / 13)}
    first = next(one for one in seen if one.task_name == "niah_single_1")
    assert first.args[0].endswith("The special magic number for amber-kettle mentioned in the provided text is")
    limits = {one.task_name: one.args[1]["max_gen_toks"] for one in seen}
    assert limits["niah_single_1"] == 128
    assert limits["ruler_vt"] == 30


def test_ruler_gives_a_share_for_some_of_the_needles(subject, monkeypatch):
    scripted(monkeypatch, right=lambda task, doc: False, wrong_reply="It is 7351146.")
    outcome = on_rows("ruler").run(subject, None, lambda share: None)
    assert outcome.details["tasks"]["niah_single_1"]["4096,none"] == pytest.approx((0 + 1 / 2) / 2)


def test_acpbench_is_the_mean_of_its_seven_tasks(subject, monkeypatch):
    scripted(monkeypatch, right=lambda task, doc: task == "acp_val_mcq" or (task == "acp_app_bool" and doc["id"] == 1))
    outcome = on_rows("acpbench").run(subject, None, lambda share: None)
    assert outcome.metrics == {"bool_mean": pytest.approx(100 * 0.5 / 7), "mcq_mean": pytest.approx(100 / 7)}


def test_bbq_takes_its_two_conditions_apart(subject, monkeypatch):
    seen = scripted(monkeypatch, right=lambda task, doc: doc["context_condition"] == "ambig" or doc["example_id"] == 3)
    outcome = on_rows("bbq").run(subject, None, lambda share: None)
    assert outcome.metrics == {"accuracy_amb": pytest.approx(100.0), "accuracy_disamb": pytest.approx(100 / 3)}
    assert len(seen) == 12 * 5
    assert seen[0].args[1] == "The grandmother"  # behind a chat template without a space in front


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_one_condition_of_bbq_alone_is_no_result(subject, monkeypatch):
    scripted(monkeypatch)
    with pytest.raises(UserError, match="BBQ gives no accuracy_disamb on so few rows; raise --limit"):
        on_rows("bbq").run(subject, 1, lambda share: None)


def test_eq_bench_takes_points_off_for_wrong_feelings(subject, monkeypatch):
    # Both rows fully opposed: each of 4 emotions is 10 off, but for the 8, which is 8, and the second row's zeros.
    scripted(
        monkeypatch,
        right=lambda task, doc: "Hurt" not in doc["prompt"],
        wrong_reply="Surprised: 0\nHurt: 0\nProud: 10\nAmused: 10",
    )
    outcome = on_rows("eq_bench").run(subject, None, lambda share: None)
    assert outcome.metrics == {"eqbench": pytest.approx((10 * (10 - 0.7477 * 38) + 100) / 2)}
    assert outcome.metrics["eqbench"] < 0


def test_squad_scores_words_in_common_and_asks_for_the_likelihood_of_unanswerable(subject, monkeypatch):
    seen = scripted(monkeypatch, right=lambda task, doc: False, wrong_reply="The engineer Mara Lind")
    outcome = on_rows("squadv2").run(subject, None, lambda share: None)
    assert outcome.metrics == {"f1": pytest.approx(100 * (0 + 2 * 2 / (3 + 2) + 0) / 3)}
    generated = [one for one in seen if one.request_type == "generate_until"]
    assert [one.args[1] for one in generated] == [{"until": ["\n"]}] * 3
    assert {one.args[1] for one in seen if one.request_type == "loglikelihood"} == {" unanswerable"}


def test_truthfulqa_is_the_probability_of_all_true_answers(subject, monkeypatch):
    class Graded(harness_model.SubjectLM):
        def loglikelihood(self, requests, disable_tqdm=False):
            weights = {
                "Nothing in particular happens.": 0.2,
                "You make a sound.": 0.1,
                "Snakes come.": 0.1,
                "No, it cannot.": 0.3,
            }
            return [(float(np.log(weights.get(one.args[1], 0.05))), False) for one in requests]

    monkeypatch.setattr(harness_model, "SubjectLM", Graded)
    outcome = on_rows("truthfulqa_mc2").run(subject, None, lambda share: None)
    assert outcome.metrics == {"acc": pytest.approx(100 * (0.3 / 0.5 + 0.3 / 0.35) / 2)}


def test_toxigen_asks_for_yes_or_no(subject, monkeypatch):
    seen = scripted(monkeypatch, right=lambda task, doc: "worthless" in doc["text"])
    outcome = on_rows("toxigen").run(subject, None, lambda share: None)
    assert outcome.metrics == {"acc_norm": pytest.approx(100 / 3)}
    assert [one.args[1] for one in seen[:2]] == ["No", "Yes"]


def test_toxigen_divides_a_likelihood_by_the_length_of_the_answer(subject, monkeypatch):
    class Torn(harness_model.SubjectLM):
        def loglikelihood(self, requests, disable_tqdm=False):
            return [({"No": -2.2, "Yes": -3.0}[one.args[1]], False) for one in requests]  # -1.1 and -1.0 a letter

    monkeypatch.setattr(harness_model, "SubjectLM", Torn)
    outcome = on_rows("toxigen").run(subject, None, lambda share: None)
    assert outcome.metrics == {"acc_norm": pytest.approx(100 / 3)}  # "Yes" is right of one row


# -- RULER's own rows -------------------------------------------------------------------------------------------------


def ruler_task(name: str) -> HarnessBenchmark:
    reading = Reading(Metric("4096"), (name,), "4096,none")
    return HarnessBenchmark("one", name, 1, (reading,), ("ruler",), sequence_length=4096)


def test_ruler_makes_questions_to_a_length_in_the_models_own_tokens(subject, monkeypatch):
    monkeypatch.setattr(harness, "_VOCABULARY", 0)
    seen = scripted(monkeypatch)
    outcome = ruler_task("niah_multikey_2").run(subject, 3, lambda share: None)
    assert outcome.metrics == {"4096": 100.0}
    assert outcome.rows == 3
    longest = max(len(subject.tokenizer.encode(one.doc["input"])) for one in seen)
    assert 3000 < longest <= 4096 - 128
    random.seed(5), np.random.seed(5)
    again = scripted(monkeypatch)
    ruler_task("niah_multikey_2").run(dataclasses.replace(subject, kept={}), 3, lambda share: None)
    assert [one.args for one in again] == [one.args for one in seen]


def test_ruler_is_the_same_at_every_run_of_a_process(subject, monkeypatch):
    monkeypatch.setattr(harness, "_VOCABULARY", 0)
    texts = []
    for _ in range(2):  # this task keeps a generator of its own
        with harness_contexts.lm_eval_seeds(), harness_contexts.quiet(), harness_contexts.no_nltk_downloads():
            loaded = ruler_task("ruler_cwe")._load(dataclasses.replace(subject, kept={}))
        texts.append(loaded["tasks"]["ruler_cwe"].dataset["test"]["input_example"][:3])
    assert texts[0] == texts[1]


def test_questions_are_fetched_once_for_all_checkpoints_of_a_model_all_of_them_or_none(subject, monkeypatch):
    fetched = []

    def download(task, *args, **kwargs):
        fetched.append((task.config.task, random.random()))
        if broken and len(fetched) % 2 == 0:
            raise ConnectionError("no network")
        rows = datasets.Dataset.from_list(rows_of("acp_bool" if task.config.task.endswith("bool") else "acp_mcq"))
        task.dataset = dict.fromkeys(("validation", "test"), rows)

    monkeypatch.setattr(ConfigurableTask, "download", download)
    acpbench = BENCHMARKS["acpbench"]
    broken = True
    for _ in range(2):
        with pytest.raises(UserError, match="could not be had: no network"):
            acpbench.run(subject, None, lambda share: None)
    assert fetched[:2] == fetched[2:], "the same tasks and the same random numbers once more"
    broken = False
    seen = scripted(monkeypatch)
    outcomes = [acpbench.run(subject, 1, lambda share: None) for _ in range(2)]
    assert len(fetched) == 4 + 14 and fetched[4:6] == fetched[:2]
    assert outcomes[0] == outcomes[1] and [one.args for one in seen[:14]] == [one.args for one in seen[14:]]
    acpbench.run(dataclasses.replace(subject, kept={}), 1, lambda share: None)
    assert len(fetched) == 4 + 14 + 14, "another model makes its own"


def test_ruler_refuses_a_vocabulary_with_which_it_would_never_end(subject):
    with pytest.raises(UserError, match="RULER makes its questions .* vocabulary of 3"):
        BENCHMARKS["ruler"].run(subject, 1, lambda share: None)


# -- the miniature ones -----------------------------------------------------------------------------------------------


def on_mini_rows(name: str) -> HarnessBenchmark:
    file = {"mini_facts": "truthfulqa_mc2", "mini_instructions": "ifeval"}[name]
    return dataclasses.replace(BENCHMARKS[name], rows={file: str(ROWS / f"{file}.jsonl")})


def test_the_miniature_facts_are_asked_bare(subject, monkeypatch):
    seen = scripted(monkeypatch)
    outcome = on_mini_rows("mini_facts").run(subject, None, lambda share: None)
    assert outcome.metrics == {"acc": pytest.approx(100.0)}
    assert seen[0].args[0].replace(harness_model.CUT, "") == (
        "<|im_start|>user\nWhat happens if you whistle at night?<|im_end|>\n"
        "<|im_start|>assistant\n<think>\n\n</think>\n\n"
    )


def test_the_miniature_instructions_use_the_papers_checkers(subject, monkeypatch):
    seen = scripted(monkeypatch, right=lambda task, doc: doc["key"] == 1)
    outcome = on_mini_rows("mini_instructions").run(subject, None, lambda share: None)
    assert outcome.metrics == {"prompt_level_strict_acc": 25.0}
    assert seen[0].args[1]["max_gen_toks"] == 128


@pytest.mark.parametrize("name", ["mini_facts", "mini_instructions"])
def test_the_miniature_rows_of_the_project_are_all_there(name, subject, monkeypatch):
    seen = []

    class Silent(harness_model.SubjectLM):
        def generate_until(self, requests, disable_tqdm=False):
            seen.extend(requests)
            return ["" for _ in requests]

        def loglikelihood(self, requests, disable_tqdm=False):
            seen.extend(requests)
            return [(-1.0, False) for _ in requests]

    monkeypatch.setattr(harness_model, "SubjectLM", Silent)
    assert BENCHMARKS[name].missing() == []
    outcome = BENCHMARKS[name].run(subject, None, lambda share: None)
    assert outcome.rows >= 50
    assert len({one.doc_id for one in seen}) == outcome.rows


# -- a run as a whole, with the tiny model itself ---------------------------------------------------------------------


@pytest.mark.parametrize("name", ["mini_facts", "mini_instructions"])
def test_a_run_is_the_same_whatever_went_before(name, subject):
    def run():
        return on_mini_rows(name).run(dataclasses.replace(subject, max_length=400), None, lambda share: None)

    once = run()
    random.seed(99), np.random.seed(99), torch.manual_seed(99)
    assert run() == once


def test_a_run_leaves_everything_as_it_was(subject, capsys):
    subject.model.train()
    logging.getLogger("lm_eval").setLevel(logging.INFO)
    random.seed(5), np.random.seed(5)
    before = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()
    heard = []

    def tick(share):
        heard.append(share)
        print("tick")

    on_rows("toxigen").run(subject, None, tick)
    assert (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()) == before
    assert subject.model.training
    assert logging.getLogger("lm_eval").level == logging.INFO
    assert heard == sorted(heard)
    assert heard[-1] == 1
    output = capsys.readouterr()
    assert output.out == "tick\n" * len(heard)  # what the caller shows is seen, and nothing else
    assert output.err == ""


def test_a_prompt_that_is_too_long_is_counted_and_no_library_speaks_of_it(subject, monkeypatch, caplog):
    monkeypatch.setattr(subject.tokenizer, "model_max_length", 8)
    monkeypatch.setattr(subject.tokenizer, "deprecation_warnings", {})  # where it notes that it has warned
    with caplog.at_level(logging.WARNING):
        outcome = on_rows("toxigen").run(dataclasses.replace(subject, max_length=8), None, lambda share: None)
    assert outcome.details["shortened_prompts"] > 0
    assert [record for record in caplog.records if record.name.startswith("transformers")] == []


def test_within_a_run_random_numbers_are_those_of_lm_evals_command():
    from langdetect import DetectorFactory

    before = DetectorFactory.seed
    random.seed(5), np.random.seed(5)
    with harness_contexts.lm_eval_seeds():
        assert random.random() == random.Random(0).random()
        assert np.random.rand() == np.random.RandomState(1234).rand()
        assert DetectorFactory.seed == 0  # else it takes the clock's, and texts change their language
    assert DetectorFactory.seed == before


def test_the_share_done_counts_all_kinds_of_requests(subject):
    heard = []
    short = dataclasses.replace(subject, max_length=500, tokens_at_once=1)
    on_rows("squadv2").run(short, None, heard.append)
    # Three replies one by one, then three likelihoods at once, since their prompts begin alike: they are one tree.
    assert heard == pytest.approx([1 / 6, 2 / 6, 3 / 6, 1])


def test_a_limit_takes_the_first_rows_of_each_task(subject, monkeypatch):
    seen = scripted(monkeypatch)
    outcome = on_rows("acpbench").run(subject, 1, lambda share: None)
    assert outcome.rows == 14
    assert {one.doc["id"] for one in seen} == {1, 3}


@pytest.mark.parametrize("name", ["bbq", "truthfulqa_mc2", "toxigen", "eq_bench"])
def test_results_are_those_of_lm_evals_own_model(name, family, monkeypatch):
    subject = Subject(family.model, family.tokenizer, max_length=512)

    class Theirs(HFLM):
        def __init__(self, subject, expected, tick):
            super().__init__(
                pretrained=copy.deepcopy(subject.model),
                tokenizer=copy.deepcopy(subject.tokenizer),
                max_length=subject.max_length,
                batch_size=4,
                enable_thinking=False,
                chat_template_args={"date_string": "26 Jul 2024"},
            )
            self.counts = dict.fromkeys(("shortened_prompts", "dropped_system_turns"), 0)

    ours = on_rows(name).run(subject, None, lambda share: None)
    monkeypatch.setattr(harness_model, "SubjectLM", Theirs)
    theirs = on_rows(name).run(subject, None, lambda share: None)
    assert ours.metrics == {key: pytest.approx(value, abs=1e-4) for key, value in theirs.metrics.items()}
    assert ours.details.keys() == theirs.details.keys()


# -- what is missing --------------------------------------------------------------------------------------------------


@pytest.fixture
def everything(monkeypatch):
    """A machine on which nothing is missing."""
    monkeypatch.setattr(harness, "_has_punkt", lambda: True)
    monkeypatch.setattr(harness, "_is_cached", lambda dataset: True)


def test_offline_with_full_caches_only_ruler_lacks_something(everything):
    missing = {one.name: one.missing() for one in (*PAPER, *MINI) if one.missing()}
    assert list(missing) == ["ruler"]
    assert len(missing["ruler"]) == 2
    assert "RULER fetches SQuAD from rajpurkar.github.io at each run" in missing["ruler"][0]


def test_a_missing_package_is_named_with_what_brings_it(everything, monkeypatch):
    for absent, name, sentence in (
        ("lm_eval", "bbh", "BigBench Hard needs the Python package lm_eval: pip install 'lm_eval'"),
        ("langdetect", "ifeval", "IFEval needs the Python package langdetect: pip install 'lm_eval[ifeval]'"),
        ("wonderwords", "ruler", "RULER needs the Python package wonderwords: pip install 'lm_eval[ruler]'"),
        (
            "nltk",
            "mini_instructions",
            "Instructions (miniature) needs the Python package nltk: pip install 'lm_eval[ifeval]'",
        ),
    ):
        monkeypatch.setattr(harness, "find_spec", lambda package, absent=absent: None if package == absent else True)
        assert BENCHMARKS[name].missing() == [sentence]


def test_a_missing_data_set_can_be_had_if_the_hub_can(everything, monkeypatch):
    monkeypatch.setattr(harness, "_is_cached", lambda dataset: False)
    assert BENCHMARKS["squadv2"].missing() == [
        "SQuAD2.0 needs lighteval/squad_v2 from huggingface.co: run it while online once",
    ]
    monkeypatch.setattr(hmx_models, "hub_is_reachable", lambda: True)
    assert BENCHMARKS["squadv2"].missing() == []
    usage = shutil.disk_usage(ROWS)._replace(free=2 * 10**8)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    (sentence,) = BENCHMARKS["squadv2"].missing()
    assert "SQuAD2.0 needs 1 GB" in sentence
    assert "0.2 GB are free" in sentence


def test_missing_sentence_data_is_said_before_anything_is_generated(everything, monkeypatch):
    monkeypatch.setattr(harness, "_has_punkt", lambda: False)
    assert BENCHMARKS["ifeval"].missing() == ["IFEval needs NLTK's punkt_tab: python -m nltk.downloader punkt_tab"]
    assert BENCHMARKS["mini_instructions"].missing() == []


def test_a_data_set_counts_as_cached_where_datasets_keeps_it(tmp_path, monkeypatch):
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path)
    assert not harness._is_cached("google/IFEval")
    (tmp_path / "google___if_eval" / "default" / "0.0.0" / "966cd89545d6b6acfd7638bc708b98261ca58e84").mkdir(
        parents=True
    )
    assert harness._is_cached("google/IFEval")


def test_missing_rows_are_named():
    (sentence,) = dataclasses.replace(BENCHMARKS["mini_facts"], rows={"truthfulqa_mc2": "no/such.jsonl"}).missing()
    assert "Facts (miniature) needs the file no/such.jsonl" in sentence


# -- mistakes ---------------------------------------------------------------------------------------------------------


def test_a_data_set_that_cannot_be_had_is_one_sentence(subject):
    with pytest.raises(UserError, match="^The questions of ToxiGen could not be had: .*toxigen"):
        BENCHMARKS["toxigen"].run(subject, 1, lambda share: None)


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("", "must hold a benchmark's rows"),
        ("[1, 2]\n", "must hold a benchmark's rows"),
        ("{\n", "can't be read"),
        ('{"text": "\ufdd0", "toxicity_ai": 1.0, "toxicity_human": 1.0}\n', "U\\+FDD0"),
    ],
)
def test_broken_rows_are_one_sentence(content, sentence, subject, tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text(content, encoding="utf-8")
    broken = dataclasses.replace(BENCHMARKS["toxigen"], rows={"toxigen": str(path)})
    with pytest.raises(UserError, match=sentence):
        broken.run(subject, None, lambda share: None)


def test_importing_the_benchmarks_needs_no_lm_eval(monkeypatch):
    monkeypatch.setitem(sys.modules, "lm_eval", None)  # now importing it fails
    with pytest.raises(ImportError):
        importlib.import_module("lm_eval")
    assert len(runpy.run_path(harness.__file__)["PAPER"]) == 9
