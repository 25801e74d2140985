"""A run that goes on is the run that began: the same weights, schedules and curves, the same config, one process."""

import csv
import os
from pathlib import Path

import pytest
import torch

from tests.test_survival import Dead, happening

DIGITS = "configs/classification/digits.yaml"
STEPS = 4  # of an epoch
COMMON = ("fit", "--config", DIGITS, "--trainer.accelerator", "cpu", "--trainer.enable_progress_bar", "false",
          "--trainer.enable_model_summary", "false", "--trainer.limit_train_batches", STEPS, "--trainer.max_epochs", 4,
          "--trainer.log_every_n_steps", 1, "--model.net", "MLP")  # fmt: skip


def state(folder: Path) -> dict:
    return torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)


def rows(folder: Path) -> list[dict[str, str]]:
    with open(folder / "metrics.csv", newline="") as file:
        return list(csv.DictReader(file))


def same(folder: Path, other: Path) -> None:
    """Weights, optimiser, schedule and curves of two runs are the same, bit for bit."""
    first, second = state(folder), state(other)
    assert first["global_step"] == second["global_step"]
    assert all(torch.equal(first["state_dict"][key], second["state_dict"][key]) for key in second["state_dict"])
    assert first["lr_schedulers"] == second["lr_schedulers"]
    assert first["optimizer_states"][0]["param_groups"] == second["optimizer_states"][0]["param_groups"]
    assert rows(folder) == rows(other)


# -- what reads metrics at the end of an epoch ---------------------------------------------------------------------

STOPPING = ("--trainer.callbacks+", "EarlyStopping", "--trainer.callbacks.patience", 2, "--trainer.callbacks.monitor")
PLATEAU = ("--model.lr_scheduler", "ReduceLROnPlateau", "--model.lr_scheduler.patience", 0,
           "--model.lr_scheduler.mode", "max", "--model.lr_scheduler.monitor")  # fmt: skip
READERS = {
    "early stopping": (*STOPPING, "val/accuracy", "--trainer.callbacks.mode", "min"),
    "early stopping without validation": (
        *STOPPING, "train/loss", "--trainer.callbacks.mode", "max", "--data.val_fraction", 0
    ),
    "plateau": (*PLATEAU, "val/loss"),
    "plateau, every other epoch": (*PLATEAU, "val/loss", "--trainer.check_val_every_n_epoch", 2),
    "plateau without validation": (*PLATEAU, "train/loss", "--data.val_fraction", 0),
    "both": (*PLATEAU, "val/accuracy", *STOPPING, "train/loss"),
}  # fmt: skip


@pytest.mark.parametrize("reader", READERS)
def test_killed_between_two_epochs(reader, hem_command, tmp_path):
    """The metrics that were known at the end of the epoch are known to the run that goes on."""
    options = (*COMMON, *READERS[reader])
    assert hem_command(*options, "--run_dir", tmp_path / "whole").code == 0
    arguments = (*options, "--run_dir", tmp_path / "parts", "--ckpt_path", "auto")
    for epoch in (1, 2):
        with pytest.raises(Dead):
            hem_command(*arguments, *happening("die", STEPS * epoch))
    outcome = hem_command(*arguments)
    assert outcome.code == 0, outcome.err
    same(tmp_path / "parts", tmp_path / "whole")
    before = state(tmp_path / "whole")["global_step"]
    if "stopping" in reader:
        assert before == 3 * STEPS, "stopped early, so that there is something to be told"
    # what has ended, early or not, has nothing left to do
    assert hem_command(*options, "--run_dir", tmp_path / "whole", "--ckpt_path", "auto").code == 0
    same(tmp_path / "parts", tmp_path / "whole")


def test_plateau_lowers_the_rate(hem_command, tmp_path):
    """After each validation whose loss is no better: here where the larger loss is said to be the better one."""
    assert hem_command(*COMMON, *PLATEAU, "val/loss", "--run_dir", tmp_path).code == 0
    rates = [float(row["lr-SGD"]) for row in rows(tmp_path) if row.get("lr-SGD")]
    losses = [float(row["val/loss"]) for row in rows(tmp_path) if row.get("val/loss")]
    assert losses == sorted(losses, reverse=True)
    assert rates == pytest.approx([0.05, 0.05, 0.005, 0.0005])
    # torch's own class, which knows no monitor, reads the loss
    own = ("--model.lr_scheduler", "torch.optim.lr_scheduler.ReduceLROnPlateau", "--trainer.max_epochs", 1)
    outcome = hem_command(*COMMON, *own, "--run_dir", tmp_path / "torch")
    assert outcome.code == 0, outcome.err


@pytest.mark.parametrize(
    ("who", "options"),
    [
        ("EarlyStopping", (*STOPPING, "val/los")),
        ("ReduceLROnPlateau", (*PLATEAU, "val/los")),
        ("ModelCheckpoint", ("--checkpoint.monitor", "val/los")),
    ],
)
def test_misspelt_monitor(who, options, hem_command, tmp_path):
    outcome = hem_command(*COMMON, *options, "--run_dir", tmp_path)
    assert outcome.code == 1
    start = f"error: Expected the name of a metric of this run as the monitor of {who}, got 'val/los'; did you mean "
    assert outcome.err.startswith(start), outcome.err
    for word in ("'val/loss'", "train/loss, ", "val/accuracy, "):
        assert word in outcome.err
    assert len(outcome.err.splitlines()) == 1


# -- a run that was moved ------------------------------------------------------------------------------------------


def test_moved_run_keeps_its_best(hem_command, tmp_path):
    """Lightning forgets the best score where the folder has another path; the next epoch would become the best."""
    options = (*COMMON, "--checkpoint.mode", "min")  # accuracy rises: the first epoch is the best
    with pytest.raises(Dead):
        hem_command(*options, "--run_dir", tmp_path / "here", *happening("die", 2 * STEPS))
    best = torch.load(tmp_path / "here" / "checkpoints" / "best.ckpt", weights_only=True)
    assert best["global_step"] == STEPS
    os.rename(tmp_path / "here", tmp_path / "there")
    assert hem_command(*options, "--run_dir", tmp_path / "there", "--ckpt_path", "last").code == 0
    best = torch.load(tmp_path / "there" / "checkpoints" / "best.ckpt", weights_only=True)
    assert best["global_step"] == STEPS
