"""Losses of single samples."""

import pytest
import torch
from torch import nn

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
