"""The schedule of the long-tail literature against the authors' rule."""

import pytest
import torch

from hem.schedulers import WarmUpMultiStepLR


def rates(epochs: int, *args, **kwargs) -> list[float]:
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=0.1)
    schedule = WarmUpMultiStepLR(optimizer, *args, **kwargs)
    found = []
    for _ in range(epochs):
        found.append(schedule.get_last_lr()[0])
        optimizer.step()
        schedule.step()
    return found


def test_the_authors_rule():
    """Cao et al.: epochs from 1; a fifth more in each of the first five, 0.01 behind 160, 0.0001 behind 180."""
    got = rates(200, [160, 180], gamma=0.01, warm_up=5)
    for epoch, rate in enumerate(got, start=1):
        expected = 0.1 * epoch / 5 if epoch <= 5 else 0.1 if epoch <= 160 else 0.001 if epoch <= 180 else 0.00001
        assert rate == pytest.approx(expected, rel=1e-9), epoch


def test_without_a_start_it_is_torchs():
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=0.1)
    schedule = torch.optim.lr_scheduler.MultiStepLR(optimizer, [3, 5], 0.5)
    expected = []
    for _ in range(8):
        expected.append(schedule.get_last_lr()[0])
        optimizer.step()
        schedule.step()
    assert rates(8, [3, 5], gamma=0.5) == pytest.approx(expected)


def test_resumed():
    """The state holds plain values, and goes on where it was."""
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=0.1)
    schedule = WarmUpMultiStepLR(optimizer, [4], warm_up=2)
    for _ in range(3):
        optimizer.step()
        schedule.step()
    other = torch.optim.SGD([torch.zeros(1)], lr=0.1)
    resumed = WarmUpMultiStepLR(other, [4], warm_up=2)
    resumed.load_state_dict(schedule.state_dict())
    other.load_state_dict(optimizer.state_dict())
    other.step()
    resumed.step()
    assert resumed.get_last_lr() == pytest.approx([0.01])


@pytest.mark.parametrize(("milestones", "warm_up"), [([5, 3], 0), ([3], 5), ([3], -1)])
def test_bad_input(milestones, warm_up):
    with pytest.raises(ValueError, match="milestones are epochs in ascending order behind the"):
        rates(1, milestones, warm_up=warm_up)
