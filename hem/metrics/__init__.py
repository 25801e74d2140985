"""The metrics that torchmetrics lacks, as functions and as Metric classes: probabilities, selective prediction."""

from hem.metrics.accuracy import ClassAccuracy
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
    "BrierScore",
    "CalibrationError",
    "ClassAccuracy",
    "NegativeLogLikelihood",
    "Reliability",
    "Selective",
    "aurc",
    "brier_score",
    "calibration_error",
    "error_auroc",
    "negative_log_likelihood",
    "reliability",
    "risk_coverage",
]
