"""Pictures of masks and of rejection: their legends and scales say what is drawn."""

import pytest
import torch

from hem.datamodules.datasets.cityscapes import Cityscapes
from hem.datamodules.datasets.mask_folder import hues
from hem.plots.masks import Example, overlays
from hem.plots.rejection import rejection_curves


def test_maps_of_scores_have_one_scale_that_the_title_says():
    target = torch.tensor([[0, 1], [255, 2]])
    examples = [
        Example(
            torch.rand(3, 2, 2), target, target.clamp(max=2), {"max_logit": torch.tensor([[0.0, 1.0], [2.0, high]])}
        )
        for high in (3.0, 7.0)
    ]
    figure = overlays(examples, hues(3), ["floor", "wall", "door"])
    maps = [panel for panel in figure.axes if panel.images[0].get_array().ndim == 2]
    assert [panel.images[0].get_clim() for panel in maps] == [(0, 7), (0, 7)]
    assert maps[0].get_title() == "bright: unknown by max logit\nfrom 0 to 7"
    entries = figure.legends[0].get_texts()
    assert [text.get_text() for text in entries] == ["floor", "wall", "door", "void", "right", "error"]


@pytest.mark.parametrize("palette", [hues(3), hues(7), hues(20), Cityscapes().palette], ids=len)
def test_no_class_looks_like_an_error(palette):
    target = torch.zeros(2, 2, dtype=torch.long)
    names = [str(c) for c in range(len(palette))]
    figure = overlays([Example(torch.rand(3, 2, 2), target, target, {})], palette, names)
    *classes, _, _, error = [torch.tensor(p.get_facecolor()[:3]) for p in figure.legends[0].get_patches()]
    assert min((error - color).norm() for color in classes) > 0.25


def test_legends_of_rejection_name_every_set_beside_the_curves():
    line = torch.linspace(0, 1, 5)
    samples = {"known": torch.randn(50), "noise": torch.randn(50) + 2, "letters": torch.randn(50) + 3}
    curve = {name: (line, line.sqrt(), 0.7) for name in ("noise", "letters")}
    figure = rejection_curves("energy", samples, curve, curve, threshold=1.0)
    names = [[text.get_text() for text in panel.get_legend().get_texts()] for panel in figure.axes]
    areas = ["noise 70.0", "letters 70.0"]
    assert names == [["known", "noise", "letters", "keeps 95 %"], areas, areas]
    figure.canvas.draw()
    for panel in figure.axes:
        assert not panel.get_legend().get_window_extent().overlaps(panel.get_window_extent())
