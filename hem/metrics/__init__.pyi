"""Metrics that torchmetrics lacks, as functions and as Metric classes, and the catalogue of all keys."""

from .accuracy import Accuracy as Accuracy
from .accuracy import ClassAccuracy as ClassAccuracy
from .accuracy import accuracies as accuracies
from .accuracy import collection as collection
from .histogram import ScoreHistogram as ScoreHistogram
from .loss import MeanLoss as MeanLoss
from .loss import MeanOf as MeanOf
from .loss import sample_losses as sample_losses
from .probability import BrierScore as BrierScore
from .probability import CalibrationError as CalibrationError
from .probability import NegativeLogLikelihood as NegativeLogLikelihood
from .probability import Reliability as Reliability
from .probability import brier_score as brier_score
from .probability import calibration_error as calibration_error
from .probability import negative_log_likelihood as negative_log_likelihood
from .probability import reliability as reliability
from .selective import Selective as Selective
from .selective import aurc as aurc
from .selective import error_auroc as error_auroc
from .selective import risk_coverage as risk_coverage
