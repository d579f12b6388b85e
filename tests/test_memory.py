"""Work in portions: what fits, what is said, and that nothing else changes."""

import pytest
import torch

from hmx.memory import Portions


def fits(most: int, tried: list[int]):
    """A computation of as many random numbers as rows that fails for more than `most` rows, after having drawn."""
    generator = torch.Generator().manual_seed(0)

    def compute(rows: slice) -> list[float]:
        tried.append(rows.stop - rows.start)
        numbers = torch.rand(rows.stop - rows.start, generator=generator).tolist()
        if len(numbers) > most:
            raise torch.OutOfMemoryError("too much")
        return numbers

    return compute, generator


def flat(parts: list[list[float]]) -> list[float]:
    return [number for part in parts for number in part]


def test_what_fits_is_computed_at_once(capsys):
    tried = []
    compute, generator = fits(10, tried)
    assert len(flat(Portions("sampling")(compute, 10, generator))) == 10
    assert tried == [10] and capsys.readouterr().err == ""


def test_what_does_not_fit_is_halved_for_good_and_draws_the_same(capsys):
    tried, portions = [], Portions("sampling")
    compute, generator = fits(3, tried)
    whole = torch.rand(10, generator=torch.Generator().manual_seed(0)).tolist()
    assert flat(portions(compute, 10, generator)) == whole
    assert tried == [10, 5, 2, 2, 2, 2, 2]
    assert capsys.readouterr().err.splitlines()[-1].startswith("Out of GPU memory while sampling: 2 at a time")
    tried.clear()
    portions(compute, 4, generator)
    assert tried == [2, 2]


def test_a_row_that_does_not_fit_alone_is_an_error():
    compute, generator = fits(0, [])
    with pytest.raises(torch.OutOfMemoryError):
        Portions("sampling")(compute, 3, generator)


def test_no_rows_need_nothing():
    assert Portions("sampling")(pytest.fail, 0) == []
