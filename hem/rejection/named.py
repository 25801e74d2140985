"""Scores by the words of a config."""

from __future__ import annotations

import importlib
import warnings
from typing import Any

from hem.names import check_name
from hem.rejection.features import FEATURE_SCORES, FeatureScore
from hem.rejection.inputs import INPUT_SCORES, InputScore
from hem.rejection.logits import LOGIT_SCORES


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
    former: dict[str, Any] = {**FEATURE_SCORES, **INPUT_SCORES}
    if score in former:
        now = f"hem.rejection.{former[score].__name__}"
        warnings.warn(f"The score '{score}' is a class by now: {now}.", FutureWarning, stacklevel=2)
        return score, former[score]()
    module, _, name = score.rpartition(".")
    if not module:
        check_name(score, (*LOGIT_SCORES, *former), "rejection score")
    try:
        return name, getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"Expected the path of a function of logits as a score, got '{score}': {error}.") from error
