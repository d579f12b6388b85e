"""The log-probabilities that the loss is made of."""

import torch
from torch.utils.checkpoint import checkpoint

from hmx.decoder import Decoder, output_logits, positions
from hmx.grpo.packing import Packed, packing_pays
from hmx.precision import autocast

CHUNK = 256
"""Tokens that go through the output layer at a time."""


def token_logprobs(
    model,
    input_ids: torch.Tensor,
    attention_mask: torch.Tensor,
    completion_length: int,
    temperature: float = 1.0,
    chunk: int = CHUNK,
) -> torch.Tensor:
    """log softmax(logits / temperature) of each completion token, in FP32.

    Only the hidden states that predict a completion token go through the output layer, `chunk` tokens at a time, and
    where there are several chunks each one's logits are computed again on the way back. With a vocabulary of 150,000 it
    is the logits that fill the memory, not the model: a full [B, L, V] FP32 tensor never exists. Where it pays the rows
    are packed first (`hmx.grpo.packing`).

    Args:
        model: a causal language model, adapter on or bypassed as the caller left it.
        input_ids: [B, L], each row [padding][prompt][completion][padding].
        attention_mask: [B, L], 1 for tokens and 0 for padding. Positions are counted along it, so padding on either
            side changes nothing.
        completion_length: T; the completions (with the padding behind them) are the last T columns.
        temperature: the one that the tokens were sampled at.

    Returns:
        [B, T], zero where there is padding.
    """
    T = completion_length
    if not 1 <= T < input_ids.shape[1]:
        raise ValueError(
            f"the completion must be shorter than the whole row and not empty: T = {T}, L = {input_ids.shape[1]}"
        )

    spoken = attention_mask[:, -T:].bool()  # [B, T]
    with autocast(model):
        packed = Packed.of(input_ids, attention_mask, T)
        if packing_pays(model, len(packed.ids), *input_ids.shape):
            hidden = packed.hidden(model)  # [M, hidden]
        else:
            hidden = _hidden(model, input_ids, attention_mask)[:, -T - 1 : -1][spoken]  # t predicts token t + 1
        values = chosen_logprobs(model, hidden, input_ids[:, -T:][spoken], temperature, chunk)
    return torch.zeros(spoken.shape, device=hidden.device).masked_scatter(spoken, values)


def chosen_logprobs(
    model, hidden: torch.Tensor, targets: torch.Tensor, temperature: float, chunk: int = CHUNK
) -> torch.Tensor:
    """log softmax(logits / temperature) of M targets [M], each predicted by a last hidden state of [M, hidden]."""

    def of_some(hidden: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:  # [N, hidden], [N] to [N]
        logits = output_logits(model, hidden).float() / temperature  # [N, V]
        return logits.log_softmax(dim=-1).gather(-1, targets[:, None]).squeeze(-1)

    pieces = list(zip(hidden.split(chunk), targets.split(chunk), strict=True))
    if torch.is_grad_enabled() and len(pieces) > 1:
        return torch.cat([checkpoint(of_some, *piece, use_reentrant=False) for piece in pieces])
    return torch.cat([of_some(*piece) for piece in pieces])


def _hidden(model, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
    """The last hidden states [B, L, hidden] of rows laid out as a rectangle, for every architecture: on a CPU by
    the decoder if it knows the model, as where they are packed.
    """
    if model.device.type == "cpu" and (decoder := Decoder.of(model)):
        return decoder.read(input_ids, attention_mask)
    output = model.base_model(
        input_ids=input_ids, attention_mask=attention_mask, position_ids=positions(attention_mask), use_cache=False
    )
    return output.last_hidden_state
