"""Probabilities that mean something, for any loss: temperatures, and sets of classes of a chosen coverage."""

from hem.calibration.conformal import PredictionSets, conformal, nonconformity
from hem.calibration.scaling import MarginScaling, Temperature, VectorScaling, calibrate

__all__ = ["MarginScaling", "PredictionSets", "Temperature", "VectorScaling", "calibrate", "conformal", "nonconformity"]
