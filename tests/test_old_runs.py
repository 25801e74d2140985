"""Runs made by an earlier version of this package: they load, are tested and examined, and the report reads them."""

import json
import shutil
from pathlib import Path

import pytest
import torch

import hem
from hem import report
from hem.runs import RunFolder
from hem.runs.checkpoints import identity_of
from tests.conftest import ROOT
from tests.datamodules.mask_trees import mask_folder_tree

OLD = ROOT / "tests" / "fixtures" / "runs"
LOGITS = json.loads((OLD / "logits.json").read_text())
HEADLINES = {"segmentation": "test/miou", "continual": "test/average_accuracy", "longtail": "test/balanced_accuracy"}
QUICK = ("--trainer.accelerator", "cpu", "--trainer.enable_progress_bar", "false",
         "--trainer.enable_model_summary", "false", "--trainer.logger", "false")  # fmt: skip
EXAMINATIONS = {
    "rejection": ("--model.unknown", '{"unrecognisable": [uniform, blobs]}', "--model.scores", "[max_logit]",
                  "--model.max_images", 40, "--model.attack_eps", "null"),
    "corruption": ("--model.corrupted.corruptions", "[fog, contrast]", "--model.corrupted.severities", "[1, 5]",
                   "--model.corrupted.images", 40),
    "adversarial": ("--model.attacks", "[{class_path: PGD, init_args: {objective: ce}}]", "--model.linf", "[0.1]",
                    "--model.l2", "[0.5]", "--model.steps", 2, "--model.images", 20, "--model.checks", "false"),
}  # fmt: skip


def pixels(channels: int, height: int, width: int) -> torch.Tensor:
    """Two images (2, C, H, W) without a random number."""
    return (torch.arange(2 * channels * height * width) * 37 % 251).byte().reshape(2, channels, height, width)


@pytest.fixture
def runs(tmp_path) -> Path:
    """A copy of all of them, and the masks that one was trained with."""
    mask_folder_tree(tmp_path / "masks", n=4)
    return Path(shutil.copytree(OLD, tmp_path / "runs"))


def results(folder: Path) -> dict:
    return json.loads((folder / "results.json").read_text())


@pytest.mark.parametrize("name", LOGITS)
def test_logits(name):
    """Of the network that ``hem.load`` gives, without the data."""
    model = hem.load(OLD / name)
    with torch.no_grad():
        logits = model(pixels(model.in_channels, *model.image_size))
    torch.testing.assert_close(logits, torch.tensor(LOGITS[name]), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", LOGITS)
def test_tested_anew(name, runs, hem_command):
    """The figures are those of then, and stay where they were: they are of the same weights."""
    run = runs / name
    before = results(run)
    data = ("--data.root", runs.parent / "masks") if "mask" in name else ()
    outcome = hem_command("test", "--run", run, *data, *QUICK)
    assert outcome.code == 0, outcome.err
    after = results(run)
    assert {key: after[key] for key in ("task", "data", "loss", "seed", "weights")} == {
        key: before[key] for key in ("task", "data", "loss", "seed", "weights")
    }
    headline = HEADLINES.get(name.partition("_")[0], "test/accuracy")
    shared = before["metrics"].keys() & after["metrics"].keys()
    assert headline in shared
    assert len(shared) > len(before["metrics"]) / 2
    for key in shared:
        assert after["metrics"][key] == pytest.approx(before["metrics"][key], abs=0.02), key
    assert not list(run.glob("results@*"))


@pytest.mark.parametrize("name", EXAMINATIONS)
def test_examined_anew(name, runs, hem_command):
    run = runs / "classification_digits" / "hem" / "seed3"
    before = results(run / "evaluate" / name)
    command = ("test", "--run", run, "--config", f"configs/evaluate/{name}.yaml", *EXAMINATIONS[name], *QUICK)
    outcome = hem_command(*command)
    assert outcome.code == 0, outcome.err
    after = results(run / "evaluate" / name)
    assert (after["task"], after["loss"], after["weights"]) == (name, "hem", before["weights"])
    assert after["metrics"].keys() & before["metrics"].keys()


def test_gone_on_with(runs, hem_command):
    """The checkpoint of then holds all that a training needs: its last epoch is trained once more."""
    run = runs / "continual_digits" / "ce" / "seed0"
    config = (run / "config.yaml").read_text()
    outcome = hem_command("fit", "--config", run / "config.yaml", "--ckpt_path", "last", *QUICK, "--run_dir", run)
    assert outcome.code == 0, outcome.err
    assert (run / "config.yaml").read_text() == config


def test_reported(runs):
    """With their examinations, as they are."""
    page = report.write(runs)
    text = page.read_text()
    for name in ("classification", "rejection", "corruption", "longtail", "continual", "segmentation"):
        assert name in text.lower(), name
    found = report.Runs(runs)
    assert len(found.cells) == len(LOGITS) + len(EXAMINATIONS)


def test_masks_have_their_calibration(runs):
    """That which the run keeps for the weights: a masks' run was loaded without it."""
    run = RunFolder(runs / "segmentation_mask_folder" / "ce" / "seed0")
    weights = identity_of(run.checkpoints / "best.ckpt")
    record = {"method": "temperature", "temperature": 2.0, "samples": 100, "conformal": None, "weights": weights}
    run.calibration.write_text(json.dumps(record))
    model = hem.load(run.path)
    images = pixels(3, *model.image_size)
    with torch.no_grad():
        torch.testing.assert_close(model.probabilities(images), (model(images) / 2).softmax(1))
