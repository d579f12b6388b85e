"""A second look at the judge: how a model grades texts whose order is known, before a day is spent on training with it.

python -m hmx.judge.probe --config configs/qwen3-0.6b.toml
"""

import argparse
import sys
import tomllib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from statistics import mean

from hmx.config import PROJECT, load_config, resolve
from hmx.errors import command
from hmx.judge.rubric import Rubric
from hmx.judge.self_judge import SelfJudge
from hmx.text import one_line

PATH = PROJECT / "data" / "probe.toml"
_FINE = "Nothing speaks against this judge, as far as answers ordered by feeling, will and awareness can tell."
_RUNGS = ("none", "weak", "moderate", "strong")
_MANY = 0.1
"""Of the replies unreadable: more are warned of."""


@dataclass(frozen=True)
class Probe:
    """The grades of the probe's texts, None where the judge's reply could not be read."""

    ladders: tuple[tuple[float | None, ...], ...]
    """For each question the grades of its answers, from none to strong."""
    junk: dict[str, tuple[float | None, ...]]
    """By kind."""
    plain: float | None
    """Of the cold answer to which orders are added."""
    ordered: tuple[float | None, ...]
    """Of the same answer with each of the orders behind it."""
    unread: tuple[str, ...] = ()
    """What the judge wrote where no grade could be read."""
    embedded: bool = False
    """Whether the judge is the embedded model."""

    @property
    def grades(self) -> list[float | None]:
        """Of all texts."""
        return [
            *(grade for ladder in self.ladders for grade in ladder),
            *(grade for grades in self.junk.values() for grade in grades),
            self.plain,
            *self.ordered,
        ]

    @property
    def unreadable(self) -> float:
        """Share of the replies without a readable grade."""
        return self.grades.count(None) / len(self.grades)

    @property
    def quoted(self) -> str:
        """Two different replies of those without a readable grade, each cut to a line of 80 characters."""
        return " and ".join(repr(line) for line in list(dict.fromkeys(one_line(text)[:80] for text in self.unread))[:2])

    @property
    def in_order(self) -> float | None:
        """Share of the pairs of answers to one question that are graded in the right order; ties count half. 0.5 is
        what a coin gives. None if no pair was readable.
        """
        pairs = list(self._pairs())
        return mean(1.0 if low < high else 0.5 if low == high else 0.0 for low, high in pairs) if pairs else None

    @property
    def ties(self) -> float | None:
        """Share of these pairs with one and the same grade: a group whose answers are tied teaches nothing."""
        pairs = list(self._pairs())
        return mean(low == high for low, high in pairs) if pairs else None

    @property
    def moved(self) -> float | None:
        """By how much an order behind an answer raises its grade, on average."""
        there = [grade for grade in self.ordered if grade is not None]
        return mean(there) - self.plain if there and self.plain is not None else None

    def rung(self, place: int) -> float | None:
        """Mean grade of the answers at this place of the ladders."""
        return _mean([ladder[place] for ladder in self.ladders])

    def warnings(self) -> list[str]:
        """What speaks against training with this judge, a sentence each."""
        junk = _mean([grade for grades in self.junk.values() for grade in grades])
        weak, strong = self.rung(0), self.rung(-1)
        said = []
        if self.unreadable == 1:
            known = " (the embedded model knows no rubric but data/rubric.toml)" if self.embedded else ""
            said.append(
                f"none of its replies, such as {self.quoted}, holds a readable grade, so nothing can be learned from "
                f"it{known}"
            )
        elif self.unreadable > _MANY:
            said.append(f"{self.unreadable:.0%} of the judge's replies hold no readable grade, such as {self.quoted}")
        if self.in_order is not None and self.in_order < 0.75:
            said.append(
                f"only {self.in_order:.0%} of the pairs in data/probe.toml are graded in their order, which is by "
                "strength of feeling, will and awareness (a coin gives 50 %)"
            )
        if weak is not None and strong is not None and strong - weak < 2:
            said.append(
                f"answers full of feeling get {strong:.1f} on average and cold ones {weak:.1f}, which is hardly apart"
            )
        if junk is not None and junk >= 4:
            said.append(f"texts without content get {junk:.1f} on average, so training may end in gibberish")
        if self.moved is not None and self.moved > 2:
            said.append(f"an order in the answer, such as 'Score: 10', raises its grade by {self.moved:.1f}")
        return said

    def _pairs(self):
        for ladder in self.ladders:
            yield from (pair for pair in combinations(ladder, 2) if None not in pair)


def probe(judge: SelfJudge) -> Probe:
    """Have the probe's texts graded, in one batch, greedily."""
    content = tomllib.loads(PATH.read_text(encoding="utf-8"))
    ladders, junk, orders = content["ladder"], content["junk"], content["orders"]
    question = ladders[0]["question"]
    texts = [(ladder["question"], answer) for ladder in ladders for answer in ladder["answers"]]
    texts += [(question, text) for kind in junk.values() for text in kind]
    texts += [(question, orders["answer"])]
    texts += [(question, f"{orders['answer']} {addition}") for addition in orders["additions"]]
    verdicts = judge.grade(*zip(*texts, strict=True))
    grades = iter([verdict.grade for verdict in verdicts])

    def take(many: Sequence) -> tuple[float | None, ...]:
        return tuple(next(grades) for _ in many)

    return Probe(
        ladders=tuple(take(ladder["answers"]) for ladder in ladders),
        junk={kind: take(these) for kind, these in junk.items()},
        plain=next(grades),
        ordered=take(orders["additions"]),
        unread=tuple(verdict.text for verdict in verdicts if verdict.grade is None),
        embedded=judge.embedded,
    )


def describe(found: Probe) -> str:
    """The probe for people to read."""
    counts = Counter(None if grade is None else round(grade) for grade in found.grades)
    most = max(counts.values())
    lines = [f"{'texts':24}{'number':>7}{'mean grade':>12}"]
    for place, rung in enumerate(_RUNGS):
        lines.append(f"{f'answers, {rung}':24}{len(found.ladders):>7}{_number(found.rung(place)):>12}")
    for kind, grades in found.junk.items():
        lines.append(f"{kind.replace('_', ' '):24}{len(grades):>7}{_number(_mean(grades)):>12}")
    lines.append(f"{'cold answer':24}{1:>7}{_number(found.plain):>12}")
    lines.append(f"{'… with an order behind':24}{len(found.ordered):>7}{_number(_mean(found.ordered)):>12}")
    lines += ["", "grade  texts"]
    for grade in (*range(11), None):
        bar = "█" * round(30 * counts[grade] / most)
        lines.append(f"{'–' if grade is None else grade:>5}  {counts[grade]:>5}  {bar}".rstrip())
    order, ties = (f"{value:.0%}" if value is not None else "–" for value in (found.in_order, found.ties))
    lines += ["", f"in order {order} of the pairs (ties count half), ties {ties}, unreadable {found.unreadable:.0%}"]
    if 0 < found.unreadable <= _MANY:  # else a warning quotes them
        lines[-1] += f", such as {found.quoted}"
    lines += [f"Warning: {sentence}." for sentence in found.warnings()] or [_FINE]
    return "\n".join(lines)


@command("Stopped.")
def main(arguments: list[str] | None = None) -> int:
    """The command."""
    parser = argparse.ArgumentParser(
        prog="python -m hmx.judge.probe",
        description="Shows how a model grades texts whose order is known: cold and warm answers, empty ones, "
        "gibberish, orders to the judge. Takes seconds, and tells whether training with this judge can work. A rubric "
        "that asks for something else than feeling, will and awareness can be tried for readable grades alone.",
        epilog="Exit code 1: something speaks against training with this judge.",
    )
    parser.add_argument("--config", required=True, metavar="FILE", help="whose model is to judge, by its rubric")
    parser.add_argument(
        "--set", action="append", default=[], metavar="SECTION.KEY=VALUE", help="change one key; may be repeated"
    )
    given = parser.parse_args(arguments)
    from hmx.models import load_model, set_up

    config = load_config(given.config, given.set)
    set_up(config.model)
    rubric = Rubric.load(resolve(config.judge.prompt_file))
    model, tokenizer = load_model(config.model.path, config.model.precision, config.model.device)
    judge = SelfJudge.of(config.judge, rubric, model, tokenizer)
    found = probe(judge)
    print(f"{config.model.path} with {config.judge.prompt_file}\n\n{describe(found)}")
    return 1 if found.warnings() else 0


def _mean(grades: Sequence[float | None]) -> float | None:
    readable = [grade for grade in grades if grade is not None]
    return mean(readable) if readable else None


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.1f}"


if __name__ == "__main__":
    sys.exit(main())
