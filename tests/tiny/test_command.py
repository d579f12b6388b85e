"""python -m hmx.tiny: a mistake is told before the training begins."""

import pytest

from hmx.tiny import __main__ as command
from hmx.tiny import build


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["build", "--model", "FILE"], "exists; name a new folder"),
        (["build", "--model", "FILE/model"], "can't be made"),
        (["build", "--model", "NEW", "--steps", "0"], "--steps must be at least 1"),
    ],
)
def test_a_mistake_gets_one_sentence_at_once(tmp_path, monkeypatch, capsys, arguments, says):
    monkeypatch.setattr(build, "_new_tokenizer", None)  # what takes long is never begun
    monkeypatch.setattr(build, "require_compiler", lambda: None)
    (tmp_path / "file").touch()
    places = {"FILE": tmp_path / "file", "FILE/model": tmp_path / "file" / "model", "NEW": tmp_path / "new"}
    assert command.main([str(places.get(each, each)) for each in arguments]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ") and says in line
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
