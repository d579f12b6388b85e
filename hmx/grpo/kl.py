"""How far the policy has moved from its reference, estimated from the sampled tokens alone."""

import torch


def kl_k3(logprobs: torch.Tensor, ref_logprobs: torch.Tensor) -> torch.Tensor:
    """Schulman's k3 estimate of KL(policy || reference) at each sampled token (DeepSeekMath, equation 4).

        k3 = ref/policy - 1 - log(ref/policy)

    For tokens drawn from the policy its mean is the KL divergence, it is never negative, and while the two are close
    (a KL of some hundredths and less) it varies far less than the plain log-ratio k1; further apart single tokens make
    it leap. Its *gradient*, used as a loss, is on average that of the other
    direction, KL(reference || policy); k1 would be no alternative, since its gradient is zero on average.

    Args:
        logprobs, ref_logprobs: [B, T] log-probabilities of the same sampled tokens.

    Returns:
        [B, T], zero where the two agree.

    >>> kl_k3(torch.tensor([-1.0, -1.0]), torch.tensor([-1.0, -2.0]))
    tensor([0.0000, 0.3679])
    """
    if logprobs.shape != ref_logprobs.shape:
        raise ValueError(f"logprobs {list(logprobs.shape)} and ref_logprobs {list(ref_logprobs.shape)} differ in shape")
    log_ratio = ref_logprobs - logprobs
    return torch.expm1(log_ratio) - log_ratio  # expm1 keeps the digits that exp(x) - 1 would lose near 0


def masked_mean(values: torch.Tensor, mask: torch.Tensor, dim: int | None = None) -> torch.Tensor:
    """Mean of `values` where `mask` is true, over all entries or along `dim`; 0 where nothing is true.

    >>> masked_mean(torch.tensor([[1.0, 3.0, 9.0], [5.0, 9.0, 9.0]]), torch.tensor([[1, 1, 0], [1, 0, 0]]), dim=1)
    tensor([2., 5.])
    """
    kept = values.masked_fill(~mask.bool(), 0.0)
    return kept.sum() / mask.sum().clamp(min=1) if dim is None else kept.sum(dim) / mask.sum(dim).clamp(min=1)
