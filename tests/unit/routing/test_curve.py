"""Interpolation of measured times: on the points, between them, outside them, and with noise."""

import pytest

from serve.routing.curve import Curve


@pytest.mark.parametrize(
    ("x", "ms"),
    [(0, 100), (100, 100), (150, 200), (200, 300), (300, 400), (400, 500), (1000, 1100)],
)
def test_it_is_linear_between_its_points_constant_below_and_on_the_last_slope_above(x: float, ms: float):
    assert Curve([(400, 500), (100, 100), (200, 300)])(x) == pytest.approx(ms)


def test_less_time_for_more_work_is_noise():
    curve = Curve([(1, 100), (2, 80), (3, 150)])
    assert [curve(x) for x in (1, 2, 2.5, 3)] == [100, 100, 125, 150]


def test_one_point_is_constant():
    assert [Curve([(8, 5.0)])(x) for x in (1, 8, 100)] == [5, 5, 5]


def test_above_two_points_of_the_same_time_it_stays_there():
    assert Curve([(1, 5.0), (2, 5.0)])(100) == 5
