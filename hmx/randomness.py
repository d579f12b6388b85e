"""Where every random number comes from.

There is no generator state to save: each draw comes from a generator made for it, named by what it is for and by the
step (or epoch, or evaluation) it belongs to. Two runs with the same seed share their initial adapter and the order of
their questions whatever else they do; evaluating or not changes nothing in training; a resumed run continues exactly by
knowing its step.
"""

import hashlib

import torch

NAMES = ("init", "order", "rollout", "judge", "eval", "dropout")


def stream(seed: int, name: str, index: int = 0) -> torch.Generator:
    """A fresh CPU generator for the `index`-th use of `name` in the run with this `seed`.

    The generator's seed is the first eight bytes, little-endian and halved, of SHA-256 over the text "seed/name/index":
    streams of neighbouring seeds, names or indices have nothing in common. (Of these 63 bits PyTorch's generator for a
    CPU uses 32, so that two of n streams are the same with a probability of about n² / 2**33.)

    >>> bool(torch.rand((), generator=stream(0, "rollout", 7)) == torch.rand((), generator=stream(0, "rollout", 7)))
    True
    >>> bool(torch.rand((), generator=stream(0, "rollout", 7)) == torch.rand((), generator=stream(0, "rollout", 8)))
    False
    """
    if name not in NAMES:
        raise ValueError(f"no random stream is called {name!r}; the streams are {', '.join(NAMES)}")
    digest = hashlib.sha256(f"{seed}/{name}/{index}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)
