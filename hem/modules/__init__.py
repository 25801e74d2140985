"""The tasks: one LightningModule each, siblings under :class:`~hem.modules.base.Task`."""

from hem.modules.base import Task
from hem.modules.classification import ClassificationTask

__all__ = ["ClassificationTask", "Task"]
