"""Prompts that begin alike: the few-shot examples or instructions of a task, which need to be run only once."""

from collections.abc import Iterator, Sequence

from hmx.sampling import common

LEAST = 64
"""Tokens that a beginning must have to be worth it: longer than what a chat template writes in front of everything."""
FEW = 32
"""Different prompts that it must have; fewer are better run together with others."""


def by_beginning(prompts: Sequence[Sequence[int]]) -> Iterator[tuple[list[int], list[int]]]:
    """The prompts in groups, each as the tokens with which all of the group begin and go on after, and their places.

    Those that share no long beginning with many others are one group, which begins with no tokens.
    """
    groups: dict[tuple[int, ...], list[int]] = {}
    for place, prompt in enumerate(prompts):
        groups.setdefault(tuple(prompt[:LEAST]) if len(prompt) > LEAST else (), []).append(place)
    rest = groups.pop((), [])
    for places in groups.values():
        alike = {tuple(prompts[place]) for place in places}
        if len(alike) < FEW:
            rest += places
            continue
        shared = min(common(min(alike), max(alike)), min(map(len, alike)) - 1)
        yield list(prompts[places[0]][:shared]), places
    if rest:
        yield [], sorted(rest)
