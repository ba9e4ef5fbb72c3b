"""The parts of a chart."""

import itertools
import random

import pytest

from trainer.reporting import charts


def test_thinning_keeps_extremes():
    noise = random.Random(0)
    points = [(float(x), noise.gauss(0, 1)) for x in range(10_000)]
    points[1234], points[8765] = (1234.0, 99.0), (8765.0, -99.0)
    xs, ys, lows, highs = charts.thin(points)
    assert len(xs) == charts.NUM_INTERVALS
    assert all(a < b for a, b in itertools.pairwise(xs))
    assert (lows.min(), highs.max()) == (-99.0, 99.0)
    assert abs(ys).max() < 1
    few = points[: 2 * charts.NUM_INTERVALS]
    assert charts.thin(few)[:2].T.tolist() == [list(point) for point in few]


@pytest.mark.parametrize(
    ("values", "from_zero", "expected"),
    [
        ([90.0, 12_000.0], False, ["100", "1000", "10k"]),
        ([1.0, 10.0], False, ["2", "10"]),
        ([2e-7, 6e-4], True, ["0", "0.0002", "0.0006"]),
        ([0.0, 2_600_000.0], True, ["0", "1M", "2M"]),
        ([4.5, 4.5], False, ["4.5"]),
        ([-2.0, 30.0], False, ["0", "10"]),
    ],
)
def test_axes_have_round_values(values, from_zero, expected):
    line = charts.Line("", list(enumerate(values)))
    chart = charts.Chart("A", [line], x_label="step", from_zero=from_zero)
    assert chart.is_logarithmic == (values[1] == 12_000)
    picture = chart.svg()
    for text in expected:
        assert f">{text}<" in picture.replace("\N{MINUS SIGN}", "-")


def test_a_chart_without_points_is_empty():
    assert charts.Chart("A", [charts.Line("", [])], x_label="step").is_empty
