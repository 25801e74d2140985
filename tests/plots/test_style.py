"""The colours of losses: one for each in every drawing, which colour-blind readers tell apart."""

import itertools

import numpy as np
import pytest
from matplotlib.colors import to_rgb

from hem.losses import LOSSES
from hem.plots.style import COLOURS, PALETTE, colours

# what dichromats see, of linear RGB: Machado et al., "A physiologically-based model for simulation of color vision
# deficiency", IEEE TVCG 2009, severity 1
VISION = {
    "normal": np.eye(3),
    "protanopia": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deuteranopia": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
}
XYZ = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])


def lab(colour, vision):
    """CIELAB of a colour, as somebody sees it."""
    rgb = np.array(to_rgb(colour))
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    seen = np.clip(np.array(VISION[vision]) @ linear, 0, 1)
    x, y, z = np.cbrt(XYZ @ seen / XYZ.sum(1))
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


@pytest.mark.parametrize("vision", VISION)
def test_colours_are_told_apart(vision):
    """A difference of 2.3 can just be noticed; these are at least four times as far apart."""
    seen = {loss: lab(colour, vision) for loss, colour in COLOURS.items()}
    distances = {pair: np.linalg.norm(seen[pair[0]] - seen[pair[1]]) for pair in itertools.combinations(seen, 2)}
    assert min(distances.values()) > 9, min(distances, key=distances.get)


def test_a_loss_has_one_colour():
    """Whatever else is in a report; further ones take what is left."""
    assert set(COLOURS) <= set(LOSSES)
    assert colours(["hem", "ce"])["hem"] == colours(["ce", "mine", "hem_plus", "hem"])["hem"] == PALETTE[0]
    found = colours(["ce", "hem", *(f"hem_{margin}" for margin in range(9))])
    assert len(set(found.values())) == len(found)
