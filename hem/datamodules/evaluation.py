"""What a test goes through."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from hem.datamodules.images import Images


@dataclass(frozen=True, eq=False)
class EvaluationSet:
    """Images that are examined: a task hands them to the data module, whose ``test_dataloader`` gives them all."""

    name: str
    kind: str  #: such as ``clean``, ``corrupt``, ``novel``
    images: Images
    index: Tensor  #: the positions of those to look at, (N,) int64
