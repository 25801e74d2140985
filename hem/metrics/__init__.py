"""Metrics that torchmetrics lacks, as functions and as Metric classes, and the catalogue of all keys."""

from hem.metrics.accuracy import Accuracy, ClassAccuracy, accuracies, collection
from hem.metrics.histogram import ScoreHistogram
from hem.metrics.loss import MeanLoss, MeanOf, sample_losses
from hem.metrics.probability import (
    BrierScore,
    CalibrationError,
    NegativeLogLikelihood,
    Reliability,
    brier_score,
    calibration_error,
    negative_log_likelihood,
    reliability,
)
from hem.metrics.selective import Selective, aurc, error_auroc, risk_coverage

__all__ = [
    "Accuracy", "BrierScore", "CalibrationError", "ClassAccuracy", "MeanLoss", "MeanOf", "NegativeLogLikelihood",
    "Reliability", "ScoreHistogram", "Selective", "accuracies", "aurc", "brier_score", "calibration_error",
    "collection", "error_auroc", "negative_log_likelihood", "reliability", "risk_coverage", "sample_losses",
]  # fmt: skip
