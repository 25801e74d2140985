"""Templates of metric keys, which make keys from their parts and parse them back.

A key is ``<stage>/<path>`` or ``<stage>/<variant>/<path>``: ``val/accuracy``, ``test/auroc/msp/kmnist``,
``test/calibrated/nll``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from types import MappingProxyType
from typing import Literal, NamedTuple

Direction = Literal["higher", "lower"]  # which way is better
Unit = Literal["", "share", "nats", "logits", "pixels", "classes", "images", "samples", "sets", "tasks"]

#: what a key's first word says of the metric, behind its title
STAGES = {
    "train": "of training batches",
    "val": "of validation, best epoch",
    "test": "",
    "stream": "behind each task",
}
#: the probabilities, logits or samples that a metric is of, where those of the network itself have it as well
VARIANTS = {
    "": "",
    "calibrated": "after calibration",
    "train_prior": "under the training prior",
    "train_prior/calibrated": "after calibration, under the training prior",
    "adjusted": "of adjusted logits",
    "tau_normalized": "of the tau-normalised last layer",
}
#: how the parts of keys read in titles
WORDS: dict[str, dict[str, str]] = {
    "norm": {"linf": "L∞", "l2": "L2"},
    "eps": {"mean": "mean of the curve"},
    "attack": {"worst": "all attacks", "clean": "no attack", "autoattack": "AutoAttack"},
    "group": {"_common": "the 15 common", "_extra": "the 4 extra", "": "mean of all"},
    "score": {
        "max_logit": "largest logit",
        "msp": "softmax",
        **{
            f"{score}_calibrated": f"calibrated {score.replace('msp', 'softmax')}"
            for score in ("msp", "energy", "entropy")
        },
    },
    "set": {
        "seven": "seven unknown sets",
        "near": "near sets",
        "far": "far sets",
        "novel": "novel classes",
        "unrecognisable": "unrecognisable images",
    },
}
WORD = r"[^/]+"
#: what a part of a key may be, where it is not one word without a slash
_PATTERNS = {
    **dict.fromkeys(("name", "set"), ".+"),
    **dict.fromkeys(("severity", "task", "after", "factor"), r"\d+"),
    "eps": r"[\d.e+-]+|mean",
    "group": "|_common|_extra",
    "shot": "many|medium|few",
}


class Metric(NamedTuple):
    """A metric key with its title, direction and unit."""

    key: str  #: as a task logs it, ``test/robust_accuracy/linf/0.1/worst``
    title: str
    direction: Direction | None = None  #: which way is better; None: neither
    unit: Unit = ""
    comparable: bool = True  #: whether runs of different losses can be compared by it
    template: Template | None = None  #: None: a metric that is not in the catalogue
    stage: str = ""
    variant: str = ""  #: one of :data:`VARIANTS`
    parts: Mapping[str, str] = MappingProxyType({})  #: of the path: ``{"norm": "linf", "eps": "0.1", ...}``

    @property
    def higher(self) -> bool | None:
        """Whether more is better when losses are compared; None: neither."""
        return None if self.direction is None or not self.comparable else self.direction == "higher"

    @property
    def percent(self) -> bool:
        """Whether it is a share, shown in percent."""
        return self.unit == "share"

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
        """Title, unit and direction, as tables and plots have them."""
        unit = "%" if self.percent else self.unit
        return f"{self.title}{unit and f' in {unit}'} {self.arrow}".strip()


def parts_of(path: str) -> list[str]:
    """Return the parts of a template's path that differ from key to key.

    Example:
        >>> parts_of("robust_accuracy/{norm}/{eps}/{attack}")
        ['norm', 'eps', 'attack']
    """
    return re.findall(r"{(\w+)}", path)


@dataclass(frozen=True)
class Template:
    """A metric and the pattern of its keys.

    Args:
        path: The key behind stage and variant; parts that differ from key to key stand in braces.
        title: In words, with the same parts.
        direction: Which way is better; None: neither.
        unit: ``"share"`` for numbers that are shown in percent.
        comparable: Whether runs of different losses can be compared by it.
    """

    path: str
    title: str
    direction: Direction | None = None
    unit: Unit = ""
    comparable: bool = True

    def key(self, stage: str = "", variant: str = "", **parts: object) -> str:
        """Return the key of a stage and variant, for the parts of the path; numbers as short as they can be.

        Raises:
            ValueError: The parts are others than those of the path.

        Example:
            >>> robust = Template("robust_accuracy/{norm}/{eps}/{attack}", "robust accuracy, {attack}, {norm}: {eps}")
            >>> robust.key("test", norm="linf", eps=0.10, attack="worst")
            'test/robust_accuracy/linf/0.1/worst'
            >>> Template("nll", "negative log-likelihood").key("test", "calibrated")
            'test/calibrated/nll'
        """
        if sorted(parts) != (wanted := sorted(parts_of(self.path))):
            raise ValueError(f"Expected the parts {wanted} of {self.path}, got {sorted(parts)}.")
        words = {name: f"{part:g}" if isinstance(part, float) else str(part) for name, part in parts.items()}
        return "/".join(filter(None, (stage, variant, self.path.format(**words))))

    @cached_property
    def _pattern(self) -> re.Pattern[str]:
        path = re.sub(r"{(\w+)}", lambda part: f"(?P<{part[1]}>{_PATTERNS.get(part[1], WORD)})", self.path)
        return re.compile(f"(?P<stage>{'|'.join(STAGES)})/(?:(?P<variant>{'|'.join(filter(None, VARIANTS))})/)?{path}")

    def match(self, key: str) -> Metric | None:
        """Return the metric of a key; None where the key is of another template.

        Example:
            >>> robust = Template("robust_accuracy/{norm}/{eps}/{attack}", "robust accuracy, {attack}, {norm}: {eps}")
            >>> robust.match("test/robust_accuracy/linf/0.1/worst").parts
            {'norm': 'linf', 'eps': '0.1', 'attack': 'worst'}
        """
        found = self._pattern.fullmatch(key)
        if found is None:
            return None
        parts = found.groupdict()
        stage, variant = parts.pop("stage"), parts.pop("variant") or ""
        words = {name: WORDS.get(name, {}).get(part, part) for name, part in parts.items()}
        title = " ".join(filter(None, (self.title.format(**words), VARIANTS[variant], STAGES[stage])))
        return Metric(key, title, self.direction, self.unit, self.comparable, self, stage, variant, parts)
