"""Two processes train and test as one does: through the command line, with gloo, as a user would."""

import json
from pathlib import Path

import pandas as pd
import pytest
import torch

from tests import processes

pytestmark = pytest.mark.slow


def run(command: str, folder: Path, devices: int, loss: str, *options: object) -> None:
    arguments = [
        *("--config", "configs/classification/digits.yaml", "--config", f"configs/loss/{loss}.yaml"),
        # batch statistics are per process by design of torch's BatchNorm: a network without them is compared
        *("--model.net", "MLP", "--model.net.batch_norm", "false", "--data.batch_size", "50"),
        *("--trainer.max_epochs", "3", "--trainer.accelerator", "cpu", "--run_dir", str(folder)),
        *("--trainer.enable_progress_bar", "false", "--trainer.enable_model_summary", "false"),
        *(("--ckpt_path", "last") if command == "test" and not options else ()),
        *map(str, options),
    ]
    done = processes.hem(command, *arguments, ranks=devices).wait()
    assert done.code == 0, done.err


@pytest.mark.parametrize("loss", ["hem", "dice"])
def test_two_processes_are_one(loss, tmp_path):
    """Weights after three epochs agree, and every test figure: each sample is counted once.

    One of the figures is a mean over samples (accuracy), one a quantile-like sum over bins (calibration), one
    per class; 359 test images on two processes would be padded by a usual distributed sampler.
    """
    for devices in (1, 2):
        for command in ("fit", "test"):
            run(command, tmp_path / str(devices), devices, loss)
    states = [
        torch.load(tmp_path / str(devices) / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
        for devices in (1, 2)
    ]
    assert states[0].keys() == states[1].keys()
    for name, expected in states[0].items():
        torch.testing.assert_close(states[1][name], expected, rtol=1e-4, atol=1e-5, msg=name)
    one, two = (json.loads((tmp_path / str(devices) / "results.json").read_text()) for devices in (1, 2))
    assert (one["devices"], two["devices"]) == (1, 2)
    assert one["metrics"].keys() == two["metrics"].keys()
    for name, expected in one["metrics"].items():
        if (loss, name) == ("dice", "test/loss"):
            continue  # no mean over samples: it depends on how the test set is cut into batches
        assert two["metrics"][name] == pytest.approx(expected, rel=1e-4, abs=1e-5), name
    if loss == "hem":  # the curves too, those of training batches among them: no process tells its own share alone
        one, two = (pd.read_csv(tmp_path / str(devices) / "metrics.csv").groupby("epoch").mean() for devices in (1, 2))
        for name in ("train/loss", "train/active", "train/active_loss", "train/accuracy", "val/loss", "val/active"):
            assert two[name].tolist() == pytest.approx(one[name].tolist(), rel=1e-3, abs=1e-4), name


# the end of the command is that of `run`
UNKNOWN = '{"novel": ["uniform"], "none": ["nonsense"]}'
EXAMINATION = ("--model", "hem.modules.RejectionTask", "--model.unknown", UNKNOWN,
               "--model.max_images", 41, "--model.nonsense_images", 21, "--model.corruptions", "[fog]",
               "--model.attack_eps", 0.1, "--model.known_images", 31, "--model.scores", "[msp, max_logit]")  # fmt: skip


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    """Of a training of one epoch, in one process."""
    folder = tmp_path_factory.mktemp("fit")
    run("fit", folder, 1, "hem", "--trainer.max_epochs", 1)
    return folder / "checkpoints" / "last.ckpt"


def test_scores_of_two_processes_are_those_of_one(checkpoint, tmp_path):
    """Rejection gathers the scores of every image: 359 known ones and odd numbers of all others, none twice."""
    for devices in (1, 2):
        run("test", tmp_path / str(devices), devices, "hem", *EXAMINATION, "--ckpt_path", checkpoint)
    one, two = (json.loads((tmp_path / name / "results.json").read_text())["metrics"] for name in ("1", "2"))
    assert one.keys() == two.keys()
    assert len([name for name in one if "auroc" in name]) >= 6
    for name, expected in one.items():
        assert two[name] == pytest.approx(expected, rel=1e-5, abs=1e-5), name
    records = [json.loads((tmp_path / name / "rejection.json").read_text())["images"] for name in ("1", "2")]
    assert records[0] == records[1]
    assert records[1] == {"clean": 359, "corrupt": 31, "adversarial": 31, "uniform": 41, "nonsense": 21}


def test_the_temperature_of_two_processes_is_that_of_one(checkpoint, tmp_path):
    """Of the same weights, to 1e-6: both see the logits of all 144 validation images."""
    for devices in (1, 2):
        run("test", tmp_path / str(devices), devices, "hem", "--ckpt_path", checkpoint)
    one, two = (json.loads((tmp_path / name / "calibration.json").read_text()) for name in ("1", "2"))
    assert one["samples"] == two["samples"]
    assert two["temperature"] == pytest.approx(one["temperature"], rel=1e-6)
    one, two = (json.loads((tmp_path / name / "results.json").read_text())["metrics"] for name in ("1", "2"))
    assert one.keys() == two.keys()
    for name in (name for name in one if "aurc" in name or "calibrat" in name or "nll" in name):
        assert two[name] == pytest.approx(one[name], abs=1e-5), name
