"""Networks that start from a file or from another run: what fits, what is refused, what comes with it."""

import os
import pickle
import re
import zipfile
from pathlib import Path

import pytest
import safetensors.torch
import segmentation_models_pytorch as smp
import timm
import torch
import torchvision
from torch import nn

import hem
from hem.inference.onnx import export_onnx
from hem.modules import ClassificationTask
from hem.networks import (
    MLP,
    EncoderDecoder,
    LeNet,
    Named,
    Normalize,
    ResNet8,
    SegNet,
    TorchvisionSegmentation,
    load_weights,
)
from hem.networks.order import order_of
from hem.networks.weights import without_start
from tests.test_survival import cut, flip

SHELF = Path(os.environ.get("HEM_WEIGHTS", Path(__file__).resolve().parents[3] / "shared" / "weights"))
LITE = "tf_efficientnet_lite0"
FILE = SHELF / f"{LITE}.safetensors"
published = pytest.mark.skipif(not FILE.is_file(), reason=f"published weights are not at {FILE}")
TINY = "test_resnet.r160_in1k"  # timm's network for tests: 0.5 million parameters


def save(net: nn.Module, path: Path, **wrapped) -> str:
    """Give every tensor numbers of its own, and save them."""
    generator = torch.Generator().manual_seed(7)
    state = {
        k: torch.rand(v.shape, generator=generator) if v.is_floating_point() else v for k, v in net.state_dict().items()
    }
    content = {**wrapped, "state_dict": state} if wrapped else state
    if path.suffix == ".safetensors":
        safetensors.torch.save_file(state, path)
    else:
        torch.save(content, path)
    return str(path)


# -- what fits ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize(
    "build",
    [
        lambda **k: LeNet(5, **k),
        lambda **k: MLP(5, **k),
        lambda **k: ResNet8(5, **k),
        lambda **k: SegNet(5, widths=(4, 6), depths=(1, 1), **k),
        lambda **k: Named("test_resnet", 5, **k),
        lambda **k: Named("mobilenet_v3_small", 5, **k),
        lambda **k: EncoderDecoder("FPN", "tu-test_resnet", 5, **k),
        lambda **k: TorchvisionSegmentation("lraspp_mobilenet_v3_large", 5, **k),
    ],
)
def test_every_kind_of_network_starts_from_its_own_file(build, suffix, tmp_path):
    path = save(build(), tmp_path / f"net{suffix}")
    net = build(weights=path)
    expected = safetensors.torch.load_file(path) if suffix == ".safetensors" else torch.load(path)
    for name, value in net.state_dict().items():
        torch.testing.assert_close(value, expected[name], rtol=0, atol=0)
    assert (net.start.unused, net.start.fresh) == ((), ())
    count = sum(not name.endswith("num_batches_tracked") for name in expected)
    assert str(net.start) == f"Weights: {count} of the network's {count} tensors from {path}"


@pytest.mark.parametrize(
    ("name", "library", "expected"),
    [
        ("test_resnet", lambda: timm.create_model("test_resnet", num_classes=5), timm.get_pretrained_cfg(TINY).mean),
        ("mobilenet_v3_small", lambda: torchvision.models.mobilenet_v3_small(num_classes=5), (0.485, 0.456, 0.406)),
    ],
)
def test_a_librarys_file_gives_the_librarys_logits(name, library, expected, tmp_path):
    """The whole network, its last layer with it; with the normalisation that the library's configuration has."""
    own = library().eval()
    torch.save(own.state_dict(), tmp_path / "net.pth")
    net = Named(name, 5, weights=str(tmp_path / "net.pth")).eval()
    images = torch.rand(2, 3, 64, 64)
    torch.testing.assert_close(net(images), own(images), rtol=0, atol=1e-5)
    assert net.start.normalization[0] == pytest.approx(expected)
    assert net.start.fresh == ()


def test_a_last_layer_of_other_classes_is_begun_anew_and_said(tmp_path):
    path = save(timm.create_model("test_resnet", num_classes=9), tmp_path / "net.pth")
    net = Named("test_resnet", 5, weights=path)
    assert net.start.fresh == ("head.weight", "head.bias")
    total = sum(not name.endswith("num_batches_tracked") for name in net.state_dict())
    assert str(net.start).startswith(f"Weights: {total - 2} of the network's {total} tensors from")
    assert str(net.start).endswith("begun anew: head")
    assert net.head.weight.shape[0] == 5


@pytest.mark.parametrize("in_channels", [1, 3])
@pytest.mark.parametrize("name", ["tf_efficientnet_lite0", "vit_tiny_patch16_224"])
def test_a_last_layer_begun_anew_starts_as_torchs_do(name, in_channels, tmp_path):
    """timm's own is of +-1/sqrt(C) in one, 0.02 in the other: logits of a deviation of 8, or near 0, to begin with."""
    torch.manual_seed(0)
    options = {"image_size": (32, 32)} if name.startswith("vit") else {}
    torch.save(Named(name, 3, in_channels, **options).state_dict(), tmp_path / "net.pth")
    net = Named(name, 10, in_channels, weights=str(tmp_path / "net.pth"), **options)
    bound = net.head.in_features**-0.5
    for value in (net.head.weight.detach(), net.head.bias.detach()):
        assert value.abs().max() <= bound
        assert value.std() > bound / 4  # a uniform's is bound / sqrt(3)


def test_the_number_of_each_logit_picks_rows_of_a_last_layer(tmp_path):
    """A mapping does not say how many logits there are: the file does."""
    own = timm.create_model("test_resnet", num_classes=9).eval()
    torch.save(own.state_dict(), tmp_path / "net.pth")
    (tmp_path / "order.yaml").write_text("{cat: 3, dog: 5}")
    given = {"weights": str(tmp_path / "net.pth"), "class_names": ["dog", "cat"]}
    (tmp_path / "order.txt").write_text("cat\r\ndog\r\n", "utf-8-sig")  # as some editors write it
    assert order_of(str(tmp_path / "order.txt"), ["dog", "cat"]).chosen == [1, 0]
    net = Named("test_resnet", 2, class_order=str(tmp_path / "order.yaml"), **given).eval()
    images = torch.rand(2, 3, 64, 64)
    torch.testing.assert_close(net(images), own(images)[:, [5, 3]], rtol=0, atol=1e-5)
    assert net.start.fresh == ()
    with pytest.raises(ValueError, match="Expected a last layer with 2 logits, as class_order has it, got another"):
        Named("test_resnet", 2, class_order=["dog", "cat"], **given)


@pytest.mark.parametrize("source", ["torchvision", "timm"])
def test_names_that_torch_no_longer_allows_are_read(source, tmp_path):
    """torchvision's published DenseNets have norm.1 where the network has norm1."""
    state = torchvision.models.densenet121(num_classes=5).state_dict()
    torch.save({re.sub(r"(norm|conv)([12])\.", r"\1.\2.", k): v for k, v in state.items()}, tmp_path / "net.pth")
    net = Named("densenet121", 5, source=source, weights=str(tmp_path / "net.pth"))
    assert (net.start.fresh, net.start.unused) == ((), ())


def test_a_network_that_is_cut_behind_a_stage_starts_from_the_whole_one(tmp_path):
    path = save(timm.create_model("test_efficientnet"), tmp_path / "net.pth")
    options = {"encoder_depth": 3, "decoder_channels": (8, 8, 8)}
    net = EncoderDecoder("Unet", "tu-test_efficientnet", 5, options=options, weights=path)
    assert "left out of it" in str(net.start)


def test_the_names_of_wrappers_do_not_matter(tmp_path):
    own = LeNet(5)
    state = {f"module._orig_mod.{name}": value for name, value in own.state_dict().items()}
    torch.save({"epoch": 3, "model": state, "optimizer": {"lr": 0.1}}, tmp_path / "net.pth")
    net = LeNet(5, weights=str(tmp_path / "net.pth"))
    torch.testing.assert_close(net.body[0].weight, own.body[0].weight, rtol=0, atol=0)
    assert net.start.fresh == net.start.unused == ()


@pytest.mark.parametrize("encoder", ["tu-test_resnet", "tu-test_convnext", "resnet18"])
def test_the_file_of_a_classifier_fills_an_encoder(encoder, tmp_path):
    """What the encoder lacks is left out of the file, the decoder is new; both are said."""
    name = encoder.removeprefix("tu-")
    own = timm.create_model(name) if encoder.startswith("tu-") else torchvision.models.get_model(name)
    path = save(own, tmp_path / "net.pth")
    net = EncoderDecoder("FPN", encoder, 5, weights=path)
    file = {k.replace(".", "_"): v for k, v in torch.load(path).items()}
    for key, value in net.encoder.state_dict().items():
        if not key.endswith("num_batches_tracked"):
            torch.testing.assert_close(value, file[key.removeprefix("model.").replace(".", "_")], rtol=0, atol=0)
    assert all(key.startswith(("model.decoder", "model.segmentation_head")) for key in net.start.fresh)
    assert "left out of it" in str(net.start)
    assert "begun anew: model.decoder" in str(net.start)


@pytest.mark.parametrize("name", ["deeplabv3_mobilenet_v3_large", "fcn_resnet50"])
def test_the_file_of_a_classifier_fills_the_encoder_of_torchvision(name, tmp_path):
    classifier = name.partition("_")[2]
    with torch.device("meta"):
        shapes = torchvision.models.get_model(classifier)
    path = save(shapes.to_empty(device="cpu"), tmp_path / "net.pth")
    net = TorchvisionSegmentation(name, 5, weights=path)
    assert {key.split(".")[1] for key in net.start.fresh} == {"classifier"}
    assert net.start.normalization[0][0] == 0.485


def test_grey_images_take_the_sum_of_the_filters(tmp_path):
    own = timm.create_model("test_resnet", num_classes=5).eval()
    torch.save(own.state_dict(), tmp_path / "net.pth")
    net = Named("test_resnet", 5, in_channels=1, weights=str(tmp_path / "net.pth")).eval()
    grey = torch.rand(2, 1, 32, 32)
    torch.testing.assert_close(net(grey), own(grey.expand(-1, 3, -1, -1)), rtol=1e-4, atol=1e-5)
    assert [len(each) for each in net.start.normalization] == [1, 1]


def test_grey_images_take_the_mean_of_a_runs_normalisation(tmp_path, capsys):
    coloured = ClassificationTask(
        LeNet(5, 3), nn.CrossEntropyLoss(), num_classes=5, mean=(0.2, 0.4, 0.6), std=(1, 2, 3)
    )
    torch.save({"state_dict": coloured.state_dict()}, tmp_path / "net.pth")
    grey = LeNet(5, 1, weights=str(tmp_path / "net.pth"))
    task = ClassificationTask(grey, nn.CrossEntropyLoss(), num_classes=5, mean=(0.5,), std=(0.5,))
    assert task.net.normalize.extra_repr() == "mean=[0.4], std=[2.0]"
    assert "normalised as these weights expect it: mean=[0.4]" in capsys.readouterr().out
    assert task(torch.rand(2, 1, 28, 28)).shape == (2, 5)


def test_position_embeddings_of_another_size_are_resized(tmp_path):
    for name, build in (
        ("test_vit", lambda: timm.create_model("test_vit", num_classes=5, img_size=64)),
        ("vit_b_16", lambda: torchvision.models.vit_b_16(image_size=64, num_classes=5)),
    ):
        torch.save(build().state_dict(), tmp_path / "net.pth")
        net = Named(name, 5, image_size=(32, 32), weights=str(tmp_path / "net.pth"))
        assert net(torch.rand(1, 3, 32, 32)).shape == (1, 5)
        assert net.start.fresh == ()


def test_a_network_of_ones_own_starts_from_a_file(tmp_path):
    build = lambda classes: nn.Sequential(nn.Flatten(), nn.Linear(12, 8), nn.ReLU(), nn.Linear(8, classes))  # noqa: E731
    path = save(build(3), tmp_path / "net.pth")
    net = build(4)
    start = load_weights(net, path)
    assert (start.fitted, start.fresh) == (2, ("3.weight", "3.bias"))
    task = ClassificationTask(net, nn.CrossEntropyLoss(), num_classes=4, mean=[0.1] * 3, std=[0.2] * 3)
    assert task.net.normalize.extra_repr() == "mean=[0.1, 0.1, 0.1], std=[0.2, 0.2, 0.2]"


def test_a_file_on_the_shelf_needs_no_path(tmp_path, monkeypatch):
    save(LeNet(5), tmp_path / "lenet.pth")
    monkeypatch.setenv("HEM_WEIGHTS", str(tmp_path))
    assert LeNet(5, weights="lenet.pth").start.source == str(tmp_path / "lenet.pth")


# -- what is refused ---------------------------------------------------------------------------------------


class Program:
    """What runs when it is unpickled."""

    def __reduce__(self):
        return os.system, ("echo run > /dev/null",)


@pytest.mark.parametrize("damage", [cut, flip])
def test_a_damaged_file_is_refused(damage, tmp_path):
    path = tmp_path / "net.pth"
    save(LeNet(5), path)
    damage(path)
    with pytest.raises(
        ValueError, match=r"Expected a state dict at .*net.pth, got a file that is cut short or damaged"
    ):
        LeNet(5, weights=str(path))


def test_a_truncated_safetensors_file_is_refused(tmp_path):
    path = tmp_path / "net.safetensors"
    save(LeNet(5), path)
    cut(path)
    with pytest.raises(ValueError, match=r"Expected a state dict at .*net.safetensors, got a file that is cut short"):
        LeNet(5, weights=str(path))


@pytest.mark.parametrize("legacy", [False, True])
def test_a_file_with_a_program_is_refused_and_not_run(legacy, tmp_path):
    path = tmp_path / "net.pth"
    if legacy:
        path.write_bytes(pickle.dumps({"weight": Program()}, protocol=2))
    else:
        torch.save({"weight": Program()}, path)
    with pytest.raises(ValueError, match=r"Expected tensors and plain values .* a file that calls for more"):
        LeNet(5, weights=str(path))


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ([1, 2], r"tensors by name, got list"),
        ({"epoch": 3}, r"tensors by name, got dict"),
    ],
)
def test_a_file_without_weights_is_refused(content, sentence, tmp_path):
    torch.save(content, tmp_path / "net.pth")
    with pytest.raises(ValueError, match=sentence):
        LeNet(5, weights=str(tmp_path / "net.pth"))


@pytest.mark.parametrize(
    ("saved", "wanted", "found"),
    [
        (lambda: timm.create_model("resnet18"), lambda p: Named("resnet34", source="timm", weights=p), "it lacks"),
        (lambda: ResNet8(), lambda p: LeNet(weights=p), "names are others|it lacks|has shape"),
        (lambda: LeNet(image_size=(32, 32)), lambda p: MLP(weights=p), "has shape|it lacks"),
        (
            lambda: torchvision.models.mobilenet_v3_small(),
            lambda p: EncoderDecoder("FPN", "tu-test_resnet", weights=p),
            "names are others|it lacks",
        ),
    ],
)
def test_another_architecture_is_refused(saved, wanted, found, tmp_path):
    path = save(saved(), tmp_path / "net.pth")
    with pytest.raises(ValueError, match=rf"Expected weights of .*, got .*net.pth,.*({found}).*give a file of this"):
        wanted(path)


@pytest.mark.parametrize("name", ["resnet18", "tf_efficientnet_lite0"])
def test_a_file_of_layers_between_the_networks_own_is_refused(name, tmp_path):
    """ResNet-34 fills all of ResNet-18, EfficientNet-B0 all of Lite0: other networks all the same."""
    with torch.device("meta"):
        shapes = timm.create_model({"resnet18": "resnet34"}.get(name, "efficientnet_b0"))
    path = save(shapes.to_empty(device="cpu"), tmp_path / "net.pth")
    with pytest.raises(ValueError, match=f"Expected weights of {name}, .*there is no place for .* more layers"):
        Named(name, weights=path)


def test_a_program_of_torchscript_is_told(tmp_path):
    with zipfile.ZipFile(tmp_path / "net.pt", "w") as archive:
        archive.writestr("net/constants.pkl", b"")
    with pytest.raises(ValueError, match=r"got a TorchScript program: .*torch.jit.load"):
        MLP(5, weights=str(tmp_path / "net.pt"))


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_weights_that_are_no_numbers_are_refused(value, tmp_path):
    net = LeNet(5)
    net.body[0].weight.data[0] = value
    torch.save(net.state_dict(), tmp_path / "net.pth")
    with pytest.raises(ValueError, match=r"Expected numbers as weights, got NaN or infinity in body.0 of .*net.pth"):
        LeNet(5, weights=str(tmp_path / "net.pth"))


@pytest.mark.parametrize("weights", ["missing.pth", "no/such/folder", "runs"])
def test_a_path_with_nothing_is_a_sentence(weights, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    with pytest.raises(FileNotFoundError, match=r"Expected .* got (nothing there|one without checkpoints/best.ckpt)"):
        LeNet(weights=weights)


def test_an_absolute_path_is_looked_for_once(tmp_path, monkeypatch):
    monkeypatch.setenv("HEM_WEIGHTS", str(tmp_path))
    with pytest.raises(FileNotFoundError, match=f"Expected weights at {tmp_path}/nix.pth, got nothing"):
        LeNet(weights=str(tmp_path / "nix.pth"))
    with pytest.raises(FileNotFoundError, match=f"Expected weights at nix.pth or {tmp_path}/nix.pth, got nothing"):
        LeNet(weights="nix.pth")


@pytest.mark.parametrize(
    ("build", "sentence"),
    [
        (lambda: Named("resnet18", weights="IMAGENET1K_V7"), "Unknown weights of resnet18 'IMAGENET1K_V7'.*IMAGENET1K"),
        (lambda: Named("convnext_atto", weights="d2_in2k"), "Unknown weights of convnext_atto 'd2_in2k'.*d2_in1k"),
        (lambda: Named("resnet18", pretrained=True, weights="DEFAULT"), "Expected pretrained or weights, got both"),
        (lambda: EncoderDecoder("FPN", encoder_weights="imagenet", weights="a.pth"), "got both"),
        (lambda: EncoderDecoder("FPN", encoder_weights="imagnet"), "weights of resnet34 'imagnet'; did you mean"),
        (lambda: TorchvisionSegmentation("fcn_resnet50", pretrained=True, weights="a.pth"), "got both"),
        (lambda: Named("resnet18", resize=0), "Expected resize in pixels"),
    ],
)
def test_names_that_are_none(build, sentence):
    with pytest.raises(ValueError, match=sentence):
        build()


# -- what comes with the weights ---------------------------------------------------------------------------


def test_the_normalisation_comes_with_the_weights_and_is_said(tmp_path, capsys):
    path = save(timm.create_model("test_resnet", num_classes=5), tmp_path / "net.pth")
    task = ClassificationTask(
        Named("test_resnet", 5, weights=path), nn.CrossEntropyLoss(), num_classes=5, mean=[0.1] * 3, std=[0.2] * 3
    )
    expected = timm.get_pretrained_cfg("test_resnet")
    torch.testing.assert_close(task.net.normalize.mean.flatten(), torch.tensor(expected.mean))
    assert "normalised as these weights expect it: mean=[0.5, 0.5, 0.5], std=[0.5, 0.5, 0.5]" in capsys.readouterr().out
    own = Normalize([0.3] * 3, [0.4] * 3)
    net = Named("test_resnet", 5, weights=path)
    task = ClassificationTask(net, nn.CrossEntropyLoss(), num_classes=5, normalize=own)
    assert task.net.normalize is own
    assert "as the data or the config has it: mean=[0.3, 0.3, 0.3]" in capsys.readouterr().out


def test_images_are_resized_within_the_network():
    net = Named("test_resnet", 5, resize=64).eval()
    plain = Named("test_resnet", 5).eval()
    plain.load_state_dict(net.state_dict())
    small = torch.rand(2, 3, 32, 32)
    large = nn.functional.interpolate(small, (64, 64), mode="bilinear")
    torch.testing.assert_close(net(small), plain(large))
    assert Named("test_vit", 5, image_size=(32, 32), resize="published")(small).shape == (2, 5)
    assert Named("resnet18", 5, resize="published").resize == (224, 224)


FIT = ["--config", "configs/trainer/debug.yaml", "--trainer.enable_progress_bar", "false"]
DIGITS = ["--config", "configs/classification/digits.yaml", *FIT]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run of two batches."""
    folder = tmp_path_factory.mktemp("run")
    from hem.cli import main

    assert main(["fit", *DIGITS, "--run_dir", str(folder)]) == 0
    return folder


def test_another_run_is_a_start(run, hem_command, tmp_path):
    """All of it where the classes are the same; the last layer anew where they are not; normalisation comes along."""
    outcome = hem_command("fit", *DIGITS, "--model.net.weights", run, "--run_dir", tmp_path / "same")
    assert outcome.code == 0, outcome.err
    assert "Weights: " in outcome.out
    assert "begun anew" not in outcome.out
    net = LeNet(10, image_size=(8, 8), weights=str(run))
    own = hem.load(run).net
    torch.testing.assert_close(net.head.weight, own.backbone.head.weight, rtol=0, atol=0)
    assert net.start.class_names == tuple(str(k) for k in range(10))
    torch.testing.assert_close(torch.tensor(net.start.normalization[0]), own.normalize.mean.flatten())
    before = net.head.weight.clone()
    names = [f"letter {k}" for k in range(10)]
    ClassificationTask(net, nn.CrossEntropyLoss(), num_classes=10, class_names=names)
    assert not torch.equal(net.head.weight, before)
    assert net.start.fresh == ("head.weight", "head.bias")
    learnt = net.head.weight.clone()
    ClassificationTask(net, nn.CrossEntropyLoss(), num_classes=10, class_names=[*names[:9], "another"])
    torch.testing.assert_close(net.head.weight, learnt, rtol=0, atol=0)  # once is enough: it has learnt since
    fewer = LeNet(7, image_size=(8, 8), weights=str(run))
    assert fewer.start.fresh == ("head.weight", "head.bias")
    torch.testing.assert_close(fewer.body[0].weight, own.backbone.body[0].weight, rtol=0, atol=0)


def test_null_on_the_command_line_is_no_file(hem_command, tmp_path, monkeypatch):
    """The parser makes the word None of it where a string may stand."""
    monkeypatch.delenv("HEM_WEIGHTS", raising=False)
    config = tmp_path / "start.yaml"
    config.write_text("{model: {init_args: {net: {init_args: {weights: gone.pth}}}}}")
    common = (*DIGITS, "--config", config, "--run_dir", tmp_path / "run")
    assert "Expected weights at gone.pth, got nothing there" in hem_command("fit", *common).err
    assert hem_command("fit", *common, "--model.net.weights", "null").code == 0


def test_a_checkpoint_needs_nothing_that_its_network_started_from():
    arguments = {"name": "resnet18", "weights": "gone.pth", "class_order": "gone.txt", "pretrained": True, "resize": 64}
    without_start(arguments)
    assert arguments == {"name": "resnet18", "weights": None, "class_order": None, "pretrained": False, "resize": 64}


@pytest.mark.parametrize(
    ("weights", "source"), [("in12k_ft_in1k", "timm"), ("IMAGENET1K_V1", "auto"), ("gone.pth", "auto"), (None, "auto")]
)
def test_a_checkpoint_of_a_tags_network_is_of_the_library_that_has_the_tag(weights, source):
    arguments = {"name": "convnext_tiny", "source": "auto", "weights": weights}
    without_start(arguments)
    assert arguments == {"name": "convnext_tiny", "source": source, "weights": None}


def test_a_run_keeps_the_normalisation_of_its_weights(hem_command, tmp_path):
    """In `hem.load` without the file, and in ONNX."""
    file = tmp_path / "net.pth"
    own = timm.create_model("test_resnet", in_chans=1).eval()
    torch.save(own.state_dict(), file)
    net = ["--model.net", "Named", "--model.net.name", "test_resnet", "--model.net.weights", file]
    folder = tmp_path / "run"
    net += ["--model.net.resize", 32]
    outcome = hem_command("fit", *DIGITS, *net, "--run_dir", folder)
    assert outcome.code == 0, outcome.err
    assert "as these weights expect it: mean=[0.5], std=[0.5]" in outcome.out
    file.unlink()
    assert hem_command("test", *DIGITS, *net, "--run_dir", folder, "--ckpt_path", "best").code == 0
    model = hem.load(folder)
    assert model.net.normalize.mean.flatten().tolist() == [0.5]
    assert model.net.backbone.resize == (32, 32)
    images = torch.rand(2, 1, 8, 8)
    large = nn.functional.interpolate(images, (32, 32), mode="bilinear")
    with torch.no_grad():
        features = model.net.backbone.body((large - 0.5) / 0.5)
        torch.testing.assert_close(model(images), model.net.backbone.head(features))
    assert export_onnx(model.net, tmp_path / "net.onnx", (8, 8), 1) < 1e-4


def test_the_weights_of_timms_encoders_are_asked_for_as_the_library_wants_it(monkeypatch):
    """It warns of a name, such as imagenet, and warnings are errors."""
    asked = []
    monkeypatch.setattr(smp, "create_model", lambda name, encoder, which, **_: asked.append(which) or nn.Identity())
    for encoder, weights in (("tu-test_resnet", "imagenet"), ("tu-test_resnet", None), ("resnet18", None)):
        try:
            EncoderDecoder("FPN", encoder, encoder_weights=weights)
        except AttributeError:  # the stand-in has no encoder
            continue
    assert asked == [True, None, None]


# -- published weights -------------------------------------------------------------------------------------


@published
def test_the_logits_of_the_unchanged_head_are_timms():
    own = timm.create_model(LITE, pretrained=True, pretrained_cfg_overlay={"file": str(FILE)}).eval()
    net = Named(LITE, 1000, weights=str(FILE)).eval()
    images = torch.rand(2, 3, 224, 224)
    with torch.no_grad():
        torch.testing.assert_close(net(images), own(images), rtol=0, atol=1e-5)
    assert net.start.fresh == net.start.unused == ()
    assert net.start.normalization == ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))


@published
def test_a_published_file_fills_the_encoder_of_a_segmentation_network():
    own = smp.create_model(
        "FPN", f"tu-{LITE}", encoder_weights=True, classes=11, pretrained_cfg_overlay={"file": str(FILE)}
    )
    net = EncoderDecoder("FPN", f"tu-{LITE}", 11, weights=str(FILE))
    for name, value in net.encoder.state_dict().items():
        torch.testing.assert_close(value, own.encoder.state_dict()[name], rtol=0, atol=0)
    assert (net.start.fitted, {key.split(".")[0] for key in net.start.unused}) == (
        240,
        {"bn2", "classifier", "conv_head"},
    )


@published
def test_a_published_file_of_another_architecture_is_refused():
    with pytest.raises(ValueError, match=r"Expected weights of efficientnet_b0, got .*lite0.safetensors"):
        Named("efficientnet_b0", source="timm", weights=str(FILE))
