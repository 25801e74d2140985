"""Look up a score by its name in a config."""

from __future__ import annotations

import importlib
from typing import Any

from torch import Tensor, nn

from hem.names import check_name, former
from hem.rejection.features import KNN, FeatureScore, Mahalanobis, ReAct, Scorer, ViM
from hem.rejection.inputs import ODIN, InputScore
from hem.rejection.logits import LOGIT_SCORES

FORMER: dict[str, tuple[type[FeatureScore | InputScore], dict[str, Any]]] = {
    str(kind()): (kind, {}) for kind in (Mahalanobis, ViM, KNN, ReAct, ODIN)
}
"""Scores by the names that former configs gave them."""


def fit(name: str, features: Tensor, target: Tensor, head: nn.Module) -> Scorer:
    """Fit a score by its former name, as :meth:`FeatureScore.fit` does."""
    score: FeatureScore = former(name, {k: v for k, v in FORMER.items() if v[0] is not ODIN}, "rejection score")
    return score.fit(features.detach().float().cpu(), target.cpu(), head)


def odin(net: nn.Module, input: Tensor, temperature: float = 1000.0, eps: float = 0.0014) -> Tensor:
    """Return the unknownness of images by :class:`ODIN`."""
    return ODIN(temperature, eps)(net, input)


def score_of(score: FeatureScore | InputScore | str) -> tuple[str, Any]:
    """Return the name of a score and the object or function that computes it.

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
        return score, former(score, FORMER, "rejection score")
    module, _, name = score.rpartition(".")
    if not module:
        kinds = (*FeatureScore.__subclasses__(), *InputScore.__subclasses__())
        check_name(score, (*LOGIT_SCORES, *(each.__name__ for each in kinds)), "rejection score")
    try:
        return name, getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"Expected the path of a function of logits as a score, got '{score}': {error}.") from error
