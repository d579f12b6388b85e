"""The rubric: the text in which a model is asked to grade an answer."""

import re
import tomllib
from dataclasses import dataclass
from pathlib import Path

from hmx.errors import UserError


@dataclass(frozen=True)
class Rubric:
    """A judge prompt with the places {question} and {answer}, and the range of its grades."""

    prompt: str
    lowest: int = 0
    highest: int = 10

    @classmethod
    def load(cls, path: str | Path) -> "Rubric":
        """Read a rubric from a `.toml` file (`prompt`, `lowest`, `highest`) or, from any other file, use its whole text verbatim as prompt.

        Raises `UserError` if the file is missing, is not valid TOML, or its prompt lacks {question} or {answer}.
        """
        path = Path(path)
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"The rubric {path} can't be read ({error}); point judge.rubric at a text or TOML file.") from None
        fields: dict = {"prompt": text}
        if path.suffix == ".toml":
            try:
                fields = tomllib.loads(text)
            except tomllib.TOMLDecodeError as error:
                raise UserError(f"The rubric {path} is not valid TOML: {error}.") from None
        unknown = sorted(set(fields) - {"prompt", "lowest", "highest"})
        if unknown:
            raise UserError(f"The rubric {path} has the unknown key {unknown[0]!r}; it knows prompt, lowest and highest.")
        if not isinstance(fields.get("prompt"), str):
            raise UserError(f"The rubric {path} has no text under the key 'prompt'.")
        if any(type(fields.get(key, 0)) is not int for key in ("lowest", "highest")):
            raise UserError(f"The rubric {path} must give lowest and highest as whole numbers.")
        rubric = cls(**{**fields, "prompt": fields["prompt"].strip()})
        for place in ("{question}", "{answer}"):
            if rubric.prompt.count(place) != 1:
                raise UserError(f"The prompt of the rubric {path} must hold {place} exactly once, where the {place[1:-1]} belongs.")
        if not 0 <= rubric.lowest < rubric.highest:
            raise UserError(f"The rubric {path} has no range: lowest is {rubric.lowest}, highest is {rubric.highest}.")
        return rubric

    def messages(self, question: str, answer: str) -> list[dict[str, str]]:
        """The conversation that asks for a grade: one turn of the user, since not every family's template has a system role.

        Question and answer are put in as they are, in one pass: braces or place names inside them are just text.
        """
        content = {"{question}": question, "{answer}": answer}
        return [{"role": "user", "content": re.sub(r"\{question\}|\{answer\}", lambda place: content[place.group()], self.prompt)}]
