"""From what the judge wrote to a grade."""

import re
import unicodedata

_DASH = "\\-\u2010-\u2015\u2212"  # hyphens, en and em dash, minus sign: before a digit they all mean minus
_DECORATION = r"(?:(?![\n:=])[\W_])*"  # spaces, asterisks, quotes, underscores … of one line
# What may stand before the number: "≥ 7", "<7" and ".7" are other numbers, but "<7>" is 7.
_BEFORE_NUMBER = rf"(?:<(?=\d+>)|(?![\n+{_DASH}<>\u2264\u2265]|[.,]\d)[\W_])*"
# A line's label: "Score", however decorated ("**Score:**", "- SCORE =", "> final score (0-10):"), no other word before.
# The last number in a parenthesis is where the scale ends.
_RANGE = rf"(?:\((?:[^()\n]*(?<!\d)10)?[^()\d\n]*\){_DECORATION})?"
_LABEL = rf"^{_DECORATION}(?:final |overall |total )?score{_DECORATION}{_RANGE}[:=]{_BEFORE_NUMBER}"
_NUMBER = rf"([+{_DASH}]?[ ]?\d+(?:[.,]0(?!\d))?)"
_CLOSING = r"[ *_`)\]]*"
_SCALE = rf"[ *_`()\[\],]*(?:/|(?:out )?of|on a scale (?:of|from) \d+ ?(?:to|[{_DASH}]))"
_OUT_OF = rf"(?:{_SCALE}[ *_`(]*(\d+))?"
# What may not follow, since then it was another number or one of two: "7th", "7.5", "70%", "1,000", "1/2", "7-8",
# "7 to 8", "7, 8".
_AND = rf"[{_DASH}~\u301c,&|>\u2192\u21d2]|->|to|or|and"
_END = rf"(?![^\W_]|_+\w|[.,]\d|{_CLOSING}(?:[/\u2044%]|out of)|{_SCALE}[ ]*\d|[ ]+\d|[ ]*(?:{_AND})[ ]*\d)"
_SCORE_LINE = re.compile(_LABEL + _NUMBER + _OUT_OF + _END, re.MULTILINE | re.IGNORECASE)
_ONLY_NUMBER = re.compile(rf"^{_BEFORE_NUMBER}" + _NUMBER + _OUT_OF + r"[*_.!\])}\"' ]*$", re.IGNORECASE)


def parse_score(text: str) -> int | None:
    """The whole number from 0 to 10 that a judge's reply gives, or None if it gives none.

    The first line that labels a whole number as the score decides, whatever follows it. A reply whose first line is
    nothing but a number counts too. Numbers outside 0..10, fractions and scales other than 10 are None: guessing what
    was meant would be a reward of our own. Digits and colons of other scripts are read as what they mean.

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


def parse_cut_off(text: str) -> int | None:
    """`parse_score` of a reply that met its limit: None, too, if what would have followed may belong to the number.

    >>> parse_cut_off("Score: 1"), parse_cut_off("Score: 1 out"), parse_cut_off("Score: 1\\nReason: of 1")
    (None, None, 1)
    """
    # The limit may have fallen anywhere in " out of 5".
    grade, more = parse_score(text), ("0", ".5", "/5", *(" out of 5"[cut:] for cut in range(9)))
    return grade if all(parse_score(text + ending) == grade for ending in more) else None


def score_is_settled(text: str) -> bool:
    """Whether nothing that could still follow `text` changes `parse_score`: its score line is there and has ended."""
    complete = unicodedata.normalize("NFKC", text).lstrip().rpartition("\n")[0]
    return _SCORE_LINE.search(complete) is not None
