"""The Pareto front."""

import random

import pytest

from compression.report.pareto import dominators


@pytest.mark.parametrize(
    ("points", "expected"),
    [
        ([], []),
        ([(1, 1)], [None]),
        ([(1, 0), (0, 1), (0, 0)], [None, None, 0]),
        ([(1, 1), (1, 1)], [None, None]),
        ([(1, 1), (1, 2)], [1, None]),
        ([(0.5, 5), (0.5, 6), (1, 5)], [1, None, None]),
        ([(1, 2, 3), (3, 2, 1), (1, 2, 2)], [None, None, 0]),
    ],
)
def test_by_hand(points: list, expected: list) -> None:
    assert dominators(points) == expected


def test_everything_off_the_front_is_dominated_by_something_on_it() -> None:
    drawn = random.Random(0)
    points = [tuple(drawn.randint(0, 9) for _ in range(3)) for _ in range(200)]
    found = dominators(points)
    front = [point for point, by in zip(points, found, strict=True) if by is None]
    assert 0 < len(front) < len(points)
    for point, by in zip(points, found, strict=True):
        better = [other for other in front if other != point and all(a >= b for a, b in zip(other, point, strict=True))]
        assert bool(better) is (by is not None)


def test_points_of_different_lengths_are_an_error() -> None:
    with pytest.raises(ValueError, match="zip"):
        dominators([(1, 2), (1, 2, 3)])
