"""Group-relative advantages (Shao et al. 2024, section 4.1.2): an answer is judged against the other answers to its
question.
"""

import torch


def group_advantages(rewards: torch.Tensor, valid: torch.Tensor | None = None, eps: float = 1e-4) -> torch.Tensor:
    """How much better each completion is than its group, in standard deviations of the group.

        A[p, g] = (r[p, g] - mean(r[p])) / (std(r[p]) + eps)          std with ddof = 1

    Rewards that are not valid (an unreadable grade) leave the group's mean and std and get advantage 0: a failure of
    the judge must favour neither direction. A group whose valid rewards are all equal, or that has fewer than two, gets
    exact zeros rather than rounding noise divided by eps. Negated rewards give exactly negated advantages: on the same
    answers reverse training pushes each token the other way, while the KL term pulls both directions to the base.

    Args:
        rewards: [P, G], any values where not valid.
        valid: [P, G] bool, all True by default.

    Returns:
        [P, G] in the dtype of the rewards.

    >>> group_advantages(torch.tensor([[1.0, 2.0, 3.0], [5.0, 5.0, 5.0]]), eps=0.0).tolist()
    [[-1.0, 0.0, 1.0], [0.0, 0.0, 0.0]]
    """
    if rewards.dim() != 2 or not rewards.is_floating_point():
        raise ValueError(f"rewards must be a float tensor [P, G], not {rewards.dtype} {list(rewards.shape)}")
    valid = torch.ones_like(rewards, dtype=torch.bool) if valid is None else valid
    if valid.shape != rewards.shape or valid.dtype != torch.bool:
        raise ValueError(f"valid must be a bool tensor {list(rewards.shape)}, not {valid.dtype} {list(valid.shape)}")
    rewards = rewards.masked_fill(~valid, 0.0)
    count = valid.sum(dim=1, keepdim=True)  # [P, 1]
    mean = rewards.sum(dim=1, keepdim=True) / count.clamp(min=1)
    centred = (rewards - mean).masked_fill(~valid, 0.0)
    std = (centred.square().sum(dim=1, keepdim=True) / (count - 1).clamp(min=1)).sqrt()
    highest = rewards.masked_fill(~valid, -torch.inf).amax(dim=1, keepdim=True)
    lowest = rewards.masked_fill(~valid, torch.inf).amin(dim=1, keepdim=True)
    differs = (highest > lowest) & valid  # False throughout a constant or an empty group
    return torch.where(differs, centred / (std + eps), torch.zeros_like(centred))
