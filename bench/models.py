"""The models that are measured: the embedded one, and random weights in the shapes of larger ones.

Random weights take as long as trained ones to compute with, and need no download. What trained weights decide is when
an answer ends; so with random weights no token ends one, and every answer has the length that a benchmark asks for. The
embedded model's tokenizer serves all of them.
"""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from hmx.config import PROJECT, Config, load_config
from hmx.decoder import Decoder
from hmx.models import attention_for, load_model, pick_device, use
from hmx.plan import architecture
from hmx.precision import DTYPES

TOKENIZER = PROJECT / "data" / "tiny"
MODELS = {
    "tiny": "configs/tiny.toml",
    "qwen3-50m": "configs/tiny.toml",
    "qwen3-0.6b": "configs/qwen3-0.6b.toml",
    "qwen3-4b": "configs/qwen3-4b.toml",
    "qwen3-8b": "configs/qwen3-8b.toml",
    "gemma-2-2b": "configs/gemma-2-2b.toml",
    "llama-3.2-3b": "configs/llama-3.2-3b.toml",
}
"""By name on the command line, the config whose settings are used."""

_SHAPES = Path(__file__).parent / "shapes"  # of models that nobody published

SCORE_TOKENS = 6
"""A score line, as random weights write it: "Score: 7" and the end of the line."""
REPLY_TOKENS = 30
"""A whole reply of a judge: the score line and a sentence."""


@dataclass(frozen=True)
class Loaded:
    """A model with its tokenizer."""

    name: str
    model: torch.nn.Module
    tokenizer: PreTrainedTokenizerFast

    @property
    def random(self) -> bool:
        return self.name != "tiny"

    @property
    def never(self) -> int:
        """A token id that no model writes: as the end of a turn, it lets answers go on to their limit."""
        return self.model.config.vocab_size


class FoldedTokenizer(PreTrainedTokenizerFast):
    """Reads the ids beyond its own as words of its own, so that what a larger vocabulary samples is a text of about as
    many tokens.
    """

    @cached_property
    def words(self) -> list[int]:
        """Its tokens that stand behind a space: side by side they stay what they are when they are encoded again."""
        return sorted(token for text, token in self.get_vocab().items() if text.startswith("Ġ") and len(text) > 2)

    def _decode(self, token_ids, *arguments, **options):
        ids = [token_ids] if isinstance(token_ids, int) else map(int, token_ids)
        own = [token if token < len(self) else self.words[token % len(self.words)] for token in ids]
        return super()._decode(own, *arguments, **options)


def settings(name: str, device: str, precision: str, *overrides: str) -> Config:
    """The config of a model as it is benchmarked: constant learning rate, no world's truth beside the judge."""
    own = [f"model.path={_SHAPES / name}"] if (_SHAPES / name).is_dir() else []
    fixed = (
        f"model.precision={precision}",
        f"model.device={device}",
        "model.threads=0",
        'optimizer.schedule="constant"',
        "optimizer.warmup=0",
        'train.world=""',
    )
    return load_config(PROJECT / MODELS[name], [*own, *fixed, *overrides])


def load(name: str, device: str, precision: str) -> Loaded:
    """A fresh model on its device; random weights are the same at every call, and never end an answer."""
    config = settings(name, device, precision)
    if name == "tiny":
        return Loaded(name, *load_model(config.model.path, precision, device))
    shapes, target = architecture(config.model.path), pick_device(device)
    use(target)
    torch.manual_seed(0)
    with target:  # drawn where it will live, in its own precision: an 8B never passes through the CPU
        model = AutoModelForCausalLM.from_config(
            shapes, dtype=DTYPES[precision], attn_implementation=attention_for(shapes)
        )
    loaded = Loaded(name, model.requires_grad_(False).eval(), FoldedTokenizer.from_pretrained(TOKENIZER))
    if not Decoder.knows(model):
        raise RuntimeError(f"{name} is not computed by hmx.decoder here, which is what there is to measure")
    never_end(loaded)
    return loaded


def load_both(name: str, device: str, precision: str) -> tuple[Loaded, Loaded]:
    """A model for us and one for transformers: on a CPU ours lays its weights out anew. On a GPU they stay as they are,
    and two may not fit, so both are the same there.
    """
    ours = load(name, device, precision)
    return ours, ours if device == "cuda" else load(name, device, precision)


def never_end(loaded: Loaded) -> None:
    """Let no token end an answer: every one goes on to its limit."""
    loaded.model.generation_config.eos_token_id = loaded.never
    loaded.tokenizer.eos_token = None
    # Nor does the template tell of one: behind what the assistant said there now stands a point first.
    end = "'<|end|>'"
    loaded.tokenizer.chat_template = loaded.tokenizer.chat_template.replace(
        end, f"({end} if message['role'] == 'user' else '.<|end|>')"
    )
