"""What all benchmarks share: interleaving, medians and ratios, the JSON."""

import json

import pytest

from bench import common
from bench.common import Ratio, Summary, Timer, interleave
from hmx.errors import UserError


class ScriptedTimer(Timer):
    """A clock that moves only when it is told to."""

    def __init__(self):
        super().__init__("cpu")
        self.time = 0.0

    def now(self) -> float:
        return self.time


def given(tmp_path, *arguments: str):
    """Options as a benchmark without any of its own would get them."""
    parsed = common.parser("step", "", rounds=3).parse_args(["--results", str(tmp_path / "kept"), *arguments])
    common.prepare(parsed)
    return parsed


def test_contenders_take_turns_and_warm_up_rounds_do_not_count():
    timer, order = ScriptedTimer(), []
    ours, theirs = iter([100.0, 1.0, 2.0, 6.0]), iter([200.0, 4.0, 10.0, 12.0])

    def spend(name, durations):
        order.append(name)
        timer.time += next(durations)

    seconds = interleave({"ours": lambda: spend("ours", ours), "theirs": lambda: spend("theirs", theirs)}, 3, 1, timer)
    assert order == ["ours", "theirs"] * 4
    assert seconds == {"ours": [1.0, 2.0, 6.0], "theirs": [4.0, 10.0, 12.0]}


def test_the_ratio_is_of_the_medians_and_says_how_many_times_longer_theirs_takes():
    theirs, ours = [4.0, 10.0, 12.0, 40.0, 50.0], [1.0, 2.0, 6.0, 5.0, 5.0]
    ratio = Ratio.of(theirs, ours)
    assert ratio.of_medians == 12.0 / 5.0
    assert ratio.quartiles == (4.0, 8.0)  # of 2, 4, 5, 8, 10
    assert Ratio.of([6.0], [2.0]) == Ratio(3.0, (3.0, 3.0))


def test_a_summary_holds_the_median_the_least_and_the_most():
    assert Summary.of([3.0, 1.0, 2.0, 10.0]) == Summary(2.5, 1.0, 10.0, [3.0, 1.0, 2.0, 10.0])


def test_the_cpu_clock_counts_this_process_alone():
    timer = Timer("cpu", "cpu")
    assert timer.seconds(lambda: sum(range(10**6))) > 0
    with pytest.raises(KeyError):
        Timer("cpu", "sundial")


def test_results_are_kept_with_the_machine_and_replace_the_last(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("sys.argv", ["/somewhere/bench/step.py", "--model", "tiny", "--rounds", "3"])
    options = given(tmp_path)
    common.keep("step", options, {"seconds": Summary.of([1.0])}, "26tok")
    path = common.keep("step", options, {"seconds": Summary.of([2.0])}, "26tok")
    assert [file.name for file in path.parent.iterdir()] == [path.name]  # nothing half-written lies about
    assert path.name.startswith("step-tiny-26tok-cpu-fp32-") and str(path) in capsys.readouterr().out
    kept = json.loads(path.read_text(encoding="utf-8"))
    assert kept["seconds"] == {"median": 2.0, "low": 2.0, "high": 2.0, "seconds": [2.0]}
    assert kept["options"]["model"] == "tiny" and kept["options"]["precision"] == "fp32"
    machine = kept["machine"]
    assert machine["command"] == "python -m bench.step --model tiny --rounds 3"
    assert machine["cpu"] and machine["cores"] >= 1 and machine["threads"] >= 1 and machine["gpu"] is None
    assert machine["versions"]["torch"] and set(machine["versions"]) >= {"transformers", "trl", "peft"}
    assert machine["date"][:2] == "20" and "commit" in machine


def test_cpu_seconds_do_not_replace_real_ones(tmp_path):
    wall = common.keep("step", given(tmp_path), {})
    assert common.keep("step", given(tmp_path, "--clock", "cpu"), {}) != wall


@pytest.mark.parametrize("wrong", [("--rounds", "0"), ("--warmup", "-1"), ("--threads", "-1")])
def test_wrong_numbers_are_refused(tmp_path, wrong):
    with pytest.raises(UserError, match="--rounds must be at least 1"):
        given(tmp_path, *wrong)


def test_a_cpu_has_no_kernels_to_compile_for(tmp_path):
    with pytest.raises(UserError, match="goes with --device cuda"):
        given(tmp_path, "--compile")


def test_what_is_compiled_is_kept_beside_what_is_not(tmp_path):
    """And a process of its own compiles too."""
    options, compiled = given(tmp_path), given(tmp_path)
    compiled.compile = True
    assert common.keep("step", options, {}) != common.keep("step", compiled, {})
    assert "--compile" in common.shared_arguments(compiled) and "--compile" not in common.shared_arguments(options)


def test_a_missing_package_is_named_with_what_to_install():
    with pytest.raises(UserError, match=r"needs no_such_package.*pip install -e '\.\[bench\]'"):
        common.require("no_such_package")


def test_a_process_of_its_own_hands_over_what_it_measured(tmp_path, capsys):
    common.hand_over({"peak": 3, "seconds": Summary.of([1.0])})
    line = capsys.readouterr().out.strip()
    assert line == 'measured: {"peak": 3, "seconds": {"median": 1.0, "low": 1.0, "high": 1.0, "seconds": [1.0]}}'
    with pytest.raises(UserError, match="failed with status 1"):
        common.fresh_process("bench.no_such_benchmark", [])


def test_a_users_mistake_is_one_sentence(capsys):
    def main(arguments):
        raise UserError("Not like that.")

    assert common.run(main) == 2 and capsys.readouterr().err == "error: Not like that.\n"
