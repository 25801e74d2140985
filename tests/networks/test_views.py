"""Windows, scales and mirror images against loops, and against the network that sees one pixel at a time."""

import pytest
import torch
from torch import nn

from hem.networks.views import scaled, sliding_window, starts


@pytest.fixture
def pixelwise():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 1), nn.ReLU(), nn.Conv2d(8, 5, 1)).eval()


@pytest.mark.parametrize("size", [(23, 37), (16, 16), (9, 40), (5, 7)])
@pytest.mark.parametrize("stride", [(16, 16), (7, 11), (1, 16)])
def test_windows_of_a_pixelwise_network(pixelwise, size, stride):
    """1 x 1 convolutions do not see the window: the result is that for the whole image, larger than the crop or not."""
    image = torch.rand(2, 3, *size)
    with torch.no_grad():
        torch.testing.assert_close(sliding_window(pixelwise, image, (16, 16), stride), pixelwise(image))


def test_windows_are_averaged():
    """Each pixel gets the mean over the windows that see it, here of a number that each window gives."""
    calls = []

    def net(view):
        calls.append(view)
        return torch.full_like(view[:, :1], float(len(calls)))

    found = sliding_window(net, torch.zeros(1, 3, 4, 6), (4, 4), (2, 1))[0, 0, 0]
    assert [tuple(view.shape) for view in calls] == [(1, 3, 4, 4)] * 3
    assert found.tolist() == [1, 1.5, 2, 2, 2.5, 3]


@pytest.mark.parametrize(("length", "window", "stride"), [(10, 4, 3), (11, 4, 3), (4, 4, 1), (3, 4, 2), (100, 7, 5)])
def test_starts(length, window, stride):
    """Every pixel is seen, windows stay inside, and no start comes twice."""
    found = starts(length, window, stride)
    assert set(range(length)) <= {p for start in found for p in range(start, start + window)}
    assert len(set(found)) == len(found)
    assert found[-1] == max(length - window, 0)


@pytest.mark.parametrize(("window", "stride"), [((4, 4), (5, 4)), ((4, 4), (4, 0)), ((0, 4), (1, 1))])
def test_bad_windows(window, stride):
    with pytest.raises(ValueError, match="a stride of at most the window, got window"):
        sliding_window(lambda x: x, torch.zeros(1, 3, 8, 8), window, stride)


def test_scales_and_mirror_images():
    """The mean over the views, each brought back; a network that knows left from right loses it by the mirror."""
    image = torch.rand(1, 1, 12, 16)
    ramp = torch.linspace(0, 1, 16).expand(1, 1, 12, 16)

    def net(view):
        return view + torch.linspace(0, 1, view.shape[-1])

    torch.testing.assert_close(scaled(net, image, flip=True), image + (ramp + ramp.flip(-1)) / 2)
    sizes = []
    half = scaled(lambda view: sizes.append(tuple(view.shape[2:])) or torch.ones_like(view), image, [0.5, 1.0, 1.5])
    assert sizes == [(6, 8), (12, 16), (18, 24)]
    assert half.shape == image.shape
    assert torch.allclose(half, torch.ones(()))
    assert torch.equal(scaled(net, image), net(image))


@pytest.mark.parametrize("scales", [[], [1.0, 0.0]])
def test_bad_scales(scales):
    with pytest.raises(ValueError, match="scales to be one or more factors above 0"):
        scaled(lambda x: x, torch.zeros(1, 3, 8, 8), scales)
