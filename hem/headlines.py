"""The figures that a report shows first, and which way each figure is better."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from typing import NamedTuple


class Metric(NamedTuple):
    """A figure of a task."""

    key: str  #: its name in ``results.json``
    title: str
    higher: bool | None  #: whether more is better; None: neither
    percent: bool  #: whether it is a share, shown in percent

    @property
    def arrow(self) -> str:
        """Which way is better."""
        return {True: "↑", False: "↓", None: ""}[self.higher]

    @property
    def scale(self) -> float:
        """Factor from the value to what is shown."""
        return 100.0 if self.percent else 1.0

    @property
    def label(self) -> str:
        """Title, unit and direction, as tables and figures have them."""
        return f"{self.title}{' in %' if self.percent else ''} {self.arrow}".strip()


# The headline figures of each task: name in results.json (`*` stands for a word) and title. The first one that a task
# has is its figure in the summary. `mean` of a radius is made here, of all radii of the curve but 0.
CALIBRATION = {
    "test/calibration_error": "calibration error",
    "test/calibrated/calibration_error": "calibration error after calibration",
    "test/calibrated/nll": "negative log-likelihood after calibration",
}
METRICS: dict[str, dict[str, str]] = {
    "classification": {
        "test/accuracy": "accuracy",
        **CALIBRATION,
        "test/aurc/max_logit": "area under risk and coverage, largest logit",
        "test/calibrated/aurc/msp": "area under risk and coverage, calibrated softmax",
    },
    "rejection": {
        "test/auroc/max_logit/seven": "AUROC, largest logit: seven unknown sets",
        "test/auroc/max_logit/near": "AUROC, largest logit: near sets",
        "test/auroc/max_logit/far": "AUROC, largest logit: far sets",
        "test/auroc/max_logit/novel": "AUROC, largest logit: novel classes",
        "test/auroc/max_logit/unrecognisable": "AUROC, largest logit: unrecognisable images",
        "test/auroc/msp/seven": "AUROC, softmax: seven unknown sets",
        "test/auroc/msp/novel": "AUROC, softmax: novel classes",
        "test/auroc/msp/unrecognisable": "AUROC, softmax: unrecognisable images",
        "test/auroc/msp_calibrated/seven": "AUROC, calibrated softmax: seven unknown sets",
        "test/auroc/msp_calibrated/novel": "AUROC, calibrated softmax: novel classes",
        "test/auroc/msp_calibrated/unrecognisable": "AUROC, calibrated softmax: unrecognisable images",
        "test/dar/max_logit/overall": "treated rightly (DAR), largest logit",
        "test/dar/msp/overall": "treated rightly (DAR), softmax",
    },
    "corruption": {
        "test/corruption_accuracy": "accuracy, mean of all corruptions",
        "test/corruption_accuracy_common": "accuracy, the 15 corruptions",
        "test/corruption_accuracy_extra": "accuracy, the 4 extra corruptions",
    },
    "adversarial": {
        "test/robust_accuracy/linf/mean/worst": "robust accuracy, L∞: mean of the curve, all attacks",
        "test/robust_accuracy/l2/mean/worst": "robust accuracy, L2: mean of the curve, all attacks",
        "test/robust_accuracy/linf/*/autoattack": "AutoAttack, L∞ {}",
        "test/robust_accuracy/l2/*/autoattack": "AutoAttack, L2 {}",
        "test/accuracy": "clean accuracy",
        "test/masking/curve_in_doubt": "curve in doubt (1: a check for masked gradients failed)",
    },
    "longtail": {
        "test/balanced_accuracy": "balanced accuracy",
        "test/many_shot_accuracy": "many-shot accuracy",
        "test/medium_shot_accuracy": "medium-shot accuracy",
        "test/few_shot_accuracy": "few-shot accuracy",
        **CALIBRATION,
    },
    "continual": {
        "test/average_accuracy": "average accuracy at the end",
        "test/forgetting": "forgetting",
        "test/backward_transfer": "backward transfer",
        **CALIBRATION,
    },
    "segmentation": {
        "test/miou": "mean IoU",
        "test/mean_accuracy": "mean accuracy of the classes",
        "test/accuracy": "accuracy of pixels",
        "test/unknown/auroc_max_logit": "AUROC of unknown pixels, largest logit",
        **CALIBRATION,
    },
}

# any figure by its name, the first that fits: (pattern, more is better, share)
RULES: tuple[tuple[str, bool | None, bool], ...] = (
    (r"curve_in_doubt$", False, False),
    (r"masking/|/images/|(^|/)images$", None, False),
    (r"calibration_error|fpr95|forgetting|intransigence", False, True),
    (r"mce", False, False),
    (r"(^|/)(nll|brier)$|(^|/)aurc/|conformal/size$", False, False),
    (r"(^|/)(margin_)?temperature$", None, False),
    (r"conformal/coverage$", None, True),
    (r"^(test|val|train)/loss($|/)", None, False),  # each loss has a scale of its own
    (r"(^|/)active$", None, True),
    (r"accuracy|auroc|aupr|oscr|(^|/)dar|iou|dice|transfer|(^|/)corruption/", True, True),
    (r"", None, False),
)


def describe(key: str, title: str | None = None) -> Metric:
    """Return what is known of a figure by its name.

    Example:
        >>> describe("test/calibration_error")
        Metric(key='test/calibration_error', title='calibration_error', higher=False, percent=True)
    """
    higher, percent = next((higher, percent) for pattern, higher, percent in RULES if re.search(pattern, key))
    words = f"{key.removeprefix('val/')} of validation, best epoch" if key.startswith("val/") else None
    return Metric(key, title or words or key.removeprefix("test/"), higher, percent)


def headlines(task: str, keys: Iterable[str]) -> list[Metric]:
    """The headline figures of a task that are among the keys; those of classification for a task not listed here.

    Where nothing was tested, the same of validation.
    """
    keys = list(keys)
    for stage in ("test/", "val/"):
        found = []
        for pattern, title in METRICS.get(task, METRICS["classification"]).items():
            wanted = stage + pattern.removeprefix("test/")
            expression = re.compile(re.escape(wanted).replace(r"\*", "([^/]+)"))
            matches = [match for key in keys if (match := expression.fullmatch(key))]
            found += [describe(m[0], title.format(*m.groups()) if stage == "test/" else None) for m in matches]
        if found:
            return found
    return []


def with_means(metrics: dict[str, float]) -> dict[str, float]:
    """Add the mean of each robustness curve over its radii, without 0: ``test/robust_accuracy/<norm>/mean/<attack>``.

    Example:
        >>> curve = {"test/robust_accuracy/l2/1/worst": 0.5, "test/robust_accuracy/l2/2/worst": 0.25}
        >>> with_means(curve)["test/robust_accuracy/l2/mean/worst"]
        0.375
    """
    curves: dict[tuple[str, str], list[float]] = {}
    for key, value in metrics.items():
        match = re.fullmatch(r"test/robust_accuracy/(\w+)/([\d.e-]+)/(\w+)", key)
        if match and float(match[2]) > 0:
            curves.setdefault((match[1], match[3]), []).append(value)
    means = {
        f"test/robust_accuracy/{norm}/mean/{attack}": sum(values) / len(values)
        for (norm, attack), values in curves.items()
        if attack != "autoattack"  # it runs at some of the radii only
    }
    return {**metrics, **means}


def best_of_validation(
    curves: dict[str, dict[float, float]], monitor: str = "val/accuracy", mode: str = "max"
) -> dict[str, float]:
    """All validation metrics at the epoch of the best checkpoint: what hyper-parameters are chosen by.

    Args:
        curves: Value by epoch of each metric.
        monitor: The metric that chooses the best checkpoint, the first epoch among equals; where no curve has that
            name, the last epoch.
        mode: ``"max"`` or ``"min"``.

    Example:
        >>> curves = {"val/miou": {1: 0.25, 2: 0.5, 3: 0.375}, "val/loss": {1: 2.0, 2: 1.5, 3: 1.0}}
        >>> best_of_validation(curves, "val/miou")
        {'val/miou': 0.5, 'val/loss': 1.5}
    """
    validation = {key: values for key, values in curves.items() if key.startswith("val/") and values}
    if not validation:
        return {}
    chosen = validation.get(monitor)
    if chosen is None:
        epoch = max(epoch for values in validation.values() for epoch in values)
    else:
        known = {at: value for at, value in sorted(chosen.items()) if math.isfinite(value)} or chosen
        epoch = {"max": max, "min": min}[mode](known, key=known.__getitem__)
    return {key: values[epoch] for key, values in validation.items() if epoch in values}
