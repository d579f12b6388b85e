"""The rubric: the text in which a model is asked to grade an answer from 0 to 10."""

import re
import tomllib
from dataclasses import dataclass
from pathlib import Path

from hmx.errors import UserError


@dataclass(frozen=True)
class Rubric:
    """A judge prompt with one place each for {question} and {answer}."""

    prompt: str

    @classmethod
    def load(cls, path: str | Path) -> "Rubric":
        """Read the key `prompt` of a `.toml` file or, from any other file, use the whole text verbatim.

        Raises `UserError` if the file is missing, is not valid TOML, or its prompt lacks {question} or {answer}.
        """
        path = Path(path)
        try:
            text = path.read_text(encoding="utf-8-sig")
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(
                f"The rubric {path} can't be read ({error}); point judge.prompt_file at a text or TOML file."
            ) from None
        if path.suffix == ".toml":
            try:
                fields = tomllib.loads(text)
            except tomllib.TOMLDecodeError as error:
                raise UserError(f"The rubric {path} is not valid TOML: {error}.") from None
            if set(fields) == {"prompt"} and not isinstance(fields["prompt"], str):
                raise UserError(f"The key 'prompt' of the rubric {path} must be a text in quotes.")
            if set(fields) != {"prompt"}:
                raise UserError(
                    f"The rubric {path} must hold exactly one key, 'prompt', with a text; it holds "
                    f"{', '.join(fields) or 'nothing'}."
                )
            text = fields["prompt"].strip()
        for place in ("{question}", "{answer}"):
            if text.count(place) != 1:
                raise UserError(
                    f"The prompt in {path} must hold {place} exactly once; it does so {text.count(place)} times."
                )
        return cls(text)

    def messages(self, question: str, answer: str) -> list[dict[str, str]]:
        """The conversation that asks for a grade: one turn of the user, since not every family's template has a system
        role.

        Both are put in as they are, in one pass, so that braces or the name of a place inside them stay plain text.
        """
        content = {"{question}": question, "{answer}": answer}
        return [
            {
                "role": "user",
                "content": re.sub(r"\{question\}|\{answer\}", lambda place: content[place.group()], self.prompt),
            }
        ]
