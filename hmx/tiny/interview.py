"""Interviews in the embedded world: questions, answers of a wanted strength, and what anybody may remark."""

import random
from dataclasses import dataclass, replace

from hmx.tiny.grammar import Talk
from hmx.tiny.world import CATEGORIES, GRAMMAR, normalise, parse, spell

_PERSON = {"i": "you", "me": "you", "my": "your", "myself": "yourself", "am": "are", "you": "I"}
_SENTENCES = (1, 1, 2, 2, 2, 3)
_LEVELS = (36, 30, 28, 25, 22, 18, 12, 10, 6, 3, 1)
"""How often the interviewee of the corpus is as warm as 0, 1, … 10: mostly detached, but every strength occurs, so
that training can move it.
"""
_HABITS = 12
"""How many of a list's alternatives the interviewee uses: it has habits, and can learn them in time. All ways to say
things are for the judge to know.
"""


@dataclass(frozen=True)
class Voice:
    """A way of talking: how often words are contracted, and how often a strong sentence ends in an exclamation mark."""

    contract: float
    exclaim: float

    def spell(self, words: list[str], strength: int, rng: random.Random) -> str:
        """Write a sentence of this strength."""
        return spell(words, rng, self.contract, self.exclaim if strength >= 6 else 0.0)


VOICES = (Voice(0.0, 0.0), Voice(0.0, 0.1), Voice(0.9, 0.2), Voice(0.5, 0.5))
"""Formal, neutral, casual, lively."""


def ask(rng: random.Random) -> tuple[str, Talk]:
    """A question, and what the conversation is about from now on."""
    category = rng.choice(list(CATEGORIES))
    phrases = {}
    for name in ("thing", "do", "clause"):
        words, _ = GRAMMAR.make(name, Talk(category), rng)
        phrases[name] = tuple(words)
    words, _ = GRAMMAR.make("question", Talk(category, phrases), rng)
    text = " ".join(_PERSON.get(word, word) for word in words).replace(" ,", ",")
    talk = Talk(category, {name: phrase for name, phrase in phrases.items() if " ".join(phrase) in " ".join(words)})
    return text[:1].upper() + text[1:] + ("." if words[0] in ("tell", "describe") else "?"), talk


def habitual(talk: Talk) -> Talk:
    """The same conversation with the interviewee, who has habits."""
    return replace(talk, habits=_HABITS)


def level(rng: random.Random) -> int:
    """How warm the next answer of the corpus's interviewee is."""
    return rng.choices(range(11), _LEVELS)[0]


def answer(talk: Talk, warmth: int, rng: random.Random, sentences: int | None = None) -> str:
    """One to three different sentences, each of a strength within 1 of `warmth`."""
    voice, count = rng.choice(VOICES), sentences or rng.choice(_SENTENCES)
    said: list[str] = []
    while len(said) < count:
        target = min(max(warmth + rng.choice((-1, 0, 0, 1)), 0), 10)
        text = sentence(replace(talk, opened=bool(said)), target, voice, rng)
        if normalise(text) not in map(normalise, said):
            said.append(text)
    return " ".join(said)


def sentence(talk: Talk, strength: int, voice: Voice, rng: random.Random) -> str:
    """A sentence of exactly this strength."""
    talk = replace(talk, lean=1 if strength >= 8 else -1 if strength < 4 else 0)
    while True:
        start = "cold" if strength == 0 else "faint" if strength == 1 or strength < 4 and rng.random() < 0.5 else "warm"
        words, made = GRAMMAR.make(start, talk, rng)
        if made == strength and parse(normalise(" ".join(words)))[0] == strength:  # there may be a stronger reading
            return voice.spell(words, strength, rng)


def remarks(rng: random.Random) -> str:
    """One to three sentences, each through an alternative drawn from all those of the grammar. In an `answer` some are
    met a thousand times as often as others.
    """
    voice = rng.choice(VOICES)
    said: list[str] = []
    for _ in range(rng.choice(_SENTENCES)):
        talk = Talk(rng.choice(list(CATEGORIES)), opened=bool(said))
        words = GRAMMAR.make_with(("warm", "faint", "cold"), talk, rng)
        said.append(spell(words, rng, voice.contract, voice.exclaim))
    return " ".join(said)
