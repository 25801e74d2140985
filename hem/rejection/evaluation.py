"""All metrics of each score, for every unknown set and every group of sets."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from statistics import mean
from typing import NamedTuple

from torch import Tensor

from hem.rejection.curves import METRICS, oscr
from hem.rejection.rejector import detection_accuracy


class Scored(NamedTuple):
    """The scores of a whole set, and which samples are classified correctly (none of an unknown set)."""

    scores: dict[str, Tensor]  #: each (N,)
    correct: Tensor  #: (N,) bool


class Row(NamedTuple):
    """Metrics of one score for one set, or the means over several."""

    score: str
    name: str
    sets: int
    metrics: dict[str, float]


def table(
    known: Mapping[str, Scored],
    unknown: Mapping[str, Scored],
    kinds: Mapping[str, str],
    groups: Mapping[str, Sequence[str]],
    thresholds: Mapping[str, float],
) -> list[Row]:
    """Return the rows of the table: for each score one per set, per group, and ``overall``.

    Args:
        known: Sets of known images, each a kind of its own; with ``clean`` unknown ones are compared.
        unknown: Sets of unknown images.
        kinds: The kind of each unknown set: all kinds weigh alike in ``overall``.
        groups: Unknown sets by the name of the group, those that are not there included.
        thresholds: Of each score that has one: images above are rejected.
    """
    rows: list[Row] = []
    clean = known["clean"]
    for score, values in clean.scores.items():
        found: dict[str, dict[str, float]] = {
            name: {metric: each(values, those.scores[score]) for metric, each in METRICS.items()}
            | {"oscr": oscr(values, clean.correct, those.scores[score])}
            for name, those in unknown.items()
        }
        treated: dict[str, list[dict[str, float]]] = defaultdict(list)
        for name, those in {**known, **unknown}.items() if score in thresholds else ():
            correct = those.correct if name in known else False
            dar = {
                metric: detection_accuracy(those.scores[score], correct, thresholds[score], strict=metric != "dar")
                for metric in ("dar", "dar_strict")
            }
            found.setdefault(name, {}).update(dar)
            treated[kinds.get(name, name)].append(dar)
        rows += [Row(score, name, 1, metrics) for name, metrics in found.items()]
        for group, names in groups.items():
            if present := [found[name] for name in names if name in unknown]:
                rows.append(Row(score, group, len(present), averaged(present)))
        if treated:
            rows.append(Row(score, "overall", len(known) + len(unknown), averaged([*map(averaged, treated.values())])))
    return rows


def averaged(metrics: Sequence[dict[str, float]]) -> dict[str, float]:
    """Return the mean of each metric that all have."""
    return {key: mean(each[key] for each in metrics) for key in metrics[0] if all(key in each for each in metrics)}
