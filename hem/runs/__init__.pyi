"""The record of a run: its folder, checkpoints, curves, results and predictions."""

from .callbacks import SaveConfig as SaveConfig
from .callbacks import SavePredictions as SavePredictions
from .callbacks import SaveResults as SaveResults
from .checkpoints import AtomicCheckpointIO as AtomicCheckpointIO
from .csv_logger import CSVLogger as CSVLogger
from .folder import RunFolder as RunFolder
