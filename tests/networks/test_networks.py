"""What holds for every network: shapes, published sizes, the split into features and head, refusals."""

import copy

import jsonargparse
import pytest
import torch
from torch import nn

import hem.networks
from hem.networks import (
    MLP,
    LeNet,
    Named,
    Network,
    PreActResNet18,
    ResNet8,
    ResNet18,
    ResNet20,
    ResNet32,
    ResNet34,
    ResNeXt29,
    WideResNet28_10,
    WideResNet40_2,
)

# Parameters at 10 classes and 3 channels as counted in public implementations whose accuracies are published;
# the papers state the rounded figures (He: 0.27 M and 0.46 M; Zagoruyko: 36.5 M and 2.2 M; Xie: 34.4 M).
PUBLISHED = {
    ResNet20: 269_722,
    ResNet32: 464_154,
    ResNet18: 11_173_962,
    ResNet34: 21_282_122,
    PreActResNet18: 11_172_170,
    WideResNet28_10: 36_479_194,
    WideResNet40_2: 2_243_546,
    ResNeXt29: 34_426_698,
}
SIZED = (LeNet, MLP)  # these take the size of the image
NORMS = (ResNet8, ResNet18, PreActResNet18, WideResNet40_2, ResNeXt29)
COSINE = (ResNet8, ResNet18, ResNet20, ResNet32, ResNet34)
# the big ones run where nothing is computed: shapes alone are asked of them
LIGHT = (LeNet, MLP, ResNet8, ResNet20)


def build(kind, size=28, **arguments):
    return kind(**arguments, **({"image_size": (size, size)} if kind in SIZED else {}))


def parameters(net):
    return sum(parameter.numel() for parameter in net.parameters())


def test_every_network_is_in_the_tables():
    networks = {
        value
        for value in vars(hem.networks).values()
        if isinstance(value, type) and issubclass(value, Network) and value not in (Network, Named)
    }
    assert networks == {*PUBLISHED, *LIGHT}


@pytest.mark.parametrize("kind", PUBLISHED)
def test_parameters_are_those_published(kind):
    with torch.device("meta"):
        assert parameters(kind()) == PUBLISHED[kind]


def test_resnext_of_cardinality_16_has_the_papers_68_million_parameters():
    with torch.device("meta"):
        assert parameters(ResNeXt29(cardinality=16)) == pytest.approx(68.1e6, rel=2e-3)


@pytest.mark.parametrize("size", [8, 28, 32])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("kind", [*PUBLISHED, *LIGHT])
def test_images_give_features_and_logits(kind, channels, size):
    with torch.device("meta"):
        net = build(kind, size, num_classes=7, in_channels=channels)
        images = torch.empty(2, channels, size, size)
        assert net(images).shape == (2, 7)
        assert net.forward_features(images).shape == (2, net.head.in_features)


@pytest.mark.parametrize("size", [8, 28])
@pytest.mark.parametrize("kind", [*LIGHT, PreActResNet18, WideResNet40_2])
def test_gradient_reaches_every_parameter(kind, size):
    torch.manual_seed(0)
    net = build(kind, size, in_channels=3)
    images = torch.rand(4, 3, size, size, requires_grad=True)
    nn.functional.cross_entropy(net(images), torch.arange(4)).backward()
    assert images.grad.abs().sum() > 0
    for name, parameter in net.named_parameters():
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name
        assert parameter.grad.abs().sum() > 0, name


@pytest.mark.parametrize("kind", [*LIGHT, WideResNet40_2, ResNet32])
def test_logits_are_the_head_of_the_features(kind):
    net = build(kind, in_channels=3).eval()
    images = torch.rand(2, 3, 28, 28)
    torch.testing.assert_close(net(images), net.head(net.forward_features(images)), rtol=0, atol=0)


@pytest.mark.parametrize("kind", LIGHT)
def test_a_seed_gives_the_weights(kind):
    def weights(seed):
        torch.manual_seed(seed)
        return build(kind, in_channels=3).state_dict()

    first, again, other = weights(3), weights(3), weights(4)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["head.weight"], other["head.weight"])


@pytest.mark.parametrize("kind", LIGHT)
def test_copies_pickles_and_compiles_without_a_graph_break(kind):
    torch.manual_seed(0)
    net = build(kind, in_channels=3).eval()
    images = torch.rand(2, 3, 28, 28)
    torch.testing.assert_close(copy.deepcopy(net)(images), net(images), rtol=0, atol=0)
    compiled = torch.compile(net, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(images), net(images))


@pytest.mark.parametrize("shape", [(2, 1, 28, 28), (2, 4, 28, 28), (3, 28, 28)])
@pytest.mark.parametrize("kind", LIGHT)
def test_an_image_of_other_channels_is_refused(kind, shape):
    net = build(kind, in_channels=3)
    with pytest.raises(ValueError, match=rf"\(N, 3, H, W\) for {kind.__name__}, got .*set in_channels"):
        net(torch.rand(shape))


@pytest.mark.parametrize("kind", SIZED)
def test_an_image_of_another_size_is_refused(kind):
    with pytest.raises(ValueError, match=r"images of 8x8 pixels, .*got .*16, 16.*set image_size"):
        build(kind, 8)(torch.rand(2, 1, 16, 16))


@pytest.mark.parametrize("kind", LIGHT)
def test_no_classes_are_refused(kind):
    with pytest.raises(ValueError, match="Expected num_classes to be 1 or more, got 0"):
        build(kind, num_classes=0)


def test_lenet_refuses_an_image_that_cannot_be_halved_twice():
    with pytest.raises(ValueError, match="at least 4x4 pixels for LeNet, got 3x8"):
        LeNet(image_size=(3, 8))


def test_images_need_not_be_square():
    assert LeNet(image_size=(8, 20))(torch.rand(2, 1, 8, 20)).shape == (2, 10)
    assert MLP(image_size=(8, 20))(torch.rand(2, 1, 8, 20)).shape == (2, 10)
    assert ResNet8()(torch.rand(2, 3, 8, 20)).shape == (2, 10)


def test_halving_stem():
    """Feature maps of half the height and width at every stage, the same weights."""
    sizes = []
    for stride in (1, 2):
        net = ResNet8(stem_stride=stride).eval()
        hook = net.body.stage3.register_forward_hook(lambda module, args, output: sizes.append(tuple(output.shape)))
        assert net(torch.rand(2, 3, 32, 32)).shape == (2, 10)
        hook.remove()
    assert sizes == [(2, 64, 8, 8), (2, 64, 4, 4)]
    shapes = [[p.shape for p in ResNet8(stem_stride=stride).parameters()] for stride in (1, 2)]
    assert shapes[0] == shapes[1]


def test_an_mlp_without_hidden_layers_is_linear():
    net = MLP(widths=[], image_size=(8, 8))
    assert parameters(net) == 64 * 10 + 10


@pytest.mark.parametrize("kind", NORMS)
def test_group_norm_leaves_no_layer_that_sees_the_batch(kind):
    with torch.device("meta"):
        net = kind(norm="group")
        assert hem.networks.batch_dependent(net) == []
        assert hem.networks.batch_dependent(kind(norm="batch"))
        assert parameters(net) == parameters(kind(norm="batch"))
        with pytest.raises(ValueError, match="Expected norm to be 'batch' or 'group', got 'layer'"):
            kind(norm="layer")


@pytest.mark.parametrize("norm", ["batch", "group"])
def test_group_norm_alone_lets_samples_be_left_out(norm):
    torch.manual_seed(0)
    net = ResNet8(norm=norm).train()
    images = torch.rand(6, 3, 16, 16)
    together, apart = net(images)[:2], net(images[:2])
    assert torch.allclose(together, apart, atol=1e-5) == (norm == "group")


@pytest.mark.parametrize("kind", COSINE)
def test_a_cosine_head_ends_the_network(kind):
    with torch.device("meta"):
        net = kind(num_classes=7, cosine_head=True)
        assert isinstance(net.head, hem.networks.CosineLinear)
        assert parameters(net) == parameters(kind(num_classes=7)) - 7  # no bias


def test_dropout_is_where_it_was_asked_for():
    with torch.device("meta"):
        assert len(hem.networks.random_layers(WideResNet40_2())) == 18
        assert hem.networks.random_layers(WideResNet28_10()) == []
        assert len(hem.networks.random_layers(WideResNet28_10(dropout=0.3))) == 12


@pytest.mark.parametrize("kind", [*PUBLISHED, *LIGHT, Named])
def test_the_command_line_knows_the_name(kind):
    """A plain `nn.Module` would leave `MLP` ambiguous: torchvision has one too."""
    parser = jsonargparse.ArgumentParser(exit_on_error=False)
    parser.add_argument("--net", type=Network | nn.Module)
    arguments = ["--net.name", "resnet18"] if kind is Named else []
    chosen = parser.parse_args(["--net", kind.__name__, *arguments, "--net.num_classes", "7"]).net
    assert chosen.class_path == f"hem.networks.{kind.__name__}"
    assert chosen.init_args.num_classes == 7
