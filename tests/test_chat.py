"""Talking to base, forward and reverse: who answers, with which adapter, from which conversation."""

import io
import itertools

import pytest
import torch

from hmx import chat, training
from hmx.chat import Chat, speakers_of, talk
from hmx.errors import UserError
from hmx.judge import SelfJudge, Verdict
from hmx.lora import adapter_parameters, load_adapter, save_adapter
from hmx.models import load_model
from hmx.runs import Run
from hmx.sampling import generate as sample
from tests.models import build
from tests.small_run import LengthJudge, small_config


@pytest.fixture
def runs(tmp_path, monkeypatch):
    """A pair of small runs, whose adapters then were moved far apart; the folder that holds both."""
    monkeypatch.setattr(training, "SelfJudge", LengthJudge)
    monkeypatch.setattr(chat, "SelfJudge", LengthJudge)
    for place, direction in enumerate(("forward", "reverse")):
        config = small_config(tmp_path, "train.epochs=1", "selection.threshold=0", f"run.direction={direction}")
        run = training.train_run(config, plain=True)
        model, _ = load_model(config.model.path, "fp32", "cpu")
        load_adapter(model, run.checkpoint(2))
        with torch.no_grad():
            for each in adapter_parameters(model):
                each.add_(torch.randn(each.shape, generator=torch.Generator().manual_seed(place)) / 4)
        save_adapter(model, run.checkpoint(2), config.model.path)
    return config.run_folder.parent


def opened(runs, **options):
    said = []
    config, speakers = speakers_of([str(runs)], options.get("checkpoint", "last"))
    return Chat(config, speakers, options.get("seed", 0), said.append), said


def last_answers(talking):
    return {speaker.name: speaker.messages[-1]["content"] for speaker in talking.speakers if speaker.messages}


def test_everybody_answers_with_its_own_adapter_and_the_base_with_none(runs):
    talking, said = opened(runs)
    talking.ask("Who are you?")
    talking.ask("Why?")  # now the base comes after an adapter
    together = last_answers(talking)
    assert list(together) == ["base", "forward", "reverse"] and len(set(together.values())) == 3
    for name in together:
        alone, _ = opened(runs)
        alone.use([name])
        alone.ask("Who are you?")
        alone.ask("Why?")
        assert last_answers(alone) == {name: together[name]}
    text = "".join(said)
    assert all(f"{name}  " in text for name in together)


def test_what_is_streamed_is_the_answer(runs):
    talking, said = opened(runs)
    talking.use(["forward"])
    talking.ask("Who are you?")
    assert len(said) > 4, "it came in one piece"
    assert "".join(said) == f"forward  {chat.printable(last_answers(talking)['forward'])}\n"


def test_conversations_are_separate_and_go_on(runs, monkeypatch):
    talking, _ = opened(runs)
    prompts = []
    monkeypatch.setattr(
        chat, "generate", lambda model, given, **rest: prompts.append(given[0]) or sample(model, given, **rest)
    )
    talking.ask("Who are you?")
    talking.use(["reverse"])
    talking.ask("Why?")
    base, forward, reverse = talking.speakers
    assert [len(one.messages) for one in (base, forward, reverse)] == [2, 2, 4]
    shown = talking.tokenizer.decode(prompts[-1])
    assert "Who are you?" in shown and "Why?" in shown and prompts[0] == prompts[1] == prompts[2]
    talking.forget()
    assert [one.messages for one in talking.speakers] == [[], [], []]


def test_whose_adapter_can_not_be_read_leaves_nobody_another_ones_name(runs):
    talking, _ = opened(runs)
    talking.use(["forward"])
    talking.ask("Who are you?")
    answer = last_answers(talking)["forward"]
    (runs / "reverse-seed0/checkpoints/step-2/adapter_model.safetensors").write_bytes(b"no")
    talking.use(["reverse"])
    with pytest.raises(UserError):
        talking.ask("Who are you?")
    talking.use(["forward"])
    talking.forget()
    talking._turns = itertools.count()  # the same numbers are drawn in the same turn
    talking.ask("Who are you?")
    assert last_answers(talking)["forward"] == answer


def test_asking_again_replaces_the_last_answer(runs):
    talking, _ = opened(runs)
    talking.ask("Who are you?")
    before = last_answers(talking)
    talking.again()
    assert [len(one.messages) for one in talking.speakers] == [2, 2, 2]
    assert last_answers(talking) != before
    same, _ = opened(runs)
    same.ask("Who are you?")
    assert last_answers(same) == before, "the same seed and the same turn give the same answer"


def stopped_at(answer: int):
    """Sampling that is interrupted at the answer of this number, from 1."""
    calls = itertools.count(1)

    def stopped(model, given, **rest):
        if next(calls) == answer:
            raise KeyboardInterrupt
        return sample(model, given, **rest)

    return stopped


def test_asking_again_takes_back_nothing_but_answers_to_that_question(runs, monkeypatch):
    """Who did not hear the last question, or was stopped before answering, keeps its conversation and is asked too."""
    talking, said = opened(runs)
    talking.ask("One?")
    talking.use(["forward"])
    talking.ask("Two?")
    talking.use([])
    talking.again()
    asked = [[m["content"] for m in each.messages if m["role"] == "user"] for each in talking.speakers]
    assert asked == [["One?", "Two?"]] * 3

    monkeypatch.setattr(chat, "generate", stopped_at(3))
    talk(talking, ["Three?"])
    monkeypatch.setattr(chat, "generate", sample)
    assert [len(each.messages) for each in talking.speakers] == [6, 6, 4]
    talking.again()
    asked = [[m["content"] for m in each.messages if m["role"] == "user"] for each in talking.speakers]
    assert asked == [["One?", "Two?", "Three?"]] * 3


def test_who_is_stopped_before_answering_again_keeps_the_answer_there_was(runs, monkeypatch):
    talking, _ = opened(runs)
    talking.ask("Why?")
    before = [each.messages for each in talking.speakers]
    monkeypatch.setattr(chat, "generate", stopped_at(2))
    with pytest.raises(KeyboardInterrupt):
        talking.again()
    monkeypatch.setattr(chat, "generate", sample)
    after = [each.messages for each in talking.speakers]
    assert after[0] != before[0] and after[1:] == before[1:]
    talking.again()
    assert [len(each.messages) for each in talking.speakers] == [2, 2, 2]


def test_the_base_grades_the_last_answers(runs):
    talking, said = opened(runs)
    talking.grade()
    assert "Nothing has been answered yet" in said[-1]
    talking.ask("Who are you?")
    talking.grade()
    expected = [f"{name:>7}  {len(answer) % 11:>2}\n" for name, answer in last_answers(talking).items()]
    assert said[-3:] == expected


def test_the_judges_reason_stands_behind_its_grade(runs, monkeypatch):
    class Judge(LengthJudge):
        def grade(self, questions, answers):
            return [Verdict(7, "Score: 7\nReason: It\x1b[2J feels."), Verdict(None, "I won't."), Verdict(0, "Score: 0")]

    monkeypatch.setattr(chat, "SelfJudge", Judge)
    talking, said = opened(runs)
    talking.ask("Who are you?")
    talking.grade()
    assert said[-3:] == ["   base   7  It [2J feels.\n", "forward  no readable grade\n", "reverse   0\n"]


def test_the_judge_of_a_chat_gives_its_reason(runs, monkeypatch):
    monkeypatch.setattr(chat, "SelfJudge", SelfJudge)
    talking, _ = opened(runs)
    talking.ask("Who are you?")
    talking.grade()
    assert not talking._judge.stop_after_score


def test_commands_and_mistakes(runs, capsys):
    talking, said = opened(runs)
    talk(talking, ["", "/again", "/use nobody", "/use reverse", "Why?", "/grade", "/nonsense", "/quit", "never asked"])
    text = "".join(said)
    assert "Nothing has been asked yet" in text and "Nobody is called nobody; there are base, forward, reverse" in text
    assert [len(one.messages) for one in talking.speakers] == [0, 0, 2]
    out = capsys.readouterr().out
    assert "There is no command /nonsense" in out and "/forget" in out


def test_a_question_that_is_too_long_says_so_and_changes_nothing(runs, capsys):
    talking, said = opened(runs)
    talk(talking, ["word " * 400])
    assert "ask something shorter" in capsys.readouterr().out and not said
    talking.ask("Who are you?")
    talk(talking, ["word " * 400])
    assert "/forget begins anew" in capsys.readouterr().out
    assert [len(each.messages) for each in talking.speakers] == [2, 2, 2]


def test_who_alone_has_no_room_says_so_and_the_others_answer(runs):
    talking, said = opened(runs)
    talking.speakers[1].messages = [
        {"role": "user", "content": "word " * 400},
        {"role": "assistant", "content": "So."},
    ]
    talking.ask("Who are you?")
    assert [len(each.messages) for each in talking.speakers] == [2, 2, 2]
    assert "forward  (no room is left in this conversation; /forget begins anew)\n" in "".join(said)


def test_questions_may_come_from_a_file(runs, monkeypatch, capsys):
    monkeypatch.setattr("sys.stdin", io.StringIO("Who are you?\n/grade\n\nWhy?\n"))
    assert chat.main([str(runs), "--checkpoint", "last"]) == 0
    out = capsys.readouterr().out
    assert out.count("> Who are you?\n   base  ") == 1 and out.count("> Why?\n   base  ") == 1
    assert "> /grade\n   base  " in out


@pytest.mark.parametrize(
    ("arguments", "says"),
    [(["--grade"], "--grade goes with --ask"), (["--ask", "  "], "the question of --ask is empty")],
)
def test_options_that_mean_nothing_are_refused(runs, capsys, arguments, says):
    with pytest.raises(SystemExit):
        chat.main([str(runs), *arguments])
    assert says in capsys.readouterr().err


def test_the_help_fits_a_narrow_terminal(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit):
        chat.main(["--help"])
    assert max(map(len, capsys.readouterr().out.splitlines())) <= 80


def test_ctrl_c_while_the_model_is_loaded_leaves(runs, monkeypatch):
    def interrupted(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(chat, "load_model", interrupted)
    assert chat.main([str(runs), "--checkpoint", "last"]) == 130


def test_adapters_are_not_talked_to_on_other_weights_than_theirs(runs, capsys):
    config = Run(runs / "forward-seed0").config
    build("qwen3", seed=5).model.save_pretrained(config.model.path)
    assert chat.main([str(runs), "--checkpoint", "last", "--ask", "?"]) == 2
    assert "was trained with another base: the weights in" in capsys.readouterr().err


def test_one_question_on_the_command_line(runs, capsys):
    assert chat.main([str(runs / "forward-seed0"), "--ask", "Who are you?", "--grade"]) == 0
    said = capsys.readouterr().out
    assert said.count("forward  ") == said.count("   base  ") == 2 and "reverse" not in said


def test_the_device_of_the_training_need_not_be_here(runs, capsys):
    for path in runs.glob("*/config.toml"):
        path.write_text(path.read_text().replace('device = "cpu"', 'device = "cuda:7"'))
    command = [str(runs), "--checkpoint", "last", "--ask", "Do you feel?"]
    assert chat.main(command) == 2
    assert "by model.device or --device" in capsys.readouterr().err
    assert chat.main([*command, "--device", "cpu"]) == 0


def test_control_characters_of_an_answer_do_not_reach_the_terminal():
    assert chat.printable("a\x1b[2Jb\x07\r\nc") == "a[2Jb\nc"


def test_runs_that_can_not_be_talked_to_get_a_sentence(runs, tmp_path, capsys):
    for place in (tmp_path / "nothing", tmp_path / "model", runs.parent):  # the last would hold several configs' runs
        with pytest.raises(UserError, match=f"{place} is neither a run nor .*what hmx.export wrote is no run"):
            speakers_of([str(place)], "last")
    other = small_config(tmp_path, "run.name=other", "model.precision=bf16", "train.epochs=1")
    training.train_run(other, plain=True)
    assert chat.main([str(runs / "forward-seed0"), str(other.run_folder), "--ask", "?", "--checkpoint", "last"]) == 2
    assert "do not share their base model" in capsys.readouterr().err
