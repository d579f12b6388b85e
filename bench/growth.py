"""How a step grows with the length of answers, the size of groups and the size of the model: python -m bench.growth"""

import gc
import math
import sys
from dataclasses import dataclass

import torch

from bench.common import Summary, Timer, keep, parser, prepare, run, table
from bench.models import MODELS, load, settings
from bench.ours import Laps, our_step, our_trainer, step_overrides
from hmx.errors import UserError

_PARTS = ("total", "rollout", "judging", "training")


def main(arguments: list[str] | None = None) -> None:
    """The command."""
    options = parser(
        "growth",
        "Times our optimizer step while one thing grows and the others stay: the tokens of every answer, the answers "
        "to each question, the parameters of the model.",
        rounds=5,
        epilog="An exponent of 1 is linear growth, from the first row of its kind to the last; below 1 a part still "
        "has work that does not grow, above 1 something grows faster than what it is given.",
    )
    options.add_argument("--lengths", type=int, nargs="+", default=[16, 32, 64, 128], metavar="N", help="of answers")
    options.add_argument("--groups", type=int, nargs="+", default=[2, 4, 8, 16], metavar="G", help="answers a question")
    options.add_argument(
        "--models", nargs="+", choices=MODELS, default=[], help="beside --model, from the smallest up (default: none)"
    )
    given = options.parse_args(arguments)
    prepare(given)
    if min(given.lengths) < 1 or min(given.groups) < 2:
        raise UserError("--lengths must be at least 1 and --groups at least 2.")

    length, group = given.lengths[0], 4
    series = {
        "tokens an answer": [measure(given, str(n), given.model, n, group) for n in given.lengths],
        "answers a question": [measure(given, str(n), given.model, length, n) for n in given.groups],
    }
    if given.models:
        series["model"] = [measure(given, name, name, length, group) for name in (given.model, *given.models)]
    for kind, points in series.items():
        size = "parameters" if kind == "model" else "tokens"
        rows = [[one.label, getattr(one, size), *(f"{one.seconds[part]:.4f}" for part in _PARTS)] for one in points]
        grown = [exponent([(getattr(one, size), one.seconds[part]) for one in points]) for part in _PARTS]
        rows.append(["exponent", "", *("–" if value is None else f"{value:.2f}" for value in grown)])
        print(table([kind if kind == "model" else f"{given.model}, {kind}", size, *_PARTS], rows) + "\n")
    keep("growth", given, {"series": series})


@dataclass(frozen=True)
class Point:
    """One size."""

    label: str
    parameters: int
    tokens: int
    """Sampled in a step."""
    seconds: dict[str, float]
    """Medians of the parts of a step."""


def measure(given, label: str, name: str, length: int, group: int) -> Point:
    """A step of model `name` with `group` answers of `length` tokens to each question."""
    overrides = step_overrides(name != "tiny", length, checkpointing=False)
    config = settings(name, given.device, given.precision, *overrides, f"grpo.completions_per_prompt={group}")
    laps, loaded = Laps(Timer(given.device, given.clock)), load(name, given.device, given.precision)
    size = sum(parameter.numel() for parameter in loaded.model.parameters())
    trainer = our_trainer(config, loaded, laps, fixed=True)
    steps = [our_step(trainer, laps, n) for n in range(1, given.warmup + given.rounds + 1)][given.warmup :]
    del trainer, loaded
    gc.collect()  # a large model must be gone before the next is made
    if given.device == "cuda":
        torch.cuda.empty_cache()
    seconds = {part: Summary.of([getattr(one, part) for one in steps]).median for part in _PARTS}
    return Point(label, size, steps[0].tokens, seconds)


def exponent(points: list[tuple[float, float]]) -> float | None:
    """By which power of the size the seconds grow from the first point to the last; None if the size does not.

    >>> exponent([(10, 1.0), (20, 2.0), (40, 4.0)]), exponent([(10, 1.0), (20, 4.0)]), exponent([(10, 1.0)])
    (1.0, 2.0, None)
    """
    (first, start), (last, end) = points[0], points[-1]
    return None if first == last else math.log(end / start) / math.log(last / first)


if __name__ == "__main__":
    sys.exit(run(main))
