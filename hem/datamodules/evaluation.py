"""Sets of images that a test evaluates."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from hem.datamodules.images import Images


@dataclass(frozen=True, eq=False)
class EvaluationSet:
    """Images to evaluate: a task gives a list of such sets to the data module, whose loaders serve them in a test."""

    name: str
    kind: str  #: such as ``clean``, ``corrupt``, ``novel``
    images: Images
    index: Tensor  #: positions of the images to evaluate, (N,) int64
