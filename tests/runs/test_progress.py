"""The progress bar looks at the run a few times a second, and at the end of an epoch."""

import torch
from lightning.pytorch.callbacks import RichProgressBar

from hem.runs import progress
from hem.runs.progress import PER_SECOND, ProgressBar


def test_due(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    bar = ProgressBar()
    shown = []
    for batch in range(1, 101):
        now[0] += 0.26 / PER_SECOND
        if bar.due(batch, 100):
            shown.append(batch)
    assert shown[0] == 1
    assert shown[-1] == 100
    assert len(shown) == 26


def test_figures_are_read_seldom_and_the_last_batch_is_shown(hem_command, tmp_path, monkeypatch):
    """Lightning reads them after each of the 40 batches of the two epochs; the bar may be switched off or replaced."""
    reads, ends = [], []
    monkeypatch.setattr(ProgressBar, "_update_metrics", lambda self, *args: reads.append(1))
    monkeypatch.setattr(ProgressBar, "_update", lambda self, bar, current, **kwargs: ends.append(current))
    options = ("--config", "configs/classification/digits.yaml", "--model.net", "MLP", "--trainer.max_epochs", 2,
               "--data.batch_size", 32)  # fmt: skip
    monkeypatch.setattr(ProgressBar, "due", lambda self, batch, batches: batch >= batches)
    assert hem_command("fit", *options, "--run_dir", tmp_path / "a").code == 0
    steps = torch.load(tmp_path / "a" / "checkpoints" / "last.ckpt", weights_only=True)["global_step"] // 2
    assert steps > 20
    assert ends.count(steps) == 2
    assert len(reads) < 12  # the two last batches, the ends of epochs and validations
    reads.clear()
    assert hem_command("fit", *options, "--run_dir", tmp_path / "b", "--trainer.enable_progress_bar", "false").code == 0
    assert not reads
    own = ("--trainer.callbacks+", RichProgressBar.__module__ + ".RichProgressBar")
    assert hem_command("fit", *options, "--run_dir", tmp_path / "c", *own).code == 0
    assert not reads
