"""Sampled answers, and how they are laid out for the training pass."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from hmx.prompts import decode, encode_question, end_of_turn_ids, pad_id
from hmx.sampling import Completions, generate, pad_left


@dataclass(frozen=True)
class Batch:
    """Rows as the model reads them: [padding][prompt][completion][padding]."""

    input_ids: torch.Tensor
    """[B, L]."""
    attention_mask: torch.Tensor
    """[B, L]: 1 for every token of prompt and completion."""
    mask: torch.Tensor
    """[B, T] bool: the sampled tokens, for the last T columns."""

    @property
    def completion_length(self) -> int:
        """T, the longest completion of these rows."""
        return self.mask.shape[1]


@dataclass(frozen=True)
class Rollout:
    """G answers to each of P questions; B = P · G rows, those of a question next to each other."""

    questions: list[str]
    """[B], each question G times."""
    answers: list[str]
    """[B] texts, for the judge and for people. Training uses the sampled ids, never these texts tokenised again."""
    prompts: list[list[int]]
    """[B] token ids."""
    completions: Completions
    pad_id: int

    @classmethod
    def joined(cls, parts: Sequence["Rollout"]) -> "Rollout":
        """The rows of all parts, one part after the other."""
        return cls(
            [question for part in parts for question in part.questions],
            [answer for part in parts for answer in part.answers],
            [prompt for part in parts for prompt in part.prompts],
            Completions.joined([part.completions for part in parts], parts[0].pad_id),
            parts[0].pad_id,
        )

    def batch(self, rows: slice) -> Batch:
        """Some rows, padded no further than they need."""
        mask = self.completions.mask[rows]
        longest = max(int(mask.sum(dim=1).max()), 1)
        mask, completion = mask[:, :longest], self.completions.tokens[rows, :longest]  # [B, T]
        prompt, prompt_mask = pad_left(self.prompts[rows], self.pad_id, completion.device)
        return Batch(
            torch.cat([prompt, completion], dim=1), torch.cat([prompt_mask, mask.to(prompt_mask.dtype)], dim=1), mask
        )

    def batches(self, rows: int) -> list[tuple[slice, Batch]]:
        """All rows, `rows` at a time."""
        slices = [slice(start, start + rows) for start in range(0, len(self.answers), rows)]
        return [(part, self.batch(part)) for part in slices]


def sample_answers(
    model,
    tokenizer,
    questions: Sequence[str],
    repeats: int,
    limit,
    temperature: float,
    generator: torch.Generator,
) -> Rollout:
    """Ask the model, with its adapter as it is, each question `repeats` times.

    Args:
        limit: the most new tokens, as a function of the prompt's length.
    """
    prompts = [encode_question(tokenizer, question) for question in questions]
    fill = pad_id(tokenizer)
    completions = generate(
        model,
        prompts,
        max_new_tokens=[limit(len(prompt)) for prompt in prompts],
        end_ids=end_of_turn_ids(model, tokenizer),
        pad_id=fill,
        generator=generator,
        temperature=temperature,
        repeats=repeats,
    )
    each = [i for i in range(len(questions)) for _ in range(repeats)]
    answers = [decode(tokenizer, row) for row in completions.rows()]
    return Rollout([questions[i] for i in each], answers, [prompts[i] for i in each], completions, fill)
