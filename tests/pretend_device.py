"""A device that no machine needs to have: its tensors lie in the CPU's memory, say that they are elsewhere, and refuse
to be mixed with the CPU's own, as a GPU's do. Run as a program, it trains and evaluates on it.

    python -m tests.pretend_device

What a GPU is asked for by name (CUDA graphs, autocast) it does not stand in for. It needs a process of its own: PyTorch
keeps a device that was registered, and transformers no longer loads every model rightly beside this one.
"""

import math
import tempfile
from pathlib import Path

import torch
from torch.utils import backend_registration
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from torch.utils._pytree import tree_leaves, tree_map_only

from hmx import models, projection, sampling, training
from hmx.evaluation.benchmark import Subject
from hmx.evaluation.likelihoods import likelihoods
from hmx.graphs import StaticDecoding
from tests.small_run import LengthJudge, small_config

NAME = "pretend"
aten = torch.ops.aten
ACROSS = {
    aten._to_copy.default,
    aten.copy_.default,
    aten.index.Tensor,
    aten.index_put.default,
    aten.index_put_.default,
    aten._index_put_impl_.default,
}
"""Operations that take tensors of the CPU beside a GPU's."""


class Elsewhere(torch.Tensor):
    """A tensor on the device; `inner` holds its numbers."""

    @staticmethod
    def __new__(cls, inner: torch.Tensor):
        return torch.Tensor._make_wrapper_subclass(
            cls,
            inner.size(),
            strides=inner.stride(),
            storage_offset=inner.storage_offset(),
            dtype=inner.dtype,
            device=f"{NAME}:0",
            requires_grad=inner.requires_grad,
        )

    def __init__(self, inner: torch.Tensor):
        self.inner = inner

    def __tensor_flatten__(self):
        return ["inner"], None

    @staticmethod
    def __tensor_unflatten__(inner, *_):
        return Elsewhere(inner["inner"])

    def tolist(self):
        return self.inner.tolist()

    @classmethod
    def __torch_dispatch__(cls, operation, types, args=(), kwargs=None):
        return compute(operation, args, kwargs or {})


class Pretend(TorchDispatchMode):
    """Within it, tensors can be made on the device."""

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        return compute(operation, args, kwargs or {})


def compute(operation, args, kwargs):
    """The operation on the CPU, its result where a GPU's would be."""
    tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
    there = [isinstance(tensor, Elsewhere) for tensor in tensors]
    here = [tensor for tensor in tensors if not isinstance(tensor, Elsewhere) and tensor.dim()]  # numbers mix
    if any(there) and here and operation not in ACROSS:
        shapes = [(type(tensor).__name__, list(tensor.shape)) for tensor in tensors]
        raise RuntimeError(f"{operation} mixes devices: {shapes}")
    inner_args, inner_kwargs = tree_map_only(Elsewhere, lambda tensor: tensor.inner, (args, kwargs))
    device = kwargs.get("device")
    if device is not None and torch.device(device).type == NAME:
        inner_kwargs["device"] = torch.device("cpu")
    result = operation(*inner_args, **inner_kwargs)
    goes_there = any(there) if device is None else torch.device(device).type == NAME
    if operation in ACROSS - {aten._to_copy.default}:
        goes_there = isinstance(args[0], Elsewhere)
    if goes_there:
        result = tree_map_only(torch.Tensor, Elsewhere, result)
    return return_and_correct_aliasing(operation, args, kwargs, result) if any(there) and goes_there else result


def register() -> None:
    """Let PyTorch know of the device, and do what is written in C++ in another way."""
    backend_registration._setup_privateuseone_for_python_backend(NAME)
    getattr(torch, NAME).get_amp_supported_dtype = lambda: [torch.float16]
    made, stacked = torch.tensor, projection.stacked
    torch.tensor = lambda data, device=None, **options: (
        made(data, **options) if device is None else made(data, **options).to(device)
    )
    projection.stacked = lambda layers: (  # it looks at addresses, and these tensors have none
        stacked(layers) if layers[0].weight.device.type == "cpu" else torch.cat([one.weight.detach() for one in layers])
    )


def main() -> None:
    """Train and evaluate on the device and on the CPU: the same numbers."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        config = small_config(Path(folder), family="gemma2")
        ready = [models.load_model(config.model.path, "fp32", "cpu") for _ in range(2)]
        register()
        sampling.Decoding = StaticDecoding
        training.SelfJudge = LengthJudge
        found = {}
        for name in (f"{NAME}:0", "cpu"):
            model, tokenizer = ready.pop()
            models.pick_device = lambda _, name=name: torch.device(name)
            training.load_model = lambda *_, model=model, tokenizer=tokenizer, name=name: (model.to(name), tokenizer)
            with Pretend():
                run = training.train_run(small_config(Path(folder), f"run.name={name[:3]}"), plain=True)
                assert next(model.parameters()).device == torch.device(name)
                subject = Subject(model, tokenizer, max_length=400, tokens_at_once=300)
                prompts = [[9, 10, 11], [12] * 20, [*range(8, 90), 5], [*range(8, 90), 6, 7]]
                totals = [total for total, _ in likelihoods(subject, [(one, [20, 21]) for one in prompts])]
                replies = subject.reply(prompts, 6)
            steps = [record[key] for record in run.records(kind="step") for key in ("loss", "grad_norm")]
            found[name] = [*steps, *totals, *(record["eval_kl"] for record in run.records(kind="eval"))], replies
    (there, said), (here, expected) = found.values()
    assert len(there) == len(here) and all(
        map(lambda a, b: math.isclose(a, b, rel_tol=1e-3, abs_tol=1e-5), there, here)
    )
    assert said == expected


if __name__ == "__main__":
    main()
