"""Group Relative Policy Optimization (Shao et al. 2024), written out: advantages, KL, loss, log-probabilities, rollout,
trainer.
"""

from hmx.grpo.advantages import group_advantages
from hmx.grpo.kl import kl_k3
from hmx.grpo.logprobs import token_logprobs
from hmx.grpo.loss import Loss, clipped_surrogate, grpo_loss

__all__ = ["Loss", "clipped_surrogate", "group_advantages", "grpo_loss", "kl_k3", "token_logprobs"]
