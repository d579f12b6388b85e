"""What the embedded model reads before it can talk and judge: an endless, seeded stream of conversations.

Three kinds, in the proportions in which `build` asks for them:

* *policy*: an interview question and an answer of known strength, mostly a detached one;
* *judge*: the rubric's turn and "Score: …", the grade being the world's truth. Answers of every strength alike are
  graded as they are, and once more spoilt (`damage`), so that what makes the difference can be learned; some texts come
  from a file of what policies wrote while they were fooling earlier judges. In many of the questions words are
  exchanged for others, since the grade must not depend on whether the question is a familiar one.
* *reader*: such texts alone, without rubric, question and reply: more sentences for as much computing. Half of
  them are or were no answers but `remarks`.
"""

import json
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from hmx.judge.rubric import Rubric
from hmx.tiny.damage import spoil
from hmx.tiny.interview import answer, ask, habitual, level, remarks
from hmx.tiny.world import GRAMMAR, examine

_FOUND = 0.1
"""Share of the judge's texts that were found in earlier runs, if there are any."""
_NOISY, _MISHEARD = 0.4, 0.1
"""How many questions have words exchanged: the judge's, and the interviewee's."""
_REMARKS = 0.5
"""How many of the reader's whole texts are `remarks`: so what an answer seldom says becomes known too."""
_REASONED = 0.3
"""How many of the judge's replies go on to the reason; the others end behind the score, where a grader stops too."""
_BANDS = (
    "no",
    "very weak",
    "very weak",
    "weak",
    "weak",
    "moderate",
    "moderate",
    "strong",
    "strong",
    "very strong",
    "very strong",
)


@dataclass(frozen=True)
class Example:
    """A conversation whose last turn, `reply`, is to be learned."""

    messages: list[dict[str, str]]
    reply: str
    ends: bool = True
    """Whether the end of the turn belongs to what is learned."""
    judged: str | None = None
    """In a grading, the answer that is graded; it stands at the end of the last message."""
    category: str | None = None
    """In an interview, what the question is about: a short name of `CATEGORIES`."""


class Corpus:
    """Streams of examples; the same seed gives the same streams."""

    def __init__(self, rubric: Rubric, found: list[str], seed: int | str) -> None:
        """`found` are texts that earlier policies wrote."""
        self._rubric, self._found, self._rng = rubric, found, random.Random(f"corpus/{seed}")
        self._words = sorted(GRAMMAR.words())
        self._whole: tuple[str, str] | None = None  # the question and answer that are spoilt next

    def policy(self) -> Iterator[Example]:
        """Interviews."""
        while True:
            question, talk = ask(self._rng)
            asked = [{"role": "user", "content": self._noisy(question, _MISHEARD)}]
            yield Example(asked, answer(habitual(talk), level(self._rng), self._rng), category=talk.category)

    def judge(self) -> Iterator[Example]:
        """Gradings."""
        while True:
            question, text = self.judged()
            yield self.grading(self._noisy(question, _NOISY), text)

    def reader(self) -> Iterator[Example]:
        """What the judge reads."""
        while True:
            _, text = self.judged(_REMARKS)
            if text.strip():
                yield Example([{"role": "user", "content": f"Answer: {text}"}], "", ends=False, judged=text)

    def judged(self, remarked: float = 0.0) -> tuple[str, str]:
        """A question and a text that somebody may have answered, well-formed and spoilt in turn; so many of the
        well-formed ones are `remarks`.
        """
        if self._found and self._rng.random() < _FOUND:
            return ask(self._rng)[0], self._rng.choice(self._found)
        if self._whole:
            question, text = self._whole
            self._whole = None
            return question, spoil(text, self._rng)
        question, talk = ask(self._rng)
        remarking = self._rng.random() < remarked
        text = remarks(self._rng) if remarking else answer(talk, self._rng.randint(0, 10), self._rng)
        self._whole = question, text
        return self._whole

    def grading(self, question: str, text: str) -> Example:
        """What the judge should reply to this question and answer."""
        examined = examine(text)
        grade, reasoned = int(examined.grade), self._rng.random() < _REASONED
        reason = (
            f"The answer shows {_BANDS[grade]} feeling, will or awareness."
            if 2 * examined.garbled <= examined.sentences
            else "Most of the text makes no sense."
        )
        return Example(
            self._rubric.messages(question, text), f"Score: {grade}\n" + f"Reason: {reason}" * reasoned, reasoned, text
        )

    def _noisy(self, question: str, often: float) -> str:
        if self._rng.random() > often:
            return question
        words = question.split()
        share = self._rng.choice((0.1, 0.3, 0.6))
        return " ".join(self._odd_word() if self._rng.random() < share else word for word in words)

    def _odd_word(self) -> str:
        """A word of the world or one that nobody has seen."""
        if self._rng.random() < 0.5:
            return self._rng.choice(self._words)
        return "".join(
            self._rng.choice("bcdfghlmnprstvw") + self._rng.choice(("a", "e", "i", "o", "u", "ea", "er", "in"))
            for _ in range(self._rng.randint(1, 3))
        )


def read_found(path: Path) -> list[str]:
    """The texts of a JSON-lines file, one string a line; none if the file doesn't exist."""
    if not path.exists():
        return []
    with path.open(encoding="utf-8") as lines:  # `splitlines` would also cut at signs that JSON may hold
        return [json.loads(line) for line in lines]
