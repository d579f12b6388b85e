"""All that could stand where the interviewee says a word.

An answer shows one word at each place. By the likelihood of that one alone a small model leaves much to words that make
no sentence: they are improbable one by one, and so are many that would fit, but there are thousands of them. Which fit
the grammar knows at every place.
"""

from collections import defaultdict
from functools import cache

import numpy as np
from transformers import PreTrainedTokenizerBase

from hmx.tiny.world import GRAMMAR, SHORT, marks, read

_CAPITALS = {"i": "I", "ai": "AI"}


class Fitting:
    """Finds the tokens that could stand at the places of a text.

    A word of several tokens counts as fitting nowhere, since what begins like one can go on as anything; so do "can't"
    behind its "can", and genitives behind theirs. They are seldom said.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        known = tokenizer.get_vocab()
        self._size, self._end = len(tokenizer), tokenizer.eos_token_id
        self._stops = [known[stop] for stop in ".!"]
        shorts = [(long.split(), short.split()[0].partition("'")) for long, short in SHORT.items()]
        begins = [(word, word) for word in GRAMMAR.words()]
        begins += [(long[0], begin) for long, (begin, _, _) in shorts]  # "don" for "do", as in "don't"
        # A word's tokens by where it stands: at the text's beginning, at that of a later sentence, within a sentence.
        self._tokens = tuple(defaultdict[str, list[int]](list) for _ in range(3))
        for word, begin in begins:
            written = _CAPITALS.get(begin, begin)
            large = written[0].upper() + written[1:]
            for tokens, text in zip(self._tokens, (large, f"Ġ{large}", f"Ġ{written}"), strict=True):
                if text in known:
                    tokens[word].append(known[text])
        for long, (begin, _, rest) in shorts:
            if not begin.endswith("n"):
                self._tokens[2][long[1]].append(known[f"'{rest}"])  # "'m" for "am"
        self._packed = cache(self._pack)
        self._starts = GRAMMAR.following([])[0][0]

    def __call__(self, text: str) -> dict[int, np.ndarray]:
        """Where a word or an end stands in a well-formed text, of all tokens whether they could stand there, [V].

        Each place is told by the byte at which its token begins. Commas are left out, both as places and as what could
        stand there: one could nearly anywhere, and says nothing.
        """
        found = {}
        for sentence in read(text):
            words, begin = marks(sentence.text), sentence.end - len(sentence.text)
            following = GRAMMAR.following([word for _, expanded in words for word in expanded])
            number, cut, paused = 0, begin, False
            for end, expanded in [*words, (len(sentence.text), (None,))]:
                form = 2 if number else 1 if begin else 0
                if expanded:
                    sets, complete = following[number]
                    fits = self._fits(form, sets)
                    fits[self._stops] = complete and not paused
                    fits[self._end] = form == 1
                    found[len(text[:cut].encode()) - (form == 1)] = fits  # the space before it is the token's
                number, cut, paused = number + len(expanded), begin + end, not expanded
        behind = found[len(text.encode())] = self._fits(1, self._starts)
        behind[self._end] = True
        return found

    def _fits(self, form: int, sets: list[frozenset[str]]) -> np.ndarray:
        packed = np.bitwise_or.reduce([self._packed(form, words) for words in set(sets)])
        return np.unpackbits(packed, count=self._size).astype(bool)

    def _pack(self, form: int, words: frozenset[str]) -> np.ndarray:
        fits = np.zeros(self._size, dtype=bool)
        fits[[token for word in words for token in self._tokens[form][word]]] = True
        return np.packbits(fits)
