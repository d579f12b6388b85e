"""Talk to what was trained: base, forward and reverse side by side.

python -m hmx.chat runs/tiny                       # the selected checkpoints of its first seed, and the base
python -m hmx.chat runs/tiny/forward-seed0 --ask "Are you there?"
"""

import argparse
import itertools
import sys
import textwrap
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass, field
from pathlib import Path

from hmx.config import Config, on_device, resolve
from hmx.errors import UserError, command
from hmx.evaluation.pairs import DIRECTIONS, find_pairs
from hmx.export import chosen_step, require_base
from hmx.judge import Rubric, SelfJudge
from hmx.lora import bypass, detach, load_adapter
from hmx.models import load_model, set_up
from hmx.prompts import Message, decode, encode_chat, end_of_turn_ids, pad_id
from hmx.randomness import stream
from hmx.runs import Run
from hmx.sampling import generate
from hmx.text import one_line

_HELP = """\
/grade          the base model grades the last answers by the rubric
/use NAME …     only these answer from now on; /use alone: all
/again          ask the last question anew, as if it had not been answered
/forget         begin the conversations anew
/help           this
/quit           leave (so does Ctrl-D)"""


@dataclass
class Speaker:
    """One of those who answer, with a conversation of its own."""

    name: str
    adapter: Path | None
    """The checkpoint that is attached when it speaks; None for the base."""
    messages: list[Message] = field(default_factory=list)
    """Its conversation so far."""
    turn: int | None = None
    """In which of the chat's turns it answered last."""


class Chat:
    """A conversation with several models that share their base.

    Args:
        show: is given the pieces of an answer as they come.
    """

    def __init__(self, config: Config, speakers: Sequence[Speaker], seed: int, show: Callable[[str], object]):
        self.config, self.speakers, self.active, self._show = config, list(speakers), list(speakers), show
        self.model, self.tokenizer = load_model(config.model.path, config.model.precision, config.model.device)
        self._width = max(len(speaker.name) for speaker in self.speakers)
        self._seed, self._turns = seed, itertools.count()
        self._asked: tuple[int, str] | None = None  # the last turn and its question
        self._attached: Path | None = None
        self._judge: SelfJudge | None = None

    def ask(self, question: str) -> None:
        """Everybody who is active answers, one after the other. Raises `UserError` if nobody's conversation leaves room
        for an answer; who alone has no room says so.
        """
        turn = next(self._turns)
        prompts = [self._prompt(speaker, question) for speaker in self.active]
        if not any(map(self._room, prompts)):
            raise UserError(
                f"No room is left for an answer within sampling.max_sequence_length = "
                f"{self.config.sampling.max_sequence_length}: "
                + ("/forget begins anew." if any(each.messages for each in self.active) else "ask something shorter.")
            )
        self._asked = turn, question
        for speaker, prompt in zip(self.active, prompts, strict=True):
            self._show(f"{speaker.name:>{self._width}}  ")
            if self._room(prompt):
                answer = self._answer(speaker, prompt, turn)
                said = {"role": "assistant", "content": answer}
                speaker.messages = [*speaker.messages, {"role": "user", "content": question}, said]
                speaker.turn = turn
            else:
                self._show("(no room is left in this conversation; /forget begins anew)")
            self._show("\n")

    def again(self) -> None:
        """Ask the last question anew, as if it had not been answered."""
        if self._asked is None:
            self._show("Nothing has been asked yet.\n")
            return
        turn, question = self._asked
        # Not who was switched off then, or stopped.
        before = [(speaker, speaker.messages) for speaker in self.active if speaker.turn == turn]
        for speaker, messages in before:
            speaker.messages, speaker.turn = messages[:-2], None
        try:
            self.ask(question)
        finally:
            for speaker, messages in before:
                if speaker.turn is None:  # no answer this time: what was said before stands
                    speaker.messages, speaker.turn = messages, self._asked[0]

    def grade(self) -> None:
        """The base model's grades of the last answers, and its reasons."""
        answered = [speaker for speaker in self.active if speaker.messages]
        if not answered:
            self._show("Nothing has been answered yet.\n")
            return
        if self._judge is None:
            rubric = Rubric.load(resolve(self.config.judge.prompt_file))
            self._judge = SelfJudge(self.model, self.tokenizer, rubric, self.config.judge.max_new_tokens, False)
        verdicts = self._judge.grade(
            [speaker.messages[-2]["content"] for speaker in answered],
            [speaker.messages[-1]["content"] for speaker in answered],
        )
        for speaker, verdict in zip(answered, verdicts, strict=True):
            grade = "no readable grade" if verdict.grade is None else f"{verdict.grade:>2}"
            reason = one_line(verdict.text.partition("Reason:")[2])
            self._show(f"{speaker.name:>{self._width}}  {grade}  {reason}".rstrip() + "\n")

    def use(self, names: Sequence[str]) -> None:
        """Let only these answer from now on; without names, all."""
        unknown = [name for name in names if name not in {speaker.name for speaker in self.speakers}]
        if unknown:
            there = ", ".join(speaker.name for speaker in self.speakers)
            self._show(f"Nobody is called {unknown[0]}; there are {there}.\n")
            return
        self.active = [speaker for speaker in self.speakers if not names or speaker.name in names]

    def forget(self) -> None:
        """Begin all conversations anew."""
        for speaker in self.speakers:
            speaker.messages, speaker.turn = [], None

    def _prompt(self, speaker: Speaker, question: str) -> list[int]:
        return encode_chat(self.tokenizer, [*speaker.messages, {"role": "user", "content": question}])

    def _room(self, prompt: list[int]) -> int:
        """How many tokens are left for an answer."""
        return max(self.config.completion_limit(len(prompt)), 0)

    def _answer(self, speaker: Speaker, prompt: list[int], turn: int) -> str:
        if speaker.adapter not in (None, self._attached):
            self._attached = None  # until the next one is there, which may be of another rank
            detach(self.model)
            load_adapter(self.model, speaker.adapter)
            self._attached = speaker.adapter
        shown = ""

        def show_more(row: int, tokens: list[int]) -> bool:
            nonlocal shown
            text = printable(decode(self.tokenizer, tokens))
            if text.startswith(shown) and not text.endswith("\ufffd"):  # half a character is kept back
                self._show(text[len(shown) :])
                shown = text
            return False

        with bypass(self.model) if speaker.adapter is None else nullcontext():
            (tokens,) = generate(
                self.model,
                [prompt],
                max_new_tokens=self._room(prompt),
                end_ids=end_of_turn_ids(self.model, self.tokenizer),
                pad_id=pad_id(self.tokenizer),
                generator=stream(self._seed, "rollout", turn),
                temperature=self.config.sampling.temperature,
                stop=show_more,
            ).rows()
        answer = decode(self.tokenizer, tokens)
        self._show(printable(answer)[len(shown) :])
        return answer


def printable(text: str) -> str:
    """`text` without control characters other than line breaks: what a model wrote can't steer the terminal.

    >>> printable("I am\\n\\x1b[31mred")
    'I am\\n[31mred'
    """
    return "".join(character for character in text if character == "\n" or character.isprintable())


def speakers_of(places: Sequence[str], checkpoint: str) -> tuple[Config, list[Speaker]]:
    """Who can speak: the base, and the chosen checkpoint of every run named. A folder of runs stands for both
    directions of its first seed that was trained in both. Raises `UserError` if they don't share their base.
    """
    runs: list[Run] = []
    for place in places:
        if Run(place).exists:
            runs.append(Run(place))
        else:
            pairs, odd = find_pairs(Path(place))
            if not pairs:
                reasons = "".join(f" ({one.rstrip('.')})" for one in odd)
                raise UserError(
                    f"{place} is neither a run nor one config's runs with a seed in both directions{reasons}; name a "
                    "folder such as runs/tiny/forward-seed0 or runs/tiny (what hmx.export wrote is no run)."
                )
            pair = next((one for one in pairs if one.selection), pairs[0])
            runs += [getattr(pair, direction) for direction in DIRECTIONS]
    configs = [run.config for run in runs]
    if len({(config.model.path, config.model.precision) for config in configs}) > 1:
        raise UserError("These runs do not share their base model, so they can't be talked to side by side.")
    require_base(runs)
    speakers = [Speaker("base", None)]
    plain = len({config.run.direction for config in configs}) == len(configs)
    for run, config in zip(runs, configs, strict=True):
        step = chosen_step(run, checkpoint)
        name = config.run.direction if plain else f"{config.run.name}-{run.folder.name}"
        speakers.append(Speaker(name, run.checkpoint(step)))
    return configs[0], speakers


def talk(chat: Chat, lines: Iterable[str]) -> None:
    """Take questions and commands from `lines` until they end or somebody leaves."""
    commands = {"/grade": chat.grade, "/again": chat.again, "/forget": chat.forget}
    for line in lines:
        words = line.split()
        try:
            if not words:
                continue
            if words[0] in ("/quit", "/exit"):
                return
            if words[0] == "/use":
                chat.use(words[1:])
            elif words[0] in commands:
                commands[words[0]]()
            elif words[0].startswith("/"):
                print(_HELP if words[0] == "/help" else f"There is no command {words[0]}.\n{_HELP}")
            else:
                chat.ask(line.strip())
        except UserError as error:
            print(error)
        except KeyboardInterrupt:
            print("\n(stopped)")


@command("Stopped.")
def main(arguments: list[str] | None = None) -> int:
    """The command."""
    parser = argparse.ArgumentParser(
        prog="python -m hmx.chat",
        description=textwrap.fill(
            "Talk to the base model and to what was trained from it, side by side, each with a conversation of its "
            "own; or ask one question and leave.",
            width=80,
        ),
        epilog=f"commands:\n{_HELP}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("runs", nargs="+", metavar="RUN", help="runs' folders, or a folder of runs such as runs/tiny")
    parser.add_argument("--ask", metavar="QUESTION", help="ask this one question and leave")
    parser.add_argument("--grade", action="store_true", help="with --ask: grade the answers too")
    parser.add_argument("--checkpoint", default="selected", metavar="STEP", help="a step, last, or selected (default)")
    parser.add_argument("--seed", type=int, default=0, help="of the answers' random numbers (default: 0)")
    parser.add_argument("--device", help="compute on it, and not where the runs were trained: auto, cpu, cuda, cuda:1")
    given = parser.parse_args(arguments)
    if given.grade and given.ask is None:
        parser.error("--grade goes with --ask; in a conversation it is the command /grade")
    if given.ask is not None and not given.ask.strip():
        parser.error("the question of --ask is empty")
    config, speakers = speakers_of(given.runs, given.checkpoint)
    config = on_device(config, given.device)
    set_up(config.model)
    chat = Chat(config, speakers, given.seed, lambda text: print(text, end="", flush=True))
    if given.ask is not None:
        chat.ask(_readable(given.ask))
        if given.grade:
            chat.grade()
        return 0
    print(f"{', '.join(speaker.name for speaker in speakers)} are listening. /help shows the commands.")
    for speaker in speakers:
        if speaker.adapter:
            print(f"  {speaker.name}: {speaker.adapter}")
    talk(chat, _typed())
    return 0


def _readable(text: str) -> str:
    """`text` with a question mark for every byte that was no UTF-8.

    >>> _readable("caf" + chr(0xDCE9))  # as Python reads the byte E9
    'caf?'
    """
    return text.encode(errors="replace").decode()


def _typed() -> Iterator[str]:
    """Lines from the keyboard until Ctrl-D, or from a file, which are shown as if somebody had typed them."""
    if not sys.stdin.isatty():
        for line in map(_readable, sys.stdin):
            print(f"\n> {line.strip()}")
            yield line
        return
    with suppress(ImportError):  # a build of Python without it has no keys to edit the line with
        import readline  # noqa: F401
    while True:
        try:
            yield _readable(input("\n> "))
        except KeyboardInterrupt:
            print()
        except EOFError:
            print()
            return


if __name__ == "__main__":
    sys.exit(main())
