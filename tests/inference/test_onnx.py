"""Export to ONNX: the file gives torch's logits, for any batch, and says what it is."""

import json
import re

import onnx
import onnxruntime
import pytest
import torch
from torch import nn
from torchvision.transforms.v2 import functional as TF

import hem
import hem.inference.onnx
from hem.calibration import Temperature
from hem.datamodules.images import Fit
from hem.inference.onnx import Pixels, export_onnx, main, preprocessing_of
from hem.inference.predictor import Trained
from hem.modules.calibrator import RunCalibration
from hem.networks import LeNet, Network, Normalize, ResNet8, linear_head


def tiny():
    """A network as `hem.load` gives it, with numbers of its own in the batch normalisation."""
    torch.manual_seed(0)
    net = nn.Sequential(Normalize([0.3], [0.2]), LeNet(num_classes=3, image_size=(8, 8)))
    with torch.no_grad():
        net.train()(torch.rand(64, 1, 8, 8))
    net.image_size, net.in_channels, net.class_names = (8, 8), 1, ["ant", "bee", "cat"]
    return net


def test_the_file_gives_torchs_logits_for_any_batch(tmp_path):
    net = tiny().train()
    path = tmp_path / "new" / "net.onnx"
    assert export_onnx(net, path, (8, 8), 1, net.class_names) < 1e-5
    assert net.training  # left as it was
    assert [file.name for file in path.parent.iterdir()] == ["net.onnx"]  # one file, weights inside

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    for count in (1, 2, 7):
        images = torch.rand(count, 1, 8, 8)
        (logits,) = session.run(["logits"], {"images": images.numpy()})
        torch.testing.assert_close(torch.from_numpy(logits), net.eval()(images).detach())

    metadata = {entry.key: entry.value for entry in onnx.load(path).metadata_props}
    assert json.loads(metadata["class_names"]) == ["ant", "bee", "cat"]


def test_residual_and_group_normalised_networks_export(tmp_path):
    net = nn.Sequential(Normalize((0.5,) * 3, (0.25,) * 3), ResNet8(norm="group", cosine_head=True))
    assert export_onnx(net, tmp_path / "net.onnx", (16, 16), 3) < 1e-5


def test_an_existing_file_is_kept(tmp_path):
    path = tmp_path / "net.onnx"
    path.write_text("precious")
    with pytest.raises(FileExistsError, match=r"Expected a new file, got .*net.onnx, which exists"):
        export_onnx(tiny(), path, (8, 8), 1)
    assert path.read_text() == "precious"


class Rounded(nn.Module):
    """Gives other numbers once it is exported."""

    def forward(self, input):
        return input + 1.0 if torch.compiler.is_exporting() else input


def test_a_file_that_differs_is_not_left_behind(tmp_path):
    net = Network(nn.Sequential(nn.Flatten(), Rounded()), linear_head(4, 2), in_channels=1)
    with pytest.raises(RuntimeError, match=r"differ from torch's by .* nothing was written"):
        export_onnx(net, tmp_path / "net.onnx", (2, 2), 1)
    assert list(tmp_path.iterdir()) == []


def without(monkeypatch, *names):
    found = hem.inference.onnx.find_spec
    monkeypatch.setattr(hem.inference.onnx, "find_spec", lambda name: None if name in names else found(name))


def test_a_missing_extra_is_a_sentence(monkeypatch, tmp_path):
    without(monkeypatch, "onnx", "onnxscript")
    with pytest.raises(ImportError, match=re.escape("needs onnx and onnxscript: pip install 'hem-loss[export]'")):
        export_onnx(tiny(), tmp_path / "net.onnx", (8, 8), 1)


def test_the_command_exports_a_run(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(hem, "load", lambda run_dir: tiny().eval())
    main([str(tmp_path)])
    assert re.search(r"model.onnx: logits within \S+ of torch's", capsys.readouterr().out)
    assert onnxruntime.InferenceSession(tmp_path / "model.onnx").get_inputs()[0].shape[1:] == [1, 8, 8]

    with pytest.raises(SystemExit) as stop:  # a second time: nothing is overwritten
        main([str(tmp_path)])
    assert stop.value.code == 2
    assert "which exists: remove it" in capsys.readouterr().err


def test_probabilities_are_a_second_output(tmp_path):
    net, temperature = tiny().eval(), Temperature(0.125)
    export_onnx(net, tmp_path / "net.onnx", (8, 8), 1, probabilities=temperature)
    session = onnxruntime.InferenceSession(tmp_path / "net.onnx")
    images = torch.rand(3, 1, 8, 8)
    logits, p = map(torch.from_numpy, session.run(["logits", "probabilities"], {"images": images.numpy()}))
    with torch.no_grad():
        torch.testing.assert_close(p, temperature(net(images)), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(logits, net(images), rtol=1e-4, atol=1e-5)
    metadata = session.get_modelmeta().custom_metadata_map
    assert json.loads(metadata["calibration"]) == {"temperature": 0.125}


def test_probabilities_of_a_run_without_calibration(monkeypatch, tmp_path, capsys):
    net = tiny().eval()
    net.calibration = None
    monkeypatch.setattr(hem, "load", lambda run_dir: net)
    with pytest.raises(SystemExit):
        main([str(tmp_path), "--probabilities"])
    assert "Expected the calibration of these weights in" in capsys.readouterr().err
    net.calibration = RunCalibration(Temperature(2.0), None, 1, "")
    main([str(tmp_path), "--probabilities"])
    assert "logits and probabilities within" in capsys.readouterr().out


def test_the_command_says_when_nothing_was_compared(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(hem, "load", lambda run_dir: tiny().eval())
    without(monkeypatch, "onnxruntime")
    main([str(tmp_path), "--output", str(tmp_path / "other.onnx")])
    assert "other.onnx: not compared with torch: onnxruntime is not installed" in capsys.readouterr().out


def test_a_folder_without_a_run_is_a_sentence(tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        main([str(tmp_path)])
    assert stop.value.code == 2
    assert "config.yaml" in capsys.readouterr().err


@pytest.mark.parametrize("shorter", [None, 9])
def test_the_file_takes_images_of_any_size(tmp_path, shorter):
    """Bytes in, scaled as `hem.load` scales them, to within the rounding of a byte."""
    model = Trained(tiny().eval(), ["ant", "bee", "cat"], 1, (8, 8), Fit((8, 8), shorter))
    pixels = Pixels(model.net, (8, 8), shorter)
    said = preprocessing_of(model, pixels=True)
    path = tmp_path / "pixels.onnx"
    assert export_onnx(pixels, path, (8, 8), 1, model.class_names, None, said, pixels=True) < 1e-5
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    for height, width in ((8, 8), (31, 20), (11, 40)):
        images = torch.randint(0, 256, (2, 1, height, width), dtype=torch.uint8)
        (logits,) = session.run(["logits"], {"images": images.numpy()})
        expected = model(torch.stack([model.prepare(TF.to_pil_image(image)) for image in images]))
        torch.testing.assert_close(torch.from_numpy(logits), expected, atol=0.05, rtol=0)
        unscaled = model(TF.resize(images, [8, 8], interpolation=TF.InterpolationMode.NEAREST))
        if (height, width) != (8, 8):
            assert (torch.from_numpy(logits) - unscaled).abs().max() > 0.05, "the comparison sees the scaling"
    kept = json.loads(onnx.load(path).metadata_props[1].value)
    assert kept == said
    assert kept["input"] == "uint8 in [0, 255], any height and width"
    assert kept["normalisation"] == "in the graph: mean=[0.3], std=[0.2]"
    assert kept["scaling"].startswith("stretched" if shorter is None else "shorter side to 9")
