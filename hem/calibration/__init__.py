"""Calibrated probabilities for any loss: scaling of logits, and conformal prediction sets."""

from hem.calibration.conformal import PredictionSets, conformal, nonconformity
from hem.calibration.scaling import MarginScaling, Temperature, VectorScaling, calibrate

__all__ = ["MarginScaling", "PredictionSets", "Temperature", "VectorScaling", "calibrate", "conformal", "nonconformity"]
