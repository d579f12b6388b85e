"""The GRPO loss (Shao et al. 2024, equation 3) and two other ways to average it: tensors in, tensors out.

Notation: `B` rows (completions), `T` completion tokens, `G` rows a group (the completions of one prompt), `P` prompts
an optimizer step.
"""

from dataclasses import dataclass

import torch

from hmx.grpo.kl import kl_k3, masked_mean

AGGREGATIONS = ("bnpo", "grpo", "dr_grpo")


@dataclass(frozen=True)
class Loss:
    """The loss and what it is made of. All scalars share the loss's denominator, so those of micro-batches add up to
    the step's.
    """

    loss: torch.Tensor
    """Scalar with gradient: surrogate + beta · kl."""
    surrogate: torch.Tensor
    """Scalar: minus the aggregated clipped surrogate."""
    kl: torch.Tensor
    """Scalar: the aggregated k3, not yet multiplied by beta."""
    clip_fraction: torch.Tensor
    """Scalar: aggregated share of tokens whose ratio left [1 - clip_eps, 1 + clip_eps] on the side where the clip takes
    the gradient away.
    """
    token_kl: torch.Tensor
    """[B, T]: k3 of each token, for the metrics."""


def clipped_surrogate(
    logprobs: torch.Tensor, old_logprobs: torch.Tensor, advantages: torch.Tensor, clip_eps: float
) -> torch.Tensor:
    """PPO's clipped objective for each token, to be *maximised* (Schulman et al. 2017, equation 7).

        ratio = policy / old policy
        min(ratio · A, clip(ratio, 1 - clip_eps, 1 + clip_eps) · A)

    The minimum makes it a pessimistic bound: a token that already moved further than clip_eps in the direction of its
    advantage has no gradient, one that moved the wrong way keeps it.

    Args:
        logprobs, old_logprobs: [B, T].
        advantages: [B], one for all tokens of a row.
    """
    if logprobs.shape != old_logprobs.shape or advantages.shape != logprobs.shape[:1]:
        raise ValueError(
            f"need logprobs and old_logprobs [B, T] and advantages [B], not {list(logprobs.shape)}, "
            f"{list(old_logprobs.shape)}, {list(advantages.shape)}"
        )
    ratio = torch.exp(logprobs - old_logprobs)
    advantages = advantages[:, None]  # [B, 1]
    return torch.min(ratio * advantages, ratio.clamp(1 - clip_eps, 1 + clip_eps) * advantages)


def grpo_loss(
    logprobs: torch.Tensor,
    old_logprobs: torch.Tensor | None,
    ref_logprobs: torch.Tensor,
    advantages: torch.Tensor,
    mask: torch.Tensor,
    clip_eps: float,
    beta: float,
    aggregation: str,
    denominator: torch.Tensor | float | None = None,
) -> Loss:
    """The loss of a batch or of a part of one.

        token loss = -clipped surrogate + beta · k3
        loss = sum over rows of (row loss / denominator of the row)

    where the row loss is the sum of its tokens' losses ("bnpo", "dr_grpo") or their mean ("grpo").

    Args:
        logprobs: [B, T] of the policy, with gradient.
        old_logprobs: [B, T] of the policy that sampled, or None while it still is the same policy: then the ratio is 1
            in value but keeps its gradient, and no second forward pass is needed.
        ref_logprobs: [B, T] of the reference, here the base model.
        advantages: [B].
        mask: [B, T], true for sampled tokens. What stands where it is false never matters, not even infinities.
        denominator: a number or one for each row [B], see `row_denominators`. By default those of this batch taken as
            one group: its tokens ("bnpo"), its rows ("grpo"), its rows times T ("dr_grpo").
    """
    for name, tensor in (("old_logprobs", old_logprobs), ("ref_logprobs", ref_logprobs), ("the mask", mask)):
        if tensor is not None and tensor.shape != logprobs.shape:
            raise ValueError(f"{name} {list(tensor.shape)} must have the shape of logprobs {list(logprobs.shape)}")
    if isinstance(denominator, torch.Tensor) and denominator.shape not in ((), logprobs.shape[:1]):
        raise ValueError(f"the denominator must be a number or [B], not {list(denominator.shape)}")
    mask = mask.bool()
    logprobs, ref_logprobs = logprobs.masked_fill(~mask, 0.0), ref_logprobs.masked_fill(~mask, 0.0)
    old_logprobs = logprobs.detach() if old_logprobs is None else old_logprobs.masked_fill(~mask, 0.0)
    if denominator is None:
        denominator = row_denominators(mask, len(mask), aggregation, mask.shape[1])

    surrogate = -clipped_surrogate(logprobs, old_logprobs, advantages, clip_eps)  # [B, T]
    kl = kl_k3(logprobs, ref_logprobs)  # [B, T]
    ratio = torch.exp(logprobs - old_logprobs).detach()
    clipped = torch.where(
        advantages[:, None] > 0, ratio > 1 + clip_eps, (ratio < 1 - clip_eps) & (advantages[:, None] < 0)
    )

    def aggregate(values: torch.Tensor) -> torch.Tensor:  # [B, T] to a scalar
        rows = masked_mean(values, mask, dim=1) if aggregation == "grpo" else values.masked_fill(~mask, 0.0).sum(dim=1)
        return (rows / denominator).sum()

    loss = aggregate(surrogate + beta * kl if beta else surrogate)  # 0 times an infinite k3 would be no number
    parts = (aggregate(values.detach()) for values in (surrogate, kl, clipped.float()))
    return Loss(loss, *parts, token_kl=kl.detach())


def row_denominators(mask: torch.Tensor, group_size: int, aggregation: str, max_completion_length: int) -> torch.Tensor:
    """What each row's share of the loss is divided by, [B]. Taken from the whole step, so that splitting it for memory
    changes no gradient.

    * "bnpo" (TRL's name): the tokens of the row's group, times the number of groups. Mean over the tokens of a
      prompt's completions, then over the prompts.
    * "grpo": the number of rows. Mean over each completion's tokens, then over the completions (DeepSeekMath, equation
      3).
    * "dr_grpo": rows times the longest completion possible, a constant, so that a token weighs the same in a short
      completion as in a long one. This is the length part of Liu et al. 2025; they also drop the division by std.

    Args:
        mask: [B, T] of the whole step, B = P · group_size, the rows of a group next to each other.
        max_completion_length: only for "dr_grpo".
    """
    rows = len(mask)
    if rows % group_size:
        raise ValueError(f"{rows} rows are not a whole number of groups of {group_size}")
    if aggregation == "bnpo":
        tokens = mask.sum(dim=1).view(-1, group_size).sum(dim=1, keepdim=True)  # [P, 1]
        return (tokens.clamp(min=1) * (rows // group_size)).expand(-1, group_size).flatten().float()
    if aggregation == "grpo":
        return torch.full((rows,), float(rows), device=mask.device)
    if aggregation == "dr_grpo":
        return torch.full((rows,), float(rows * max(max_completion_length, 1)), device=mask.device)
    raise ValueError(f"no aggregation is called {aggregation!r}; they are {', '.join(AGGREGATIONS)}")
