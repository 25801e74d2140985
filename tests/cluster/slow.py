"""A callback that makes small runs last, so that something can happen to them."""

import time

from lightning.pytorch.callbacks import Callback


class Slow(Callback):
    """Waits before every step.

    Args:
        seconds: How long.
    """

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        time.sleep(self.seconds)
