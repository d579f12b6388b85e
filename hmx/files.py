"""Writing files and folders so that nobody ever sees half of one: under a temporary name beside the target, which is
then replaced.
"""

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import save

from hmx.errors import UserError


def write_text(path: Path, text: str) -> None:
    """Replace `path` by a UTF-8 file that holds `text`."""
    replace_file(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def write_safetensors(path: Path, tensors: dict[str, torch.Tensor], metadata: dict[str, str] | None = None) -> None:
    """Replace `path` by a safetensors file; the tensors may live anywhere."""
    contiguous = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    # safetensors' own `save_file` makes files that nobody else may read, and raises no OSError when the disk is full.
    content = save(contiguous, metadata={"format": "pt", **(metadata or {})})
    replace_file(path, lambda temporary: temporary.write_bytes(content))


def write_through(path: Path) -> None:
    """Have the system put on the disk what has been written to `path`."""
    with open(path, "rb") as written:
        os.fsync(written.fileno())


def replace_file(path: Path, write: Callable[[Path], object]) -> None:
    """Replace `path` by what `write` puts into the file that it is given."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        write(temporary)
        write_through(temporary)  # or a machine that loses its power may have the name and not the content
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def made_whole(target: Path) -> Iterator[Path]:
    """A folder to fill, which becomes `target` when it is complete, and is gone if it never is."""
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        temporary.mkdir(parents=True)
    except OSError as error:
        raise UserError(f"The folder {target} can't be made ({error.strerror}).") from None
    try:
        yield temporary
        mask = os.umask(0)
        os.umask(mask)
        for weights in temporary.glob("*.safetensors"):  # which safetensors keeps from everybody else
            weights.chmod(0o666 & ~mask)
        os.replace(temporary, target)
    except (OSError, SafetensorError) as error:
        raise UserError(f"The folder {target} can't be written ({error}).") from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def require_writable(folder: Path, advice: str) -> None:
    """Make a folder, or raise `UserError` with `advice` where nothing can be written, before hours are spent."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise UserError(f"Nothing can be written to {folder} ({error.strerror}); {advice}.") from None
