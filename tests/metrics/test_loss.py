"""Losses of single samples."""

import pytest
import torch
from torch import nn

from hem.attacks import loss_objective
from hem.losses import LOSSES, HEMLoss
from hem.metrics import MeanLoss, sample_losses


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_class_weights_of_the_models_precision(dtype):
    """Lightning converts the loss with the model (64-true, bf16-true); logits are measured in float32."""
    logits, target = torch.randn(6, 3), torch.tensor([0, 1, 2, 2, 1, -100])
    criterion = nn.CrossEntropyLoss(weight=torch.tensor([1.0, 2.0, 0.5]).to(dtype))
    expected = nn.functional.cross_entropy(logits, target, criterion.weight.float(), reduction="none")
    torch.testing.assert_close(sample_losses(criterion, logits, target), expected)
    assert criterion.weight.dtype == dtype
    assert criterion.reduction == "mean"


def test_dice_is_of_the_batch_whatever_its_size():
    """Without reduction it gives a number of each class, which as many samples do not make one of each sample."""
    criterion, target = LOSSES["dice"](weight=[1.0, 2.0, 3.0, 4.0]), torch.tensor([0, 1, 2, 2])
    assert sample_losses(criterion, torch.randn(4, 4), target) is None
    found = MeanLoss(criterion)
    found.update(torch.eye(4), target)
    assert found.compute().keys() == {"loss"}
    torch.testing.assert_close(found.compute()["loss"].float(), criterion(torch.eye(4), target))
    torch.testing.assert_close(
        loss_objective(criterion)(torch.eye(4), target), criterion(torch.eye(4), target).expand(4) / 4
    )


@pytest.mark.parametrize(
    "criterion", [nn.CrossEntropyLoss(), HEMLoss(), LOSSES["dice"]()], ids=lambda each: type(each).__name__
)
def test_rows_of_zero_probabilities_are_no_samples(criterion):
    logits, target = torch.randn(5, 3), torch.tensor([0, 1, 2, 2, 1])
    soft = nn.functional.one_hot(target, 3).float()
    wanted, found = MeanLoss(criterion), MeanLoss(criterion)
    wanted.update(logits, target)
    found.update(torch.cat([logits, torch.ones(2, 3)]), torch.cat([soft, torch.zeros(2, 3)]))
    torch.testing.assert_close(found.compute(), wanted.compute())
