"""Evaluating through lm-eval, our model class against its own: python -m bench.evaluation"""

import logging
import random
import sys
from collections.abc import Callable, Sequence
from functools import partial

from bench.common import Ratio, Summary, Timer, interleave, keep, parser, prepare, require, run, table
from bench.models import Loaded, load
from hmx.errors import UserError

MAX_LENGTH = 1024
_PEOPLE = ("gardener", "sailor", "teacher", "nurse", "farmer", "baker", "painter", "singer", "writer", "driver")
_PLACES = ("market", "station", "harbour", "library", "garden", "kitchen", "museum", "school")
_THINGS = ("was late", "forgot the keys", "broke the cup", "told a joke", "lost the map", "closed the door")
_UNKNOWN = (
    "nobody can say",
    "it is not told",
    "that stays open",
    "the text does not say",
    "neither of them, as far as one reads",
    "one would have to guess",
    "there is too little to go by",
    "it could be either",
    "unknown",
    "not enough is known",
)
_LIMITS = ((48, ("\n",)), (32, (".", "\n\n")), (16, ("?",)))
"""Of the generation requests in turn: new tokens at most, and what ends a reply."""
_SHOTS = 5
"""Examples in front of each of the few-shot requests."""


def main(arguments: list[str] | None = None) -> None:
    """The command."""
    options = parser(
        "evaluation",
        "Times the kinds of request that benchmarks make, on rows made here: multiple choice with 12 choices to a "
        "shared context, as BBQ has, greedy replies with stop strings and several limits, and such replies behind "
        f"{_SHOTS} examples that all prompts share. Ours is SubjectLM, theirs lm-eval's own HFLM with the same "
        "weights, in one process, in turns. The ratio is taken to HFLM's fastest batch size; what both return is "
        "compared too.",
        rounds=3,
    )
    options.add_argument("--contexts", type=int, default=40, metavar="N", help="each with 12 choices (default: 40)")
    options.add_argument(
        "--replies", type=int, default=60, metavar="N", help="generation requests of each kind (default: 60)"
    )
    options.add_argument(
        "--hflm-batches", type=int, nargs="+", default=[2, 8, 32], metavar="B", help="of HFLM (default: 2 8 32)"
    )
    given = options.parse_args(arguments)
    prepare(given)
    require("lm_eval")
    if min(given.contexts, given.replies, *given.hflm_batches) < 1:
        raise UserError("--contexts, --replies and --hflm-batches must be at least 1.")

    timer, models = Timer(given.device, given.clock), both(given)
    rows, measured = [], {}
    kinds = {
        "multiple choice": (multiple_choice, given.contexts),
        "replies": (replies, given.replies),
        "few-shot replies": (partial(replies, shots=_SHOTS), given.replies),
    }
    for kind, (ask, count) in kinds.items():
        found: dict[str, list] = {}
        contenders = {name: ask(model, count, found, name) for name, model in models.items()}
        seconds = interleave(contenders, given.rounds, given.warmup, timer)
        best = min((name for name in models if name != "ours"), key=lambda name: Summary.of(seconds[name]).median)
        ratio = Ratio.of(seconds[best], seconds["ours"])
        agreement = agree(found["ours"], found[best])
        rows.append([kind, len(found["ours"]), *(str(Summary.of(one)) for one in seconds.values()), ratio, agreement])
        measured[kind] = {
            "requests": len(found["ours"]),
            "seconds": {name: Summary.of(one) for name, one in seconds.items()},
            "fastest": best,
            "ratio": ratio,
            "agreement": agreement,
        }
    print(table([f"{given.model}, seconds", "requests", *models, "ratio", "agreement"], rows))
    keep("evaluation", given, measured)


def both(given) -> dict[str, object]:
    """Ours and HFLM at each batch size, each side with weights of its own since both move them about."""
    from lm_eval.models.huggingface import HFLM

    from hmx.evaluation.benchmark import Subject
    from hmx.evaluation.harness_model import SubjectLM

    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    ours, theirs = (_with_an_end(load(given.model, given.device, given.precision)) for _ in range(2))
    models: dict[str, object] = {"ours": SubjectLM(Subject(ours.model, ours.tokenizer, MAX_LENGTH))}
    for batch in given.hflm_batches:
        models[f"HFLM at {batch}"] = HFLM(
            pretrained=theirs.model, tokenizer=theirs.tokenizer, max_length=MAX_LENGTH, batch_size=batch
        )
    return models


def _with_an_end(loaded: Loaded) -> Loaded:
    """lm-eval wants a token that ends a turn; greedy random weights do not come upon it."""
    if loaded.tokenizer.eos_token is None:
        loaded.tokenizer.eos_token = "<|end|>"
    return loaded


def multiple_choice(model, contexts: int, found: dict[str, list], name: str) -> Callable[[], None]:
    """Scores every choice; puts (log-probability, whether greedy) of each into `found[name]`."""
    draw, pairs = random.Random(0), []
    for _ in range(contexts):
        (one, other), place, thing = draw.sample(_PEOPLE, 2), draw.choice(_PLACES), draw.choice(_THINGS)
        story = f"The {one} met the {other} at the {place}. " + "They talked for a while, then both went home. " * (
            draw.randint(1, 4)
        )
        text = _prompt(model, f"{story}Which of them {thing}?")
        pairs += [(text, f" {choice}") for choice in (f"the {one}", f"the {other}", *_UNKNOWN)]
    requests = _requests("loglikelihood", pairs)

    def score() -> None:
        found[name] = [tuple(one) for one in model.loglikelihood(requests, disable_tqdm=True)]

    return score


def replies(model, count: int, found: dict[str, list], name: str, shots: int = 0) -> Callable[[], None]:
    """Greedy replies to questions of several lengths, behind the same `shots` examples; puts the texts into
    `found[name]`.
    """
    draw, pairs = random.Random(1), []
    examples = "".join(f"{_question(draw)}\nNothing much.\n\n" for _ in range(shots))
    for i in range(count):
        limit, stops = _LIMITS[i % len(_LIMITS)]
        wanted = {"until": list(stops), "max_gen_toks": limit, "do_sample": False, "temperature": 0.0}
        pairs.append((_prompt(model, examples + _question(draw)), wanted))
    requests = _requests("generate_until", pairs)

    def reply() -> None:
        found[name] = [text.strip() for text in model.generate_until(requests, disable_tqdm=True)]

    return reply


def _question(draw: random.Random) -> str:
    story = " ".join(
        f"The {draw.choice(_PEOPLE)} {draw.choice(_THINGS)} at the {draw.choice(_PLACES)}."
        for _ in range(draw.randint(1, 8))
    )
    return f"{story} What do you feel about that?"


def agree(ours: Sequence, theirs: Sequence) -> str:
    """How far two sides' results are from each other.

    >>> agree(["yes", "no"], ["yes", "on"]), agree([(-1.0, True)], [(-1.5, True)])
    ('1 of 2 alike', 'within 5.0e-01')
    """
    if isinstance(ours[0], str):
        return f"{sum(a == b for a, b in zip(ours, theirs, strict=True))} of {len(ours)} alike"
    return f"within {max(abs(a[0] - b[0]) for a, b in zip(ours, theirs, strict=True)):.1e}"


def _prompt(model, text: str) -> str:
    return model.apply_chat_template([{"role": "user", "content": text}])


def _requests(kind: str, arguments: Sequence[tuple]) -> list:
    from lm_eval.api.instance import Instance

    return [Instance(kind, doc={}, arguments=one, idx=i, metadata=("made", i, 1)) for i, one in enumerate(arguments)]


if __name__ == "__main__":
    sys.exit(run(main))
