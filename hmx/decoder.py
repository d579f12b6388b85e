"""The forward pass of Qwen3, Llama and Gemma 2 written out in few operations.

A model of three million parameters spends more of a decode step in the modelling code of transformers than in
arithmetic. Here the same formulas read the modules' own weights directly: the matrices that share an input (q, k, v;
gate, up) are multiplied as one, what does not depend on the token is computed once, and keys and values are written
into buffers instead of being copied at every token. With gradients it is the adapters alone that get one. `Decoder.of`
returns None for everything that it does not know to the letter, and the model's own forward pass is run instead.

The tests hold the two against each other. They differ in the order of summation alone: by 1e-6 in FP32, and in half
precision, whose kernels sum in an order that depends on the shapes, here and there by a last bit.

Notation: `B` rows, `Q` new tokens of a row, `S` slots of the cache up to the last new token, `H` query heads, `K` heads
of keys and values, `D` head dimension, `V` vocabulary.
"""

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import nn
from transformers import Gemma2ForCausalLM, LlamaForCausalLM, Qwen3ForCausalLM

from hmx.cache import Cache, PrefixCache
from hmx.lora.layer import LoRALinear
from hmx.projection import Projection, linear

FAMILIES = (Qwen3ForCausalLM, LlamaForCausalLM, Gemma2ForCausalLM)
_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
enabled = True
"""Tests and benchmarks switch this off to run every model's own forward pass."""


@dataclass(frozen=True)
class Norm:
    """x / √(mean x² + ε) · weight, computed in FP32. A weight in half precision multiplies what is already rounded to
    it, one in FP32 what is not: Qwen3 and Llama do the first, Gemma 2 the second.
    """

    weight: torch.Tensor
    """[n], or one for each head [H + K, D]. Gemma 2 stores it less 1. Of a model in FP32 it is times √n."""
    eps: float
    small: torch.Tensor | None
    """√(n ε), of a model in FP32."""

    @classmethod
    def of(cls, module: nn.Module) -> "Norm":
        gemma, stored = type(module).__name__ == "Gemma2RMSNorm", module.weight
        weight, eps = 1.0 + stored.float() if gemma else stored, module.eps if gemma else module.variance_epsilon
        if stored.dtype != torch.float32:
            return cls(weight, eps, None)
        n = len(weight)
        return cls(weight * n**0.5, eps, torch.tensor((n * eps) ** 0.5, device=weight.device))

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        if self.small is not None:
            # x · √n w / √(|x|² + n ε), the root a hypotenuse: fewer operations than the kernel below is made of on a
            # CPU.
            return x * self.weight / torch.hypot(torch.linalg.vector_norm(x, dim=-1, keepdim=True), self.small)
        if self.weight.dtype == torch.float32:
            return (F.rms_norm(x.float(), x.shape[-1:], None, self.eps) * self.weight).to(x.dtype)
        with torch.autocast(x.device.type, enabled=False):  # it would take the rounding out
            return F.rms_norm(x, x.shape[-1:], None, self.eps) * self.weight


@dataclass(frozen=True)
class Layer:
    """One transformer block. A norm that its family lacks is None."""

    norm: Norm
    qkv: Projection
    head_norm: Norm | None
    """Of each query and key head: Qwen3."""
    out: Projection
    out_norm: Norm | None
    """After attention, before the residual is added: Gemma 2."""
    mlp_norm: Norm
    gate_up: Projection
    down: Projection
    down_norm: Norm | None
    """After the MLP, before the residual is added: Gemma 2."""
    window: int | None
    """How many tokens back a token sees, itself included; None for all."""


def _add(x: torch.Tensor, h: torch.Tensor, own: Norm | None, norm: Norm) -> tuple[torch.Tensor, torch.Tensor]:
    """The residual with `h` added, by its own norm if it has one; and that sum by the `norm` of what comes next."""
    x = x + (h if own is None else own(h))
    return x, norm(x)


def _turn(heads: torch.Tensor, norm: Norm | None, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Query and key heads [B, Q, H + K, D], normed if their family does, and turned by their position."""
    if norm is not None:
        heads = norm(heads)
    return heads * cos + heads.roll(heads.shape[-1] // 2, dims=-1) * sin


def _gate(gate_up: torch.Tensor, activation: nn.Module) -> torch.Tensor:
    gate, up = gate_up.chunk(2, dim=-1)
    return activation(gate) * up


class Between(NamedTuple):
    """What is computed between the matrix products of a layer."""

    add: Callable
    turn: Callable
    gate: Callable


PLAIN = Between(_add, _turn, _gate)


@functools.cache
def compiled(backend: str = "inductor") -> Between:
    """The same with each as one kernel or two, by `torch.compile`: anew for other shapes, of which a process that
    evaluates several models has more than the eight after which it would give up.
    """
    torch._dynamo.config.recompile_limit = 64
    return Between(*(torch.compile(function, backend=backend) for function in PLAIN))


class Decoder:
    """A model's weights as the functions below want them. Made for one use: adapters are taken as they stand."""

    def __init__(self, model):
        config = model.config
        self.model, self.layers = model, [_layer(layer, config) for layer in model.model.layers]
        self.head = Projection.of(model.get_output_embeddings())
        self.norms = [*(layer.norm for layer in self.layers), Norm.of(model.model.norm)]  # of layers, and the last
        attention, self.activation = model.model.layers[0].self_attn, model.model.layers[0].mlp.act_fn
        self.K, self.D, self.scale = config.num_key_value_heads, attention.head_dim, attention.scaling
        self.H = config.num_attention_heads
        self.windows = {layer.window for layer in self.layers}
        self.softcap = getattr(config, "attn_logit_softcapping", None)
        embedding = model.get_input_embeddings().weight
        self.device, self.dtype = embedding.device, embedding.dtype
        # From so many rows of one token on, attention by its formula is quicker than PyTorch's kernel, which is made
        # for many tokens: in FP32 on several threads of a CPU.
        threaded = self.device.type == "cpu" and self.dtype == torch.float32 and torch.get_num_threads() > 1
        self.written_out_from = 4 if threaded else math.inf

    @classmethod
    def of(cls, model) -> "Decoder | None":
        """The decoder of `model` with its adapter as it is now. None if the model has anything unknown here, would
        checkpoint activations, or (with gradients) trains more than adapters.
        """
        return cls(model) if cls.knows(model) else None

    @staticmethod
    def knows(model) -> bool:
        """Whether `of` gives a decoder."""
        return enabled and _is_known(model)

    def read(
        self,
        ids: torch.Tensor,
        attention: torch.Tensor,
        cache: Cache | PrefixCache | None = None,
        last: int | None = None,
    ) -> torch.Tensor:
        """Run prompts, or whole sequences; returns their last hidden states [B, Q, hidden], or of the `last` tokens
        alone [B, last, hidden].

        Args:
            ids: [B, Q], padding on either side.
            attention: [B, S], 1 for tokens and 0 for padding; the S - Q slots that `cache` already holds come first.
        """
        S, Q = attention.shape[1], ids.shape[1]
        place, slots = torch.arange(S, device=ids.device), positions(attention)
        mine = place[S - Q :, None]  # [Q, 1]
        seen = attention.bool()[:, None] & (place <= mine)  # [B, Q, S]
        biases = {}
        for window in self.windows:
            near = seen if window is None else seen & (slots[:, None] > slots[:, S - Q :, None] - window)
            # Padding sees itself, so that its softmax is over something: a NaN in its value would reach every row.
            bias = torch.zeros(near.shape, dtype=self.dtype, device=ids.device)
            bias.masked_fill_(~(near | (place == mine)), -torch.inf)
            biases[window] = bias[:, None]  # [B, 1, Q, S]
        return self.hidden(ids, self.rope_table(S)[slots[:, S - Q :]], biases, cache, last)

    def read_trees(
        self, ids: torch.Tensor, depth: torch.Tensor, end: torch.Tensor, cache: PrefixCache | None = None
    ) -> torch.Tensor:
        """Run rows that are trees of tokens in preorder; returns their last hidden states [B, Q, hidden].

        A token sees the path from the root to itself: of the tokens before it those whose subtree has not ended.

        Args:
            ids: [B, Q], padding behind.
            depth: [B, Q], the tokens' positions in their sequences, those of a shared prefix counted.
            end: [B, Q], the place behind the last token of each token's subtree; 0 for padding.
            cache: of the prefix, which all tokens see.
        """
        (B, Q), shared = ids.shape, cache.length if cache else 0
        place = torch.arange(Q, device=ids.device)
        seen = (place <= place[:, None]) & (place[:, None] < end[:, None])  # [B, Q, Q]
        seen |= place == place[:, None]  # padding too, see `read`
        seen = F.pad(seen, (shared, 0), value=True)  # [B, Q, S]
        before = torch.arange(shared, device=ids.device).expand(B, -1)
        slots = torch.cat([before, depth], dim=1)  # [B, S], their positions
        biases = {}
        for window in self.windows:
            near = seen if window is None else seen & (slots[:, None] > depth[:, :, None] - window)
            bias = torch.zeros(near.shape, dtype=self.dtype, device=ids.device)
            biases[window] = bias.masked_fill_(~near, -torch.inf)[:, None]  # [B, 1, Q, S]
        return self.hidden(ids, self.rope_table(int(depth.max()) + 1)[depth], biases, cache)

    def hidden(
        self,
        ids: torch.Tensor,
        rope: torch.Tensor,
        biases: dict,
        cache: Cache | PrefixCache | None,
        last: int | None = None,
        between: Between = PLAIN,
    ) -> torch.Tensor:
        """The last hidden states [B, Q, hidden], or of the `last` tokens alone [B, last, hidden]: in the top layer the
        others need no more than their keys and values.

        Args:
            ids: [B, Q].
            rope: [B, Q, 2, D], rows of `rope_table`.
            biases: by a layer's window, what is added to its attention logits [B, 1, Q, S].
            cache: the keys and values of what came before; those of `ids` are added to it.
            between: how to compute what is between the matrix products.
        """
        x = self.model.get_input_embeddings()(ids)
        cos, sin = rope[:, :, None].unbind(dim=-2)  # [B, Q, 1, D], for all heads
        h = self.norms[0](x)
        for i, layer in enumerate(self.layers):
            asking = last if last and layer is self.layers[-1] else ids.shape[1]
            h = self._attention(i, layer, h, between.turn, cos, sin, biases[layer.window], cache, asking)
            if asking < ids.shape[1]:
                x = x[:, -asking:]
            x, h = between.add(x, h, layer.out_norm, layer.mlp_norm)
            h = layer.down(between.gate(layer.gate_up(h), self.activation))
            x, h = between.add(x, h, layer.down_norm, self.norms[i + 1])
        if cache:
            cache.length += ids.shape[1]
        return h

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """[..., V], of the tokens behind `hidden` [..., hidden]: what `output_logits` gives."""
        return _capped(self.head(hidden), self.model.config)

    def rope_table(self, length: int) -> torch.Tensor:
        """[length, 2, D]: cosines and sines of each position, by the model's own rotary module.

        The rotation is x · cos + (x's halves swapped) · sin, the sines of the first half being negative.
        """
        like = torch.empty(0, device=self.device, dtype=self.dtype)
        cos, sin = self.model.model.rotary_emb(like, torch.arange(length, device=self.device)[None])
        sin[..., : self.D // 2].neg_()
        return torch.stack([cos[0], sin[0]], dim=1)

    def _attention(
        self, i, layer: Layer, x, turn: Callable, cos, sin, bias, cache: Cache | PrefixCache | None, asking: int
    ) -> torch.Tensor:
        """What the last `asking` tokens find among all, [B, asking, hidden]."""
        B, Q, _ = x.shape
        heads = layer.qkv(x).view(B, Q, -1, self.D)
        turned, value = heads.split_with_sizes((self.H + self.K, self.K), dim=2)
        query, key = (
            turn(turned, layer.head_norm, cos, sin).transpose(1, 2).split_with_sizes((self.H, self.K), dim=1)
        )  # [B, heads, Q, D]
        value = value.transpose(1, 2)
        if asking < Q:
            query, bias = query[:, :, -asking:], bias[:, :, -asking:]
        if cache:
            key, value = cache.add(i, key, value)  # [B, K, S, D]
        # H / K query heads share a head of keys and values. One token is laid out as that many queries of the head;
        # of more tokens each would need its own row of the bias, so there it is the keys that are repeated.
        if asking == 1:
            query = query.reshape(B, self.K, -1, self.D)  # [B, K, H / K, D]
        else:
            key, value = (t.repeat_interleave(self.H // self.K, dim=1) for t in (key, value))  # [B, H, S, D]
        if self.softcap is None and (asking > 1 or B < self.written_out_from):
            mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=bias, scale=self.scale)
        else:
            logits = torch.matmul(query, key.transpose(2, 3)) * self.scale
            if self.softcap is not None:
                logits = torch.tanh(logits / self.softcap) * self.softcap
            shares = torch.softmax(logits + bias, dim=-1, dtype=torch.float32).to(value.dtype)
            mixed = torch.matmul(shares, value)
        if asking > 1:
            mixed = mixed.transpose(1, 2)  # [B, asking, H, D]
        return layer.out(mixed.reshape(B, asking, -1))


def output_logits(model, hidden: torch.Tensor) -> torch.Tensor:
    """The output layer and what the family does to its result."""
    head = model.get_output_embeddings()
    plain = type(head) is nn.Linear and head.bias is None and not head.weight.requires_grad
    return _capped(linear(hidden, head.weight) if plain else head(hidden), model.config)


def _capped(logits: torch.Tensor, config) -> torch.Tensor:
    """Gemma 2 squashes its logits into ±30."""
    cap = getattr(config, "final_logit_softcapping", None)
    return logits if cap is None else torch.tanh(logits / cap) * cap


def positions(attention: torch.Tensor) -> torch.Tensor:
    """Position ids [B, L] that number the tokens of each row from 0, whatever padding there is; padding gets the last
    token's before it.
    """
    return (attention.cumsum(dim=1) - 1).clamp(min=0)


def _is_known(model) -> bool:
    """Whether every module is of the kinds that the code above reads, and nothing has been hung on any."""
    if type(model) not in FAMILIES:
        return False
    config = model.config
    if (
        config._attn_implementation not in ("eager", "sdpa")
        or config.rope_parameters.get("rope_type", "default") not in ("default", "linear", "llama3", "yarn")
        or not set(getattr(config, "layer_types", None) or ()) <= {"full_attention", "sliding_attention"}
        or getattr(config, "use_bidirectional_attention", False)
        or (model.training and config.attention_dropout > 0)
    ):
        return False
    dtypes = set()
    for module in model.modules():
        home = type(module).__module__
        if home not in (type(model).__module__, LoRALinear.__module__, "transformers.activations"):
            if not home.startswith("torch.nn.modules."):
                return False  # quantised, parametrized, another library's adapter …
        if any(getattr(module, hooks) for hooks in _HOOKS) or "forward" in vars(module):
            return False
        if isinstance(module, nn.Linear) and module.bias is not None:
            return False
        if isinstance(module, nn.Dropout) and module.training and module.p > 0:
            return False
        if module.training and getattr(module, "gradient_checkpointing", False):
            return False
        if not isinstance(module, LoRALinear):
            weights = [weight for weight in module._parameters.values() if weight is not None]
            if torch.is_grad_enabled() and any(weight.requires_grad for weight in weights):
                return False  # the stacked weights carry no gradient
            dtypes.update(weight.dtype for weight in weights)
    return len(dtypes) == 1


def _layer(block: nn.Module, config) -> Layer:
    attention, mlp = block.self_attn, block.mlp
    gemma = config.model_type == "gemma2"
    head_norm = None
    if hasattr(attention, "q_norm"):
        query, key = Norm.of(attention.q_norm), Norm.of(attention.k_norm)
        both = (query, config.num_attention_heads), (key, config.num_key_value_heads)
        head_norm = replace(query, weight=torch.cat([norm.weight.expand(heads, -1) for norm, heads in both]))
    return Layer(
        norm=Norm.of(block.input_layernorm),
        qkv=Projection.of(attention.q_proj, attention.k_proj, attention.v_proj),
        head_norm=head_norm,
        out=Projection.of(attention.o_proj),
        # The name is the same in all families, and means the norm before the MLP in two of them.
        out_norm=Norm.of(block.post_attention_layernorm) if gemma else None,
        mlp_norm=Norm.of(block.pre_feedforward_layernorm if gemma else block.post_attention_layernorm),
        gate_up=Projection.of(mlp.gate_proj, mlp.up_proj),
        down=Projection.of(mlp.down_proj),
        down_norm=Norm.of(block.post_feedforward_layernorm) if gemma else None,
        window=getattr(attention, "sliding_window", None),
    )
