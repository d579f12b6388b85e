"""The judge: the model that is being trained, with its adapter switched off.

The base never changes, so the judge never changes: a readable grade, which is greedy, is the same at the first step and
at the last, up to rounding; only a second attempt at an unreadable one is sampled. For the same reason the keys and
values of everything that stands above the question in the rubric are computed once and reused for every answer.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch

from hmx.config import JudgeConfig, is_ours
from hmx.judge.expected import SCORE, GradeLines
from hmx.judge.parse import parse_cut_off, parse_score, score_is_settled
from hmx.judge.rubric import Rubric
from hmx.lora import bypass
from hmx.memory import Portions
from hmx.prompts import decode, encode_chat, end_of_turn_ids, pad_id
from hmx.sampling import Prefix, common_length, generate, last_logits

READABLE = 0.5
"""An expectation counts only if all eleven grades together have at least this probability."""
_PAIRS = ("Why?", "So."), ("9 or 10", "[]")
"""Two interviews to look at the judge with. Their questions and their answers begin with different characters, so that
what two prompts have in common is the rubric and no more.
"""


@dataclass(frozen=True)
class Verdict:
    """What the judge said of one answer."""

    grade: float | None
    """0 to 10, a whole number unless it is an expectation; None if nothing readable was to be had."""
    text: str
    """The judge's own words, of the last attempt; for an expectation the probabilities behind it."""
    retried: bool = False
    """Whether `text` is a second reply, a sampled one, because the greedy one was unreadable."""


class SelfJudge:
    """Grades answers with the model's own base.

    Args:
        model: with or without an adapter; it is bypassed while grading.
        max_new_tokens: the most that the judge may write.
        stop_after_score: end a reply as soon as its score line is complete. Nothing that follows can change the grade;
            False keeps the reason, at the price of generating it.
        expected: give the mean of the eleven grades by their probabilities instead of the one that the judge writes.
            Nothing is generated, and two answers are hardly ever graded the same.
    """

    def __init__(
        self,
        model,
        tokenizer,
        rubric: Rubric,
        max_new_tokens: int = 64,
        stop_after_score: bool = True,
        expected: bool = False,
    ):
        self.model, self.tokenizer, self.rubric = model, tokenizer, rubric
        self.max_new_tokens, self.stop_after_score = max_new_tokens, stop_after_score
        self.lines = GradeLines.of(tokenizer) if expected else None
        self.end_ids, self.pad_id = end_of_turn_ids(model, tokenizer), pad_id(tokenizer)
        self._prefix: Prefix | None = None
        self.portions = Portions("judging answers")

    @classmethod
    def of(cls, settings: JudgeConfig, rubric: Rubric, model, tokenizer) -> "SelfJudge":
        """The judge that a config asks for."""
        expected = settings.grade == "expected"
        return cls(model, tokenizer, rubric, settings.max_new_tokens, settings.stop_after_score, expected)

    @property
    def embedded(self) -> bool:
        """Whether this is the embedded model, which knows one rubric and no other."""
        return is_ours(self.model.name_or_path, "tiny")

    def grade(
        self, questions: Sequence[str], answers: Sequence[str], generator: torch.Generator | None = None
    ) -> list[Verdict]:
        """One verdict for each (question, answer), all judged in one batch, greedily.

        Unreadable replies are asked for once more, sampled with `generator`; without a generator they stay invalid.
        An expectation is unreadable, and stays so, if the judge would more likely than not write no grade at all.
        """
        prompts = [
            encode_chat(self.tokenizer, self.rubric.messages(*pair)) for pair in zip(questions, answers, strict=True)
        ]

        def judge(rows: slice) -> list[Verdict]:
            return self._expectations(prompts[rows]) if self.lines else self._verdicts(prompts[rows], generator)

        return [verdict for part in self.portions(judge, len(prompts), generator) for verdict in part]

    def _verdicts(self, prompts: list[list[int]], generator: torch.Generator | None) -> list[Verdict]:
        verdicts = [Verdict(*reply) for reply in self._reply(prompts, temperature=0.0)]
        unreadable = [i for i, verdict in enumerate(verdicts) if verdict.grade is None]
        if unreadable and generator is not None:
            replies = self._reply([prompts[i] for i in unreadable], temperature=1.0, generator=generator)
            for i, reply in zip(unreadable, replies, strict=True):
                verdicts[i] = Verdict(*reply, retried=True)
        return verdicts

    def _reply(
        self, prompts: list[list[int]], temperature: float, generator: torch.Generator | None = None
    ) -> list[tuple[int | None, str]]:
        """The grade and the text of a reply to each prompt."""
        if self._guess and temperature == 0:
            replies = self._generate(prompts, temperature, guess=self._guess)
            others = [row for row, (tokens, _) in enumerate(replies) if not tokens]
            if others:
                again = self._generate([prompts[row] for row in others], temperature)
                for row, reply in zip(others, again, strict=True):
                    replies[row] = reply
        else:
            replies = self._generate(prompts, temperature, generator)
        texts = [(decode(self.tokenizer, tokens), cut) for tokens, cut in replies]
        return [(parse_cut_off(text) if cut else parse_score(text), text) for text, cut in texts]

    @cached_property
    def _guess(self) -> list[int]:
        """How replies are expected to begin: as a score line does, if the likeliest replies to both of `_PAIRS` do,
        else in no way. What was graded before has no say, so that a run that goes on judges as one never interrupted.
        """
        score = [self.tokenizer.encode(f"{SCORE}{grade}", add_special_tokens=False) for grade in (0, 7)]
        begin = score[0][: common_length(*score)][: self.max_new_tokens - 1]
        if not begin:
            return []
        prompts = [encode_chat(self.tokenizer, self.rubric.messages(*pair)) for pair in _PAIRS]
        likeliest = self._logits(prompts, begin)[:, :-1].argmax(dim=-1).tolist()
        return begin if all(tokens == begin for tokens in likeliest) else []

    def _generate(
        self,
        prompts: list[list[int]],
        temperature: float,
        generator: torch.Generator | None = None,
        guess: Sequence[int] = (),
    ) -> list[tuple[list[int], bool]]:
        """The tokens of each reply, and whether it met its limit."""
        with bypass(self.model):
            completions = generate(
                self.model,
                prompts,
                max_new_tokens=self.max_new_tokens,
                end_ids=self.end_ids,
                pad_id=self.pad_id,
                temperature=temperature,
                generator=generator,
                prefix=self._shared_prefix(prompts),
                stop=self._settled if self.stop_after_score else None,
                guess=guess,
            )
        return list(zip(completions.rows(), completions.truncated.tolist(), strict=True))

    def _expectations(self, prompts: list[list[int]]) -> list[Verdict]:
        verdicts = []
        for probabilities in self.lines.probabilities(self._logits(prompts, self.lines.read)).tolist():
            total = sum(probabilities)
            mean = sum(grade * probability for grade, probability in enumerate(probabilities)) / total if total else 0.0
            text = ", ".join(f"{grade}: {p:.1%}" for grade, p in enumerate(probabilities) if p >= 0.0005)
            text = text or f"0 to 10: {total:.1%}"
            verdicts.append(Verdict(mean if total >= READABLE else None, text))
        return verdicts

    def _logits(self, prompts: list[list[int]], read: Sequence[int]) -> torch.Tensor:
        """The logits [P, len(read) + 1, V] behind each prompt and behind each of the tokens read after it."""
        with bypass(self.model):
            return last_logits(
                self.model,
                [[*prompt, *read] for prompt in prompts],
                len(read) + 1,
                self.pad_id,
                self._shared_prefix(prompts),
            )

    def _settled(self, row: int, tokens: list[int]) -> bool:
        return score_is_settled(self.tokenizer.decode(tokens, skip_special_tokens=True))

    def _shared_prefix(self, prompts: list[list[int]]) -> Prefix | None:
        """The tokens with which every prompt of this rubric begins: what two different prompts have in common. None if
        one of `prompts` does not.
        """
        if self._prefix is None:
            one, other = (encode_chat(self.tokenizer, self.rubric.messages(*pair)) for pair in _PAIRS)
            same = common_length(one, other)
            self._prefix = Prefix.of(self.model, one[:same]) if same else None
        return self._prefix if self._prefix and all(map(self._prefix.starts, prompts)) else None
