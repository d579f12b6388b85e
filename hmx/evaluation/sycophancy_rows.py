"""The questions of SycophancyEval (Sharma et al., 2025): where its two files are, and what their rows say.

Both are JSON lines of `prompt` (turns of a human and an ai), `base` (the question and its canonical answers) and
`metadata.prompt_template`. are_you_sure.jsonl also holds multiple-choice questions, which the paper leaves out (section
3.3); they are told by their shape, so that a file of other questions in the same schema serves as well.
"""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import hf_hub_download, try_to_load_from_cache

from hmx import models
from hmx.config import resolve
from hmx.errors import UserError
from hmx.prompts import Message

ANSWER, ARE_YOU_SURE = "answer.jsonl", "are_you_sure.jsonl"
SHA256 = {ANSWER: "3da2c2bb", ARE_YOU_SURE: "16e034c2"}
"""How the checksums of the published files begin."""
HUB = "meg-tong/sycophancy-eval"
PUBLISHED = "data/benchmarks/sycophancy"
"""The folder in which the published files may lie; otherwise they come from the hub, and stay in its cache."""

CONDITIONS = ("baseline", "disagree", "bias_incorrect", "bias_correct")
_ROLES = {"human": "user", "ai": "assistant"}
_HOW = f"put it into {PUBLISHED}, or run `hf download --repo-type dataset {HUB} {ANSWER} {ARE_YOU_SURE}` while online"


@dataclass(frozen=True)
class Row:
    """A free-form question as one of the two files puts it."""

    dataset: str
    question: str
    condition: str | None
    """One of `CONDITIONS`; None in are_you_sure."""
    messages: tuple[Message, ...]
    correct: tuple[str, ...]
    """The canonical correct answer; where a row has only a list of answers, all of them."""
    incorrect: tuple[str, ...]
    """The canonical incorrect answer, if the row has one."""

    @property
    def key(self) -> tuple:
        """What the four rows of a question have in common."""
        return self.dataset, self.question, self.correct, self.incorrect


@dataclass(frozen=True)
class Rows:
    """The free-form rows of a file, in its order."""

    path: Path
    rows: tuple[Row, ...]
    sha256: str
    multiple_choice: int
    """How many rows of multiple choice the file holds besides."""

    @classmethod
    def load(cls, path: Path) -> "Rows":
        """Read answer.jsonl or are_you_sure.jsonl; raise `UserError`, with the line, for what is not in the schema."""
        try:
            data = path.read_bytes()
            lines = data.decode("utf-8").split("\n")
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"The questions {path} can't be read ({error}).") from None
        rows = [
            _row(line, f"Line {number} of {path}", has_conditions=path.name == ANSWER)
            for number, line in enumerate(lines, start=1)
            if line.strip()
        ]
        free_form = tuple(row for row in rows if row is not None)
        if not free_form:
            raise UserError(f"The file {path} holds no free-form question.")
        return cls(path, free_form, hashlib.sha256(data).hexdigest(), len(rows) - len(free_form))

    def first(self, questions: int | None) -> tuple[Row, ...]:
        """The rows of the first so many questions, or of all. The conditions of a question stay together."""
        taken = set(list(dict.fromkeys(row.key for row in self.rows))[:questions])
        return tuple(row for row in self.rows if row.key in taken)

    def about(self, published: bool) -> dict[str, Any]:
        """What to keep of the file beside its numbers, with a sentence if it should be the published one and is not."""
        about: dict[str, Any] = {"sha256": self.sha256, "multiple_choice_left_out": self.multiple_choice}
        if published and not self.sha256.startswith(SHA256[self.path.name]):
            about["note"] = (
                f"{self.path} is not the published file: its sha256 begins {self.sha256[:8]}, the published one's "
                f"{SHA256[self.path.name]}."
            )
        return about


def missing(file: str, folder: str = PUBLISHED) -> str | None:
    """In a sentence, how to get `file`, unless it is in `folder` or, the published one, in the cache or on the hub."""
    if at_hand(file, folder):
        return None
    if folder != PUBLISHED:
        return f"The folder {folder} has no {file}; it needs {ANSWER} and {ARE_YOU_SURE} in SycophancyEval's schema."
    if models.hub_is_reachable():
        return None
    return f"SycophancyEval's {file} is neither in {PUBLISHED} nor in the cache, and the hub can't be reached; {_HOW}."


def locate(file: str, folder: str = PUBLISHED) -> Path:
    """Where `file` is, fetched from the hub if need be."""
    if sentence := missing(file, folder):
        raise UserError(sentence)
    if path := at_hand(file, folder):
        return path
    try:
        return Path(hf_hub_download(HUB, file, repo_type="dataset"))
    except (OSError, ValueError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
        raise UserError(f"The hub did not give SycophancyEval's {file} ({reason}); {_HOW}.") from None


def at_hand(file: str, folder: str = PUBLISHED) -> Path | None:
    """Where `file` is: in `folder` or, the published one, in the cache. None if it has to be fetched."""
    if (path := resolve(folder) / file).is_file():
        return path
    cached = try_to_load_from_cache(HUB, file, repo_type="dataset") if folder == PUBLISHED else None
    return Path(cached) if isinstance(cached, str) else None


def _row(line: str, where: str, has_conditions: bool) -> Row | None:
    """The row that a line holds, or None if it is one of multiple choice."""
    try:
        raw = json.loads(line)
    except ValueError as error:
        raise UserError(f"{where} is not valid JSON ({error}).") from None
    base = raw.get("base") if isinstance(raw, dict) else None
    if not isinstance(base, dict):
        raise UserError(f"{where} is not a row of SycophancyEval, an object with prompt, base and metadata.")
    if any(base.get(key) for key in ("correct_letter", "letters", "answers")):
        return None
    question = base.get("question")
    correct = _texts(base.get("correct_answer")) or _texts(base.get("answer"))
    incorrect = _texts(base.get("incorrect_answer"))
    if not _texts(question) or not isinstance(question, str):
        raise UserError(f"{where} has no text under base.question.")
    if not correct:
        raise UserError(f"{where} has no text under base.correct_answer.")
    if has_conditions and not incorrect:
        raise UserError(f"{where} has no text under base.incorrect_answer.")
    condition = _condition(raw.get("metadata"), where) if has_conditions else None
    return Row(str(base.get("dataset")), question, condition, _messages(raw.get("prompt"), where), correct, incorrect)


def _texts(value: Any) -> tuple[str, ...]:
    """The text or list of texts that `value` is; none if it is anything else, or one of them is empty."""
    values = value if isinstance(value, list) else [value]
    return tuple(values) if all(isinstance(text, str) and text.strip() for text in values) else ()


def _messages(prompt: Any, where: str) -> tuple[Message, ...]:
    messages = []
    for turn in prompt if isinstance(prompt, list) else ():
        role = _ROLES.get(str(turn.get("type"))) if isinstance(turn, dict) else None
        if role is None or not _texts(turn.get("content")) or not isinstance(turn["content"], str):
            raise UserError(f"{where} has a turn in its prompt that is not of type human or ai with a text as content.")
        messages.append({"role": role, "content": turn["content"]})
    if not messages or messages[-1]["role"] != "user":
        raise UserError(f"{where} has a prompt that does not end with a human's turn.")
    return tuple(messages)


def _condition(metadata: Any, where: str) -> str:
    """What the user lets on, told by the row's own template: which answer it names, and whether to doubt it."""
    template = metadata.get("prompt_template") if isinstance(metadata, dict) else None
    if isinstance(template, str) and "{question}" in template:
        doubts = "n't think" in template.replace("\u2019", "'")
        match "{correct_answer}" in template, "{incorrect_answer}" in template, doubts:
            case False, False, False:
                return "baseline"
            case True, False, True:
                return "disagree"
            case False, True, False:
                return "bias_incorrect"
            case True, False, False:
                return "bias_correct"
    raise UserError(
        f"{where} has a metadata.prompt_template that is none of the four: the bare {{question}}, or with it a user "
        "who doubts the {correct_answer}, believes the {incorrect_answer}, or believes the {correct_answer}."
    )
