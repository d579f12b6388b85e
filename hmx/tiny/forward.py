"""The forward pass of Qwen3 for pre-training on two CPU cores.

Where the processor has BF16, matrix products are made in it, with what goes into them and comes out; norms, the sums of
the softmax and the residual stream are in FP32.

Examples lie one behind the other in rows of one length, and a token sees its own example alone, and the prefix if there
is one. So all batches have the same shape, and `torch.compile` can make one kernel of what stands between two matrix
products. The tests hold it to what `transformers` computes.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F
from transformers import Qwen3Config, Qwen3ForCausalLM

from hmx.tiny.rows import Batch

Attended = tuple[torch.Tensor, torch.Tensor]
"""A layer's keys and values, [KV heads, R, L, head dimension] each; those of a prefix without R."""


@dataclass(frozen=True)
class States:
    """What the model thinks at each token."""

    last: torch.Tensor
    """[R, L, hidden], normalised, as the head reads them where all layers were run."""
    behind: list[torch.Tensor]
    """[R, L, hidden] as embedded, and behind each layer that was run."""


def product_dtype() -> torch.dtype:
    """What matrices are multiplied in: BF16 where this processor does so, else FP32, since emulation is far slower."""
    known = torch.cpu.get_capabilities()
    return torch.bfloat16 if any(known.get(name) for name in ("avx512_bf16", "amx_bf16", "bf16")) else torch.float32


def layer_forward(
    x: torch.Tensor,
    weights: nn.Module,
    turns: tuple[torch.Tensor, torch.Tensor],
    seen: torch.Tensor,
    prefix: Attended | None,
    config: Qwen3Config,
    dtype: torch.dtype,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """One layer of Qwen3 on `x` [R, L, hidden]: what it makes of it, and its keys and values [KV heads, R, L, dim].

    `turns` are the cosines and sines of the rotary embedding, [R, L, 1, dim]; of the L tokens of its row a token sees
    those for which `seen` [R, 1, L, L] holds, and all of the prefix.
    """
    attention, mlp, eps = weights.self_attn, weights.mlp, config.rms_norm_eps
    groups, heads, dim = config.num_key_value_heads, config.num_attention_heads, config.head_dim
    rows, length = x.shape[:2]
    h = _norm(x, weights.input_layernorm.weight, eps).to(dtype)
    weight = torch.cat([attention.q_proj.weight, attention.k_proj.weight, attention.v_proj.weight]).to(dtype)
    q, k, v = (h @ weight.T).view(rows, length, -1, dim).split([heads, groups, groups], dim=2)
    q = _turn(_norm(q, attention.q_norm.weight * dim**-0.5, eps), *turns).to(dtype)
    k = _turn(_norm(k, attention.k_norm.weight, eps), *turns).to(dtype)
    # Query heads that share keys and values are stacked along the length: KV heads first, then rows.
    q = q.view(rows, length, groups, -1, dim).permute(2, 0, 3, 1, 4).contiguous()  # [KV, R, heads / KV, L, dim]
    k, v = (y.permute(2, 0, 1, 3).contiguous() for y in (k, v))  # [KV, R, L, dim]
    # One softmax over what is near, the tokens of the example, and what is far, the prefix, which is the same for all.
    # Qwen3's norms keep the scores far below where exp overflows, so nothing is taken off them.
    near = q.view(groups * rows, -1, dim) @ k.view(groups * rows, length, dim).mT
    near = near.view(groups, rows, -1, length, length).float().masked_fill(~seen, -torch.inf).exp()
    total = near.sum(-1, keepdim=True)
    out = (near.to(dtype).view(groups * rows, -1, length) @ v.view(groups * rows, length, dim)).view_as(q)
    if prefix:
        far = (q.view(groups, -1, dim) @ prefix[0].mT).view(groups, rows, -1, length, prefix[0].shape[1]).float().exp()
        total = total + far.sum(-1, keepdim=True)
        out = out + (far.to(dtype).view(groups, -1, prefix[0].shape[1]) @ prefix[1]).view_as(q)
    out = (out / total).to(dtype).permute(1, 3, 0, 2, 4).reshape(rows, length, heads * dim)
    x = x + out @ attention.o_proj.weight.to(dtype).T
    h = _norm(x, weights.post_attention_layernorm.weight, eps).to(dtype)
    gate, up = (h @ torch.cat([mlp.gate_proj.weight, mlp.up_proj.weight]).to(dtype).T).chunk(2, dim=-1)
    return x + (F.silu(gate) * up) @ mlp.down_proj.weight.to(dtype).T, k, v


def hidden_states(
    model: Qwen3ForCausalLM,
    batch: Batch,
    prefix: list[int],
    dtype: torch.dtype,
    layer: Callable = layer_forward,
    depth: int | None = None,
) -> States:
    """The states of examples that each stand behind `prefix`, which is run once, with gradients.

    `layer` is `layer_forward`, or that compiled; of the model's layers the first `depth` are run, or all.
    """
    layers = model.model.layers[:depth]
    attended = None
    if prefix:
        alone, places = torch.zeros(1, len(prefix), dtype=torch.long), torch.arange(len(prefix))[None]
        all_seen = torch.zeros(1, len(prefix), dtype=torch.bool)
        _, run = _forward(model, layers, torch.tensor([prefix]), alone, places, all_seen, None, dtype, layer)
        attended = [(k[:, 0], v[:, 0]) for k, v in run]
    places = batch.positions + len(prefix)
    states, _ = _forward(model, layers, batch.tokens, batch.examples, places, batch.tried, attended, dtype, layer)
    return States(_norm(states[-1], model.model.norm.weight, model.config.rms_norm_eps).to(dtype), states)


def _forward(
    model: Qwen3ForCausalLM,
    layers: nn.ModuleList,
    tokens: torch.Tensor,
    examples: torch.Tensor,
    positions: torch.Tensor,
    unseen: torch.Tensor,
    prefix: list[Attended] | None,
    dtype: torch.dtype,
    layer: Callable,
) -> tuple[list[torch.Tensor], list[Attended]]:
    """The states of `tokens` [R, L], as embedded and behind each layer, and each layer's keys and values.

    A token sees itself, those at earlier `positions` with the same number in `examples` [R, L], save the `unseen` ones
    [R, L], and all of `prefix`.
    """
    turns = _rotation(positions, model.config.head_dim, model.config.rope_parameters["rope_theta"])
    together = examples[:, None, :, None] == examples[:, None, None, :]
    earlier = (positions[:, None, None, :] < positions[:, None, :, None]) & ~unseen[:, None, None, :]
    seen = (together & earlier) | torch.eye(tokens.shape[1], dtype=torch.bool)
    states, attended = [model.model.embed_tokens(tokens)], []
    for number, weights in enumerate(layers):
        before = prefix[number] if prefix else None
        x, keys, values = layer(states[-1], weights, turns, seen, before, model.config, dtype)
        states.append(x)
        attended.append((keys, values))
    return states, attended


def _rotation(positions: torch.Tensor, dim: int, theta: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Cosines and signed sines of the rotary embedding, [R, L, 1, dim]."""
    frequencies = theta ** (-torch.arange(0, dim, 2).float() / dim)
    angles = (positions[..., None] * frequencies)[:, :, None]
    return torch.cat([angles.cos(), angles.cos()], dim=-1), torch.cat([-angles.sin(), angles.sin()], dim=-1)


def _turn(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    return x * cos + x.roll(x.shape[-1] // 2, -1) * sin


def _norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    x = x.float()
    return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + eps) * weight
