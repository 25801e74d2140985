"""``last.ckpt`` is the last epoch's, whether or not the metric that chooses ``best.ckpt`` has improved."""

import torch


def test_last_is_the_last_epoch(hem_command, tmp_path):
    """The largest logit grows, so that its smallest is the first; and the last epoch has no validation."""
    outcome = hem_command("fit", "--config", "configs/classification/digits.yaml", "--run_dir", tmp_path,
                          "--checkpoint.mode", "min", "--checkpoint.monitor", "val/max_logit",
                          "--trainer.max_epochs", 5, "--trainer.check_val_every_n_epoch", 2,
                          "--trainer.enable_progress_bar", "false")  # fmt: skip
    assert outcome.code == 0, outcome.err
    found = {
        which: torch.load(tmp_path / "checkpoints" / f"{which}.ckpt", weights_only=True) for which in ("best", "last")
    }
    steps = found["last"]["global_step"]
    assert found["last"]["epoch"] >= 4
    assert found["best"]["global_step"] == steps * 2 // 5
