"""Sampling alone, ours against transformers' generate: python -m bench.generate"""

import sys
from collections.abc import Callable

import torch

from bench.common import Ratio, Summary, Timer, interleave, keep, parser, prepare, run, table
from bench.models import Loaded, load_both, settings
from bench.ours import attach_fresh
from bench.theirs import left_padded
from hmx.config import resolve
from hmx.errors import UserError
from hmx.prompts import encode_question, pad_id
from hmx.questions import Questions
from hmx.sampling import generate

_BEGINNING = 8
"""Tokens of which a GPU's first steps are a part, and the recording of one."""


def main(arguments: list[str] | None = None) -> None:
    """The command."""
    options = parser(
        "generate",
        "Times sampling: temperature 1, no top-k, no top-p, every answer as long as --tokens says, a question of the "
        "interview to each row. Ours is hmx.sampling.generate, theirs model.generate of transformers with the same "
        "prompts, in turns. Tokens a second count all rows, and the time includes reading the prompts.",
        rounds=5,
        epilog="The share of the limit is that of the decode steps alone, from the "
        f"{_BEGINNING}th token on, by when a GPU has recorded one: the fastest a step can be is the time to read all "
        "weights and the keys and values once, at the speed at which this device copies memory.",
    )
    options.add_argument("--batches", type=int, nargs="+", default=[1, 4, 8, 16, 40], metavar="B", help="rows at once")
    options.add_argument("--tokens", type=int, default=64, metavar="N", help="of each answer (default: 64)")
    options.add_argument(
        "--cache",
        choices=("dynamic", "static"),
        default="dynamic",
        help="of transformers' generate. On a GPU static makes it compile the decode step, which takes about a minute "
        "for each batch size before it is fast (default: dynamic)",
    )
    options.add_argument(
        "--bandwidth",
        action="store_true",
        help="print the share of the memory's bandwidth that decoding reaches, on a CPU too",
    )
    options.add_argument(
        "--adapter", action="store_true", help="with an adapter, as in training; on a CPU ours adds it to the weights"
    )
    given = options.parse_args(arguments)
    prepare(given)
    if min(*given.batches, given.tokens - 1) < 1:
        raise UserError("--batches must be at least 1 and --tokens at least 2.")
    given.bandwidth = given.bandwidth or given.device == "cuda"
    if given.bandwidth and given.tokens <= _BEGINNING:
        raise UserError(f"For the share of the bandwidth --tokens must be at least {_BEGINNING + 1}.")

    timer = Timer(given.device, given.clock)
    loaded, other = load_both(given.model, given.device, given.precision)
    if given.adapter:
        for one in {id(one): one for one in (loaded, other)}.values():  # they may be the same
            attach_fresh(one, settings(given.model, given.device, given.precision))
    speed = copy_bandwidth(given.device, timer) if given.bandwidth else None
    rows, measured = [], []
    for batch in given.batches:
        prompts = questions(loaded, batch)
        seconds = interleave(
            {
                "ours": ours(loaded, prompts, given.tokens),
                "transformers": theirs(other, prompts, given.tokens, given.cache),
                **({"beginning": ours(loaded, prompts, _BEGINNING)} if given.bandwidth else {}),
            },
            given.rounds,
            given.warmup,
            timer,
        )
        mine, generates = (Summary.of(seconds[side]) for side in ("ours", "transformers"))
        ratio = Ratio.of(seconds["transformers"], seconds["ours"])
        result = {
            "batch": batch,
            "tokens": batch * given.tokens,
            "ours_tokens_per_second": batch * given.tokens / mine.median,
            "transformers_tokens_per_second": batch * given.tokens / generates.median,
            "ratio": ratio,
            "seconds": {name: Summary.of(values) for name, values in seconds.items()},
        }
        row = [batch, *(f"{batch * given.tokens / one.median:.0f}" for one in (mine, generates)), ratio]
        if given.bandwidth:
            step = (mine.median - Summary.of(seconds["beginning"]).median) / (given.tokens - _BEGINNING)
            length = max(map(len, prompts)) + (_BEGINNING + given.tokens) / 2  # of the cache, on average over the steps
            least = step_bytes(loaded.model, batch, length) / speed
            result |= {"decode_step_seconds": step, "limit_seconds": least, "share_of_limit": least / step}
            row += [f"{1000 * step:.2f}", f"{1000 * least:.2f}", f"{least / step:.0%}"]
        rows.append(row)
        measured.append(result)
    head = [f"{given.model}, tokens/s with rows:", "ours", f"transformers ({given.cache})", "ratio"]
    print(table(head + (["ms a step", "limit", "share"] if given.bandwidth else []), rows))
    if speed:
        print(f"Memory is copied at {speed / 1e9:.0f} GB/s, reading and writing counted.")
    keep(
        "generate",
        given,
        {"rows": measured, "copy_bytes_per_second": speed},
        f"{given.tokens}tok" + "-static" * (given.cache == "static") + "-adapter" * given.adapter,
    )


def questions(loaded: Loaded, count: int) -> list[list[int]]:
    """The prompts of the first `count` questions, over and over if there are fewer."""
    train = Questions.load(resolve(settings(loaded.name, "cpu", "fp32").data.questions)).train
    texts = [question.text for question in train]
    return [encode_question(loaded.tokenizer, texts[i % len(texts)]) for i in range(count)]


def ours(loaded: Loaded, prompts: list[list[int]], tokens: int) -> Callable[[], torch.Tensor]:
    """Samples `tokens` to each prompt; the same ones at every call."""
    generator = torch.Generator()

    def sample() -> torch.Tensor:
        return generate(
            loaded.model,
            prompts,
            max_new_tokens=tokens,
            end_ids=(loaded.never,),
            pad_id=pad_id(loaded.tokenizer),
            generator=generator.manual_seed(0),
        ).tokens

    return _checked(sample, (len(prompts), tokens))


def theirs(loaded: Loaded, prompts: list[list[int]], tokens: int, cache: str) -> Callable[[], torch.Tensor]:
    """The same by transformers."""
    inputs = left_padded(prompts, pad_id(loaded.tokenizer), loaded.model.device)

    def sample() -> torch.Tensor:
        output = loaded.model.generate(
            **inputs,
            max_new_tokens=tokens,
            do_sample=True,
            temperature=1.0,
            top_k=0,
            top_p=1.0,
            eos_token_id=loaded.never,
            pad_token_id=pad_id(loaded.tokenizer),
            cache_implementation=None if cache == "dynamic" else cache,
        )
        return output[:, inputs["input_ids"].shape[1] :]

    return _checked(sample, (len(prompts), tokens))


def _checked(sample: Callable[[], torch.Tensor], shape: tuple[int, int]) -> Callable[[], torch.Tensor]:
    def checked() -> torch.Tensor:
        tokens = sample()
        if tokens.shape != shape:
            raise RuntimeError(f"{list(tokens.shape)} tokens were sampled, not {list(shape)}: nothing to compare")
        return tokens

    return checked


def step_bytes(model, batch: int, length: float) -> float:
    """What a decode step cannot do without reading: every weight once and, for each row, the keys and values of
    `length` tokens. Of an embedding that is not the output layer too, only `batch` rows are read, which is nothing.
    """
    config = model.config
    weights = {id(parameter): parameter.nbytes for parameter in model.parameters()}
    embedding, output = model.get_input_embeddings().weight, model.get_output_embeddings().weight
    if embedding is not output:
        weights.pop(id(embedding))
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    a_token = 2 * config.num_hidden_layers * config.num_key_value_heads * head_dim * embedding.element_size()
    return sum(weights.values()) + batch * length * a_token


def copy_bandwidth(device: str, timer: Timer, size: int | None = None) -> float:
    """Bytes a second that this device moves when it copies `size` bytes (1 GiB on a GPU, 256 MiB on a CPU): each is
    read and written. The best of ten.
    """
    size = size or (2**30 if device == "cuda" else 2**28)
    source = torch.ones(size, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    target.copy_(source)
    return 2 * size / min(timer.seconds(lambda: target.copy_(source)) for _ in range(10))


if __name__ == "__main__":
    sys.exit(run(main))
