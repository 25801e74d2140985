"""Metrics that torchmetrics lacks, as functions and as Metric classes, and the catalogue of all keys."""

from .accuracy import Accuracy, ClassAccuracy, accuracies, collection
from .histogram import ScoreHistogram
from .loss import MeanLoss, MeanOf, sample_losses
from .probability import (
    BrierScore,
    CalibrationError,
    NegativeLogLikelihood,
    Reliability,
    brier_score,
    calibration_error,
    negative_log_likelihood,
    reliability,
)
from .selective import Selective, aurc, error_auroc, risk_coverage

# what the reference shows
__all__ = [
    "Accuracy",
    "BrierScore",
    "CalibrationError",
    "ClassAccuracy",
    "MeanLoss",
    "MeanOf",
    "NegativeLogLikelihood",
    "Reliability",
    "ScoreHistogram",
    "Selective",
    "accuracies",
    "aurc",
    "brier_score",
    "calibration_error",
    "collection",
    "error_auroc",
    "negative_log_likelihood",
    "reliability",
    "risk_coverage",
    "sample_losses",
]
