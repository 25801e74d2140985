"""Metrics that torchmetrics lacks, as functions and as Metric classes, and the catalogue of all keys."""

import lazy_loader

# what needs Lightning and torchmetrics is imported when it is asked for: studies and reports read records alone
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
