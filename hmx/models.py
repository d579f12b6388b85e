"""The base model and its tokenizer: from a hub id, a local folder, or the embedded one."""

import functools
import hashlib
import json
import re
import socket
import urllib.request
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import torch
from huggingface_hub import constants, try_to_load_from_cache
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedConfig
from transformers.utils import logging

from hmx import graphs
from hmx.config import ModelConfig, resolve
from hmx.errors import UserError
from hmx.precision import DTYPES
from hmx.prompts import encode_question, end_of_turn_ids, require_chat_template
from hmx.text import one_line


def pick_device(name: str) -> torch.device:
    """The device that a config names; "auto" is the GPU if there is one."""
    try:
        if not re.fullmatch(r"auto|(cpu|cuda)(:\d+)?", name):
            raise RuntimeError("only cpu and cuda are supported")
        device = torch.device(("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name)
        if device.type == "cuda" and device.index is None:
            device = torch.device("cuda", torch.cuda.current_device())
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise UserError(
            f"The device {name!r} can't be used here ({str(error).splitlines()[0]}); choose auto, cpu, cuda or, of "
            "several GPUs, one such as cuda:1, by model.device or --device."
        ) from None
    return device


def use(device: torch.device) -> None:
    """Make a GPU the current one, on which CUDA graphs are recorded, and take attention by cuDNN out of the choice.

    On an H100 and its successors PyTorch prefers cuDNN's kernels, which are planned anew for every shape. Here nearly
    every micro-batch has a shape of its own, and a decode step another with every block of its cache.
    """
    if device.type == "cuda":
        torch.cuda.set_device(device)
        torch.backends.cuda.enable_cudnn_sdp(False)


def set_up(config: ModelConfig) -> None:
    """Compute from now on as a config says: with so many threads of a CPU, and with or without compiled kernels in a
    GPU's decode steps.
    """
    use_threads(config.threads)
    device = pick_device(config.device)
    graphs.fuse(device if config.compile and device.type == "cuda" else None)


def use_threads(number: int) -> None:
    """Compute on a CPU with so many threads; 0 is PyTorch's own choice."""
    own = _own_choice()  # before it is changed
    torch.set_num_threads(number or own)


@functools.cache
def _own_choice() -> int:
    return torch.get_num_threads()


def load_model(path: str, precision: str, device: str):
    """The frozen model in evaluation mode, and its tokenizer.

    Args:
        path: hub id or folder. Weights are read from safetensors only, and no code that comes with them is run.
        precision: fp32, fp16 or bf16.
        device: see `pick_device`.
    """
    target, architecture = pick_device(device), model_config(path)
    use(target)
    logging.disable_progress_bar()  # loading takes seconds; downloads have bars of their own
    with _one_sentence_for(path), _without_reports():
        tokenizer = AutoTokenizer.from_pretrained(**_source(path))
        require_chat_template(tokenizer, path)
        model, report = AutoModelForCausalLM.from_pretrained(
            **_source(path),
            dtype=DTYPES[precision],
            use_safetensors=True,
            attn_implementation=attention_for(architecture),
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # they are refused below, in a sentence
        )
    _require_whole(report, path)
    _require_fitting(tokenizer, model, path)
    try:
        return model.requires_grad_(False).eval().to(target), tokenizer
    except torch.OutOfMemoryError:
        size = sum(parameter.nbytes for parameter in model.parameters())
        raise UserError(
            f"The weights of {path!r} take {size / 2**30:.1f} GiB in {precision}, for which {target} has no room left; "
            "use a smaller model or half precision."
        ) from None


def require_room(architecture: PreTrainedConfig, path: str, length: int) -> None:
    """Raise `UserError` if the model at `path` was not made for sequences of `length` tokens."""
    most = getattr(architecture, "max_position_embeddings", None)
    if most and 0 < most < length:
        raise UserError(
            f"The model {path!r} was made for {most} tokens, and sampling.max_sequence_length is {length}; set that to "
            f"{most} or less."
        )


def located(path: str) -> Path | None:
    """The folder with a model's files: the one that is named or, of a model from the hub, that in the cache if its
    weights are whole there.
    """
    folder = resolve(path)
    if folder.is_dir():
        return folder
    try:
        config = try_to_load_from_cache(path, "config.json")
    except ValueError:  # no name that the hub could have
        return None
    if not isinstance(config, str):
        return None
    snapshot = Path(config).parent
    weights = _weights(snapshot)
    return snapshot if weights and all(file.is_file() for file in weights) else None


def _weights(folder: Path) -> list[Path]:
    """The files whose weights are loaded, as transformers finds them; empty if their index is damaged."""
    if (whole := folder / "model.safetensors").is_file():
        return [whole]
    try:
        index = json.loads((folder / "model.safetensors.index.json").read_text(encoding="utf-8"))
        return sorted({folder / name for name in index["weight_map"].values()})
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return []


def fingerprint(path: str) -> str | None:
    """What tells this model's weights from any other's: the SHA-256 over those of its files. None if the model is not
    here.
    """
    folder = located(path)
    if folder is None:
        return None
    digest = hashlib.sha256()
    for file in filter(Path.is_file, _weights(folder)):
        stored = file.resolve().name  # the hub's cache names a large file by its SHA-256
        if resolve(path).is_dir() or not re.fullmatch("[0-9a-f]{64}", stored):
            with open(file, "rb") as weights:
                stored = hashlib.file_digest(weights, "sha256").hexdigest()
        digest.update(bytes.fromhex(stored))
    return digest.hexdigest()


_FORM = ("config.json", "generation_config.json", "tokenizer*.json", "*_tokens*.json", "chat_template.*")
_VOCABULARY = ("vocab.*", "merges.txt", "*.model")
"""Of a tokenizer without tokenizer.json, which else says all that they do. Nothing else that lies beside a model is its
form: a license may come with a later download.
"""


def form(path: str) -> str | None:
    """What beside the weights decides what a model says: the SHA-256 of its config, tokenizer and chat template. None
    if the model is not here.
    """
    folder = located(path)
    if folder is None:
        return None
    digest = hashlib.sha256()
    names = _FORM if (folder / "tokenizer.json").is_file() else (*_FORM, *_VOCABULARY)
    for file in sorted(folder.iterdir()):
        if any(map(file.match, names)) and file.is_file():
            digest.update(file.name.encode() + b"\0" + hashlib.sha256(file.read_bytes()).digest())
    return digest.hexdigest()


def identity(path: str) -> dict[str, str | None]:
    """What a run notes of its base model; each weight of a folder is read for it."""
    return {"base": fingerprint(path), "form": form(path)}


def attention_for(architecture: PreTrainedConfig) -> str:
    """Which of transformers' attentions computes this architecture: PyTorch's fused one does not know Gemma 2's
    soft-capped attention logits, the written-out one does, and it is all that some older families have.
    """
    kind = AutoModelForCausalLM._model_mapping.get(type(architecture), None)
    fused = getattr(kind, "_supports_sdpa", False) and not getattr(architecture, "attn_logit_softcapping", None)
    return "sdpa" if fused else "eager"


def model_config(path: str) -> PreTrainedConfig:
    """The architecture, without weights. Raises `UserError` for one that would be computed wrongly."""
    if not path.strip():
        raise UserError(
            "model.path is empty; set it to a folder that holds a model, or to a name such as Qwen/Qwen3-0.6B."
        )
    if resolve(path).is_file():
        raise UserError(f"model.path = {path!r} is a file; set it to the folder that holds the model's files.")
    with _one_sentence_for(path):
        architecture = AutoConfig.from_pretrained(**_source(path))
    _require_known_kind(architecture, path)
    return architecture


def _require_known_kind(architecture: PreTrainedConfig, path: str) -> None:
    """Refuse what would be computed wrongly: families that scale their logits in ways that `hmx.grpo.logprobs` does
    not know (Granite, Cohere), that carry a state from token to token, which padding would enter (Mamba), and weights
    that are not numbers to be multiplied with as they are.
    """
    for key in ("logits_scaling", "logit_scale"):
        if getattr(architecture, key, None) not in (None, 1.0):
            raise UserError(
                f"The model {path!r} scales its logits ({key} = {getattr(architecture, key)}), which this project's "
                "log-probabilities do not; use a model without it, such as Qwen3, Llama or Gemma 2."
            )
    kind = AutoModelForCausalLM._model_mapping.get(type(architecture), None)
    other = set(getattr(architecture, "layer_types", None) or ()) - {"full_attention", "sliding_attention"}
    if other or getattr(kind, "_is_stateful", False):
        what = f"layers of the kind {', '.join(sorted(other))}" if other else "a state in place of attention"
        raise UserError(
            f"The model {path!r} ({architecture.model_type}) has {what}, which is not supported; use one whose layers "
            "are all attention, such as Qwen3, Llama or Gemma 2."
        )
    if quantized := getattr(architecture, "quantization_config", None):
        method = quantized.get("quant_method", "?") if isinstance(quantized, dict) else quantized.quant_method
        raise UserError(
            f"The weights of {path!r} are quantised ({method}), which is not supported; use the model from which they "
            "were made."
        )


def _require_whole(report: dict, path: str) -> None:
    """Refuse weights of which some are missing or of another shape, which transformers would fill in at random, and
    those of which a layer is left over, which it would leave out.
    """
    left = sorted(name for name in report["unexpected_keys"] if ".layers." in name and name.endswith(".weight"))
    kinds = (
        ("is missing", sorted(report["missing_keys"])),
        ("has another shape than config.json says", sorted(name for name, *_ in report["mismatched_keys"])),
        ("has no place in it", left),
    )
    what, odd = next(((what, names) for what, names in kinds if names), ("", []))
    if odd:
        raise UserError(
            f"The weights of {path!r} do not fit its config.json: {odd[0]} {what}"
            f"{f', and so do {len(odd) - 1} more' if len(odd) > 1 else ''}; get the model's files anew."
        )


def _require_fitting(tokenizer, model, path: str) -> None:
    """Refuse a tokenizer that is empty or another model's, and one that can't tell where an answer ends."""
    question = "Do you feel anything?"
    ids, rows = encode_question(tokenizer, question), model.get_input_embeddings().num_embeddings
    if not tokenizer.encode(question, add_special_tokens=False):
        raise UserError(f"The tokenizer of {path!r} knows no words; its folder needs the tokenizer's files too.")
    if ids == encode_question(tokenizer, "Who are you?"):
        raise UserError(f"The chat template of {path!r} leaves out what the user says; get the model's files anew.")
    if max(ids) >= rows:
        raise UserError(
            f"The tokenizer of {path!r} is another model's: it makes token {max(ids)}, and there are embeddings for "
            f"{rows}."
        )
    if not end_of_turn_ids(model, tokenizer):
        raise UserError(
            f"No token is known that ends an answer of {path!r}; name it as eos_token_id in its generation_config.json."
        )


def _source(path: str) -> dict:
    """Where transformers shall look: a folder or what the cache has, so that no run or benchmark of a study meets
    another version of its model than the one before; if there is none, the hub.
    """
    folder = located(path)
    return {
        "pretrained_model_name_or_path": path if folder is None else str(folder),
        "local_files_only": folder is not None or not hub_is_reachable(),
        "trust_remote_code": False,  # unsaid, transformers would ask on the terminal whether to run it
    }


@functools.cache
def hub_is_reachable() -> bool:
    """Asked once, since the hub's own client tries six times over half a minute before it gives up."""
    if constants.HF_HUB_OFFLINE:
        return False
    if urllib.request.getproxies():
        return True
    endpoint = urlsplit(constants.ENDPOINT)
    try:
        socket.create_connection((endpoint.hostname, endpoint.port or 443), timeout=5).close()
    except OSError:
        return False
    return True


@contextmanager
def _without_reports():
    """Nothing is logged that is no error: of weights that do not fit transformers prints a table, and we a sentence."""
    found = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(found)


@contextmanager
def _one_sentence_for(path: str):
    """Turns what transformers raises for a missing or broken model into the sentence that says what to do."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # every field of a broken file has an error of its own
        reason = one_line(str(error)).rstrip(".") or type(error).__name__
        reason = reason if len(reason) <= 200 else f"{reason[:199]}…"
        if resolve(path).is_dir():
            raise UserError(
                f"The folder {path} holds no model that transformers can load from safetensors ({reason}); "
                "it needs config.json, the tokenizer's files and *.safetensors."
            ) from None
        what = f"the hub did not give it ({reason})" if hub_is_reachable() else "the hub can't be reached"
        raise UserError(
            f"The model {path!r} is neither a local folder nor in the cache, and {what}; download it while online "
            f"(after logging in, if it is gated), point model.path at a folder that holds it ({resolve(path)} doesn't "
            "exist), or train the embedded model with --config configs/tiny.toml."
        ) from None
