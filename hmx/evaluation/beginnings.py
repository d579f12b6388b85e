"""Prompts that begin alike: the few-shot examples or instructions of a task, which need to be run only once."""

from collections.abc import Iterator, Sequence

from hmx.sampling import common_length

LEAST = 64
"""Tokens that a beginning must have to be worth it: longer than what a chat template writes in front of everything."""
FEW = 32
"""Different prompts that it must have; fewer are better run together with others."""


def by_beginning(prompts: Sequence[Sequence[int]]) -> Iterator[tuple[list[int], list[int]]]:
    """The prompts in groups, each as the tokens with which all of the group begin and go on after, and their places.

    Those that share no long beginning with many others are one group, which begins with no tokens. Where many of those
    that begin alike share much more, two tasks with one system prompt and few-shot examples of their own, each such
    part is a group.
    """
    rest: list[int] = []
    yield from _groups(prompts, range(len(prompts)), 0, rest)
    if rest:
        yield [], sorted(rest)


def _groups(
    prompts: Sequence[Sequence[int]], places: Sequence[int], known: int, rest: list[int]
) -> Iterator[tuple[list[int], list[int]]]:
    """The groups among `places`, whose prompts have their first `known` tokens in common; what is in none joins
    `rest`.
    """
    parts: dict[tuple[int, ...], list[int]] = {}
    for place in places:
        further = tuple(prompts[place][known : known + LEAST])
        parts.setdefault(further if len(prompts[place]) > known + LEAST else (), []).append(place)
    single = parts.pop((), [])
    for part in parts.values():
        alike = {tuple(prompts[place]) for place in part}
        if len(alike) < FEW:
            single += part
            continue
        shared = min(common_length(min(alike), max(alike)), min(map(len, alike)) - 1)
        yield from _groups(prompts, part, shared, rest)
    if known and (len(single) == len(places) or len({tuple(prompts[place]) for place in single}) >= FEW):
        yield list(prompts[single[0]][:known]), sorted(single)
    else:
        rest += single
