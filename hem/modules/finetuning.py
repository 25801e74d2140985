"""Fine-tuning: normalisation of the weights, new last layer, layer-wise learning rates, frozen encoder."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Literal, NamedTuple

from lightning.pytorch.utilities import rank_zero_only
from timm.models import group_parameters
from torch import nn

from hem.networks import Normalize, Start
from hem.networks.weights import for_channels, renew


class Group(NamedTuple):
    """Parameters that share a learning rate."""

    params: list[nn.Parameter]
    scale: float  # of the optimiser's learning rate


def encoder_of(net: nn.Module) -> nn.Module:
    """Return the encoder of a network, its attribute ``encoder``.

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


def prepare_encoder(net: nn.Module, encoder_lr: float, layer_decay: float, frozen_epochs: int | Literal["all"]) -> None:
    """Check the fine-tuning arguments of :class:`~hem.modules.base.Task`; freeze an encoder for good.

    Raises:
        ValueError: A number is out of its range, or the network has no encoder that it could be meant for.
    """
    if encoder_lr <= 0:
        raise ValueError(
            f"Expected encoder_lr, a factor of the learning rate, above 0, got {encoder_lr}: 0.1 is usual."
        )
    if not 0 < layer_decay <= 1:
        raise ValueError(
            f"Expected layer_decay, a factor of the learning rate, in (0, 1], got {layer_decay}: 1 leaves it out."
        )
    if frozen_epochs != "all" and frozen_epochs < 0:
        raise ValueError(
            f"Expected frozen_epochs as a number of 0 or more, or all, got {frozen_epochs}: 0 freezes nothing."
        )
    if frozen_epochs or (encoder_lr, layer_decay) != (1, 1):
        encoder = encoder_of(net)
        if frozen_epochs == "all":
            encoder.requires_grad_(False)


def depths(encoder: nn.Module) -> dict[str, int]:
    """Return the layer of each parameter, counted from the input: timm's own grouping where the encoder has one.

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
    """Return the parameters of a network by learning rate, the slowest first.

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


def normalization(net: nn.Module, of_data: tuple[Sequence[float], Sequence[float]] | None) -> Normalize | None:
    """Return the normalisation that a network's weights expect of the pixels, else the data's, else none."""
    start: Start | None = getattr(net, "start", None)
    if start is None or start.normalization is None:
        return None if of_data is None else Normalize(*of_data)
    expected = start.normalization
    return Normalize(*(expected if of_data is None else for_channels(expected, len(of_data[0]))))


def begin(net: nn.Module, normalize: Normalize | None, class_names: Sequence[str] | None) -> None:
    """Print what a network started from; reset the last layer where its classes were others."""
    start: Start | None = getattr(net, "start", None)
    if start is None:
        return
    sentences, fresh = [str(start)], start.fresh
    if start.class_names is not None and class_names is not None and start.class_names != tuple(class_names):
        fresh += renew(net)
        sentences.append("Its last layer is begun anew, for its classes were others.")
    # once: what another task is given has learnt since
    net.start = start._replace(class_names=None, fresh=fresh)  # type: ignore[assignment]
    if normalize is not None:
        channels = normalize.mean.shape[1]
        theirs = start.normalization and Normalize(*for_channels(start.normalization, channels)).extra_repr()
        expected = theirs == normalize.extra_repr()
        whose = "these weights expect it" if expected else "the data or the config has it"
        sentences.append(f"Pixels are normalised as {whose}: {normalize.extra_repr()}.")
    if getattr(rank_zero_only, "rank", 0) == 0:
        print(*sentences, sep="\n")


def hold(encoder: nn.Module, frozen: bool, paused: list[str], waits_for_gradients: bool) -> list[str]:
    """Freeze an encoder for an epoch, BatchNorm statistics and dropout included, or unfreeze it.

    Args:
        encoder: The encoder.
        frozen: Whether it stands still.
        paused: The parameters that stand still for now, as the call before gave them.
        waits_for_gradients: Whether the processes of the training wait for the gradients of all parameters.

    Returns:
        The parameters that stand still and will learn.

    Raises:
        ValueError: If processes would wait for gradients that do not come.
    """
    encoder.train(not frozen)
    if frozen == bool(paused):
        return paused
    if frozen and waits_for_gradients:
        raise ValueError(
            "Expected processes that do not wait for the gradients of an encoder that stands still for some epochs, "
            "got DDP, which does: set trainer.strategy to ddp_find_unused_parameters_true, or frozen_epochs to 0 or "
            "all."
        )
    parameters = dict(encoder.named_parameters())
    learning = [name for name, p in parameters.items() if p.requires_grad] if frozen else paused
    for name in learning:
        parameters[name].requires_grad_(not frozen)
    return learning if frozen else []
