"""Rows packed into one sequence in which every token stands once.

The G completions of a prompt share it, and they end at different places. Laid out as a rectangle [B, L], a training
pass computes the prompt G times over and as much padding as it takes to make the rows equally long: with short answers
more than half of all work. Packed, the prompt is there once, its completions behind it, and no padding:

    [prompt 1][completion 1.1][completion 1.2] … [prompt 2][completion 2.1] …

Positions and the attention mask say who sees whom: a token sees its own prompt and what stands before it in its own
completion. A causal model gives each token the hidden state that it has in its own row, and the gradients of the G
rows meet in their prompt, where they would have been added up anyway. The two differ in the order of summation alone.

Notation: `B` rows, `T` completion columns, `L` columns in all, `N` tokens in all rows, a shared prompt counted once,
`M` completion tokens among them.
"""

from dataclasses import dataclass

import torch

from hmx.decoder import FAMILIES, Decoder, positions


@dataclass(frozen=True)
class Packed:
    """See the top of this file."""

    ids: torch.Tensor
    """[N] token ids."""
    positions: torch.Tensor
    """[N], each token's place in its own row."""
    group: torch.Tensor
    """[N], the number of the prompt that a token belongs to or follows."""
    row: torch.Tensor
    """[N], which row a completion token is of; -1 for those of a prompt, which all its rows see."""
    predicting: torch.Tensor
    """[M], which of the N tokens predicts each completion token, row by row."""

    @classmethod
    def of(cls, input_ids: torch.Tensor, attention_mask: torch.Tensor, T: int) -> "Packed":
        """Pack rows [padding][prompt][completion][padding], the completions in the last T columns; neighbours with
        equal prompts share theirs.
        """
        real, split = attention_mask.bool(), input_ids.shape[1] - T
        prompts = input_ids[:, :split].masked_fill(~real[:, :split], -1)
        new = torch.ones(len(prompts), dtype=torch.bool, device=prompts.device)  # [B], not the prompt of the row above
        new[1:] = (prompts[1:] != prompts[:-1]).any(dim=1)
        group = new.cumsum(0) - 1  # [B]

        kept = real.clone()  # [B, L], the tokens that stand in the pack
        kept[:, :split] &= new[:, None]
        number = (kept.flatten().cumsum(0) - 1).view(kept.shape)  # [B, L], their places in it
        number[:, :split] = number[new][group, :split]
        row, column = kept.nonzero(as_tuple=True)  # [N] each
        return cls(
            ids=input_ids[kept],
            positions=positions(attention_mask)[kept],
            group=group[row],
            row=torch.where(column < split, -1, row),
            predicting=number[:, split - 1 : -1][real[:, split:]],
        )

    def bias(self, window: int | None, dtype: torch.dtype) -> torch.Tensor:
        """What is added to the attention logits [1, 1, N, N]: 0 where the token of the line sees that of the column.

        Args:
            window: how many tokens back a token sees, itself included; None for all.
        """
        back = self.positions[:, None] - self.positions  # [N, N]
        seen = (self.group[:, None] == self.group) & ((self.row == -1) | (self.row[:, None] == self.row)) & (back >= 0)
        if window is not None:
            seen &= back < window
        # A GPU's kernels want lines that begin at multiples of 16 numbers, and would copy the mask in every layer.
        N = len(seen)
        bias = torch.zeros(N, -(-N // 16) * 16, dtype=dtype, device=seen.device)[:, :N]
        return bias.masked_fill_(~seen, -torch.inf)[None, None]

    def hidden(self, model) -> torch.Tensor:
        """The last hidden states [M, hidden] that predict the completion tokens."""
        # A look-up as in an embedding: its backward pass adds up, in an order that does not vary, what the first
        # tokens of several completions send to the one last token of their prompt.
        return torch.nn.functional.embedding(self.predicting, self._all_hidden(model))

    def _all_hidden(self, model) -> torch.Tensor:
        """The last hidden states [N, hidden]: on a CPU by the decoder, which is quicker there; elsewhere by the model's
        own forward pass, whose activations `hmx.plan` counts.
        """
        if model.device.type == "cpu" and (decoder := Decoder.of(model)):
            rope = decoder.rope_table(int(self.positions.max()) + 1)[self.positions]
            biases = {window: self.bias(window, decoder.dtype) for window in decoder.windows}
            return decoder.hidden(self.ids[None], rope[None], biases, None)[0]
        dtype, kinds = model.get_input_embeddings().weight.dtype, getattr(model.config, "layer_types", None)
        windows = {"full_attention": None, "sliding_attention": getattr(model.config, "sliding_window", None)}
        bias = {kind: self.bias(windows[kind], dtype) for kind in set(kinds or ["full_attention"])}
        output = model.base_model(
            input_ids=self.ids[None],
            position_ids=self.positions[None],
            attention_mask=bias if kinds else bias["full_attention"],
            use_cache=False,
        )
        return output.last_hidden_state[0]


def packing_pays(model, tokens: int, rows: int, length: int) -> bool:
    """Whether `tokens` in one sequence take the model fewer operations than `rows` sequences of `length` with padding.

    Packed, fewer tokens are computed, but each is scored against all others, of its row or not. `model` must take a
    mask for each kind of layer.
    """
    return isinstance(model, FAMILIES) and _operations(model, 1, tokens) < _operations(model, rows, length)


def _operations(model, rows: int, length: int) -> int:
    """Multiplications of a layer: each token by each weight, and each query by the keys, and the scores by the values,
    of a whole row.
    """
    attention = model.model.layers[0].self_attn
    width = model.config.num_attention_heads * attention.head_dim
    weights = sum(parameter.numel() for parameter in model.model.layers[0].parameters())
    return rows * length * (weights + 2 * width * length)
