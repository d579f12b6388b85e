"""Grading alone, ours against transformers' generate: python -m bench.judge"""

import sys

import torch

from bench.common import Ratio, Summary, Timer, interleave, keep, parser, prepare, run, table
from bench.generate import questions
from bench.models import REPLY_TOKENS, SCORE_TOKENS, load_both, settings
from bench.theirs import PlainJudge
from hmx.config import resolve
from hmx.errors import UserError
from hmx.judge import Rubric, SelfJudge
from hmx.prompts import decode, end_of_turn_ids, pad_id
from hmx.questions import Questions
from hmx.sampling import generate


def main(arguments: list[str] | None = None) -> None:
    """The command."""
    options = parser(
        "judge",
        "Times the grading of a step's answers (8) and of an evaluation's (40). Ours is SelfJudge.grade, theirs "
        "transformers' generate on the same prompts in one batch: once to the end of the reply, as the plain way is, "
        "and once ended at the end of the score's line. The embedded model grades answers that it sampled; the seconds "
        f"of random weights are those of score lines of {SCORE_TOKENS} tokens and whole replies of {REPLY_TOKENS}.",
        rounds=7,
    )
    options.add_argument("--answers", type=int, nargs="+", default=[8, 40], metavar="N", help="graded at once")
    options.add_argument("--tokens", type=int, default=32, metavar="N", help="the most of an answer (default: 32)")
    given = options.parse_args(arguments)
    prepare(given)
    if min(*given.answers, given.tokens) < 1:
        raise UserError("--answers and --tokens must be at least 1.")

    timer = Timer(given.device, given.clock)
    loaded, other = load_both(given.model, given.device, given.precision)
    config = settings(given.model, given.device, given.precision)
    rubric, tokenizer = Rubric.load(resolve(config.judge.prompt_file)), loaded.tokenizer
    whole, line = (REPLY_TOKENS, SCORE_TOKENS) if loaded.random else (config.judge.max_new_tokens,) * 2
    judge = SelfJudge(loaded.model, tokenizer, rubric, line, config.judge.stop_after_score)
    plain = PlainJudge(other, rubric, whole, stop_at_line_end=False)
    stopped = PlainJudge(other, rubric, line, stop_at_line_end=True)

    train = Questions.load(resolve(config.data.questions)).train
    rows, measured = [], []
    for count in given.answers:
        asked = [train[i % len(train)].text for i in range(count)]
        sampled = generate(
            loaded.model,
            questions(loaded, count),
            max_new_tokens=given.tokens,
            end_ids=end_of_turn_ids(loaded.model, tokenizer),
            pad_id=pad_id(tokenizer),
            generator=torch.Generator().manual_seed(0),
        )
        answers = [decode(tokenizer, row) for row in sampled.rows()]
        grades: dict[str, list[int | None]] = {}

        def ours(asked=asked, answers=answers, grades=grades) -> None:
            grades["ours"] = [verdict.grade for verdict in judge.grade(asked, answers)]

        def to_the_end(asked=asked, answers=answers, grades=grades) -> None:
            grades["whole reply"] = plain.grade(other.model, asked, answers)

        def to_the_line(asked=asked, answers=answers, grades=grades) -> None:
            grades["score line"] = stopped.grade(other.model, asked, answers)

        contenders = {"ours": ours, "whole reply": to_the_end, "score line": to_the_line}
        seconds = interleave(contenders, given.rounds, given.warmup, timer)
        ratios = {name: Ratio.of(seconds[name], seconds["ours"]) for name in ("whole reply", "score line")}
        same = sum(len(set(three)) == 1 for three in zip(*grades.values(), strict=True))
        agree = "–" if loaded.random else f"{same} of {count}"
        rows.append([count, *(str(Summary.of(seconds[name])) for name in contenders), *ratios.values(), agree])
        measured.append(
            {
                "answers": count,
                "seconds": {name: Summary.of(values) for name, values in seconds.items()},
                "ratios": ratios,
                "same_grades": same,
                "grades": grades["ours"],
            }
        )
    head = [f"{given.model}, seconds, answers:", "ours", "generate, whole reply", "generate, score line"]
    print(table([*head, "ratio, whole", "ratio, line", "same grade"], rows))
    keep("judge", given, {"rows": measured})


if __name__ == "__main__":
    sys.exit(run(main))
