"""Seeds give the same result twice; a killed run, resumed, gives the result of the uninterrupted one, bit for bit.

Each run is a process of its own, as a user's is. The network has batch normalisation and the data augmentation
and shuffling, so every source of randomness is in play.
"""

import csv
from pathlib import Path

import pytest
import torch

from tests import processes

EPOCHS = 4
COMMAND = ["fit", "--config", "configs/classification/digits.yaml",
           "--config", "configs/loss/hem.yaml", "--trainer.max_epochs", str(EPOCHS), "--trainer.accelerator", "cpu",
           "--trainer.enable_progress_bar", "false", "--trainer.enable_model_summary", "false",
           "--data.augment", "[{class_path: hem.datamodules.augment.RandomCrop, init_args: {padding: 1}}]"]  # fmt: skip
pytestmark = pytest.mark.slow


def start(folder: Path, *options: str) -> processes.Processes:
    return processes.hem(*COMMAND, "--run_dir", folder, *options)


def finish(process: processes.Processes) -> None:
    done = process.wait()
    assert done.code == 0, done.err


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]


def steps(folder: Path) -> list[int]:
    with open(folder / "metrics.csv", newline="") as file:
        return [int(row["step"]) for row in csv.DictReader(file) if row.get("train/loss")]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("undisturbed") / "run"
    finish(start(folder))
    return folder


def test_same_seed_same_weights(undisturbed, tmp_path):
    finish(start(tmp_path / "run"))
    first, second = weights(undisturbed), weights(tmp_path / "run")
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_another_seed_other_weights(undisturbed, tmp_path):
    finish(start(tmp_path / "run", "--seed_everything", "1"))
    first, second = weights(undisturbed), weights(tmp_path / "run")
    assert not torch.equal(first["net.backbone.head.weight"], second["net.backbone.head.weight"])


@pytest.mark.parametrize("epoch", range(EPOCHS - 1))
def test_killed_and_resumed(epoch, undisturbed, tmp_path):
    """Killed with SIGKILL behind some epoch and resumed from ``last``: the same weights and the same curves."""
    folder = tmp_path / "run"
    last = folder / "checkpoints" / "last.ckpt"
    start(folder).kill_after(epoch + 1, last)

    checkpoint = torch.load(last, weights_only=True)  # whole, whenever the kill came
    assert checkpoint["epoch"] < EPOCHS - 1, "killed too late to prove anything"
    finish(start(folder, "--ckpt_path", "last"))

    resumed = weights(folder)
    for name, expected in weights(undisturbed).items():
        assert torch.equal(resumed[name], expected), name
    assert steps(folder) == steps(undisturbed)


def test_resumed_in_double_precision(tmp_path):
    """No weight passes through float32 on its way back."""
    double = ("--trainer.precision", "64-true", "--trainer.max_epochs", "2")
    finish(start(tmp_path / "whole", *double))
    before = tmp_path / "whole" / "checkpoints" / "last-1.ckpt"
    assert torch.load(before, weights_only=True)["global_step"] < steps(tmp_path / "whole")[-1] + 1
    finish(start(tmp_path / "parts", *double, "--ckpt_path", str(before)))
    expected = weights(tmp_path / "whole")
    assert expected["net.backbone.head.weight"].dtype == torch.float64
    for name, resumed in weights(tmp_path / "parts").items():
        assert torch.equal(resumed, expected[name]), name
