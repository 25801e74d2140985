"""Progress bar of the command line: Lightning's, refreshed less often."""

import time
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import RichProgressBar

PER_SECOND = 5


class ProgressBar(RichProgressBar):
    """Lightning's progress bar, refreshed at most a few times a second.

    Lightning's redraws up to a hundred times a second and reads all metrics after every batch, which makes the host
    wait for the device. The last batch of an epoch is always shown.
    """

    def __init__(self) -> None:
        super().__init__(refresh_rate=PER_SECOND)
        self._shown = 0.0  # time of the last refresh, by the monotonic clock

    def due(self, batch: int, batches: float) -> bool:
        """Return whether to refresh after ``batch`` of ``batches``."""
        now = time.monotonic()
        if batch < batches and now - self._shown < 1 / PER_SECOND:
            return False
        self._shown = now
        return True

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Show the batch and the metrics of training, if due."""
        if self.due(batch_idx + 1, self.total_train_batches):
            super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)

    def on_validation_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any, **kwargs: Any) -> None:
        """Show the batch, if it is time."""
        if self.is_enabled and self.due(args[2] + 1, self.total_val_batches_current_dataloader):
            super().on_validation_batch_end(trainer, pl_module, *args, **kwargs)

    def on_test_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any, **kwargs: Any) -> None:
        """Show the batch, if it is time."""
        if self.is_enabled and self.due(args[2] + 1, self.total_test_batches_current_dataloader):
            super().on_test_batch_end(trainer, pl_module, *args, **kwargs)

    def on_predict_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any, **kwargs: Any) -> None:
        """Show the batch, if it is time."""
        if self.is_enabled and self.due(args[2] + 1, self.total_predict_batches_current_dataloader):
            super().on_predict_batch_end(trainer, pl_module, *args, **kwargs)
