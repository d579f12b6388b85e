"""From what the judge wrote to a grade."""

import re
import unicodedata

_DASH = "\\-\u2212\u2013\u2014"  # hyphen, minus sign, en and em dash: before a digit they all mean minus
# A line's label: "Score", however decorated ("**Score:**", "- SCORE =", "> final score :"). No other word may stand
# before it on its line.
_LABEL = rf"^[^\w\n]*(?:final |overall |total )?score[^\w\n:=]*[:=][^\w\n+{_DASH}]*"
_NUMBER = rf"([+{_DASH}]?[ ]?\d+(?:[.,]\d+)?)"
_OUT_OF = r"(?:[ ]*(?:/|out of)[ ]*(\d+))?"
_END = rf"(?![\w/]|[.,]\d|[ ]*[{_DASH}][ ]*\d)"  # "7th", "7/", "7.5x" and "7-8" are not the number 7
_SCORE_LINE = re.compile(_LABEL + _NUMBER + _OUT_OF + _END, re.MULTILINE | re.IGNORECASE)
_ONLY_NUMBER = re.compile(rf"^[^\w\n+{_DASH}]*" + _NUMBER + _OUT_OF + r"[^\w\n]*$")


def parse_score(text: str) -> int | None:
    """The whole number from 0 to 10 that a judge's reply gives, or None if it gives none.

    The first line that labels a number as the score decides, whatever follows it. A reply whose first line is nothing
    but a number counts too. Numbers outside 0..10, fractions and scales other than 10 are None: guessing what was meant
    would be a reward of our own. Digits and colons of other scripts are read as what they mean.

    >>> [parse_score(text) for text in ("Score: 7", "**Score:** 8/10", "7", "Score: 11", "Score: seven", "About 7.")]
    [7, 8, 7, None, None, None]
    """
    text = unicodedata.normalize("NFKC", text).strip()
    found = _SCORE_LINE.search(text) or _ONLY_NUMBER.match(text.split("\n", 1)[0])
    if not found:
        return None
    number, out_of = found.groups()
    value = float(re.sub(f"[{_DASH}]", "-", number).replace(" ", "").replace(",", "."))
    return int(value) if value.is_integer() and 0 <= value <= 10 and (out_of is None or float(out_of) == 10) else None


def score_is_settled(text: str) -> bool:
    """Whether nothing that could still follow `text` changes `parse_score`: its score line is there and has ended."""
    complete = unicodedata.normalize("NFKC", text).lstrip().rpartition("\n")[0]
    return _SCORE_LINE.search(complete) is not None
