"""Metrics of continual learning: average accuracy, forgetting, backward and forward transfer."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torchmetrics import Metric

from hem.metrics import catalog
from hem.metrics.samples import wide

Row = list[float]  # accuracy on each of the T tasks, in [0, 1]


def transfer(matrix: list[Row], baseline: Row | None = None) -> dict[str, float]:
    """Return the transfer metrics of an accuracy matrix. R_{k,i} is the accuracy on task i after learning task k.

    Behind task k (tasks counted from 1):

    * ``average_accuracy``  A_k = 1 / k sum_{i <= k} R_{k,i} (ACC)
    * ``average_incremental_accuracy``  1 / k sum_{l <= k} A_l
    * ``forgetting``  1 / (k-1) sum_{i < k} (max_{l < k} R_{l,i} - R_{k,i})
    * ``backward_transfer``  1 / (k-1) sum_{i < k} (R_{k,i} - R_{i,i}) (BWT)
    * ``forward_transfer``  1 / (k-1) sum_{1 < i <= k} (R_{i-1,i} - b_i) (FWT), b the untrained network's accuracy

    Args:
        matrix: k rows, one behind each task so far; each with the accuracy on all T >= k tasks.
        baseline: b, of the network before any training; None: no ``forward_transfer``.

    Returns:
        The metrics by name; those over earlier tasks from the second task on.

    Raises:
        ValueError: No row, more rows than tasks, or rows of different lengths.

    Source:
        ACC, BWT, FWT: Lopez-Paz & Ranzato, "Gradient episodic memory for continual learning", NeurIPS 2017,
        section 2. Forgetting: Chaudhry et al., "Riemannian walk for incremental learning", ECCV 2018,
        section 2.2. Average incremental accuracy: Rebuffi et al., "iCaRL", CVPR 2017, section 4.1.

    Example:
        >>> transfer([[0.9, 0.2], [0.5, 0.8]], baseline=[0.1, 0.1])
        {'average_accuracy': 0.65, 'average_incremental_accuracy': 0.775, 'forgetting': 0.4,
         'backward_transfer': -0.4, 'forward_transfer': 0.1}
    """
    rows = torch.tensor(matrix, dtype=torch.float64)
    if rows.ndim != 2 or not 1 <= rows.shape[0] <= rows.shape[1] or (baseline and len(baseline) != rows.shape[1]):
        raise ValueError(
            f"Expected rows of T accuracies, one row behind each of at most T tasks, got {len(matrix)} rows of "
            f"{sorted({len(row) for row in [*matrix, *([baseline] if baseline else [])]})} entries: "
            "give a row of T numbers behind each task."
        )
    last = len(rows) - 1
    averages = torch.stack([rows[k, : k + 1].mean() for k in range(last + 1)])
    found = {catalog.AVERAGE_ACCURACY.path: averages[-1], catalog.INCREMENTAL_ACCURACY.path: averages.mean()}
    if last:
        before = rows[:last, :last]
        found[catalog.FORGETTING.path] = (before.amax(0) - rows[last, :last]).mean()
        found[catalog.BACKWARD_TRANSFER.path] = (rows[last, :last] - before.diagonal()).mean()
        if baseline:
            ahead = rows.diagonal(1)[:last]
            found[catalog.FORWARD_TRANSFER.path] = (ahead - ahead.new_tensor(baseline)[1 : last + 1]).mean()
    return {name: round(float(value), 12) for name, value in found.items()}


def row_metrics(stage: str, row: Row, after: int | None = None) -> dict[str, float]:
    """Return a row of an accuracy matrix by key; a task without samples has none.

    Args:
        stage: ``"stream"`` or ``"test"``.
        row: The accuracy on each task.
        after: The number of tasks that were learnt; None: it is not part of the key.

    Example:
        >>> row_metrics("test", [0.5, float("nan")]), row_metrics("test", [0.5], after=2)
        ({'test/accuracy/1': 0.5}, {'test/accuracy_after/2/1': 0.5})
    """
    found = {task: accuracy for task, accuracy in enumerate(row, 1) if not math.isnan(accuracy)}
    if after is None:
        return {catalog.TASK_ACCURACY.key(stage, task=task): accuracy for task, accuracy in found.items()}
    return {catalog.MATRIX.key(stage, after=after, task=task): accuracy for task, accuracy in found.items()}


class TaskAccuracy(Metric):
    """The accuracy on each task of a stream, over batches and processes: (T,), NaN for a task without a sample.

    Args:
        tasks: T.

    Example:
        >>> accuracy = TaskAccuracy(3)
        >>> accuracy.update(torch.tensor([True, False, True]), torch.tensor([0, 0, 1]))
        >>> accuracy.compute().tolist(), accuracy.whole().item()
        ([0.5, 1.0, nan], 0.6666666666666666)
    """

    right: Tensor
    samples: Tensor

    def __init__(self, tasks: int) -> None:
        super().__init__()
        for name in ("right", "samples"):
            self.add_state(name, torch.zeros(tasks, dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, right: Tensor, tasks: Tensor) -> None:
        """Take samples: what is classified rightly, (N,) bool, and their tasks (N,)."""
        count = len(self.samples)
        self.right = self.right + torch.bincount(tasks[right], minlength=count)
        self.samples = self.samples + torch.bincount(tasks, minlength=count)

    def compute(self) -> Tensor:
        """The accuracy on each task."""
        return wide(self.right) / wide(self.samples)

    def whole(self) -> Tensor:
        """Return the accuracy on all samples of all processes, a scalar."""
        with self.sync_context(should_sync=torch.distributed.is_available() and torch.distributed.is_initialized()):
            return wide(self.right).sum() / wide(self.samples).sum()
