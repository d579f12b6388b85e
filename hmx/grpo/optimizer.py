"""What happens to the adapter once the gradients are there: the mixed-precision step."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn


@dataclass(frozen=True)
class Update:
    """What one optimizer step did."""

    grad_norm: float
    """Length of the gradient before clipping; not finite if it overflowed."""
    skipped: bool
    """Nothing was changed, because the gradient was not finite."""
    loss_scale: float
    """What the loss of this step was multiplied by; 1 where no scaling is needed."""


class Optimizer:
    """AdamW under dynamic loss scaling (Micikevicius et al. 2018, section 3.2).

    FP16 gradients below 3e-8 are rounded to 0. So the loss is multiplied by a large scale before the backward pass and
    the gradients are divided by it after; when the scale was too large for some gradient, that step is skipped and the
    scale halved; after 2,000 steps without such a one it is doubled. Without FP16 the scaler does nothing and the same
    lines run.
    """

    def __init__(
        self,
        parameters: Sequence[nn.Parameter],
        fp16: bool,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.01,
        max_grad_norm: float = 1.0,
        initial_scale: float = 65536.0,
    ):
        self.parameters, self.max_grad_norm = list(parameters), max_grad_norm
        self.adamw = torch.optim.AdamW(self.parameters, lr=0.0, betas=betas, eps=eps, weight_decay=weight_decay)
        self.steps = 0
        """How often `step` was called."""
        self.scaler = torch.amp.GradScaler(self.parameters[0].device.type, init_scale=initial_scale, enabled=fp16)

    def backward(self, loss: torch.Tensor) -> None:
        """Add the gradient of `loss`, scaled, to what the step has accumulated so far."""
        self.scaler.scale(loss).backward()

    def step(self, learning_rate: float) -> Update:
        """unscale → clip → step → update, and forget the gradients."""
        self.steps += 1
        for group in self.adamw.param_groups:
            group["lr"] = learning_rate
        scale = self.scaler.get_scale() if self.scaler.is_enabled() else 1.0
        self.scaler.unscale_(self.adamw)
        grad_norm = float(nn.utils.clip_grad_norm_(self.parameters, self.max_grad_norm))
        finite = grad_norm < float("inf")  # False for NaN too
        if finite:
            self.scaler.step(self.adamw)
        self.scaler.update()
        self.forget()
        return Update(grad_norm, not finite, scale)

    def forget(self) -> None:
        """Drop the gradients."""
        self.adamw.zero_grad(set_to_none=True)

    def state(self) -> tuple[dict[str, torch.Tensor], dict[str, float]]:
        """Everything that a resumed run needs: tensors by name, and numbers."""
        tensors = {
            f"{name}.{i}": value
            for i, parameter in enumerate(self.parameters)
            for name, value in self.adamw.state.get(parameter, {}).items()
        }
        numbers = (
            {key: self.scaler.state_dict()[key] for key in ("scale", "_growth_tracker")}
            if self.scaler.is_enabled()
            else {}
        )
        return tensors, numbers

    def load_state(self, tensors: dict[str, torch.Tensor], numbers: dict[str, float]) -> None:
        """Continue exactly where `state` was taken. Raises `ValueError` if it is not of these parameters."""
        places = {str(i): parameter for i, parameter in enumerate(self.parameters)}
        for key, value in tensors.items():
            name, _, i = key.rpartition(".")
            parameter = places.get(i)
            shape = torch.Size() if name == "step" else getattr(parameter, "shape", None)
            if name not in ("step", "exp_avg", "exp_avg_sq") or parameter is None or value.shape != shape:
                raise ValueError(f"{key} is none of the adapter's")
            if not value.isfinite().all() or (name != "exp_avg" and (value < 0).any()):
                raise ValueError(f"{key} holds what no step leaves")
            # AdamW keeps its step counter on the CPU and the moments beside their parameter.
            self.adamw.state[parameter][name] = value.clone() if name == "step" else value.to(parameter.device)
        if self.scaler.is_enabled():
            state = {
                **self.scaler.state_dict(),
                "scale": numbers["scale"],
                "_growth_tracker": int(numbers["_growth_tracker"]),
            }
            self.scaler.load_state_dict(state)
