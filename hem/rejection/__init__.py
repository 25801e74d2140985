"""Rejection of unknown inputs: scores of unknownness, and how well they separate known from unknown.

One convention, here and everywhere in this package: a score is an **unknownness**. Unknown is the positive
class, and a higher score means more unknown. Confidences of the literature (the largest probability, the
largest logit, the free energy) therefore appear with their sign changed.

* Scores of logits: :data:`LOGIT_SCORES`, functions (N, C) -> (N,).
* Scores fitted on the features of training images: classes under :class:`FeatureScore`.
* Scores of images and the network: classes under :class:`InputScore`.
* Metrics of two samples of scores: :data:`METRICS`, :func:`oscr`, :func:`detection_accuracy`.
"""

from hem.rejection.curves import (
    METRICS,
    Roc,
    aupr_in,
    aupr_out,
    auroc,
    fpr95_known_positive,
    fpr95_unknown_positive,
    oscr,
    oscr_curve,
    roc,
)
from hem.rejection.features import KNN, FeatureScore, Mahalanobis, ReAct, ViM
from hem.rejection.inputs import ODIN, InputScore
from hem.rejection.logits import LOGIT_SCORES, check_score, energy, entropy, margin, max_logit, msp
from hem.rejection.named import FORMER
from hem.rejection.rejector import Rejector, accept_threshold, detection_accuracy

__all__ = [
    "FORMER", "KNN", "LOGIT_SCORES", "METRICS", "ODIN", "FeatureScore", "InputScore",
    "Mahalanobis", "ReAct", "Rejector", "Roc", "ViM", "accept_threshold", "aupr_in", "aupr_out", "auroc",
    "check_score", "detection_accuracy", "energy", "entropy", "fpr95_known_positive", "fpr95_unknown_positive",
    "margin", "max_logit", "msp", "oscr", "oscr_curve", "roc",
]  # fmt: skip
