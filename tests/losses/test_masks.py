"""The losses for masks: SegNet's weights, and sums of losses."""

import numpy as np
import pytest
import torch
from torch import nn

from hem.losses import DiceLoss, HEMLoss, MedianFrequencyLoss, SumLoss, median_frequency_weights


def test_median_frequency_of_camvid():
    """The weights of CamVid, computed from its published counts with numpy."""
    from hem.datamodules import CamVid

    counts = CamVid.counts
    frequency = np.array(counts.pixels) / np.array(counts.pixels_of_images)
    expected = np.median(frequency) / frequency
    weight = median_frequency_weights(counts.frequencies())
    np.testing.assert_allclose(weight, expected, rtol=1e-6)
    assert weight[4] == 1  # pavement is the median
    assert weight[10] == pytest.approx(8.8587, abs=1e-4)


@pytest.mark.parametrize("factor", [None, [2.0, 1.0, 0.5]])
def test_median_frequency_loss(factor):
    torch.manual_seed(0)
    logits, target = torch.randn(2, 3, 4, 5), torch.randint(3, (2, 4, 5))
    target[0, 0] = 255
    loss = MedianFrequencyLoss(factor, 255, class_frequencies=[0.5, 0.1, 0.2])
    weight = torch.tensor([0.4, 2.0, 1.0]) * torch.tensor(factor or [1.0, 1.0, 1.0])
    torch.testing.assert_close(loss(logits, target), nn.CrossEntropyLoss(weight, ignore_index=255)(logits, target))
    assert not loss.state_dict()


def test_bad_frequencies():
    with pytest.raises(ValueError, match=r"Expected class_frequencies.*got none: give them"):
        MedianFrequencyLoss()
    with pytest.raises(ValueError, match=r"all above 0, got \[0.5, 0.0\]"):
        MedianFrequencyLoss(class_frequencies=[0.5, 0.0])


def test_sum():
    """The sum with its factors, in value and gradient; 0 where nothing is labelled, cross-entropy's NaN included."""
    torch.manual_seed(0)
    logits = torch.randn(2, 3, 4, 5, requires_grad=True)
    target = torch.randint(3, (2, 4, 5))
    parts = [nn.CrossEntropyLoss(ignore_index=255), DiceLoss(ignore_index=255), HEMLoss(ignore_index=255)]
    loss = SumLoss(parts, [1.0, 0.5, 2.0])
    (gradient,) = torch.autograd.grad(loss(logits, target), logits)
    expected = parts[0](logits, target) + 0.5 * parts[1](logits, target) + 2 * parts[2](logits, target)
    torch.testing.assert_close(loss(logits, target), expected)
    torch.testing.assert_close(gradient, torch.autograd.grad(expected, logits)[0])
    nothing = loss(logits, torch.full_like(target, 255))
    (gradient,) = torch.autograd.grad(nothing, logits)
    assert nothing == 0
    assert (gradient == 0).all()


@pytest.mark.parametrize(("losses", "factors"), [([], None), ([nn.CrossEntropyLoss()], [1.0, 2.0])])
def test_bad_sum(losses, factors):
    with pytest.raises(ValueError, match="Expected one factor for each loss"):
        SumLoss(losses, factors)


def test_made_on_the_meta_device():
    with torch.device("meta"):
        loss = MedianFrequencyLoss(class_frequencies=[0.5, 0.1, 0.2], weight=[1.0, 2.0, 1.0])
    torch.testing.assert_close(loss.to_empty(device="cpu").weight, torch.tensor([0.4, 4.0, 1.0]))


@pytest.mark.parametrize(
    ("shape", "labels", "mend"),
    [((4, 3), (4, 1), r"use target.squeeze\(1\)"), ((2, 3, 5, 5), (2, 1, 5, 5), r"use target.squeeze\(1\)"),
     ((2, 7, 3), (2, 7), r"if its classes are last, use input.movedim\(-1, 1\)")],
)  # fmt: skip
def test_shapes_that_are_nearly_right_have_their_mend(shape, labels, mend):
    with pytest.raises(ValueError, match=mend):
        HEMLoss()(torch.randn(shape), torch.zeros(labels, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"got shape \(\): a margin is given by its name, margin=0.5"):
        HEMLoss(0.5)
