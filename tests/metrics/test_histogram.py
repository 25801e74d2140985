"""The AUROC of a histogram against the exact one."""

import pytest
import torch

from hem.metrics.histogram import ScoreHistogram, bins
from hem.rejection import auroc


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
def test_auroc(scale):
    """In parts and of any size, to within the bins' width; ties count half."""
    torch.manual_seed(0)
    scores = scale * (torch.randn(20_000) + torch.linspace(-0.5, 0.5, 20_000))
    unknown = torch.rand(20_000) < torch.linspace(0, 0.6, 20_000)
    histogram = ScoreHistogram()
    for part in torch.arange(20_000).split(3_001):
        histogram.update(scores[part], unknown[part])
    assert float(histogram.compute()) == pytest.approx(auroc(scores[~unknown], scores[unknown]), abs=1e-5)
    ties = ScoreHistogram()
    ties.update(torch.ones(2, 3), torch.tensor([[True, False, True]] * 2))
    assert float(ties.compute()) == 0.5


def test_bins_are_ordered():
    """Bins follow the scores over the whole range of floats, and near scores are in other bins."""
    values = torch.cat([-torch.logspace(30, -30, 5001), torch.zeros(1), torch.logspace(-30, 30, 5001)])
    place = bins(values)
    assert (place.diff() > 0).all()
    assert 0 <= int(place.min()) < int(place.max()) < 2**20


def test_one_kind_alone_has_no_area():
    histogram = ScoreHistogram()
    histogram.update(torch.rand(5), torch.zeros(5, dtype=torch.bool))
    assert histogram.compute().isnan()
