"""The streams of random numbers."""

import hashlib
import itertools

import pytest
import torch

from hmx.randomness import NAMES, stream


def numbers(*key) -> list[float]:
    return torch.rand(4, generator=stream(*key)).tolist()


def test_the_same_key_gives_the_same_numbers_and_any_other_key_gives_others():
    keys = list(itertools.product((0, 1, 2, 10), NAMES, (0, 1, 2, 10)))
    assert [numbers(*key) for key in keys] == [numbers(*key) for key in keys]
    assert len({tuple(numbers(*key)) for key in keys}) == len(keys)


def test_the_seed_is_the_documented_hash():
    digest = hashlib.sha256(b"3/rollout/41").digest()
    assert stream(3, "rollout", 41).initial_seed() == int.from_bytes(digest[:8], "little") // 2


def test_the_index_is_zero_unless_given():
    assert numbers(5, "init") == numbers(5, "init", 0)


def test_the_global_generator_is_neither_used_nor_moved():
    state = torch.get_rng_state()
    first = numbers(0, "order")
    assert torch.equal(torch.get_rng_state(), state)
    torch.rand(3)
    assert numbers(0, "order") == first


def test_generators_of_one_key_do_not_share_their_state():
    one, other = stream(0, "eval", 1), stream(0, "eval", 1)
    first = torch.rand(4, generator=one)
    torch.rand(9, generator=one)
    assert torch.equal(torch.rand(4, generator=other), first)


def test_the_numbers_look_uniform_across_neighbouring_indices():
    firsts = torch.tensor([numbers(0, "rollout", index)[0] for index in range(2000)])
    assert abs(firsts.mean() - 0.5) < 4 * (1 / 12 / 2000) ** 0.5


def test_an_unknown_name_is_refused_and_the_known_ones_named():
    with pytest.raises(ValueError, match="rolout.*rollout"):
        stream(0, "rolout")
