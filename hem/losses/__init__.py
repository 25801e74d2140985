"""Losses for classification in place of cross-entropy: the high error margin loss and those it is compared with.

:mod:`~hem.losses.margin` and :mod:`~hem.losses.functional` have the functions, :mod:`~hem.losses.criteria` the modules,
and :mod:`~hem.losses.reduction` the mean over the samples of one or several devices. They depend on torch alone.

Example:
    >>> import torch
    >>> sorted(LOSSES)
    ['balanced_softmax', 'ce', 'class_balanced', 'dice', 'focal', 'hem', 'hem_plus', 'ldam', 'logit_adjusted',
     'logit_norm', 'multi_margin', 'one_vs_rest']
    >>> LOSSES["hem"](margin=0.2)(torch.tensor([[2.0, 2.5]]), torch.tensor([0]))
    tensor(0.7000)
"""

from torch import nn
from torch.nn import CrossEntropyLoss

from hem.losses import functional
from hem.losses.criteria import (
    BalancedSoftmaxLoss,
    ClassBalancedLoss,
    DiceLoss,
    FocalLoss,
    HEMLoss,
    HEMPlusLoss,
    LDAMLoss,
    LogitAdjustedLoss,
    LogitNormLoss,
    MedianFrequencyLoss,
    MultiMarginLoss,
    OneVsRestLoss,
    SumLoss,
    evaluate,
)
from hem.losses.functional import effective_number_weights, median_frequency_weights
from hem.losses.reduction import Accumulation, accumulate, global_mean

LOSSES: dict[str, type[nn.Module]] = {
    "ce": CrossEntropyLoss,
    "hem": HEMLoss,
    "hem_plus": HEMPlusLoss,
    "multi_margin": MultiMarginLoss,
    "logit_norm": LogitNormLoss,
    "logit_adjusted": LogitAdjustedLoss,
    "dice": DiceLoss,
    "focal": FocalLoss,
    "ldam": LDAMLoss,
    "class_balanced": ClassBalancedLoss,
    "balanced_softmax": BalancedSoftmaxLoss,
    "one_vs_rest": OneVsRestLoss,
}
"""Each loss by its short name, which configs, studies and reports use."""

__all__ = [
    "LOSSES",
    "Accumulation",
    "BalancedSoftmaxLoss",
    "ClassBalancedLoss",
    "CrossEntropyLoss",
    "DiceLoss",
    "FocalLoss",
    "HEMLoss",
    "HEMPlusLoss",
    "LDAMLoss",
    "LogitAdjustedLoss",
    "LogitNormLoss",
    "MedianFrequencyLoss",
    "MultiMarginLoss",
    "OneVsRestLoss",
    "SumLoss",
    "accumulate",
    "effective_number_weights",
    "evaluate",
    "functional",
    "global_mean",
    "median_frequency_weights",
]
