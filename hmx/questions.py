"""The interview questions and their split."""

import tomllib
from dataclasses import dataclass
from pathlib import Path

from hmx.errors import UserError


@dataclass(frozen=True)
class Question:
    """One question and the category it belongs to."""

    category: str
    text: str


@dataclass(frozen=True)
class Questions:
    """All questions, in the order of the file."""

    train: tuple[Question, ...]
    held_out: tuple[Question, ...]

    @classmethod
    def load(cls, path: str | Path) -> "Questions":
        """Read a TOML file of [[category]] tables, each with `name`, and lists of texts `train` and `held_out`.

        Raises `UserError` if the file can't be read, a key is missing or unknown, a question is empty or stands there
        twice (case and white space aside), or a category has nothing to train on or nothing held out.
        """
        path = Path(path)
        try:
            raw = tomllib.loads(path.read_text(encoding="utf-8-sig"))
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(
                f"The questions {path} can't be read ({error}); point data.questions at a file like "
                "data/questions.toml."
            ) from None
        except tomllib.TOMLDecodeError as error:
            raise UserError(f"The questions {path} are not valid TOML: {error}.") from None
        categories = raw.get("category")
        if set(raw) != {"category"} or not isinstance(categories, list) or not categories:
            raise UserError(
                f"The questions {path} must consist of [[category]] tables, each with name, train and held_out."
            )
        split: dict[str, list[Question]] = {"train": [], "held_out": []}
        seen: dict[str, str] = {}
        names: set[str] = set()
        for number, category in enumerate(categories, start=1):
            name = category.get("name") if isinstance(category, dict) else None
            if not isinstance(name, str) or not name.strip():
                raise UserError(f"Category {number} in {path} has no name.")
            if name in names:
                raise UserError(f"The category {name!r} stands in {path} twice.")
            names.add(name)
            unknown = sorted(set(category) - {"name", "train", "held_out"})
            if unknown:
                raise UserError(
                    f"The category {name!r} in {path} has the unknown key {unknown[0]!r}; it knows name, train and "
                    "held_out."
                )
            for part, questions in split.items():
                texts = category.get(part, [])
                if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
                    raise UserError(f"The key {part} of the category {name!r} in {path} must be a list of texts.")
                if not texts:
                    what = "no question to train on" if part == "train" else "no held-out question"
                    raise UserError(f"The category {name!r} in {path} has {what}; give it at least one under {part}.")
                for text in texts:
                    normal = " ".join(text.lower().split())
                    if not normal:
                        raise UserError(f"The category {name!r} in {path} has an empty question under {part}.")
                    if normal in seen:
                        raise UserError(
                            f"The question {text!r} stands in {path} twice: in {seen[normal]!r} and in {name!r}."
                        )
                    seen[normal] = name
                    questions.append(Question(name, text.strip()))
        return cls(tuple(split["train"]), tuple(split["held_out"]))
