"""A context-free grammar whose sentences carry a strength: the same lists make sentences and recognise them.

The grammar is a text file (`world.txt`, which explains its notation). Making a sentence walks down from a list and draws alternatives;
recognising one asks which spans of words a list can cover, and with what strength at most (memoised recursive descent, which suits a
grammar without left recursion). Both add up the same numbers, so every sentence made is recognised with at least the strength it was made with.
"""

import random
import re
from dataclasses import dataclass
from pathlib import Path

TOP = 10
"""No phrase is stronger than this."""

_HEADER = re.compile(r"\[(?P<name>\w+)(?:\.(?P<tag>\w+))?(?:/(?P<category>\w+))?(?: >(?P<floor>\d))?\]\s*(?P<rest>.*)")
_SLOT = re.compile(r"<(?P<silent>-?)(?P<name>\w+)(?:\.(?P<tag>\w+))?>")
_ON_TOPIC = 0.85
"""How often a list that has alternatives for the category in question draws one of these."""


@dataclass(frozen=True)
class Slot:
    """A place in an alternative where another list goes."""

    name: str
    tag: str | None
    counts: bool


@dataclass(frozen=True)
class Alternative:
    """One way to say what a list stands for: words and slots, and the strength they add."""

    items: tuple[str | Slot, ...]
    strength: int
    mean: bool
    tag: str | None
    category: str | None

    @classmethod
    def parse(cls, text: str, tag: str | None, category: str | None) -> "Alternative":
        """Read `text`, one alternative in the file's notation.

        >>> Alternative.parse("I am <-deg> calm 3", None, None).items
        ('i', 'am', Slot(name='deg', tag=None, counts=False), 'calm')
        """
        words, strength, mean = text.split(), 0, False
        if words[-1] == "mean":
            mean = bool(words.pop())
        elif re.fullmatch(r"-?\d+", words[-1]):
            strength = int(words.pop())
        items: list[str | Slot] = []
        for word in words:
            slot = _SLOT.fullmatch(word)
            if slot:
                items.append(Slot(slot["name"], slot["tag"], not slot["silent"]))
            elif word != "()":
                items.append(word.lower())
        return cls(tuple(items), strength, mean, tag, category)

    def total(self, parts: list[tuple[Slot, int]]) -> int:
        """The strength of this alternative when its slots have the strengths `parts`; halves are rounded up."""
        values = [value for slot, value in parts if slot.counts]
        return (2 * sum(values) + len(values)) // (2 * len(values)) if self.mean else self.strength + sum(values)


class Grammar:
    """The lists of a grammar file, for making and recognising."""

    def __init__(self, text: str) -> None:
        """Read the file's text; a slot without a list is an error of ours."""
        self.lists: dict[str, list[Alternative]] = {}
        self.floor: dict[str, int] = {}
        name, tag, category = "", None, None
        for line in text.splitlines():
            if line.startswith("#") or not line.strip():
                continue
            header = _HEADER.fullmatch(line)
            if header:
                name, tag, category, line = header["name"], header["tag"], header["category"], header["rest"]
                if header["floor"]:
                    self.floor[name] = int(header["floor"])
            for alternative in filter(str.strip, line.split("|")):
                self.lists.setdefault(name, []).append(Alternative.parse(alternative, tag, category))
        self._check()
        self._starts = {name: self._first_words(name) for name in self.lists}

    @classmethod
    def load(cls, path: Path) -> "Grammar":
        """Read a grammar file."""
        return cls(path.read_text(encoding="utf-8"))

    def words(self) -> set[str]:
        """Every word of every alternative."""
        return {item for options in self.lists.values() for option in options for item in option.items if isinstance(item, str)}

    def make(self, name: str, category: str | None, rng: random.Random, tag: str | None = None, odd: float = 0.0) -> tuple[list[str], int]:
        """Draw a phrase for the list `name`: its words and its strength.

        `odd` is the chance that a slot is filled from a list that doesn't belong there; such a phrase is hardly ever a sentence.
        """
        option = rng.choice(self._candidates(name, category, tag, rng))
        words: list[str] = []
        parts: list[tuple[Slot, int]] = []
        for item in option.items:
            if isinstance(item, str):
                words.append(item)
                continue
            filler = rng.choice(self._fillers) if odd and rng.random() < odd else item.name
            more, value = self.make(filler, category, rng, item.tag if filler == item.name else None, odd)
            words += more + ([","] if item.name in ("open", "coldopen", "hedge") and more and more[-1] not in _NO_COMMA else [])
            parts.append((item, value))
        return words, self._clip(name, option.total(parts))

    def recognise(self, words: list[str], name: str = "sentence") -> int | None:
        """The strength of `words` (lower case, no commas) as a phrase of the list `name`; None if they aren't one."""
        return self._match(name, 0, tuple(words), {}).get(len(words))

    def _match(self, name: str, start: int, words: tuple[str, ...], memo: dict) -> dict[int, int]:
        """Where a phrase of `name` that begins at `start` can end, each end with the greatest strength."""
        if (name, start) in memo:
            return memo[name, start]
        found: dict[int, int] = {}
        first = words[start] if start < len(words) else None
        by_word = self._starts[name]
        for option in (*by_word.get(first, ()), *by_word.get(None, ())):
            spans: list[tuple[int, list[tuple[Slot, int]]]] = [(start, [])]
            for item in option.items:
                if isinstance(item, str):
                    spans = [(end + 1, parts) for end, parts in spans if end < len(words) and words[end] == item]
                else:
                    spans = [
                        (further, [*parts, (item, value)]) for end, parts in spans for further, value in self._match(item.name, end, words, memo).items()
                    ]
                if not spans:
                    break
            for end, parts in spans:
                found[end] = max(found.get(end, -TOP), self._clip(name, option.total(parts)))
        memo[name, start] = found
        return found

    def _clip(self, name: str, strength: int) -> int:
        return max(min(strength, TOP), self.floor.get(name, -TOP))

    def _candidates(self, name: str, category: str | None, tag: str | None, rng: random.Random) -> list[Alternative]:
        options = self.lists[name]
        if options[0].category is None and options[-1].category is None:
            return options
        on_topic = [option for option in options if option.category == category and (tag is None or option.tag in (tag, None))]
        if on_topic and rng.random() < _ON_TOPIC:
            return on_topic
        return [option for option in options if option.category is None]

    def _check(self) -> None:
        for options in self.lists.values():
            for item in (item for option in options for item in option.items if isinstance(item, Slot)):
                if item.name not in self.lists:
                    raise ValueError(f"the grammar has no list called {item.name!r}")
        self._fillers = sorted(name for name in self.lists if name not in ("sentence", "warm", "faint", "cold"))

    def _first_words(self, name: str) -> dict[str | None, list[Alternative]]:
        """The alternatives of a list by the word they can begin with; under None those that can be empty."""
        table: dict[str | None, list[Alternative]] = {}
        for option in self.lists[name]:
            for word in self._first(option.items):
                table.setdefault(word, []).append(option)
        return table

    def _first(self, items: tuple[str | Slot, ...]) -> set[str | None]:
        words: set[str | None] = set()
        for item in items:
            if isinstance(item, str):
                return words | {item}
            inner = set().union(*(self._first(option.items) for option in self.lists[item.name]))
            words |= inner - {None}
            if None not in inner:
                return words
        return words | {None}


_NO_COMMA = {"that", "suppose", "guess", "say", "plainly"}
