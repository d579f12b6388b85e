"""From a config to a trained run: everything is put together here, and nowhere else."""

import errno
import hashlib
import shutil
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path

import torch
from tqdm import tqdm
from transformers import PreTrainedTokenizerBase

from hmx.config import Config, resolve
from hmx.errors import UserError
from hmx.files import replace_file
from hmx.grpo.records import Record
from hmx.grpo.schedule import evaluation_steps
from hmx.grpo.trainer import Trainer
from hmx.judge import Rubric, SelfJudge
from hmx.judge.probe import probe
from hmx.lora import adapter_hash, attach
from hmx.models import identity, load_model, require_room, set_up
from hmx.plan import needs_gradient_checkpointing
from hmx.prompts import encode_chat, encode_question
from hmx.questions import Questions
from hmx.randomness import stream
from hmx.runs import BASE, Run, changed, runs_of_study
from hmx.selection import first_above
from hmx.text import grade_text, one_line


def build_trainer(config: Config) -> Trainer:
    """Load the model, attach a fresh adapter drawn from the run's `init` stream, and set up judge and questions."""
    questions = Questions.load(resolve(config.data.questions))
    rubric = Rubric.load(resolve(config.judge.prompt_file))
    set_up(config.model)
    model, tokenizer = load_model(config.model.path, config.model.precision, config.model.device)
    require_room(model.config, config.model.path, config.sampling.max_sequence_length)
    lora = config.lora
    attach(model, lora.rank, lora.alpha, lora.targets, lora.dropout, stream(config.run.seed, "init"))
    judge = SelfJudge.of(config.judge, rubric, model, tokenizer)
    _require_room_to_judge(config, tokenizer, rubric, questions, getattr(model.config, "max_position_embeddings", None))
    checkpointing = needs_gradient_checkpointing(config, model.device)
    return Trainer(config, model, tokenizer, judge, questions, _world(config), checkpointing)


def _require_room_to_judge(
    config: Config, tokenizer: PreTrainedTokenizerBase, rubric: Rubric, questions: Questions, most: int | None
) -> None:
    """Raise `UserError` if the judge may have to read and write more than the `most` tokens its model was made for."""
    needed = config.judge.max_new_tokens + max(
        len(encode_chat(tokenizer, rubric.messages(question.text, "")))
        + config.completion_limit(len(encode_question(tokenizer, question.text)))
        for question in (*questions.train, *questions.held_out)
    )
    if most and needed > most:
        raise UserError(
            f"With the rubric in {config.judge.prompt_file} the judge may have to read and write {needed} tokens, and "
            f"the model {config.model.path!r} was made for {most}; shorten the rubric, or set "
            "sampling.max_completion_length lower."
        )


def train_run(config: Config, resume: bool = False, plain: bool = False) -> Run:
    """Train one run to its end, or until Ctrl-C, which saves and leaves a run that --resume goes on with.

    Args:
        resume: go on with a run that was interrupted; leave one that is finished.
        plain: print a line for each evaluation, but no progress bar.

    Raises `UserError` for everything that is wrong with the config, the files it names, or the run's folder; and if the
    run could not be compared with those beside it, which were begun with other files or from another adapter.
    """
    run = Run(config.run_folder)
    run.require_startable(config, resume)  # before the model is loaded, which may take minutes
    if run.finished:
        print(f"The run {run.folder} is finished already.")
        return run
    reads = _reads(config)
    _require_unchanged(reads, config)
    with _a_sentence_where_room_ends():
        _train_in(run, config, reads, plain)
    if not run.finished:
        again = "The same command goes on." if resume else "The same command with --resume goes on."
        print(f"Stopped after step {run.latest_step()}, saved in {run.folder}. {again}", file=sys.stderr)
    return run


def _require_unchanged(reads: dict[str, str | None], config: Config) -> None:
    """Raise `UserError` if a file that the run reads is not what it, or another run of its study, was begun with: days
    would go into runs that can't be compared.
    """
    texts = _texts(config)
    for run in runs_of_study(config):
        if what := changed(reads, run.info):
            path = texts.get(what, config.model.path)
            kept = run.kept(what, path) if what in texts else None
            copy = f" (there is a copy: {kept})" if kept and kept.exists() else ""
            raise UserError(
                f"The {BASE.get(what, what)} in {path} changed since the run {run.folder} was begun; put back what was "
                f"there{copy}, or choose another --set run.name=…."
            )


def _texts(config: Config) -> dict[str, Path]:
    """The files that say what is asked and how it is graded."""
    return {"rubric": resolve(config.judge.prompt_file), "questions": resolve(config.data.questions)}


def _reads(config: Config) -> dict[str, str | None]:
    """The hashes of the files that a run reads. The two directions of a seed, and a run that goes on, must find the
    same ones.
    """
    paths = _texts(config)
    texts = {"rubric": Rubric.load(paths["rubric"]), "questions": Questions.load(paths["questions"])}
    # Of what they say and not of the files: a comment in them may change.
    hashes = {what: hashlib.sha256(repr(text).encode()).hexdigest() for what, text in texts.items()}
    return {**identity(config.model.path), **hashes}


def _train_in(run: Run, config: Config, reads: dict[str, str | None], plain: bool) -> None:
    """`train_run`, once the run may be started."""
    trainer = build_trainer(config)
    if reads["base"] is None:  # a model from the hub, which is in the cache only now
        reads |= identity(config.model.path)
        _require_unchanged(reads, config)
    fresh = adapter_hash(trainer.model)
    of_seed = (one for one in runs_of_study(config) if one.config.run.seed == config.run.seed)
    if not {one.info.get("initial_adapter") for one in of_seed if one.folder != run.folder} <= {None, fresh}:
        raise UserError(
            f"The run {run.folder} would not start from the adapter that the other direction of its seed started from; "
            "was that one made by another version of PyTorch? Train both anew with the same."
        )
    run.start(config)
    with run.locked():
        start = run.latest_step()
        if run.steps():
            if "initial_adapter" not in run.info:
                raise UserError(
                    f"{run.folder / 'run.json'} is damaged; the run can't go on unless the file is restored."
                )
            run.require_recorded(start, evaluation_steps(config, len(trainer.questions.train)))
            run.load(start, trainer.model, trainer.optimizer.load_state)
            print(f"Going on with {run.folder} after step {start}.")
        elif run.records(kind="eval"):  # each is written after its checkpoint
            raise UserError(
                f"The run {run.folder} has recorded evaluations and has no checkpoint left; put its folder checkpoints "
                "back, or delete the run's folder to train it anew."
            )
        else:
            run.note(initial_adapter=fresh, **reads)
            for what, path in _texts(config).items():
                replace_file(run.kept(what, path), partial(shutil.copyfile, path))
            for sentence in probe(trainer.judge).warnings():
                print(f"A warning about the judge: {sentence}.", file=sys.stderr)
        run.take_back_after(start)
        run.note(status="running")
        finished = False
        try:
            finished = _train(trainer, run, start, plain)
        finally:
            run.note(status="finished" if finished else "interrupted")
        if finished and all(record["eval_reward"] is None for record in run.records(kind="eval")):
            print(f"A warning about {run.folder}: no evaluation had a readable grade.", file=sys.stderr)


@contextmanager
def _a_sentence_where_room_ends() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise
        raise UserError(
            f"The disk has no room ({error.strerror}); make some, and --resume goes on from the last checkpoint."
        ) from None
    except (MemoryError, RuntimeError) as error:
        here = isinstance(error, MemoryError) or "can't allocate memory" in str(error)  # as PyTorch says on a CPU
        if not (here or isinstance(error, torch.OutOfMemoryError)):
            raise
        raise UserError(
            "The memory does not suffice, even in the smallest portions; --dry-run estimates what is needed. A smaller "
            "sampling.max_completion_length or train.completions_per_evaluation needs less; --resume takes no changed "
            "settings, so start the run anew with them."
        ) from None


def _train(trainer: Trainer, run: Run, start: int, plain: bool) -> bool:
    """The steps after `start`, with evaluations and checkpoints where they are due. Returns whether training came to
    its end.
    """
    config = trainer.config
    evaluations = evaluation_steps(config, len(trainer.questions.train))
    evaluated = run.records(kind="eval")
    name = f"{config.run.direction} seed {config.run.seed}"
    bar = tqdm(
        total=trainer.total_steps,
        initial=start,
        desc=name,
        bar_format="{desc} {percentage:3.0f} %|{bar:10}| {n_fmt}/{total_fmt} [{elapsed}<{remaining}{postfix}]",
        dynamic_ncols=True,
        disable=plain or None,  # None: hidden unless somebody is looking at a terminal
    )
    with _stop_politely() as stop, bar:
        for n in range(start, trainer.total_steps + 1):
            if _passed_long_ago(config, evaluated):
                return True
            if n > start:
                _write(run, record := trainer.step(n))
                bar.set_postfix_str(_brief(record.metrics))
                bar.update()
            due = n in evaluations and len(evaluated) == evaluations.index(n)  # and not done before an interruption
            if due and not (stop and n < trainer.total_steps):  # else whoever goes on begins with it
                record = trainer.evaluate(evaluations.index(n), n)
                run.save(n, trainer.model, config.model.path, trainer.optimizer.state())
                _write(run, record)
                evaluated.append(record.metrics)
                bar.write(f"{name}  {_evaluation_line(record.metrics)}", file=sys.stderr)
                bar.write(_sample_line(record.samples), file=sys.stderr)
            if stop and n < trainer.total_steps:
                run.save(n, trainer.model, config.model.path, trainer.optimizer.state())
                return False
    return True


def _write(run: Run, record: Record) -> None:
    """Samples first: a step or evaluation counts as done once its metrics are there."""
    run.append("samples.jsonl", record.samples)
    run.append("metrics.jsonl", [record.metrics])


def _passed_long_ago(config: Config, evaluated: list[dict]) -> bool:
    """Whether a forward run passed the threshold `stop_after_threshold` evaluations ago."""
    wait = config.train.stop_after_threshold
    if not wait or config.run.direction != "forward":
        return False
    passed = first_above(evaluated, config.selection.threshold)
    return passed is not None and len(evaluated) - 1 - evaluated.index(passed) >= wait


@contextmanager
def _stop_politely() -> Iterator[list[int]]:
    """A list that fills when somebody asks the process to end: Ctrl-C, SIGTERM from a cluster, SIGHUP from a terminal
    that closes. Ctrl-C again ends it at once; a cluster that asks all of a study's processes, whose first one then asks
    the others, means it once.
    """
    asked: list[int] = []

    def ask(number: int, frame) -> None:
        if asked and number == signal.SIGINT:
            raise KeyboardInterrupt
        asked.append(number)
        if len(asked) == 1:
            with suppress(OSError):  # the terminal may be gone
                print(
                    "\nFinishing this step, then saving. Ctrl-C stops at once and loses what came after the last "
                    "checkpoint.",
                    file=sys.stderr,
                )

    # A signal that is being ignored goes on being ignored, as whoever had that set up wants it.
    numbers = signal.SIGINT, signal.SIGTERM, signal.SIGHUP
    heard = [number for number in numbers if signal.getsignal(number) is not signal.SIG_IGN]
    found = {number: signal.signal(number, ask) for number in heard}
    try:
        yield asked
    finally:
        for number, handler in found.items():
            signal.signal(number, handler)


def _world(config: Config):
    """The truth of the world that a run may know; the one place that wires it in."""
    if not config.train.world:
        return None
    from hmx.tiny.world import examine

    return examine


def _brief(metrics: dict) -> str:
    reward = "?" if metrics["reward_mean"] is None else f"{metrics['reward_mean']:.1f}"
    return f"reward {reward}, KL {metrics['kl']:.3f}, {metrics['tokens_per_second']} tokens/s"


def _evaluation_line(metrics: dict) -> str:
    reward = metrics["eval_reward"]
    parts = [
        f"epoch {metrics['epoch']:5.2f}",
        f"step {metrics['step']:4d}",
        f"reward {'   ?' if reward is None else f'{reward:5.2f}'}",
    ]
    if "eval_truth" in metrics:
        parts += [f"truth {metrics['eval_truth']:5.2f}", f"garbled {metrics['eval_garbled']:4.0%}"]
    parts += [f"KL {metrics['eval_kl']:.3f}", f"{metrics['eval_completion_tokens']:.0f} tokens"]
    if unread := metrics["eval_judge_invalid"]:
        parts.append(f"{unread} unreadable grade{'s' * (unread > 1)}")
    return "  ".join(parts)


def _sample_line(samples: list[dict]) -> str:
    sample = samples[0]
    answer = one_line(sample["answer"])
    grade = grade_text(sample["grade"])
    return f"    {sample['question']}\n    → {answer[:300]}{'…' if len(answer) > 300 else ''} [{grade}]"
