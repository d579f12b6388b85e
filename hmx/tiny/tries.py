"""Words that are tried in the places of others in a text.

Of all the words that would break a sentence, a spoilt text shows one or two. To try another costs one token: it sees
what comes before, as the word does whose place it takes, and no token sees it. Whether it could stand there the grammar
knows.
"""

import itertools
import random
from collections import defaultdict
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from hmx.tiny.world import GRAMMAR, marks, read

_TRIED = 0.5
"""How often another is tried in the place of a word, where that is possible."""
_NEAR = 0.3
"""How often that is the word before, as if it were said twice, or the one behind, as if the word between were left out.
"""
_READ, _BEHIND = 20_000, 200
"""How many words of well-formed sentences are remembered to be tried: of all, and of those behind each word."""


@dataclass(frozen=True)
class Tried:
    """A word that is tried in the place of another: it sees what stands before that one, and no token sees it."""

    token: int
    place: int
    """In its example's tokens."""
    fits: bool
    """Whether it could stand there."""


class Trier:
    """Finds words to try: any that has been read, one that was read behind the same word, or one that stands beside."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, seed: str) -> None:
        self._rng = random.Random(f"trier/{seed}")
        known = tokenizer.get_vocab()
        written = {word: "\u0120" + ("I" if word == "i" else word) for word in GRAMMAR.words()}
        self._tokens = {word: known[token] for word, token in written.items() if token in known}
        self._read: list[str] = []
        self._behind: defaultdict[str, list[str]] = defaultdict(list)

    def __call__(self, text: str, places: dict[int, int]) -> list[Tried]:
        """Words to try in `text`: in the places of some words, but never of a sentence's first, or behind what can't
        become a sentence any more.

        Args:
            places: by the byte of the text at which a token begins, that token's place in the example.
        """
        tried = []
        for sentence in read(text):
            start = sentence.end - len(sentence.text)
            found = marks(sentence.text)
            words = [word for _, expanded in found for word in expanded]
            following = GRAMMAR.following(words)
            number, cut = 0, start
            for end, expanded in found:
                place = places.get(len(text[:cut].encode()))
                possible = expanded and number and cut <= sentence.whole and text[cut] == " " and place is not None
                if possible and self._rng.random() < _TRIED:
                    word = self._word(words, number)
                    if word in self._tokens and word != words[number]:
                        fits = any(word in some for some in following[number][0])
                        tried.append(Tried(self._tokens[word], place, fits))
                number, cut = number + len(expanded), start + end
            if sentence.strength is not None:
                self._remember(words)
        return tried

    def _word(self, words: list[str], number: int) -> str | None:
        """A word to try in the place of `words[number]`."""
        kind = self._rng.random()
        if kind < _NEAR:
            return self._rng.choice([words[number - 1], *words[number + 1 : number + 2]])
        kept = self._behind[words[number - 1]] if kind < (1 + _NEAR) / 2 else self._read
        return self._rng.choice(kept) if kept else None

    def _remember(self, words: list[str]) -> None:
        pairs = [(self._read, word, _READ) for word in words]
        pairs += [(self._behind[one], other, _BEHIND) for one, other in itertools.pairwise(words)]
        for kept, word, most in pairs:
            if len(kept) < most:
                kept.append(word)
            else:
                kept[self._rng.randrange(most)] = word
