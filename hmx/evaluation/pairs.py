"""Looking through a folder of runs: which seeds were trained in both directions, and which checkpoints count.

What is odd about a run gets a sentence and stands in nobody's way.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from hmx.config import Config, apart_from_seed
from hmx.errors import UserError
from hmx.runs import BASE, Run, changed
from hmx.selection import Selection, select, why_none

DIRECTIONS = ("forward", "reverse")


@dataclass(frozen=True)
class Pair:
    """Forward and reverse of one seed."""

    name: str
    seed: int
    forward: Run
    reverse: Run
    threshold: float
    rule: str
    selection: Selection | None

    @property
    def folder(self) -> Path:
        """Where all runs of this config live, and where reports on them go."""
        return self.forward.folder.parent

    @property
    def shown(self) -> tuple[int, int]:
        """The selected steps; of runs that never passed the threshold, the last ones that both evaluated."""
        if self.selection:
            return self.selection.forward, self.selection.reverse
        last = max(
            {record["step"] for record in self.forward.records(kind="eval")}
            & {record["step"] for record in self.reverse.records(kind="eval")}
        )
        return last, last

    @property
    def why(self) -> str:
        """Why these checkpoints, in a sentence."""
        running = [run.folder.name for run in (self.forward, self.reverse) if not run.finished]
        unfinished = f" Not finished yet: {', '.join(running)}." if running else ""
        if self.selection is not None:
            return self.selection.reason[0].upper() + self.selection.reason[1:] + "." + unfinished
        return f"No checkpoint was selected ({self.why_none}); the last ones are shown." + unfinished

    @property
    def why_none(self) -> str:
        """Why no checkpoint was selected, where none was."""
        return why_none(self.forward.records(kind="eval"), self.threshold)


@dataclass(frozen=True)
class Model:
    """All seeds of one config that were trained in both directions: a column of the paper's tables."""

    name: str
    config: Config
    """Of one of the runs; the others differ in direction and seed alone."""
    pairs: tuple[Pair, ...]

    @property
    def folder(self) -> Path:
        """Where its runs are."""
        return self.pairs[0].folder


def find_models(
    folder: str | Path, threshold: float | None = None, rule: str | None = None
) -> tuple[list[Model], list[str]]:
    """Everything in `folder` that can be compared, and a sentence for each thing that can't.

    Args:
        folder: of the runs of one config, or of several such folders.
        threshold, rule: how checkpoints are selected, if not as the runs' own configs say.

    Two runs of a seed are comparable if they differ in direction alone, had the same base, rubric and questions, and
    started from the same adapter; two seeds are if they differ in nothing else. Raises `UserError`, with what to run
    first, if there is nothing to compare.
    """
    models: list[Model] = []
    odd: list[str] = []
    whole = Path(folder) if Path(folder).name else Path(folder).resolve()  # "." has no name
    places = [whole] if list(_seeds(whole)) else sorted(path for path in whole.glob("*") if path.is_dir())
    for place in places:
        pairs, strange = find_pairs(place, threshold, rule)
        odd += strange
        if pairs:
            models.append(Model(place.name, pairs[0].forward.config, tuple(pairs)))
    if not models:
        nothing = f"There is no seed in {folder} that has been trained in both directions yet."
        if not Path(folder).is_dir():
            nothing = f"There is no folder {folder}."
        raise UserError(
            " ".join([nothing, *odd])
            + " Run python train.py --config configs/tiny.toml --study, or --direction forward and then --direction "
            "reverse."
        )
    return models, odd


def find_pairs(place: Path, threshold: float | None = None, rule: str | None = None) -> tuple[list[Pair], list[str]]:
    """The seeds of one config, whose runs are in `place`, and a sentence for each that can't be compared."""
    pairs: list[Pair] = []
    odd = []
    for seed in sorted(set(_seeds(place))):
        try:
            pair = _pair(place, seed, threshold, rule)
            if pairs and apart_from_seed(pair.forward.config) != apart_from_seed(pairs[0].forward.config):
                raise UserError(
                    f"{pair.forward.folder} was trained with other settings than {pairs[0].forward.folder}, so it is "
                    "left out; a study's runs differ in seed and direction alone."
                )
            if pairs and (what := _read_differently(pair.forward, pairs[0].forward)):
                raise UserError(
                    f"{pair.forward.folder} did not have the same {what} as {pairs[0].forward.folder}, so it is "
                    "left out."
                )
            pairs.append(pair)
        except UserError as error:
            odd.append(str(error))
    return pairs, odd


def pair_of(run: Run) -> Pair:
    """The run with its counterpart of the other direction; `UserError` if there is none to compare it with."""
    folder = run.folder.resolve()  # "." has no name
    _require_its_name(Run(folder))
    return _pair(folder.parent, run.config.run.seed, None, None)


def _seeds(place: Path) -> Iterator[int]:
    for path in place.glob("*-seed*/config.toml"):
        direction, _, seed = path.parent.name.partition("-seed")
        if direction in DIRECTIONS and seed.isdecimal():
            yield int(seed)


def _pair(place: Path, seed: int, threshold: float | None, rule: str | None) -> Pair:
    runs = [Run(place / f"{direction}-seed{seed}") for direction in DIRECTIONS]
    for run in runs:
        if not run.exists:
            there = next(other for other in runs if other.exists)
            raise UserError(
                f"{there.folder} has no counterpart {run.folder.name}, and the rule takes both; train that one too."
            )
        _require_its_name(run)
        if not run.records(kind="eval"):
            raise UserError(f"{run.folder} has no evaluation yet, so its seed is left out.")
    forward, reverse = runs
    if apart_from_seed(forward.config) != apart_from_seed(reverse.config):
        raise UserError(f"{forward.folder} and {reverse.folder} had different settings, so they can't be compared.")
    for run in runs:
        if not run.info.get("initial_adapter"):
            raise UserError(
                f"{run.folder / 'run.json'} does not say from which adapter the run started, so its seed is left out; "
                "restore the file."
            )
    together = f"{forward.folder} and {reverse.folder}"
    if forward.info["initial_adapter"] != reverse.info["initial_adapter"]:
        raise UserError(f"{together} did not start from the same adapter, so they can't be compared.")
    if what := _read_differently(forward, reverse):
        raise UserError(f"{together} did not have the same {what}, so they can't be compared.")
    if not {one["step"] for one in forward.records(kind="eval")} & {
        one["step"] for one in reverse.records(kind="eval")
    }:
        raise UserError(f"{forward.folder} and {reverse.folder} were never evaluated at the same step.")
    own = forward.config.selection
    threshold = own.threshold if threshold is None else threshold
    rule = rule or own.rule
    chosen = select(forward.records(kind="eval"), reverse.records(kind="eval"), threshold, rule)
    return Pair(place.name, seed, forward, reverse, threshold, rule, chosen)


def _require_its_name(run: Run) -> None:
    told = run.config.run
    if f"{told.direction}-seed{told.seed}" != run.folder.name:
        raise UserError(
            f"{run.folder} holds the run {told.direction}-seed{told.seed}, so it is left out; rename it back."
        )


def _read_differently(one: Run, other: Run) -> str | None:
    """What two runs read that was not the same, in a word."""
    what = changed(one.info, other.info)
    return "base model" if what in BASE else what
