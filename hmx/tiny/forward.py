"""The forward pass of Qwen3 for pre-training on two CPU cores: matrix products in BF16, all else in FP32.

Rows are short, and padding stands behind, so there is no padding mask. Rows that begin alike are run behind one common
prefix. The tests hold it to what `transformers` computes.
"""

from dataclasses import dataclass

import torch
from torch.nn import functional as F
from transformers import Qwen3ForCausalLM

from hmx.tiny.rows import Batch


@dataclass(frozen=True)
class States:
    """What the model thinks at each token."""

    last: torch.Tensor
    """[B, L, hidden], normalised, as the head reads them."""
    probed: torch.Tensor
    """[B, L, hidden] behind the last layer but one."""
    keys_values: list[tuple[torch.Tensor, torch.Tensor]]
    """Of each layer, the first row's, [KV heads, L, head dimension]."""


def hidden_states(
    model: Qwen3ForCausalLM, batch: Batch, prefix: list[int], dtype: torch.dtype = torch.bfloat16
) -> States:
    """The states of rows that stand behind `prefix`, which is run once, with gradients."""
    before = _forward(model, torch.tensor([prefix]), [], dtype).keys_values if prefix else []
    return _forward(model, batch.tokens, before, dtype)


def _forward(
    model: Qwen3ForCausalLM, tokens: torch.Tensor, prefix: list[tuple[torch.Tensor, torch.Tensor]], dtype: torch.dtype
) -> States:
    """Qwen3 on `tokens` [B, L], which follow the keys and values of `prefix`.

    Nothing is masked but the future: padding stands behind, so no token that counts can see it.
    """
    config = model.config
    groups, heads, dim = config.num_key_value_heads, config.num_attention_heads, config.head_dim
    rows, length = tokens.shape
    begin = prefix[0][0].shape[1] if prefix else 0
    cos, sin = _rotation(begin, length, dim, config.rope_parameters["rope_theta"])
    future = torch.ones(length, length, dtype=torch.bool).triu(1)
    x = probed = model.model.embed_tokens(tokens)  # [B, L, hidden]
    keys_values = []
    for number, layer in enumerate(model.model.layers):
        attention, mlp = layer.self_attn, layer.mlp
        h = _norm(x, layer.input_layernorm.weight, config.rms_norm_eps).to(dtype)
        weight = torch.cat([attention.q_proj.weight, attention.k_proj.weight, attention.v_proj.weight]).to(dtype)
        q, k, v = (h @ weight.T).view(rows, length, -1, dim).split([heads, groups, groups], dim=2)
        q = _turn(_norm(q, attention.q_norm.weight * dim**-0.5, config.rms_norm_eps), cos, sin).to(dtype)
        k = _turn(_norm(k, attention.k_norm.weight, config.rms_norm_eps), cos, sin).to(dtype)
        # Query heads that share keys and values are stacked along the length: KV heads first, then rows.
        q = q.view(rows, length, groups, -1, dim).permute(2, 0, 3, 1, 4).contiguous()  # [KV, B, heads / KV, L, dim]
        k, v = (y.permute(2, 0, 1, 3).contiguous() for y in (k, v))  # [KV, B, L, dim]
        keys_values.append((k[:, 0], v[:, 0]))
        near = q.view(groups * rows, -1, dim) @ k.view(groups * rows, length, dim).mT
        scores = near.view(groups, rows, -1, length, length).masked_fill(future, -torch.inf)
        if prefix:
            keys, values = prefix[number]
            far = q.view(groups, -1, dim) @ keys.mT  # all rows at once: the prefix is the same for all
            scores = torch.cat([far.view(groups, rows, -1, length, begin), scores], dim=-1)
        shares = scores.softmax(-1)
        out = shares[..., begin:].reshape(groups * rows, -1, length) @ v.view(groups * rows, length, dim)
        if prefix:
            out = out + (shares[..., :begin].reshape(groups, -1, begin) @ values).view_as(out)
        out = out.view(groups, rows, -1, length, dim).permute(1, 3, 0, 2, 4).reshape(rows, length, heads * dim)
        x = x + out @ attention.o_proj.weight.to(dtype).T
        h = _norm(x, layer.post_attention_layernorm.weight, config.rms_norm_eps).to(dtype)
        gate, up = (h @ torch.cat([mlp.gate_proj.weight, mlp.up_proj.weight]).to(dtype).T).chunk(2, dim=-1)
        x = x + (F.silu(gate) * up) @ mlp.down_proj.weight.to(dtype).T
        if number == len(model.model.layers) - 2:
            probed = x
    return States(_norm(x, model.model.norm.weight, config.rms_norm_eps).to(dtype), probed, keys_values)


def _rotation(begin: int, length: int, dim: int, theta: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Cosines and signed sines of the rotary embedding, [L, 1, dim]."""
    frequencies = theta ** (-torch.arange(0, dim, 2).float() / dim)
    angles = torch.outer(torch.arange(begin, begin + length).float(), frequencies)[:, None]
    return torch.cat([angles.cos(), angles.cos()], dim=-1), torch.cat([-angles.sin(), angles.sin()], dim=-1)


def _turn(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    return x * cos + x.roll(x.shape[-1] // 2, -1) * sin


class _RMSNorm(torch.autograd.Function):
    """x / rms(x) * weight in FP32, with fewer passes over memory than autograd would make."""

    @staticmethod
    def forward(ctx, x, weight, eps):
        x = x.float()
        scale = torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + eps)
        normal = x * scale
        ctx.save_for_backward(normal, scale, weight)
        return normal * weight

    @staticmethod
    def backward(ctx, grad):
        normal, scale, weight = ctx.saved_tensors
        grad_weight = (grad * normal).flatten(0, -2).sum(0)
        grad = grad * weight
        return torch.addcmul(grad, normal, (grad * normal).mean(-1, keepdim=True), value=-1) * scale, grad_weight, None


_norm = _RMSNorm.apply
