"""The tasks: one LightningModule each, siblings under :class:`~hem.modules.base.Task`."""

from hem.modules.adversarial import AdversarialTask
from hem.modules.adversarial_training import TRADES, PGDTraining
from hem.modules.base import Task
from hem.modules.calibrator import Calibrator
from hem.modules.classification import ClassificationTask
from hem.modules.continual import ContinualTask
from hem.modules.corruption import CorruptionTask
from hem.modules.longtail import LongTailTask
from hem.modules.rejection import RejectionTask
from hem.modules.segmentation import SegmentationTask
from hem.schedulers import PolyLR

__all__ = [
    "TRADES", "AdversarialTask", "Calibrator", "ClassificationTask", "ContinualTask", "CorruptionTask",
    "LongTailTask", "PGDTraining", "PolyLR", "RejectionTask", "SegmentationTask", "Task",
]  # fmt: skip
