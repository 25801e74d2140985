"""Networks that label pixels: shapes, sizes that do not divide, names, SegNet's unpooling."""

import pytest
import torch
from torch import nn

from hem.networks import EncoderDecoder, SegNet, TorchvisionSegmentation

SMALL = {"decoder_pyramid_channels": 32, "decoder_segmentation_channels": 32}


@pytest.mark.parametrize(
    ("name", "encoder", "options"),
    [
        ("FPN", "tu-mobilenetv3_small_050", SMALL),
        ("Unet", "tu-mobilenetv3_small_050", {"decoder_channels": (32, 16, 16, 8, 8)}),
        ("DeepLabV3Plus", "resnet18", {"decoder_channels": 16}),
        ("PSPNet", "resnet18", {"psp_out_channels": 16}),
        ("Segformer", "mit_b0", {"decoder_segmentation_channels": 16}),
    ],
)
def test_encoder_decoder(name, encoder, options):
    """Any size, any decoder; the padding leaves the logits of a divisible size alone."""
    torch.manual_seed(0)
    net = EncoderDecoder(name, encoder, num_classes=7, in_channels=3, options=options).eval()
    with torch.no_grad():
        assert net(torch.rand(1, 3, 45, 70)).shape == (1, 7, 45, 70)
        image = torch.rand(1, 3, 64, 96)
        torch.testing.assert_close(net(image), net.model(image))
    inside = {id(p) for p in net.encoder.parameters()}
    assert 0 < len(inside) < len(list(net.parameters()))


@pytest.mark.parametrize(
    ("name", "auxiliary"), [("lraspp_mobilenet_v3_large", False), ("deeplabv3_mobilenet_v3_large", True)]
)
def test_torchvision(name, auxiliary):
    net = TorchvisionSegmentation(name, num_classes=7, auxiliary=auxiliary)
    image = torch.rand(2, 3, 45, 70)
    found = net.train()(image)
    heads = found if isinstance(found, tuple) else (found,)
    assert [tuple(logits.shape) for logits in heads] == [(2, 7, 45, 70)] * (1 + auxiliary)
    with torch.no_grad():
        assert net.eval()(image).shape == (2, 7, 45, 70)
    assert list(net.encoder.parameters())


def test_segnet():
    """The paper's network: 13 + 13 convolutions without the classifier, 29.5 million parameters; any size."""
    net = SegNet(11)
    convolutions = [m for m in net.modules() if isinstance(m, nn.Conv2d)]
    assert len(convolutions) == 27
    assert sum(p.numel() for p in net.parameters()) == pytest.approx(29.45e6, rel=0.01)
    small = SegNet(11, widths=(4, 6, 8), depths=(1, 2, 2))
    logits = small(torch.rand(2, 3, 45, 61))
    assert logits.shape == (2, 11, 45, 61)
    logits.sum().backward()
    assert all(p.grad is not None for p in small.parameters())


def test_segnet_remembers_where_the_maxima_were():
    """A bright pixel comes back to its own place, not to the corner of its 2 x 2 field."""
    net = SegNet(1, in_channels=1, widths=(1,), depths=(1,)).eval()
    for stage in (net.encoder[0], net.decoder[0]):
        nn.init.dirac_(stage[0].weight)
    nn.init.dirac_(net.classifier.weight)
    nn.init.zeros_(net.classifier.bias)
    image = torch.zeros(1, 1, 6, 6)
    image[0, 0, 3, 4] = 1
    with torch.no_grad():
        assert net(image).flatten().argmax() == 3 * 6 + 4


@pytest.mark.parametrize(
    ("build", "error", "sentence"),
    [
        (lambda: EncoderDecoder("FNP"), ValueError, "Unknown decoder 'FNP'; did you mean 'FPN'"),
        (lambda: EncoderDecoder("FPN", "resnet43"), ValueError, "Unknown encoder 'resnet43'; did you mean .*resnet34"),
        (
            lambda: EncoderDecoder("FPN", "tu-nothing"),
            ValueError,
            "encoder 'tu-nothing': timm has no 'nothing'",
        ),
        (lambda: EncoderDecoder("FPN", "resnet18", options={"depth": 3}), TypeError, "does not take the options"),
        (lambda: TorchvisionSegmentation("fcn"), ValueError, "Unknown segmentation network 'fcn'.*fcn_resnet50"),
        (lambda: TorchvisionSegmentation("lraspp_mobilenet_v3_large", auxiliary=True), ValueError, "no auxiliary head"),
        (
            lambda: SegNet(3, widths=(4, 8), depths=(1,)),
            ValueError,
            "one number per stage in widths and in depths, got 2 and 1",
        ),
    ],
)
def test_bad_arguments(build, error, sentence):
    with pytest.raises(error, match=sentence):
        build()
