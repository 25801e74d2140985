"""A run on one's own folder of images keeps the list of its files, and says so when the folder changes."""

import json
import shutil

import numpy as np
import pytest
from PIL import Image

from hem.runs import RunFolder

COMMON = ("--config", "configs/classification/digits.yaml", "--config", "configs/trainer/debug.yaml",
          "--data", "FolderDataModule", "--data.image_size", 8, "--data.in_channels", 1, "--data.crop_scale", "null",
          "--data.batch_size", 8, "--model.lr_scheduler", "null", "--trainer.max_epochs", 1)  # fmt: skip


def write(folder, name):
    """Write a small image."""
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((8, 8), len(name) + ord(name[0]), np.uint8)).save(folder / name)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder of 30 images of two classes, and a run on it."""
    from hem.cli import main

    root = tmp_path_factory.mktemp("own")
    for name in ("cat", "dog"):
        for i in range(15):
            write(root / "images", f"{name}/{i}.png")
    arguments = ["fit", *COMMON, "--data.root", root / "images", "--run_dir", root / "run"]
    assert main([str(argument) for argument in arguments]) == 0
    return root


@pytest.fixture
def run(trained, tmp_path):
    """A copy of both, and the arguments that name them."""
    shutil.copytree(trained, tmp_path / "own")
    return tmp_path / "own", ("--data.root", tmp_path / "own" / "images", "--run_dir", tmp_path / "own" / "run")


def test_the_list_is_kept(run):
    kept = json.loads((run[0] / "run" / "data.json").read_text())["files"]
    assert sum(part["count"] for part in kept.values()) == 30
    assert all(len(part["sha256"]) == 64 for part in kept.values())


def test_a_folder_as_it_was_says_nothing(run, hem_command):
    """Wherever it lies now."""
    outcome = hem_command("test", *COMMON, *run[1], "--ckpt_path", "last")
    assert outcome.code == 0, outcome.err
    outcome = hem_command("fit", *COMMON, *run[1], "--ckpt_path", "last", "--trainer.max_epochs", 2)
    assert outcome.code == 0, outcome.err


def test_a_changed_folder_is_tested_with_a_warning_and_not_gone_on_with(run, hem_command):
    folder, where = run
    for i in range(40, 60):  # some of them come into each part
        write(folder / "images", f"cat/{i}.png")
    with pytest.warns(
        UserWarning, match=r"The test part of the folder in .*images has \d+ files, but the run was .*now"
    ):
        outcome = hem_command("test", *COMMON, *where, "--ckpt_path", "last")
    assert outcome.code == 0, outcome.err
    before = (folder / "run" / "checkpoints" / "last.ckpt").read_bytes()
    outcome = hem_command("fit", *COMMON, *where, "--ckpt_path", "last", "--trainer.max_epochs", 2)
    assert outcome.code == 1
    assert "The train part of the folder" in outcome.err
    assert "begin a new run (--run_dir)" in outcome.err
    assert (folder / "run" / "checkpoints" / "last.ckpt").read_bytes() == before


@pytest.mark.filterwarnings("ignore:The test part of the folder:UserWarning")
def test_results_of_another_folder_are_its_own(run, hem_command):
    """They say so, and take neither the place of the run's results nor that of its threshold and temperature."""
    folder, where = run
    made = folder / "run"
    shutil.copytree(folder / "images", folder / "others")
    for i in range(40, 60):  # some of them come into each part
        write(folder / "others", f"cat/{i}.png")
    for name in ("rejector", "calibration"):
        (made / f"{name}.json").unlink(missing_ok=True)
    outcome = hem_command("test", *COMMON, *where, "--ckpt_path", "last")
    assert outcome.code == 0, outcome.err
    assert "calibration: temperature and threshold rest on" in outcome.out, "for 30 images are few"
    kept = {name: (made / f"{name}.json") for name in ("rejector", "calibration")}
    before = {name: path.read_bytes() for name, path in kept.items() if path.is_file()}
    first = json.loads((made / "results.json").read_text())
    outcome = hem_command("test", *COMMON, *where, "--data.root", folder / "others", "--ckpt_path", "last")
    assert outcome.code == 0, outcome.err
    now = json.loads((made / "results.json").read_text())
    assert "note" not in first
    assert f"in {folder / 'others'} has" in now["note"]
    aside = f"@{first['weights'][:8]}"
    assert json.loads((made / f"results{aside}.json").read_text()) == first
    assert before.keys() == kept.keys()
    for name, content in before.items():
        assert RunFolder(made).of_weights(kept[name], json.loads(content)["weights"]).read_bytes() == content


def test_a_run_without_a_record_is_told_that_the_split_is_drawn_otherwise(run, hem_command):
    """It was trained when folders were split by the place of a file in the list."""
    folder, where = run
    (folder / "run" / "data.json").unlink()
    with pytest.warns(UserWarning, match=r"no record of its files.*may hold images that it was trained on"):
        assert hem_command("test", *COMMON, *where, "--ckpt_path", "last").code == 0
    outcome = hem_command("fit", *COMMON, *where, "--ckpt_path", "last", "--trainer.max_epochs", 2)
    assert outcome.code == 1
    assert "no record of its files" in outcome.err


@pytest.mark.parametrize("loss", ["CrossEntropyLoss", "HEMPlusLoss"])
def test_a_folder_is_predicted_without_the_images_of_the_training(loss, tmp_path, hem_command):
    """The run's record alone says what the outputs mean, and how many images of each class a loss was told."""
    for i in range(8):
        write(tmp_path / "images", f"cat/{i}.png")
        write(tmp_path / "images", f"dog/{i}.png")
    write(tmp_path / "new", "1.png")
    fit = (*COMMON, "--data.root", tmp_path / "images", "--model.loss", loss, "--data.batch_size", 4)
    assert hem_command("fit", *fit, "--run_dir", tmp_path / "run").code == 0
    predict = ("predict", "--run", tmp_path / "run", "--data.predict_folder", tmp_path / "new")
    outcome = hem_command(*predict)
    assert outcome.code == 0, outcome.err
    before = (tmp_path / "run" / "predictions.csv").read_text()
    (tmp_path / "run" / "predictions.csv").unlink()
    shutil.rmtree(tmp_path / "images")
    outcome = hem_command(*predict)
    assert outcome.code == 0, outcome.err
    assert (tmp_path / "run" / "predictions.csv").read_text() == before
    assert before.splitlines()[1].split(",")[1] in ("cat", "dog")
    # what an option says of the images has to be so, as ever
    outcome = hem_command(*predict, "--data.image_size", 16)
    assert outcome.code == 1
    assert "Expected the image_size that the run" in outcome.err
    # the test part is not there
    assert "The folder of images" in hem_command(*predict[:3]).err
