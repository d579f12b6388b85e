"""The grade as an expectation: not what the judge would write, but the mean over what it might."""

from dataclasses import dataclass

import torch
from transformers import PreTrainedTokenizerBase

from hmx.errors import UserError

SCORE = "Score: "


@dataclass(frozen=True)
class GradeLines:
    """The eleven replies "Score: 0" … "Score: 10" as tokens, all read off one forward pass.

    They begin alike and part at their last token; where "10" is written as "1" and "0", that one is longer. So behind
    a prompt the longest, without its last token, is all that the model has to read.
    """

    lines: tuple[tuple[int, ...], ...]
    """The tokens of "Score: n" for n = 0 … 10, and on to 19: what begins as 1 does without being it."""

    @classmethod
    def of(cls, tokenizer: PreTrainedTokenizerBase) -> "GradeLines":
        """Raises `UserError` for a tokenizer that writes the grades in other ways than the one above."""
        lines = cls(tuple(tuple(tokenizer.encode(f"{SCORE}{n}", add_special_tokens=False)) for n in range(20)))
        if any(line[:-1] != lines.read[: len(line) - 1] for line in lines.lines) or len(set(lines.lines)) < 20:
            raise UserError(
                'judge.grade = "expected" is not possible with this model: its tokenizer does not write "Score: 0" to '
                '"Score: 10" as one beginning and a last token each; use judge.grade = "integer".'
            )
        return lines

    @property
    def read(self) -> tuple[int, ...]:
        """What the model reads behind the prompt."""
        return max(self.lines, key=len)[:-1]

    def probabilities(self, logits: torch.Tensor) -> torch.Tensor:
        """The probability [B, 11] that a reply sampled at temperature 1 begins with "Score: g" and no other grade.

        A reply that begins with "Score: 10" or "Score: 15" may begin with the tokens of "Score: 1" too; these are taken
        off there. What comes behind the tokens of the other grades is not read: "Score: 75" counts as 7.

        Args:
            logits: [B, len(read) + 1, V], those that follow the prompt's last token and each token of `read`.
        """
        logprobs = logits.float().log_softmax(dim=-1)
        total = torch.stack([logprobs[:, range(len(line)), list(line)].sum(dim=1) for line in self.lines], dim=1).exp()
        for g, line in enumerate(self.lines):
            for other, longer in enumerate(self.lines):
                if len(longer) > len(line) and longer[: len(line)] == line:
                    total[:, g] -= total[:, other]
        return total[:, :11].clamp(min=0)  # a difference of rounded numbers may be just below it
