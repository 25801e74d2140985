"""What plots of several runs draw where one of them came to nothing."""

import math

import numpy as np
import pandas as pd
import pytest

from hem.plots import comparison, search

HUES = {"ce": "black", "hem": "red"}
VALUES = pd.DataFrame(
    [
        (loss, name, value)
        for loss, ones in (("ce", (0.25, 0.75)), ("hem", (1.0, math.nan)))
        for name in "ab"
        for value in ones
    ],
    columns=["loss", "group", "value"],
)


def test_seeds_have_no_mean_where_one_is_no_number():
    figure = comparison.seeds(VALUES[VALUES.group == "a"].assign(title="accuracy"), HUES)
    means = [line.get_xdata()[0] for line in figure.axes[0].lines if line.get_marker() == "None"]
    assert means == [0.5, pytest.approx(math.nan, nan_ok=True)]


def test_groups_have_no_mean_where_one_is_no_number():
    """Least of all one of 0."""
    figure = comparison.groups(VALUES, "accuracy", HUES)
    drawn = np.array([container.lines[0].get_ydata() for container in figure.axes[0].containers], dtype=float)
    np.testing.assert_array_equal(drawn, [[0.5, 0.5], [math.nan, math.nan]])


def test_bars_of_shares_end_at_0_and_100():
    values = pd.DataFrame(
        [("ce", name, value) for name, ones in (("a", (80, 100)), ("b", (0, 20)), ("c", (40, 60))) for value in ones],
        columns=["loss", "group", "value"],
    )
    (container,) = comparison.groups(values, "accuracy in %", HUES).axes[0].containers
    ends = np.array([segment[:, 1] for segment in container.lines[2][0].get_segments()])
    spread = np.std([40, 60], ddof=1)
    np.testing.assert_allclose(ends, [[90 - spread, 100], [0, 10 + spread], [50 - spread, 50 + spread]])


def test_ticks_of_epochs_are_whole_numbers():
    points = pd.DataFrame(
        [("loss", "ce", 0, x, x) for x in (1.0, 2.0, 3.0)], columns=["title", "loss", "seed", "x", "y"]
    )
    panel = comparison.curves(points, "epoch", HUES).axes[0]
    ticks = [x for x in panel.get_xticks() if 1 <= x <= 3]
    assert ticks == [1, 2, 3]


def test_no_arrow_to_a_mean_that_is_no_number():
    both = pd.concat([VALUES[VALUES.group == "a"].assign(tuned=tuned) for tuned in (False, True)])
    figure = search.beside_untuned(both, "accuracy", HUES)
    assert [round(text.xyann[0], 3) for text in figure.axes[0].texts] == [0.5]
