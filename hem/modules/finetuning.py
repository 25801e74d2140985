"""Learning rates by depth: the parameters of a network in groups, for training that starts from weights."""

from __future__ import annotations

import re
from typing import NamedTuple

from timm.models import group_parameters
from torch import nn


class Group(NamedTuple):
    """Parameters that are trained at the same rate."""

    params: list[nn.Parameter]
    scale: float  # of the optimiser's learning rate


def encoder_of(net: nn.Module) -> nn.Module:
    """The part of a network that features come from: its attribute ``encoder``.

    Raises:
        ValueError: It has none.
    """
    encoder = getattr(net, "encoder", None)
    if not isinstance(encoder, nn.Module):
        raise ValueError(
            f"encoder_lr, layer_decay and frozen_epochs need a network whose encoder is its attribute `encoder`, which "
            f"{type(net).__name__} has not: leave them at 1, 1 and 0, or give your network that attribute."
        )
    return encoder


def depths(encoder: nn.Module) -> dict[str, int]:
    """The layer of each parameter, counted from the input: timm's own grouping where the encoder has one.

    Otherwise a layer is what shares the name up to its first numbered part: ``encoder.layers.encoder_layer_3``,
    ``layer2``, ``features.5``; layers follow each other as they were registered.

    Args:
        encoder: Any module.

    Example:
        >>> net = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2, bias=False))
        >>> depths(net)
        {'0.weight': 0, '0.bias': 0, '2.weight': 1}
    """
    names = [name for name, _ in encoder.named_parameters()]
    if callable(matcher := getattr(encoder, "group_matcher", None)):
        layers = group_parameters(encoder, matcher(coarse=False), reverse=True)
        return {name: int(layers[name]) for name in names}
    layer = {name: (re.match(r".*?\d+(?=\.)", name) or [name.rpartition(".")[0]])[0] for name in names}
    order = {key: place for place, key in enumerate(dict.fromkeys(layer.values()))}
    return {name: order[layer[name]] for name in names}


def groups(net: nn.Module, encoder_lr: float, layer_decay: float) -> list[Group]:
    """The parameters of a network by learning rate, the slowest first.

    The encoder's layer l of L (from 0, the nearest to the input) is trained at

        scale_l = encoder_lr * layer_decay^(L - l),

    everything behind the encoder at 1. Parameters that share a rate share a group.

    Args:
        net: A network with an ``encoder``; it may stand anywhere within it.
        encoder_lr: Above 0.
        layer_decay: In (0, 1].

    Source: Clark et al., "ELECTRA", ICLR 2020, appendix A; for images Bao et al., "BEiT", ICLR 2022, with 0.65 to 0.85.
    """
    encoder = encoder_of(net)
    layers = depths(encoder)
    count = max(layers.values(), default=-1) + 1
    scale = {
        id(parameter): encoder_lr * layer_decay ** (count - layers[name])
        for name, parameter in encoder.named_parameters()
    }
    found: dict[float, list[nn.Parameter]] = {}
    for parameter in net.parameters():
        found.setdefault(scale.get(id(parameter), 1.0), []).append(parameter)
    return [Group(found[each], each) for each in sorted(found)]
