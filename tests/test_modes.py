"""Tests of evaluation mode for a while: what a network is afterwards, also behind an exception."""

import pytest
from torch import nn

from hem.attacks import attacking
from hem.modes import evaluating


def mixed() -> nn.Sequential:
    """A network in training mode but for a part of it, with a weight that does not learn."""
    net = nn.Sequential(nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4)).eval(), nn.Dropout(), nn.Linear(4, 2))
    net[2].bias.requires_grad_(False)
    return net


def state(net: nn.Module) -> tuple[list[bool], list[bool]]:
    return [module.training for module in net.modules()], [p.requires_grad for p in net.parameters()]


@pytest.mark.parametrize("manager", [evaluating, attacking])
@pytest.mark.parametrize("freeze", [False, True])
@pytest.mark.parametrize("fails", [False, True])
def test_every_module_and_weight_comes_back_as_it_was(manager, freeze, fails):
    net = mixed()
    before = state(net)
    assert len(set(before[0])) == len(set(before[1])) == 2
    try:
        with manager(net, freeze):
            modes, learning = state(net)
            assert not any(modes)
            assert learning == ([False] * len(learning) if freeze else before[1])
            if fails:
                raise KeyError
    except KeyError:
        assert fails
    assert state(net) == before


def test_what_another_sets_meanwhile_comes_back_too():
    """As Lightning's loops do, and tasks that freeze an encoder."""
    net = mixed()
    before = state(net)
    with evaluating(net):
        net.train().requires_grad_(False)
    assert state(net) == before


def test_evaluations_within_each_other():
    net = mixed()
    before = state(net)
    with evaluating(net):
        with evaluating(net, freeze=True):
            pass
        assert state(net) == ([False] * len(before[0]), before[1])
    assert state(net) == before
