"""The training pass alone, with its peak of memory beside the estimate: python -m bench.train"""

import sys
from pathlib import Path

import torch

from bench.common import (
    Summary,
    Timer,
    fresh_process,
    hand_over,
    keep,
    parser,
    prepare,
    run,
    shared_arguments,
    table,
)
from bench.generate import questions
from bench.models import load, settings
from bench.ours import Laps, our_step, our_trainer, step_overrides
from hmx.errors import UserError
from hmx.grpo.rollout import Rollout
from hmx.grpo.trainer import Trainer
from hmx.judge import Verdict
from hmx.plan import estimate, gib
from hmx.prompts import pad_id
from hmx.sampling import Completions


class GivenAnswers(Trainer):
    """A trainer that is handed random answers of one length, so that a step is its training pass and little else."""

    length = 1

    def _answers(self, questions, repeats, generator) -> Rollout:
        rows, vocabulary = len(questions) * repeats, len(self.tokenizer)
        tokens = torch.randint(vocabulary, (rows, self.length), generator=torch.Generator().manual_seed(0))
        tokens = tokens.to(self.model.device)
        mask = torch.ones_like(tokens, dtype=torch.bool)
        each = [questions[i // repeats] for i in range(rows)]
        prompts = [prompt for prompt in self.prompts for _ in range(repeats)]
        completions = Completions(tokens, mask, torch.ones(rows, dtype=torch.bool, device=tokens.device))
        return Rollout(each, [""] * rows, prompts, completions, pad_id(self.tokenizer))


class AnyJudge:
    """Grades at no cost."""

    def __init__(self, laps: Laps):
        self._laps = laps

    def grade(self, questions, answers, generator=None) -> list[Verdict]:
        with self._laps.judging():
            return [Verdict(i % 11, "") for i in range(len(answers))]


def main(arguments: list[str] | None = None) -> None:
    """The command."""
    options = parser(
        "train",
        "Times the training pass of a step on given answers: log-probabilities under the reference, under the policy, "
        "backward, and the optimizer's step. Each length runs in a fresh process, whose peak of memory stands beside "
        "the estimate of train.py --dry-run: on a GPU what PyTorch's allocator held, on a CPU what the process grew by "
        "after the libraries had been imported.",
        rounds=5,
    )
    options.add_argument("--lengths", type=int, nargs="+", default=[32, 64, 128, 256], metavar="N", help="of answers")
    options.add_argument("--checkpointing", action="store_true", help="gradient checkpointing on (default: off)")
    options.add_argument("--one", action="store_true", help="measure a single length in this process, print JSON")
    given = options.parse_args(arguments)
    if min(given.lengths) < 1:
        raise UserError("--lengths must be at least 1.")
    prepare(given)
    if given.one:
        hand_over(measure(given, given.lengths[0]))
        return
    shared = [*shared_arguments(given), *(["--checkpointing"] if given.checkpointing else [])]
    results = [fresh_process("bench.train", [*shared, "--one", "--lengths", str(n)]) for n in given.lengths]
    rows = [
        [
            one["length"],
            str(Summary.of(one["seconds"])),
            f"{one['tokens'] / Summary.of(one['seconds']).median:.0f}",
            gib(one["peak"]),
            gib(one["estimate"]),
            f"{one['estimate'] / one['peak']:.2f}",
        ]
        for one in results
    ]
    head = [f"{given.model}, answers of tokens:", "seconds a pass", "tokens/s", "peak", "estimate", "estimate/peak"]
    print(table(head, rows))
    keep("train", given, {"rows": results}, "checkpointing" if given.checkpointing else "")


def measure(given, length: int) -> dict:
    """Seconds, peak of memory and estimate for answers of `length` tokens."""
    before = peak_memory(given.device)
    overrides = step_overrides(given.model != "tiny", length, given.checkpointing)
    config = settings(given.model, given.device, given.precision, *overrides)
    laps = Laps(Timer(given.device, given.clock))
    loaded = load(given.model, given.device, given.precision)
    trainer = our_trainer(config, loaded, laps, fixed=True, kind=GivenAnswers)
    trainer.judge, trainer.length = AnyJudge(laps), length
    trainer.prompts = questions(loaded, config.grpo.prompts_per_step)
    seconds = [our_step(trainer, laps, n).training for n in range(1, given.warmup + given.rounds + 1)]
    prompt = max(map(len, trainer.prompts))
    guess = estimate(config, prompt, length)
    return {
        "length": length,
        "prompt": prompt,
        "tokens": length * config.grpo.prompts_per_step * config.grpo.completions_per_prompt,
        "seconds": seconds[given.warmup :],
        "peak": peak_memory(given.device) - before,
        # Nothing is sampled here.
        "estimate": guess.weights + guess.adapter + (guess.checkpointed if given.checkpointing else guess.training),
    }


def peak_memory(device: str) -> int:
    """The most bytes that this process has held so far."""
    if device == "cuda":
        return torch.cuda.max_memory_allocated()
    try:
        # Not getrusage, which takes over the peak of the process that started this one.
        status = Path("/proc/self/status").read_text(encoding="utf-8")
    except OSError:
        raise UserError("The peak of memory can only be read on Linux or on a GPU.") from None
    line = next(line for line in status.splitlines() if line.startswith("VmHWM:"))
    return int(line.split()[1]) * 1024


if __name__ == "__main__":
    sys.exit(run(main))
