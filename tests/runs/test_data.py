"""What the outputs of a network mean belongs to its run."""

import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

import hem
from hem.cli import main
from hem.runs import RunFolder
from tests.conftest import ROOT

QUICK = ("--trainer.accelerator", "cpu", "--trainer.enable_progress_bar", "false", "--trainer.max_epochs", "1",
         "--trainer.enable_model_summary", "false", "--trainer.log_every_n_steps", "1")  # fmt: skip
FOLDER = ("--config", "configs/classification/folder.yaml", "--model.net", "hem.networks.MLP", "--data.image_size",
          "[8, 8]", "--data.num_workers", "0", "--data.batch_size", "4")  # fmt: skip


def pictures(folder, names=("cat", "dog")):
    """Dark images of the first class, bright ones of the second."""
    for label, name in enumerate(names):
        (folder / name).mkdir(parents=True)
        for number in range(12):
            Image.new("RGB", (12, 10), (20 + number + 180 * label,) * 3).save(folder / name / f"{number}.png")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run and its images, under a relative root."""
    place = tmp_path_factory.mktemp("own")
    pictures(place / "pets")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        assert main(["fit", *FOLDER, *QUICK, "--data.root", str(place / "pets"), "--run_dir", str(place / "run")]) == 0
    return place


@pytest.fixture
def own(trained, tmp_path):
    return shutil.copytree(trained, tmp_path / "own")


def test_kept_with_the_run(own):
    kept = RunFolder(own / "run").read_data()
    assert kept["class_names"] == ["cat", "dog"]
    assert (kept["in_channels"], kept["image_size"]) == (3, [8, 8])
    assert kept["mean"] == [0.485, 0.456, 0.406]


def test_load_needs_the_run_alone(own, trained, monkeypatch):
    """Without the images, from another folder, with weights that nobody can fetch any more."""
    before = hem.load(own / "run")(torch.full((1, 3, 8, 8), 0.25))
    monkeypatch.chdir(own)
    config = own / "run" / "config.yaml"
    config.write_text(config.read_text().replace(str(trained), "."))
    shutil.rmtree(own / "pets")
    model = hem.load("run")
    assert torch.equal(model(torch.full((1, 3, 8, 8), 0.25)), before)
    assert model.class_names == ["cat", "dog"]
    (own / "run" / "data.json").unlink()
    with pytest.raises(ValueError, match=r"Expected the data of the run run where it was trained.*pets is not there"):
        hem.load("run")  # a run of old needs them


@pytest.mark.parametrize("command", ["test", "validate", "predict", "fit"])
def test_other_classes_are_refused(own, hem_command, command):
    shutil.move(own / "pets" / "cat", own / "pets" / "zcat")
    options = ("--data.root", own / "pets")
    if command == "fit":
        options = (*FOLDER, *QUICK, *options, "--run_dir", own / "run", "--ckpt_path", "last")
    else:
        options = ("--run", own / "run", *QUICK, *options)
    outcome = hem_command(command, *options)
    assert outcome.code == 1
    assert "Expected the class_names that the run" in outcome.err
    assert "was trained with, cat, dog, got dog, zcat" in outcome.err


def test_other_sizes_are_refused(own, hem_command):
    outcome = hem_command(
        "test", "--run", own / "run", *QUICK, "--data.root", own / "pets", "--data.mean", "[0.5, 0.5, 0.5]"
    )
    assert outcome.code == 1
    assert "Expected the mean that the run" in outcome.err


def test_a_run_of_old_loads(own):
    """Without a record the images say what it would have said."""
    record = own / "run" / "data.json"
    inputs = torch.rand(2, 3, 8, 8)
    expected = hem.load(own / "run")(inputs)
    config = own / "run" / "config.yaml"
    kept = json.loads(record.read_text())
    record.write_text(json.dumps({"files": kept["files"]}))
    assert torch.equal(hem.load(own / "run")(inputs), expected)
    assert config.is_file()


def test_what_predict_takes(own):
    model, path = hem.load(own / "run"), own / "pets" / "dog" / "3.png"
    (expected,) = model.predict([path])
    pixels = np.asarray(Image.open(path))
    for one in (path, str(path), Image.open(path), pixels, [pixels], pixels[None]):
        assert model.predict(one) == [expected]
    assert model.predict([]) == []
    assert model.predict(torch.empty(0, 3, 8, 8)) == []
    with pytest.raises(ValueError, match=r"Expected a batch of images of shape \(N, C, H, W\), got shape \(3, 8, 8\)"):
        model.predict(torch.rand(3, 8, 8))
    with pytest.raises(TypeError, match=r"array of bytes \(H, W\) or \(H, W, 3\), got float64 of shape \(8, 8\)"):
        model.predict(np.zeros((8, 8)))
    with pytest.raises(TypeError, match="got int among them"):
        model.predict([3])
