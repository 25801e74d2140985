"""LR schedulers that YAML cannot compose from torch's."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, PolynomialLR


class WarmUpMultiStepLR(LRScheduler):
    """A linear start, then drops: the scheduler of the long-tail literature.

    With e the number of the epoch (from 0), w ``warm_up`` epochs and g ``gamma``:

        lr_e = lr (e + 1) / w  for e < w,  else  lr g^k  with k the number of milestones <= e.

    Args:
        optimizer: Its learning rates are those at the full height.
        milestones: Epochs, ascending, from which on the learning rate is multiplied by ``gamma`` once more.
        gamma: The factor.
        warm_up: Epochs of the linear start; 0: none.
        last_epoch: As torch's schedules have it.

    Raises:
        ValueError: The milestones do not ascend, or one lies within the start.

    Source: Cao et al., "Learning imbalanced datasets with label-distribution-aware margin loss", NeurIPS 2019, the
    authors' code: w = 5, milestones 160 and 180 of 200 epochs, g = 0.01.

    Example:
        >>> import torch
        >>> optimizer = torch.optim.SGD([torch.zeros(1)], lr=0.1)
        >>> scheduler = WarmUpMultiStepLR(optimizer, [4, 5], gamma=0.01, warm_up=2)
        >>> rates = []
        >>> for _ in range(6):
        ...     rates.append(round(scheduler.get_last_lr()[0], 6))
        ...     optimizer.step()
        ...     scheduler.step()
        >>> rates
        [0.05, 0.1, 0.1, 0.1, 0.001, 1e-05]
    """

    def __init__(
        self,
        optimizer: Optimizer,
        milestones: Sequence[int],
        gamma: float = 0.1,
        warm_up: int = 0,
        last_epoch: int = -1,
    ) -> None:
        steps = [warm_up, *milestones]
        if warm_up < 0 or any(later < earlier for earlier, later in pairwise(steps)):
            raise ValueError(
                f"milestones are epochs in ascending order behind the {warm_up} of warm_up, but they are "
                f"{list(milestones)}."
            )
        self.milestones = list(milestones)
        self.gamma = gamma
        self.warm_up = warm_up
        super().__init__(optimizer, last_epoch)

    def get_lr(self) -> list[float | Tensor]:
        """The learning rate of each group of parameters in the epoch that begins."""
        if self.last_epoch < self.warm_up:
            factor = (self.last_epoch + 1) / self.warm_up
        else:
            factor = self.gamma ** sum(milestone <= self.last_epoch for milestone in self.milestones)
        return [rate * factor for rate in self.base_lrs]


class PolyLR(PolynomialLR):
    """The poly scheduler, lr (1 - step / total_steps)^power: torch's, told how long the training is.

    Args:
        optimizer: The optimiser.
        total_steps: Steps until the rate is 0; a task puts in those of the whole training where it is null (with
            ``lr_interval: step``).
        power: 0.9 is usual.

    Raises:
        ValueError: If the number of steps is not known.

    Source: Chen et al., "DeepLab", TPAMI 2018, section 4.1.
    """

    def __init__(self, optimizer: Optimizer, total_steps: int | None = None, power: float = 0.9) -> None:
        if total_steps is None:
            raise ValueError("PolyLR needs total_steps, the number of steps until the learning rate is 0.")
        super().__init__(optimizer, total_iters=total_steps, power=power)
