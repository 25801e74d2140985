"""Scores by the words of a config."""

from __future__ import annotations

import importlib
import warnings
from typing import Any

from torch import Tensor, nn

from hem.names import check_name
from hem.rejection.features import FEATURE_SCORES, FeatureScore, Scorer
from hem.rejection.inputs import INPUT_SCORES, ODIN, InputScore
from hem.rejection.logits import LOGIT_SCORES

FORMER: dict[str, Any] = {**FEATURE_SCORES, **INPUT_SCORES}  #: classes by the words of former configs
SCORES = (*LOGIT_SCORES, *FORMER)


def fit(name: str, features: Tensor, target: Tensor, head: nn.Module) -> Scorer:
    """Fit a score by its former word, as :meth:`FeatureScore.fit` does."""
    check_name(name, FEATURE_SCORES, "rejection score")
    return FEATURE_SCORES[name]().fit(features.detach().float().cpu(), target.cpu(), head)


def odin(net: nn.Module, input: Tensor, temperature: float = 1000.0, eps: float = 0.0014) -> Tensor:
    """Return the unknownness of images by :class:`ODIN`."""
    return ODIN(temperature, eps)(net, input)


def score_of(score: FeatureScore | InputScore | str) -> tuple[str, Any]:
    """Return the name of a score and what computes it.

    Args:
        score: An object; a name of :data:`hem.rejection.LOGIT_SCORES`; the path of a function of logits.

    Raises:
        ValueError: There is none of this name.
    """
    if not isinstance(score, str):
        return str(score), score
    if score in LOGIT_SCORES:
        return score, LOGIT_SCORES[score]
    if score in FORMER:
        now = f"hem.rejection.{FORMER[score].__name__}"
        warnings.warn(f"The score '{score}' is a class by now: {now}.", FutureWarning, stacklevel=2)
        return score, FORMER[score]()
    module, _, name = score.rpartition(".")
    if not module:
        check_name(score, SCORES, "rejection score")
    try:
        return name, getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"Expected the path of a function of logits as a score, got '{score}': {error}.") from error
