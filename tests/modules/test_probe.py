"""The last layer alone: features are computed once, shared by runs, and give what the whole network gives."""

import errno
import io
import json
import re
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

import hem
from hem.datamodules.features import FeatureImages
from hem.datamodules.images import FileImages, Fit, Images, MemoryImages, RandomFit
from hem.networks import LeNet

DIGITS = ("--config", "configs/classification/digits.yaml", "--trainer.enable_progress_bar", "false",
          "--trainer.enable_model_summary", "false", "--trainer.max_epochs", 2,
          "--trainer.log_every_n_steps", 1, "--data.batch_size", 512)  # fmt: skip
PROBE = ("--model.frozen_epochs", "all", "--data.augment", "[]")


@pytest.fixture
def started(tmp_path):
    """A network that the probes start from, as a file."""
    torch.manual_seed(0)
    path = tmp_path / "lenet.pth"
    torch.save(LeNet(7, image_size=(8, 8)).state_dict(), path)
    return ("--model.net.weights", path)


def figures(folder) -> dict[str, float]:
    return json.loads((folder / "results.json").read_text())["metrics"]


@pytest.mark.parametrize("config", ["classification", "longtail"])
def test_a_probe_is_the_training_of_the_last_layer(config, hem_command, started, tmp_path):
    """With features and without them: the same weights and figures to rounding, each part encoded once."""
    digits = (f"configs/{config}/digits.yaml" if "digits.yaml" in str(each) else each for each in DIGITS)
    common = (*digits, *PROBE, *started)
    kept = ("--model.features", tmp_path / "features")
    said = ""
    for name, options in (("whole", ()), ("probe", kept)):
        for command, rest in (("fit", ()), ("test", ("--ckpt_path", "last"))):
            outcome = hem_command(command, *common, *options, "--run_dir", tmp_path / name, *rest)
            assert outcome.code == 0, outcome.err
            said += outcome.out
    assert said.count("images are encoded once") == 2  # the training part and the test part
    states = [
        torch.load(tmp_path / name / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
        for name in ("whole", "probe")
    ]
    for key, value in states[0].items():
        torch.testing.assert_close(states[1][key], value, rtol=1e-3, atol=1e-4)
    whole, probe = figures(tmp_path / "whole"), figures(tmp_path / "probe")
    assert probe.keys() == whole.keys()
    assert probe["test/accuracy"] == pytest.approx(whole["test/accuracy"], abs=0.01)
    model = hem.load(tmp_path / "probe")  # the whole network, of images
    assert model(torch.rand(2, 1, 8, 8)).shape == (2, 10)


def test_another_loss_takes_the_features_that_are_there(hem_command, started, tmp_path):
    common = (*DIGITS, *PROBE, *started, "--model.features", tmp_path / "features")
    assert "encoded once" in hem_command("fit", *common, "--run_dir", tmp_path / "a").out
    files = sorted((tmp_path / "features").glob("*.npy"))
    again = hem_command("fit", *common, "--config", "configs/loss/hem.yaml", "--run_dir", tmp_path / "b")
    assert again.code == 0, again.err
    assert "encoded once" not in again.out
    assert sorted((tmp_path / "features").glob("*.npy")) == files
    # a network that was trained on, in its test by a checkpoint, has features of its own
    moved = hem_command("fit", *DIGITS, "--run_dir", tmp_path / "c")
    assert moved.code == 0
    # away from its run, whose record would have its own say
    elsewhere = shutil.copy(tmp_path / "c" / "checkpoints" / "last.ckpt", tmp_path / "moved.ckpt")
    outcome = hem_command("test", *common, "--run_dir", tmp_path / "d", "--ckpt_path", elsewhere)
    assert outcome.code == 0, outcome.err
    assert "encoded once" in outcome.out
    plain = hem_command("test", *DIGITS, "--run_dir", tmp_path / "c", "--ckpt_path", "last")
    assert plain.code == 0
    expected, got = figures(tmp_path / "c"), figures(tmp_path / "d")
    assert got["test/accuracy"] == pytest.approx(expected["test/accuracy"], abs=0.01)


@pytest.mark.parametrize("precision", ["64-true", "bf16-true"])
def test_a_probe_in_another_precision(precision, hem_command, started, tmp_path):
    common = (*DIGITS, *PROBE, *started, "--model.features", tmp_path / "features", "--trainer.max_epochs", 1)
    outcome = hem_command("fit", *common, "--trainer.precision", precision, "--run_dir", tmp_path / "run")
    assert outcome.code == 0, outcome.err
    assert "encoded once" in outcome.out


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (("--model.frozen_epochs", 1, "--data.augment", "[]"), "stands still for good .* got frozen_epochs 1"),
        (
            ("--model.frozen_epochs", "all", "--data.augment", "[{class_path: hem.datamodules.augment.RandomFlip}]"),
            r"the same in each epoch, got augmentation for .*set data.augment to \[\]",
        ),
        (
            ("--model.net", "EncoderDecoder", "--model.net.name", "FPN", "--model.net.encoder", "tu-test_resnet",
             "--model.frozen_epochs", "all", "--data.augment", "[]"),
            "Expected a network with `forward_features` and `head`, got EncoderDecoder",
        ),
    ],
)  # fmt: skip
def test_what_cannot_be_probed_is_a_sentence(options, sentence, hem_command, tmp_path):
    outcome = hem_command("fit", *DIGITS, *options, "--model.features", tmp_path, "--run_dir", tmp_path / "run")
    assert outcome.code == 1
    assert re.search(sentence, outcome.err), outcome.err


def test_features_are_computed_once_and_again_for_other_pixels_or_weights(tmp_path):
    pixels = torch.arange(12, dtype=torch.uint8).view(3, 1, 2, 2)
    encoded = []

    def encode(batch):
        encoded.append(len(batch))
        return batch.flatten(1).float()

    def features(images, weights=b"one"):
        set = MemoryImages(images, torch.tensor([0, 1, 2]), "toy/train")
        return FeatureImages(set, encode, lambda: [weights], tmp_path, batch_size=2)

    first = features(pixels)
    assert encoded == []  # nothing before it is asked for
    torch.testing.assert_close(first.take(torch.tensor([2, 0]))[0], pixels[[2, 0]].flatten(1).float())
    assert encoded == [2, 1]
    torch.testing.assert_close(features(pixels)[1][0], pixels[1].flatten().float())
    assert encoded == [2, 1]
    features(pixels + 1)[0]
    features(pixels, b"two")[0]
    assert encoded == [2, 1] * 3
    assert len(list(tmp_path.glob("toy_train_*.npy"))) == 3


def test_the_same_files_at_another_size_are_other_images(tmp_path, capsys):
    paths = []
    for name, colour in (("a", 0), ("b", 255)):
        paths.append(tmp_path / "train" / name / "0.png")
        paths[-1].parent.mkdir(parents=True)
        Image.new("RGB", (8, 8), (colour, 0, 0)).save(paths[-1])

    def features(channels=3, **fit):
        files = FileImages(paths, torch.tensor([0, 1]), Fit(**fit), RandomFit((2, 2), (0.5, 1)), channels=channels)
        return FeatureImages(files, lambda batch: batch.flatten(1).float(), lambda: [b"one"], tmp_path / "features")

    assert features(size=(4, 4))[0][0].shape == (48,)
    said = f"Features of {tmp_path / 'train'}: 2 images are encoded once, without their random crops ..."
    assert said in capsys.readouterr().out
    assert features(size=(2, 2))[0][0].shape == (12,)
    assert features(size=(2, 2), channels=1)[0][0].shape == (4,)
    features(size=(2, 2), shorter=4)[0]
    assert len(list((tmp_path / "features").glob("*.npy"))) == 4
    assert features(size=(2, 2))[1][0].tolist() == [255.0] * 4 + [0.0] * 8
    assert len(list((tmp_path / "features").glob("*.npy"))) == 4


def test_images_of_ones_own_kind_are_told_apart_by_their_pixels(tmp_path):
    class Drawn(Images):
        def __init__(self, value: int) -> None:
            self.value, self.targets = value, torch.tensor([0, 1])

        def __getitem__(self, index):
            return torch.full((1, 2, 2), self.value, dtype=torch.uint8), int(self.targets[index])

        def name_of(self, index):
            return f"drawn/{index}"

    for value in (1, 2):
        set = FeatureImages(Drawn(value), lambda batch: batch.flatten(1).float(), lambda: [], tmp_path)
        assert set[1][0].tolist() == [value] * 4


def test_a_full_disk_is_an_error_that_names_the_file(monkeypatch, tmp_path):
    """Through a mapping it would be the end of the process, without a word."""

    class Full(io.BytesIO):
        def write(self, data):
            raise OSError(errno.ENOSPC, "No space left on device")

    def opened(path, mode):
        return Full() if mode == "wb" else path.open(mode)

    monkeypatch.setattr("hem.runs.files.open", opened, raising=False)
    set = MemoryImages(torch.zeros(3, 1, 2, 2, dtype=torch.uint8), torch.zeros(3).long(), "toy/train")
    with pytest.raises(OSError, match="No space left on device") as found:
        FeatureImages(set, lambda batch: batch.flatten(1).float(), lambda: [], tmp_path)[0]
    assert "toy_train" in found.value.filename
    assert not list(tmp_path.glob("*.npy"))


def test_what_a_killed_computation_left_is_taken_away(tmp_path):
    set = MemoryImages(torch.zeros(3, 1, 2, 2, dtype=torch.uint8), torch.zeros(3).long(), "toy/train")
    key = FeatureImages(set, lambda batch: batch, lambda: [], tmp_path).key
    (tmp_path / f".toy_train_{key}.npy.123").write_bytes(b"half")
    FeatureImages(set, lambda batch: batch.flatten(1).float(), lambda: [], tmp_path)[0]
    assert sorted(path.suffix for path in tmp_path.iterdir()) == [".lock", ".npy"]


def test_a_computation_that_is_stopped_leaves_nothing(tmp_path):
    set = MemoryImages(torch.zeros(3, 1, 2, 2, dtype=torch.uint8), torch.zeros(3).long(), "toy/train")

    def encode(batch):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        FeatureImages(set, encode, lambda: [], tmp_path)[0]
    assert [path.suffix for path in tmp_path.iterdir()] == [".lock"]
    again = FeatureImages(set, lambda batch: batch.flatten(1).float(), lambda: [], tmp_path)
    assert again[0][0].tolist() == [0, 0, 0, 0]
    assert np.load(next(tmp_path.glob("*.npy"))).shape == (3, 4)
