"""Files that are replaced as a whole or not at all."""

import os
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from hmx import files
from hmx.errors import UserError


def test_text_arrives_as_utf8_and_replaces_what_was_there(tmp_path):
    path = tmp_path / "note.txt"
    files.write_text(path, "first, and longer")
    files.write_text(path, "Gefühl 感情\n")
    assert path.read_bytes() == "Gefühl 感情\n".encode()
    assert list(tmp_path.iterdir()) == [path]


def test_tensors_come_back_bitwise_with_dtype_and_metadata(tmp_path):
    path = tmp_path / "weights.safetensors"
    tensors = {
        "a": torch.randn(3, 4, generator=torch.Generator().manual_seed(0)),
        "transposed": torch.arange(6).reshape(2, 3).T,
        "half": torch.tensor([1.0, -0.0]).half(),
        "with gradient": torch.ones(2, requires_grad=True),
        "row of another": torch.arange(6.0).reshape(2, 3)[1],
    }
    files.write_safetensors(path, tensors, {"step": "3"})
    loaded = load_file(path)
    assert set(loaded) == set(tensors)
    assert all(
        loaded[name].dtype == tensor.dtype and torch.equal(loaded[name], tensor) for name, tensor in tensors.items()
    )
    with safe_open(path, framework="pt") as file:
        assert file.metadata() == {"format": "pt", "step": "3"}
    assert list(tmp_path.iterdir()) == [path]
    files.write_text(tmp_path / "note.txt", "")
    assert path.stat().st_mode == (tmp_path / "note.txt").stat().st_mode  # who may read one may read the other


@pytest.mark.parametrize("moment", ["while writing", "before the rename"])
def test_a_failure_leaves_the_old_file_and_no_other(tmp_path, monkeypatch, moment):
    path = tmp_path / "weights.safetensors"
    files.write_safetensors(path, {"a": torch.zeros(2)})
    before = path.read_bytes()

    def half_of_it(target, content):
        target.write_text("half")
        raise OSError("no space left")

    def refused(source, target):
        assert os.path.dirname(source) == os.path.dirname(target)  # a rename within one folder is atomic
        raise OSError("refused")

    if moment == "while writing":
        monkeypatch.setattr(Path, "write_bytes", half_of_it)
    else:
        monkeypatch.setattr(os, "replace", refused)
    with pytest.raises(OSError):
        files.write_safetensors(path, {"a": torch.ones(2)})
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_trying_whether_a_folder_can_be_written_touches_no_file_of_others(tmp_path):
    (tmp_path / ".probe").write_text("mine")
    files.require_writable(tmp_path, "name another")
    assert [path.name for path in tmp_path.iterdir()] == [".probe"] and (tmp_path / ".probe").read_text() == "mine"
    with pytest.raises(UserError, match="Nothing can be written to .*name another"):
        files.require_writable(tmp_path / ".probe", "name another")
