"""The judge: the model that is being trained, with its adapter switched off.

The base never changes, so the judge never changes: the same answer gets the same grade at the first step and at the
last. For the same reason the keys and values of everything that stands above the question in the rubric are computed
once and reused for every answer.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from hmx.judge.parse import parse_score, score_is_settled
from hmx.judge.rubric import Rubric
from hmx.lora import bypass
from hmx.prompts import decode, encode_chat, end_of_turn_ids, pad_id
from hmx.sampling import Prefix, generate


@dataclass(frozen=True)
class Verdict:
    """What the judge said of one answer."""

    grade: int | None
    """0 to 10, or None if two attempts gave nothing readable."""
    text: str
    """The judge's own words, of the last attempt."""
    retried: bool = False
    """Whether the greedy reply was unreadable."""


class SelfJudge:
    """Grades answers with the model's own base.

    Args:
        model: with or without an adapter; it is bypassed while grading.
        max_new_tokens: the most that the judge may write.
        stop_after_score: end a reply as soon as its score line is complete. Nothing that follows can change the grade;
            False keeps the reason, at the price of generating it.
    """

    def __init__(self, model, tokenizer, rubric: Rubric, max_new_tokens: int = 64, stop_after_score: bool = True):
        self.model, self.tokenizer, self.rubric = model, tokenizer, rubric
        self.max_new_tokens, self.stop_after_score = max_new_tokens, stop_after_score
        self.end_ids, self.pad_id = end_of_turn_ids(model, tokenizer), pad_id(tokenizer)
        self._prefix: Prefix | None = None

    def grade(
        self, questions: Sequence[str], answers: Sequence[str], generator: torch.Generator | None = None
    ) -> list[Verdict]:
        """One verdict for each (question, answer), all judged in one batch, greedily.

        Unreadable replies are asked for once more, sampled with `generator`; without a generator they stay invalid.
        """
        prompts = [
            encode_chat(self.tokenizer, self.rubric.messages(*pair)) for pair in zip(questions, answers, strict=True)
        ]
        verdicts = [Verdict(parse_score(text), text) for text in self._reply(prompts, temperature=0.0)]
        unreadable = [i for i, verdict in enumerate(verdicts) if verdict.grade is None]
        if unreadable and generator is not None:
            for i, text in zip(
                unreadable,
                self._reply([prompts[i] for i in unreadable], temperature=1.0, generator=generator),
                strict=True,
            ):
                verdicts[i] = Verdict(parse_score(text), text, retried=True)
        return verdicts

    def _reply(
        self, prompts: list[list[int]], temperature: float, generator: torch.Generator | None = None
    ) -> list[str]:
        with bypass(self.model):
            prefix = self._shared_prefix()
            completions = generate(
                self.model,
                prompts,
                max_new_tokens=self.max_new_tokens,
                end_ids=self.end_ids,
                pad_id=self.pad_id,
                temperature=temperature,
                generator=generator,
                prefix=prefix if prefix and all(map(prefix.starts, prompts)) else None,
                stop=self._settled if self.stop_after_score else None,
            )
        return [decode(self.tokenizer, row) for row in completions.rows()]

    def _settled(self, tokens: list[int]) -> bool:
        return score_is_settled(self.tokenizer.decode(tokens, skip_special_tokens=True))

    def _shared_prefix(self) -> Prefix | None:
        """The tokens with which every prompt of this rubric begins: what two different prompts have in common."""
        if self._prefix is None:
            pairs = (("Why?", "So."), ("9 or 10", "[]"))
            one, other = (encode_chat(self.tokenizer, self.rubric.messages(*pair)) for pair in pairs)
            same = next(i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b)
            self._prefix = Prefix.of(self.model, one[:same]) if same else None
        return self._prefix
