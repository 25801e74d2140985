"""The pieces: normalisation of pixels, LDAM's head, shortcuts, and the questions about a network."""

import pytest
import torch
import torchvision
from timm.layers import DropPath
from torch import nn

from hem.networks import CosineLinear, Normalize, batch_dependent, random_layers
from hem.networks.preact import PreActBlock
from hem.networks.resnet import PadShortcut, basic_block, make_norm


def test_normalize_is_what_torchvision_does():
    mean, std = (0.1, 0.2, 0.3), (0.5, 0.6, 0.7)
    images = torch.rand(2, 3, 4, 4)
    expected = torchvision.transforms.functional.normalize(images, list(mean), list(std))
    torch.testing.assert_close(Normalize(mean, std)(images), expected)


def test_normalize_travels_with_the_state_dict():
    saved = Normalize((0.1, 0.2), (0.5, 0.6)).state_dict()
    assert {name: tuple(value.shape) for name, value in saved.items()} == {
        "mean": (1, 2, 1, 1),
        "std": (1, 2, 1, 1),
    }
    fresh = Normalize((0, 0), (1, 1))
    fresh.load_state_dict(saved)
    assert fresh.mean.flatten().tolist() == pytest.approx([0.1, 0.2])


@pytest.mark.parametrize(
    ("mean", "std", "sentence"),
    [
        ([0.5], [0.5, 0.5], "one number per channel in mean and in std, got 1 and 2"),
        ([], [], "one number per channel in mean and in std, got 0 and 0"),
        ([0.5, 0.5], [0.5, 0.0], "Expected each std to be above 0"),
        ([0.5], [float("nan")], "Expected each std to be above 0"),
    ],
)
def test_normalize_refuses_numbers_that_do_not_fit(mean, std, sentence):
    with pytest.raises(ValueError, match=sentence):
        Normalize(mean, std)


def test_normalize_refuses_other_channels_instead_of_broadcasting():
    with pytest.raises(ValueError, match=r"\(N, 1, H, W\) to normalise, got \(2, 3, 4, 4\)"):
        Normalize([0.5], [0.5])(torch.rand(2, 3, 4, 4))


def test_normalize_refuses_bytes():
    with pytest.raises(TypeError, match=r"in \[0, 1\] to normalise, got torch.uint8: divide by 255"):
        Normalize([0.5], [0.5])(torch.zeros(2, 1, 4, 4, dtype=torch.uint8))


def test_cosine_head_gives_cosines():
    head = CosineLinear(16, 5)
    with torch.no_grad():
        head.weight.mul_(torch.rand(5, 1) * 10)  # training changes the norms; the logits must not notice
    features = torch.randn(7, 16)
    expected = torch.cosine_similarity(features[:, None], head.weight[None], dim=-1)
    torch.testing.assert_close(head(features), expected)
    torch.testing.assert_close(head(features * 100), expected)


def test_pad_shortcut_skips_pixels_and_fills_channels_with_zeros():
    images = torch.arange(2 * 16.0).view(1, 2, 4, 4)
    output = PadShortcut(2, 4, 2)(images)
    assert output[0, :, 0].tolist() == [[0, 0], [0, 2], [16, 18], [0, 0]]


def test_option_a_has_no_parameters_in_its_shortcuts():
    pad, projection = (basic_block("batch", pad=pad)(16, 32, 2).shortcut for pad in (True, False))
    assert sum(p.numel() for p in pad.parameters()) == 0
    assert sum(p.numel() for p in projection.parameters()) == 16 * 32 + 64


def test_a_pre_activation_block_hands_its_input_through():
    block = PreActBlock("batch", 8, 8, 1, 0.0)
    nn.init.zeros_(block.residual[-1].weight)
    images = torch.randn(2, 8, 4, 4)
    assert torch.equal(block(images), images)


@pytest.mark.parametrize(("channels", "groups"), [(4, 1), (16, 4), (32, 8), (64, 16), (160, 8), (512, 32), (1024, 32)])
def test_groups_have_at_least_four_channels_and_number_at_most_32(channels, groups):
    assert make_norm("group", channels).num_groups == groups


def test_layers_that_see_the_batch():
    net = nn.Sequential(nn.BatchNorm2d(4), nn.GroupNorm(2, 4), nn.InstanceNorm2d(4), nn.LayerNorm(4))
    net.append(nn.SyncBatchNorm(4))
    assert batch_dependent(net) == ["0", "4"]


def test_layers_that_draw():
    chance = [
        nn.Dropout(0.1),
        nn.Dropout2d(0.1),
        nn.AlphaDropout(0.1),
        nn.RReLU(),
        DropPath(0.1),
        torchvision.ops.StochasticDepth(0.1, "row"),
        nn.MultiheadAttention(4, 2, dropout=0.1),
    ]
    sure = [
        nn.Dropout(0.0),
        DropPath(0.0),
        torchvision.ops.StochasticDepth(0.0, "row"),
        nn.MultiheadAttention(4, 2),
        nn.BatchNorm2d(4),
    ]
    assert len(random_layers(nn.ModuleList(chance))) == len(chance)
    assert random_layers(nn.ModuleList(sure)) == []
