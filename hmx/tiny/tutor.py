"""What the embedded model is taught, while it is trained, beside what it should say: what to find out on the way to it.

A `Tutor` reads it off the layers below the last. It is thrown away in the end, and what it taught them stays:

* Behind the last layer but one, at the end of each sentence that is graded, how strong that sentence is or that it is
  garbled, and within the sentence, at each token, whether what stands there can still become a sentence; and at each
  token that an interviewee says, what it was asked about, without which the model does not learn to answer on the
  subject.
* Which words could stand at a place is known one token before it, and which one does stand there at the place itself.
  Only comparing the two shows a word that does not fit, and that takes a product of two states, which nothing else here
  asks for. So two layers are taught their part of it: one to predict the next token, the one above it to say
  at each token how improbable that one was by the prediction, and whether it breaks its sentence. A text has hardly any
  that do, so others are tried in the places of its words (`hmx.tiny.tries`).
"""

import torch
from torch import nn
from torch.nn import functional as F

from hmx.tiny.forward import States
from hmx.tiny.rows import ABOUT, BROKEN, GARBLED, LABELS, WHOLE, Batch

_PREDICTED, _COMPARED, _KNOWN = 2, 3, 4
"""Behind how many layers are the states in which the next token must be predicted, in which a token must have been
compared with that prediction, and in which the strengths of sentences must be known.
"""
_RARE, _FIRST = 10.0, 16.0
"""How much more a token that breaks its sentence counts than others, of which there are forty to one: in the loss of
what breaks sentences, and in that of the strengths.
"""
_NATS, _STUNNED = 4.0, 4.0
"""How many nats are one unit of surprise, and how many units are the most: beyond it all tokens are alike."""


class Tutor(nn.Module):
    """Reads off the layers below the last what they should have found out."""

    def __init__(self, hidden: int) -> None:
        """For states of this size."""
        super().__init__()
        self.strengths = nn.Linear(hidden, LABELS, bias=False)
        self.surprise = nn.Linear(hidden, 1)
        self.breaks = nn.Linear(hidden, 1)
        for parameter in self.parameters():
            nn.init.zeros_(parameter)
        # A prediction is a token's embedding turned, so that it can't be taken for the token that stands there.
        random = torch.randn(hidden, hidden, generator=torch.Generator().manual_seed(0))
        self.register_buffer("turn", torch.linalg.qr(random).Q)

    def strength_loss(self, batch: Batch, states: States) -> torch.Tensor:
        """Mean cross-entropy of the strengths at the sentences' ends; half as much of what is known before the ends, a
        token that breaks its sentence counting `_FIRST` times, and of what an interview is about; and half as much of
        whether with a word that is tried it could still become a sentence.
        """
        marked, (breaking, _) = batch.strengths >= 0, _breaks(batch)
        labels, tried = batch.strengths[marked], batch.tried[marked]
        losses = F.cross_entropy(self.strengths(states.behind[_KNOWN][marked]), labels, reduction="none")
        ends = labels <= GARBLED
        counts = torch.where(breaking[marked] & ~ends, _FIRST, 1.0)
        parts = (1.0, ends), (0.5, ~ends & ~tried), (0.5, tried)
        return sum(weight * (losses * counts)[part].sum() / counts[part].sum() for weight, part in parts if part.any())

    def break_loss(self, batch: Batch, states: States) -> torch.Tensor:
        """Mean cross-entropy of whether a token of a graded text breaks its sentence, over those up to the one that
        does, which counts `_RARE` times; and as much of whether the words that are tried do; each 0 if there are none.
        """
        breaking, behind = _breaks(batch)
        said = self.breaks(_unit(states.behind[_COMPARED]))[..., 0]
        text = (batch.strengths >= 0) & (batch.strengths < ABOUT) & ~batch.tried & ~behind
        loss = said.sum() * 0.0
        for part, truth, rare in (text, breaking, _RARE), (batch.tried, batch.strengths == BROKEN, 1.0):
            if part.any():
                loss = loss + F.binary_cross_entropy_with_logits(
                    said[part], truth[part].float(), pos_weight=torch.tensor(rare)
                )
        return loss

    def surprise_loss(
        self, embeddings: torch.Tensor, batch: Batch, states: States
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Of the texts that are graded, the mean cross-entropy of predicting by `embeddings` [V, hidden] the tokens
        that may still become a sentence; and the mean squared error of what is said at every token of how improbable
        it was, in units of surprise; each 0 if there are none.
        """
        labels, dtype = batch.strengths[:, 1:], states.last.dtype
        judged = (labels >= 0) & (labels < ABOUT) & ~batch.tried[:, 1:]
        predicted = (_unit(states.behind[_PREDICTED][:, :-1][judged]) @ self.turn).to(dtype)
        logits = (predicted @ embeddings.to(dtype).T).float()
        surprise = F.cross_entropy(logits, batch.tokens[:, 1:][judged], reduction="none")
        fine = well_formed(labels[judged])
        said = self.surprise(_unit(states.behind[_COMPARED][:, 1:][judged]))[:, 0]
        errors = (said - (surprise.detach() / _NATS).clamp(max=_STUNNED)) ** 2
        return (surprise * fine).sum() / max(int(fine.sum()), 1), errors.sum() / max(len(errors), 1)


def well_formed(labels: torch.Tensor) -> torch.Tensor:
    """Whether a token is one of a graded text that may still become a sentence, or is the end of one."""
    return (labels >= 0) & (labels < GARBLED) | (labels == WHOLE)


def _breaks(batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
    """Which tokens of graded texts break their sentence, and which stand behind such a one; both [R, L]."""
    broken = batch.strengths == BROKEN
    behind = F.pad(broken[:, :-1], (1, 0))
    return (broken | (batch.strengths == GARBLED)) & ~behind & ~batch.tried, behind


def _unit(states: torch.Tensor) -> torch.Tensor:
    """The states in FP32, each of mean square 1."""
    return F.rms_norm(states.float(), states.shape[-1:], eps=1e-6)
