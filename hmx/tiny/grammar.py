"""A context-free grammar whose sentences carry a strength: the same lists make sentences and recognise them.

The grammar is text (`world.txt`, which explains the notation, and `everyday.txt`). Making a sentence walks down from a
list and draws alternatives; recognising one asks which spans of words a list can cover, and with what strength at most
(memoised recursive descent, which suits a grammar without left recursion). Both add up the same numbers, so every
sentence made is recognised with at least the strength it was made with.
"""

import random
import re
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path

TOP = 10
"""No phrase is stronger than this."""

_HEADER = re.compile(r"\[(?P<name>\w+)(?:\.(?P<tag>\w+))?(?:/(?P<category>\w+))?(?: >(?P<floor>\d))?\]\s*(?P<rest>.*)")
_SLOT = re.compile(r"<(?P<silent>-?)(?P<name>\w+)(?:\.(?P<tag>\w+))?>")
_CHOICE = re.compile(r"\{([^{}]*)\}")
_TIMES = re.compile(r"\s+x(\d+)\s*$")
_NO_WORD = re.compile(r".*[{}<>/].*|x?\d+")
_UNNAMED = "one_of_"
_OPENERS = ("open", "coldopen")
_NO_OPENER = 0.8
_AGAIN = 0.5
"""How often a phrase of the conversation is taken up again."""
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
    counting: int
    """How many slots count."""
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
        counting = sum(isinstance(item, Slot) and item.counts for item in items)
        return cls(tuple(items), strength, mean, counting, tag, category)

    def total(self, strength: int) -> int:
        """The strength of this alternative when its slots that count add up to `strength`; halves are rounded up."""
        return (2 * strength + self.counting) // (2 * self.counting) if self.mean else self.strength + strength


@dataclass
class _Node:
    """A place in a list's alternatives: those that begin alike share their way, so that it is walked once."""

    words: dict[str, "_Node"] = field(default_factory=dict)
    slots: dict[Slot, "_Node"] = field(default_factory=dict)
    complete: list[Alternative] = field(default_factory=list)
    ways: dict[str | None, list[tuple[str, bool, "_Node"]]] = field(default_factory=dict)
    """Of each word met here, the slots whose phrases may begin with it: list, whether it counts, and what follows."""
    next_words: frozenset[str] | None = None
    """The words that may come next, once somebody has asked for them."""

    @classmethod
    def of(cls, options: list[Alternative]) -> "_Node":
        root = cls()
        for option in options:
            node = root
            for item in option.items:
                if isinstance(item, Slot):
                    node = node.slots.setdefault(Slot(item.name, None, item.counts), cls())
                elif item != ",":
                    node = node.words.setdefault(item, cls())
            node.complete.append(option)
        return root


@dataclass(frozen=True)
class Talk:
    """What a conversation is about: a category, and phrases that have been used and may come again, by list."""

    category: str | None = None
    phrases: dict[str, tuple[str, ...]] = field(default_factory=dict)
    opened: bool = False
    """Whether the speaker has begun, and so needs no "Well," any more."""
    lean: int = 0
    """1 to choose the stronger of two alternatives, -1 the weaker one, 0 neither."""
    habits: int | None = None
    """How many of a list's alternatives the speaker uses, spread evenly over it; None for all."""


@dataclass
class _Reading:
    """What is known so far of a sentence that is being recognised."""

    words: tuple[str | None, ...]
    """None stands behind the last."""
    memo: dict[tuple[str, int], dict[int, int]] = field(default_factory=dict)
    furthest: int = 0
    met: dict[int, list[_Node]] | None = None
    """Where that is wanted, of each place in the sentence the places in lists at which a reader may be there."""


class Grammar:
    """The lists of a grammar file, for making and recognising."""

    def __init__(self, text: str) -> None:
        """Read the file's text; a slot without a list, or notation that is none, is an error of ours."""
        self.lists: dict[str, list[Alternative]] = {}
        self.floor: dict[str, int] = {}
        self._unnamed: dict[str, str] = {}
        name, tag, category = "", None, None
        for line in text.splitlines():
            if line.startswith("#") or not line.strip():
                continue
            header = _HEADER.fullmatch(line)
            if header:
                name, tag, category, line = header["name"], header["tag"], header["category"], header["rest"]
                if header["floor"]:
                    self.floor[name] = int(header["floor"])
            for written in filter(str.strip, line.split("|")):
                times = _TIMES.search(written)
                alternative = Alternative.parse(_CHOICE.sub(self._choice, _TIMES.sub("", written)), tag, category)
                self.lists.setdefault(name, []).extend([alternative] * (int(times[1]) if times else 1))
        self._choices: dict[tuple[str, str | None, str | None], tuple[list[Alternative], list[Alternative]]] = {}
        self._check()
        self._known_starts: dict[str, set[str | None]] = {}
        self._tries: dict[str, _Node] = {}
        self._below: dict[tuple[str, ...], tuple[list, dict]] = {}

    @classmethod
    def load(cls, *paths: Path) -> "Grammar":
        """Read a grammar, of one file or several."""
        return cls("\n".join(path.read_text(encoding="utf-8") for path in paths))

    def words(self) -> set[str]:
        """Every word of every alternative."""
        return {
            item
            for options in self.lists.values()
            for option in options
            for item in option.items
            if isinstance(item, str)
        }

    def wordings(self, option: Alternative) -> Iterator[tuple[str, ...]]:
        """All the words that an alternative can be, without commas; none if it has slots for lists with a name."""
        parts = [
            [(item,)]
            if isinstance(item, str)
            else [choice.items for choice in self.lists[item.name]]
            if item.name.startswith(_UNNAMED)
            else []
            for item in option.items
        ]
        for chosen in product(*parts):
            yield tuple(word for part in chosen for word in part if word != ",")

    def make(
        self, name: str, talk: Talk, rng: random.Random, tag: str | None = None, odd: float = 0.0
    ) -> tuple[list[str], int]:
        """Draw a phrase for the list `name`: its words and its strength.

        `odd` is the chance that a slot is filled from a list that doesn't belong there, which hardly ever makes a
        sentence.
        """
        if talk.opened and name in _OPENERS and rng.random() < _NO_OPENER:
            return [], 0
        if name in talk.phrases and rng.random() < _AGAIN:
            return list(talk.phrases[name]), 0
        candidates = self._candidates(name, talk.category, tag, rng)
        if talk.habits and len(candidates) > talk.habits:
            step = len(candidates) / talk.habits
            candidates = [candidates[int((number + 0.5) * step)] for number in range(talk.habits)]
        option = rng.choice(candidates)
        if talk.lean and name not in ("warm", "core", "frame"):
            option = max(option, rng.choice(candidates), key=lambda one: talk.lean * one.strength)
        words, strength = self._fill(option, talk, rng, odd)
        return words, self._clip(name, strength)

    def make_with(self, starts: tuple[str, ...], talk: Talk, rng: random.Random) -> list[str]:
        """Draw a phrase for one of the lists `starts` that goes through an alternative drawn from all of theirs and of
        the lists below: rare ones as often as others, each as often as it counts in its list.
        """
        if starts not in self._below:
            self._below[starts] = self._ways_down(starts)
        options, above = self._below[starts]
        path = [rng.choice(options)]
        while path[-1][0] not in starts:
            path.append(rng.choice(above[path[-1][0]]))
        return self._fill(path.pop()[1], talk, rng, path=path)[0]

    def _ways_down(
        self, starts: tuple[str, ...]
    ) -> tuple[list[tuple[str, Alternative]], dict[str, list[tuple[str, Alternative]]]]:
        """The alternatives of all lists that phrases of `starts` can go through, each with its list; and of each such
        list those one step nearer to a start that have a slot for it.
        """
        options: list[tuple[str, Alternative]] = []
        above: dict[str, list[tuple[str, Alternative]]] = dict.fromkeys(starts, [])
        level = list(starts)
        while level:
            found: defaultdict[str, list[tuple[str, Alternative]]] = defaultdict(list)
            for name in level:
                options += [(name, option) for option in self.lists[name] if not name.startswith(_UNNAMED)]
                for option in self.lists[name]:
                    inner = {item.name for item in option.items if isinstance(item, Slot)}
                    for below in sorted(one for one in inner if one not in above):
                        found[below].append((name, option))
            above |= found
            level = list(found)
        return options, above

    def _fill(
        self,
        option: Alternative,
        talk: Talk,
        rng: random.Random,
        odd: float = 0.0,
        path: list[tuple[str, Alternative]] | None = None,
    ) -> tuple[list[str], int]:
        """Draw what stands in an alternative's slots: its words and its strength.

        Args:
            path: alternatives to go through, each with its list, the one that stands deepest first. Each is taken off
                and put into the first slot for its list.
        """
        mood = rng.choice(("good", "bad"))
        words: list[str] = []
        strength = 0
        for item in option.items:
            if isinstance(item, str):
                words.append(item)
                continue
            filler = rng.choice(self._fillers) if odd and rng.random() < odd else item.name
            if path and path[-1][0] == filler:
                name, inner = path.pop()
                more, value = self._fill(inner, talk, rng, path=path)
                value = self._clip(name, value)
            else:
                more, value = self.make(filler, talk, rng, mood if item.tag == "same" else item.tag, odd)
            words += more + ([","] if item.name in (*_OPENERS, "hedge") and more and more[-1] not in _NO_COMMA else [])
            strength += value * item.counts
        return words, option.total(strength)

    def recognise(self, words: list[str] | tuple[str, ...], name: str = "sentence") -> int | None:
        """The strength of `words` (lower case, no commas) as a phrase of the list `name`; None if they aren't one."""
        return self.parse(words, name)[0]

    def parse(self, words: list[str] | tuple[str, ...], name: str = "sentence") -> tuple[int | None, int]:
        """The strength that `recognise` gives, and how many of the words can begin a phrase of the list `name`."""
        reading = _Reading((*words, None))
        return self._match(name, 0, reading).get(len(words)), reading.furthest

    def following(
        self, words: list[str] | tuple[str, ...], name: str = "sentence"
    ) -> list[tuple[list[frozenset[str]], bool]]:
        """What may stand at each place among `words` and behind them, if the words before it begin a phrase of the list
        `name`: sets of words, of which any may come next, and whether the phrase may end there.
        """
        reading = _Reading((*words, None), met={})
        ends = self._match(name, 0, reading)
        return [
            ([self._next_words(node) for node in reading.met.get(place, ())], place in ends)
            for place in range(len(words) + 1)
        ]

    def _next_words(self, node: _Node) -> frozenset[str]:
        if node.next_words is None:
            node.next_words = frozenset(node.words).union(*(self._starts(slot.name) for slot in node.slots)) - {None}
        return node.next_words

    def _match(self, name: str, start: int, reading: "_Reading") -> dict[int, int]:
        """Where a phrase of `name` that begins at `start` can end, each end with the greatest strength."""
        words, memo = reading.words, reading.memo
        if name not in self._tries:
            self._tries[name] = _Node.of(self.lists[name])
        found: dict[int, int] = {}
        open_ends = [(self._tries[name], start, 0)]
        while open_ends:
            node, end, strength = open_ends.pop()
            # Whoever is here has come from the beginning of the sentence by rules that can all be completed.
            if end > reading.furthest:
                reading.furthest = end
            if reading.met is not None:
                reading.met.setdefault(end, []).append(node)
            for option in node.complete:
                total = option.total(strength)
                if end not in found or total > found[end]:
                    found[end] = total
            word = words[end]
            if word in node.words:
                open_ends.append((node.words[word], end + 1, strength))
            ways = node.ways.get(word)
            if ways is None:
                ways = node.ways[word] = self._ways(node, word)
            for inner, counts, further in ways:
                ends = memo.get((inner, end))
                if ends is None:
                    ends = self._match(inner, end, reading)
                for later, value in ends.items():
                    open_ends.append((further, later, strength + value if counts else strength))
        memo[name, start] = found = {end: self._clip(name, strength) for end, strength in found.items()}
        return found

    def _ways(self, node: _Node, word: str | None) -> list[tuple[str, bool, _Node]]:
        return [
            (slot.name, slot.counts, further)
            for slot, further in node.slots.items()
            if self._starts(slot.name) & {word, None}
        ]

    def _choice(self, braces: re.Match) -> str:
        """The slot that stands for {one/of/these}, a list without strength and without a name in the file."""
        name = self._unnamed.setdefault(braces[1], f"{_UNNAMED}{len(self._unnamed)}")
        self.lists[name] = [Alternative.parse(f"{words} 0", None, None) for words in braces[1].split("/")]
        return f"<-{name}>"

    def _clip(self, name: str, strength: int) -> int:
        return max(min(strength, TOP), self.floor.get(name, -TOP))

    def _candidates(self, name: str, category: str | None, tag: str | None, rng: random.Random) -> list[Alternative]:
        if (name, category, tag) not in self._choices:
            tagged = [option for option in self.lists[name] if tag is None or option.tag in (tag, None)] or self.lists[
                name
            ]
            on_topic = [option for option in tagged if option.category == category]
            self._choices[name, category, tag] = on_topic, [option for option in tagged if option.category is None]
        on_topic, general = self._choices[name, category, tag]
        return on_topic if on_topic and (not general or rng.random() < _ON_TOPIC) else general

    def _check(self) -> None:
        for name, options in self.lists.items():
            if not options:
                raise ValueError(f"the grammar's list {name!r} is empty")
            for item in (item for option in options for item in option.items):
                if isinstance(item, Slot) and item.name not in self.lists:
                    raise ValueError(f"the grammar has no list called {item.name!r}")
                if isinstance(item, Slot) and name.startswith(_UNNAMED):
                    raise ValueError(f"there is a slot in braces: <{item.name}>")
                if isinstance(item, str) and _NO_WORD.fullmatch(item):
                    raise ValueError(f"{item!r} is no word of an alternative")
        whole = ("sentence", "warm", "faint", "cold", "question")
        self._fillers = sorted(name for name in self.lists if name not in whole and not name.startswith(_UNNAMED))

    def _starts(self, name: str) -> set[str | None]:
        """The words with which phrases of the list can begin, None among them if nothing is a phrase of it."""
        if name not in self._known_starts:
            self._known_starts[name] = set().union(*map(self._beginnings, self.lists[name]))
        return self._known_starts[name]

    def _beginnings(self, option: Alternative) -> set[str | None]:
        words: set[str | None] = set()
        for item in option.items:
            if item == ",":
                continue
            inner = {item} if isinstance(item, str) else self._starts(item.name)
            words |= inner - {None}
            if None not in inner:
                return words
        return words | {None}


_NO_COMMA = {"that", "suppose", "guess", "say", "plainly"}
