"""The record of a run: its folder, checkpoints, curves, results and predictions."""

from hem.runs.callbacks import SaveConfig, SavePredictions, SaveResults
from hem.runs.checkpoints import AtomicCheckpointIO
from hem.runs.csv_logger import CSVLogger
from hem.runs.folder import RunFolder

__all__ = ["AtomicCheckpointIO", "CSVLogger", "RunFolder", "SaveConfig", "SavePredictions", "SaveResults"]
