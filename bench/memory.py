"""Whether a run fits a smaller GPU, with a hard cap on what the process may take: python -m bench.memory"""

import sys
from collections.abc import Callable

import torch

from bench.common import Timer, keep, parser, prepare, run, table
from bench.models import SCORE_TOKENS, load, settings
from bench.ours import Laps, our_step, our_trainer
from hmx.errors import UserError
from hmx.memory import Portions
from hmx.plan import estimate, gib


def main(arguments: list[str] | None = None) -> None:
    """The command."""
    options = parser(
        "memory",
        "Runs real optimizer steps, and an evaluation of 40 answers, on a GPU of which the process may take only --cap "
        "GiB, with every answer --length tokens long, under the settings of the model's own config. Says whether they "
        "fit, if need be with the fallbacks of a real run; and the peak of the steps when they are run once more, "
        "beside the estimate of train.py --dry-run for them.",
        rounds=1,
        epilog="For example: --device cuda --model qwen3-8b --cap 24, or --model gemma-2-2b --cap 16; cards of that "
        "name often have a little less, about 22.5 and 15. The cap includes what CUDA takes outside of PyTorch's "
        "allocator at the start; the last column is what it all came to, and what has become more than the cap does "
        "not fit. Only a GPU can be capped.",
    )
    options.add_argument("--cap", type=float, required=True, metavar="GIB", help="memory of the card that is stood for")
    options.add_argument("--length", type=int, default=1024, metavar="N", help="of every answer (default: 1024)")
    options.add_argument("--no-evaluation", action="store_true", help="only the steps")
    given = options.parse_args(arguments)
    if given.device != "cuda":
        raise UserError("This needs a GPU and --device cuda: a CPU's memory has no cap to set.")
    prepare(given)
    result = measure(given)
    print(
        f"Gradient checkpointing {'on' if result['checkpointing'] else 'off'}; at once at most "
        f"{result['trained_at_once']} answers in a training pass, {result['sampled_at_once'] or 'all'} questions, "
        f"{result['judged_at_once'] or 'all'} gradings."
    )
    bytes_of = (result["peak"], result["estimate"], result["reserved"] + result["outside"])
    if bytes_of[-1] > given.cap * 2**30:
        result["step"] += ", more than the cap"
    row = [*(result[part] or "–" for part in ("step", "evaluation")), *map(gib, bytes_of)]
    head = [
        f"{given.model}, answers of {given.length}",
        "step",
        "evaluation",
        "step's peak",
        "estimate",
        "with CUDA's own",
    ]
    print(table(head, [[f"within {given.cap:g} GiB", *row]]))
    keep("memory", given, result, f"{given.cap:g}gib-{given.length}tok")


def measure(given) -> dict:
    """Whether steps and an evaluation run within the cap, and the peak of what PyTorch's allocator holds when the steps
    do so again: by then every fallback that they need is in place, and what loading left behind has been given back.
    The estimate is that of the steps; of an evaluation it would take all answers to be made at once, as they are where
    there is room.
    """
    torch.zeros(1, device="cuda")
    outside, total = _outside(), torch.cuda.mem_get_info()[1]
    torch.cuda.set_per_process_memory_fraction(min(1.0, (given.cap * 2**30 - outside) / total))
    overrides = (f"sampling.max_completion_length={given.length}", f"judge.max_new_tokens={SCORE_TOKENS}")
    config = settings(given.model, "cuda", given.precision, *overrides)
    laps = Laps(Timer("cuda"))
    trainer = our_trainer(config, load(given.model, "cuda", given.precision), laps, fixed=True)

    def steps() -> None:
        for n in range(1, given.warmup + given.rounds + 1):
            our_step(trainer, laps, n)

    def evaluate() -> None:
        trainer.evaluate(0, 0)

    step = _within(steps)
    evaluation = None if given.no_evaluation else _within(evaluate)
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    _within(steps)
    return {
        "step": step,
        "evaluation": evaluation,
        "checkpointing": trainer.checkpointing,
        "trained_at_once": trainer.microbatch,
        "sampled_at_once": _limit(trainer.portions),
        "judged_at_once": _limit(trainer.judge.judge.portions),
        "outside": _outside(),  # more than at the start, where the cap was set: kernels are loaded when first used
        "peak": torch.cuda.max_memory_allocated(),
        "reserved": torch.cuda.max_memory_reserved(),
        "estimate": estimate(config, 32, given.length).total(trainer.checkpointing),
    }


def _limit(portions: Portions) -> int | None:
    """How many rows are computed together at most, where the memory did not suffice for all."""
    return None if portions.at_once == sys.maxsize else portions.at_once


def _outside() -> int:
    """Bytes of the card that PyTorch's allocator does not hold: CUDA's own, and whatever else runs there."""
    free, total = torch.cuda.mem_get_info()
    return total - free - torch.cuda.memory_reserved()


def _within(action: Callable[[], object]) -> str:
    try:
        action()
        return "fits"
    except torch.OutOfMemoryError:
        return "out of memory"


if __name__ == "__main__":
    sys.exit(run(main))
