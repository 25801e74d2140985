"""Networks of torchvision and timm by name."""

import pickle
import warnings

import pytest
import timm
import torch
import torchvision
from safetensors import SafetensorError
from torch import nn

from hem.networks import Named, batch_dependent, random_layers
from hem.networks.library import _library
from hem.networks.normalize import Normalize
from hem.networks.weights import IMAGENET, without_start


@pytest.mark.parametrize(
    ("name", "source", "size", "options"),
    [
        ("mobilenet_v3_small", "torchvision", 32, None),
        ("resnet18", "torchvision", 32, None),
        ("vit_b_16", "torchvision", 32, None),
        ("googlenet", "torchvision", 64, None),
        ("resnet18", "timm", 32, None),
        ("convnext_atto", "timm", 32, None),
        ("vit_tiny_patch16_224", "timm", 32, {"patch_size": 4}),
    ],
)
@pytest.mark.parametrize("channels", [1, 3])
def test_features_and_head(name, source, size, options, channels):
    with torch.device("meta"):
        net = Named(name, 7, channels, (size, size), source, options=options)
        images = torch.empty(2, channels, size, size)
        assert net(images).shape == (2, 7)
        assert net.forward_features(images).shape == (2, net.head.in_features)
    with pytest.raises(ValueError, match="set in_channels"):
        net(torch.empty(2, 5, size, size, device="meta"))


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v3_small"])
def test_gives_what_torchvisions_own_network_gives(name):
    torch.manual_seed(0)
    own = torchvision.models.get_model(name, num_classes=7).eval()
    torch.manual_seed(0)
    net = Named(name, 7, source="torchvision").eval()
    images = torch.rand(2, 3, 32, 32)
    torch.testing.assert_close(net(images), own(images), rtol=0, atol=0)
    assert net.body.state_dict().keys() < own.state_dict().keys()


@pytest.mark.parametrize("name", ["resnet18", "convnext_atto"])
def test_gives_what_timms_own_network_gives(name):
    torch.manual_seed(0)
    own = timm.create_model(name, num_classes=7, in_chans=1).eval()
    torch.manual_seed(0)
    net = Named(name, 7, 1, source="timm").eval()
    images = torch.rand(2, 1, 32, 32)
    torch.testing.assert_close(net(images), own(images), rtol=0, atol=0)
    assert net.body.state_dict().keys() < own.state_dict().keys()


def test_auto_looks_in_torchvision_first():
    with torch.device("meta"):
        assert type(Named("resnet18").body).__module__.startswith("torchvision")
        assert type(Named("resnet18d").body).__module__.startswith("timm")


@pytest.mark.parametrize(
    ("name", "source", "near"),
    [
        ("resnet81", "auto", "resnet18"),
        ("mobilenet_v3_smal", "torchvision", "mobilenet_v3_small"),
        ("convnext_ato", "timm", "convnext_atto"),
    ],
)
def test_an_unknown_name_brings_near_names_and_the_list(name, source, near):
    with pytest.raises(ValueError, match=rf"Unknown network '{name}'.*did you mean .*{near}.*list_models") as error:
        Named(name, source=source)
    assert "\n" not in str(error.value)


def test_a_name_of_the_other_library_is_unknown():
    with pytest.raises(ValueError, match="Unknown network 'convnext_atto' \\(source: torchvision\\)"):
        Named("convnext_atto", source="torchvision")


@pytest.mark.parametrize("name", ["squeezenet1_0", "deit_tiny_distilled_patch16_224", "dla34"])
def test_a_network_without_one_linear_layer_at_its_end_is_refused(name):
    with torch.device("meta"), pytest.raises(ValueError, match=f"'{name}' does not end in one linear layer"):
        Named(name)


@pytest.mark.parametrize("name", ["vit_b_16", "convnext_atto"])  # torchvision's, timm's
def test_an_unknown_option_is_named(name):
    with pytest.raises(TypeError, match=f"network '{name}' does not take the options .*colour"):
        Named(name, options={"colour": "red"})


def test_published_weights_keep_the_body_and_get_a_new_head(monkeypatch):
    torch.manual_seed(0)
    published = torchvision.models.resnet18().eval()
    weights = published.state_dict()
    monkeypatch.setattr(torchvision.models.ResNet18_Weights, "get_state_dict", lambda *_, **__: weights)
    net = Named("resnet18", 7, pretrained=True).eval()
    images = torch.rand(2, 3, 32, 32)
    published.fc = nn.Identity()
    torch.testing.assert_close(net.forward_features(images), published(images), rtol=0, atol=0)
    assert net.head.weight.shape == (7, 512)
    grey = Named("resnet18", 7, in_channels=1, pretrained=True).eval()
    torch.testing.assert_close(  # a grey image is the same image three times
        grey.forward_features(images[:, :1]), published(images[:, :1].expand(-1, 3, -1, -1))
    )


@pytest.mark.parametrize(("num_classes", "fresh"), [(21843, ()), (1000, ("head.weight", "head.bias"))])
def test_the_last_layer_of_published_weights_is_that_of_their_tag(num_classes, fresh, monkeypatch):
    """ImageNet-21k's weights have 21,843 classes, whatever the network's default weights have."""
    published = timm.create_model("vit_tiny_patch16_224", num_classes=21843).state_dict()
    published["head.bias"].fill_(7)
    monkeypatch.setattr(timm.models._builder, "load_state_dict_from_hf", lambda *_, **__: dict(published))
    net = Named("vit_tiny_patch16_224", num_classes, weights="augreg_in21k")
    assert net.start.fresh == fresh
    assert bool((net.head.bias == 7).all()) != bool(fresh)
    bound = net.head.in_features**-0.5
    assert (float(net.head.weight.detach().std()) > bound / 2) == bool(fresh)  # torch's, not timm's 0.02


def test_auto_looks_for_the_library_that_has_the_weights():
    assert _library("resnet50", "auto", "a1_in1k") == "timm"
    assert _library("resnet50", "auto", "IMAGENET1K_V2") == "torchvision"
    assert _library("resnet50", "auto", None) == "torchvision"


def test_a_file_of_the_other_librarys_network_of_that_name(tmp_path):
    torch.save(timm.create_model("efficientnet_b0", num_classes=5).state_dict(), tmp_path / "net.pth")
    with pytest.raises(ValueError, match="Where it is timm's, set the network's source to timm"):
        Named("efficientnet_b0", 5, weights=str(tmp_path / "net.pth"))
    assert Named("efficientnet_b0", 5, source="timm", weights=str(tmp_path / "net.pth")).start.fresh == ()


@pytest.mark.parametrize(
    "error",
    [
        pickle.UnpicklingError("pickle data was truncated"),
        RuntimeError("PytorchStreamReader failed reading zip archive"),
        SafetensorError("incomplete metadata"),
    ],
)
def test_a_damaged_cache_is_a_sentence(error, monkeypatch):
    def damaged(*_, **__):
        raise error

    monkeypatch.setattr(torchvision.models.ResNet18_Weights, "get_state_dict", damaged)
    with pytest.raises(OSError, match=r"'resnet18' are cut short or damaged in the cache \(.*\): delete them in"):
        Named("resnet18", pretrained=True)


def test_weights_that_cannot_be_fetched_are_a_sentence(monkeypatch):
    def offline(*_, **__):
        raise OSError("no route to host")

    monkeypatch.setattr(torchvision.models.ResNet18_Weights, "get_state_dict", offline)
    with pytest.raises(OSError, match="weights of 'resnet18' could not be fetched \\(no route to host\\)"):
        Named("resnet18", pretrained=True)


def test_transformers_and_convnext_have_no_layer_that_sees_the_batch():
    with torch.device("meta"):
        for name in ("vit_tiny_patch16_224", "convnext_atto"):
            net = Named(name, image_size=(32, 32))
            assert batch_dependent(net) == random_layers(net) == []
            assert random_layers(Named(name, image_size=(32, 32), options={"drop_path_rate": 0.1}))
        assert random_layers(Named("swin_t"))  # torchvision's drops whole branches by default


@pytest.mark.parametrize("way", ["published", "file"])
def test_published_googlenet_stays_itself(way, monkeypatch, tmp_path):
    """torchvision turns a second normalisation on with the weights, which no checkpoint would; and grey images."""
    torch.manual_seed(0)
    published = torchvision.models.googlenet(init_weights=False, transform_input=True)
    state = published.state_dict()
    published.aux_logits, images = False, torch.rand(2, 3, 64, 64)
    monkeypatch.setattr(torchvision.models.GoogLeNet_Weights, "get_state_dict", lambda *_, **__: state)
    torch.save(state, tmp_path / "googlenet.pth")
    start = {"published": {"pretrained": True}, "file": {"weights": str(tmp_path / "googlenet.pth")}}[way]
    net = Named("googlenet", 1000, **start).eval()
    normalized = Normalize(*net.start.normalization)(images)
    torch.testing.assert_close(net(normalized), published.eval()(Normalize(*IMAGENET)(images)), rtol=1e-3, atol=1e-4)
    without_start(start := {"name": "googlenet", "num_classes": 1000, **start})
    again = Named(**start).eval()
    again.load_state_dict(net.state_dict())
    assert torch.equal(again(images), net(images))
    assert Named("googlenet", 7, in_channels=1, pretrained=True).eval()(images[:, :1]).shape == (2, 7)


def test_googlenet_gives_logits_alone_in_training_too():
    with warnings.catch_warnings(), torch.device("meta"):
        warnings.simplefilter("error")
        assert Named("googlenet", 7).train()(torch.empty(2, 3, 64, 64)).shape == (2, 7)


def test_compiles_without_a_graph_break():
    net = Named("mobilenet_v3_small", 7).eval()
    images = torch.rand(2, 3, 32, 32)
    compiled = torch.compile(net, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(images), net(images))
