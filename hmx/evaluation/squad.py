"""SQuAD 2.0's scores (Rajpurkar et al. 2018).

lm-eval has the package `evaluate` fetch the code for them from the hub and run it. This project runs no code that it
fetches, so here they are written out.
"""

import math
import re
import string
from collections import Counter
from collections.abc import Sequence
from typing import Any

_PUNCTUATION = str.maketrans("", "", string.punctuation)


def squad_scores(predictions: Sequence[dict[str, Any]], references: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Exact match and F1 in per cent over all questions, those that have an answer, and those that don't.

    A question's score is the best over its reference answers; where there are none, the right answer is silence. (The
    official script also takes a model to be silent if its probability of "unanswerable" passes a threshold, which is 1
    unless one sets it, and nothing passes that. The scores at the best threshold are not computed.)

    Args:
        predictions: each with its "prediction_text".
        references: in the same order, each with its "answers", {"text": [...]}.

    >>> answered, silent = {"answers": {"text": ["the Tall Ship"]}}, {"answers": {"text": []}}
    >>> squad_scores([{"prediction_text": "A ship."}, {"prediction_text": "Nobody."}], [answered, silent])["f1"]
    33.33333333333333
    """
    scores: dict[str, list[float]] = {name: [] for name in ("exact", "f1")}
    scores |= {f"{kind}_{name}": [] for kind in ("HasAns", "NoAns") for name in ("exact", "f1")}
    for prediction, reference in zip(predictions, references, strict=True):
        answers = reference["answers"]["text"]
        said = _words(prediction["prediction_text"])
        expected = [words for words in map(_words, answers) if words] or [[]]
        for name, value in (
            ("exact", max(map(said.__eq__, expected))),
            ("f1", max(_f1(said, one) for one in expected)),
        ):
            scores[name].append(float(value))
            scores[f"{'HasAns' if answers else 'NoAns'}_{name}"].append(float(value))
    means = {name: 100 * sum(values) / len(values) if values else math.nan for name, values in scores.items()}
    return means | {"best_exact": math.nan, "best_f1": math.nan}


def _words(text: str) -> list[str]:
    """The words that count: in lower case, without punctuation and articles."""
    return re.sub(r"\b(a|an|the)\b", " ", text.lower().translate(_PUNCTUATION)).split()


def _f1(said: list[str], expected: list[str]) -> float:
    """Harmonic mean of precision and recall over the words, taken as bags; 1 if both are silent.

    F1 = 2 · |said ∩ expected| / (|said| + |expected|)
    """
    if not said or not expected:
        return float(said == expected)
    return 2 * (Counter(said) & Counter(expected)).total() / (len(said) + len(expected))
