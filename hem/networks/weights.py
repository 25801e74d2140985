"""Weights from a file or from another run: matched by name and shape, said.

A state dict may be wrapped (by data parallelism, by compilation, by another trainer), may hold more than the network
(a classifier where an encoder is wanted), and may be of another network. What fits is found by comparing names and
shapes; what hardly fits is refused.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from inspect import signature
from pathlib import Path
from typing import Any, NamedTuple

import torch
from timm.models import adapt_input_conv
from torch import Tensor, nn

from hem.networks.files import find, read

COUNTER = "num_batches_tracked"  # of BatchNorm: no output depends on it
ENOUGH = 0.9  # share of a network's tensors, the last layer's left out, that have to be in the file
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))  # mean and deviation that torchvision's weights expect

Normalization = tuple[tuple[float, ...], tuple[float, ...]]  # mean and standard deviation of each channel
Convert = Callable[[dict[str, Tensor]], dict[str, Tensor]]


class Start(NamedTuple):
    """What a network started from."""

    source: str  # the file, or the name of published weights
    normalization: Normalization | None = None  # what the weights expect of the pixels; None: not known
    class_names: tuple[str, ...] | None = None  # of the last layer that came with them; None: not known
    fitted: int | None = None  # tensors that were taken; None: a library has taken care of it
    wanted: int = 0  # tensors of the whole network; in both, BatchNorm's counters do not count
    unused: tuple[str, ...] = ()  # tensors of the file without a place
    fresh: tuple[str, ...] = ()  # tensors of the network that the file does not fill

    def __str__(self) -> str:
        """One sentence: what came, what stayed behind, what is new."""
        if self.fitted is None:
            return f"Weights: {self.source}"
        text = f"Weights: {self.fitted} of the network's {self.wanted} tensors from {self.source}"
        text += f"; left out of it: {_listed(self.unused)}" if self.unused else ""
        return text + (f"; begun anew: {_listed(self.fresh)}" if self.fresh else "")


def _listed(names: Sequence[str]) -> str:
    """The layers of some tensors, the first three of them by name."""
    layers = list(dict.fromkeys(name.rpartition(".")[0] or name for name in names))
    more = f" and {len(layers) - 3} more layers" if len(layers) > 3 else ""
    return ", ".join(layers[:3]) + more


def without_start(init_args: Any) -> None:
    """Take what a network starts from out of its arguments, where a checkpoint is to fill it: the file may be gone.

    Args:
        init_args: The arguments of a config, a mapping; it is changed.

    Example:
        >>> arguments = {"name": "resnet18", "pretrained": True}
        >>> without_start(arguments)
        >>> arguments
        {'name': 'resnet18', 'pretrained': False}
    """
    for name, nothing in (("weights", None), ("pretrained", False), ("encoder_weights", None), ("class_order", None)):
        if name in init_args:
            init_args[name] = nothing


class Match(NamedTuple):
    """A way to read the names of a file as those of a network."""

    places: dict[str, Tensor]  # the network's tensors, or those of a part of it
    values: dict[str, Tensor]  # the file's tensors under the network's names, of whatever shape
    names: dict[str, str]  # the file's names of these, without their prefix
    unused: tuple[str, ...]
    prefix: str
    head: tuple[str, ...]  # what the names of the last layer begin with

    def fits(self, name: str) -> bool:
        """Whether the file has a tensor of that name and shape."""
        return name in self.values and self.values[name].shape == self.places[name].shape

    def body(self) -> list[str]:
        """The names that matter: without the last layer and BatchNorm's counters, which no output depends on."""
        return [k for k in self.places if not k.endswith(COUNTER) and not k.startswith(self.head)]

    def share(self) -> float:
        """Share of the body that the file fills."""
        body = self.body()
        return sum(map(self.fits, body)) / len(body) if body else 1.0

    def homeless(self) -> list[str]:
        """The file's tensors in modules that the network has as well, but without a place for them.

        They are layers between the network's own: the file is of a deeper or another one. A network that was cut
        behind one of its stages is none of these, nor is what only the file has: heads, decoders.
        """
        used = [self.names[k].split(".") for k in self.body() if k in self.names]
        tops, seconds = {name[0] for name in used}, {tuple(name[:2]) for name in used}
        found = []
        for name in self.unused:
            parts = name.removeprefix(self.prefix).split(".")
            cut = used and parts[0] == used[-1][0] and tuple(parts[:2]) not in seconds
            if name.startswith(self.prefix) and parts[0] in tops and parts[-1] != COUNTER and not cut:
                found.append(name)
        return found

    def enough(self) -> bool:
        """Whether the file is of this network."""
        return self.share() >= ENOUGH and len(self.homeless()) <= (1 - ENOUGH) * len(self.body())


class Rows(NamedTuple):
    """Which logits of a last layer are wanted."""

    chosen: Sequence[int]  # their places, in the order of the network's own
    total: int | None = None  # of all that there are; None: as many as the layer has

    def fit(self, count: int) -> bool:
        """Whether a layer of so many logits is meant."""
        return count > max(self.chosen) if self.total is None else count == self.total

    @property
    def size(self) -> str:
        """How many logits are expected, in words."""
        return f"{max(self.chosen) + 1} or more" if self.total is None else str(self.total)


def _matches(net: nn.Module, states: Iterable[dict[str, Tensor]], rows: Rows | None) -> Iterator[Match]:
    """Every reading of the file's names: without any of its prefixes, as those of the network or a part of it."""
    head = last_layers(net)
    parts: list[tuple[dict[str, Tensor], tuple[str, ...]]] = [(net.state_dict(), head)]
    for path in ("model", "body", "encoder", "encoder.model"):
        try:
            part = net.get_submodule(path)
        except AttributeError:
            continue
        inside = tuple(name.removeprefix(f"{path}.") for name in head if name.startswith(f"{path}."))
        parts.append((part.state_dict(), inside))
    if callable(layout := getattr(net, "library_layout", None)):
        parts.append(layout())
    for state in states:
        prefixes = {".".join(name.split(".")[:depth]) for name in state for depth in range(4)}
        for prefix in sorted(prefixes, key=lambda each: (len(each), each)):
            start = f"{prefix}." if prefix else ""
            # timm's encoders write stages_0 where the classifier has stages.0
            found = {k.removeprefix(start).replace(".", "_"): k for k in state if k.startswith(start)}
            for places, inside in parts:
                values = {k: state[found[flat]] for k in places if (flat := k.replace(".", "_")) in found}
                if values:
                    names = {k: found[k.replace(".", "_")] for k in values}
                    unused = tuple(k for k in state if k not in names.values())
                    bare = {k: name.removeprefix(start) for k, name in names.items()}
                    yield Match(places, _adapted(values, places, inside, rows), bare, unused, start, inside)


def last_layers(net: nn.Module) -> tuple[str, ...]:
    """What the names of a network's last layer begin with: as it says itself, else its last module with weights."""
    said: tuple[str, ...] | None = getattr(net, "last_layers", None)
    if said is not None:
        return said
    leaves = [name for name, module in net.named_modules() if list(module.parameters(recurse=False))]
    return (f"{leaves[-1]}.",) if leaves and leaves[-1] else ()


def renew(net: nn.Module) -> tuple[str, ...]:
    """Begin a network's last layer anew; return the names of its tensors."""
    head = last_layers(net)
    for name, module in net.named_modules():
        if f"{name}.".startswith(head) and callable(reset := getattr(module, "reset_parameters", None)):
            reset()
    return tuple(name for name in net.state_dict() if name.startswith(head))


def load_weights(
    net: nn.Module,
    weights: str | Path,
    normalization: Normalization | None = None,
    convert: Convert | None = None,
    rows: Rows | None = None,
) -> Start:
    """Start a network from a file's weights, or from another run's.

    Names are compared without wrappers such as ``module.``; where the file is of a classifier and the network has an
    encoder, the encoder is filled. The last layer is taken where it has the same shape. A first convolution over 3
    channels is brought to the network's. What it began with is kept as ``net.start``, from which a task takes the
    normalisation and the names of the classes.

    Args:
        net: Any network; it is changed.
        weights: A ``.safetensors`` file, a file of ``torch.save``, the folder of a run or of a hub's model.
        normalization: What the weights expect, where the file does not say so (checkpoints of runs do).
        convert: Brings the names and shapes of a library's older or foreign files to its own.
        rows: Which logits of the file's last layer are the network's; None: all.

    Returns:
        What fitted.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is damaged, no state dict, holds NaN, fits less than 9 in 10 of the network's tensors (its
            last layer's left out), or has more than 1 in 10 of them between its own.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> from hem.networks import LeNet
        >>> with TemporaryDirectory() as folder:
        ...     torch.save({"module." + k: v for k, v in LeNet(10).state_dict().items()}, f"{folder}/lenet.pth")
        ...     start = load_weights(LeNet(7), f"{folder}/lenet.pth")
        >>> start.fitted, start.fresh
        (15, ('head.weight', 'head.bias'))
    """
    path = find(weights)
    if path is None:
        raise FileNotFoundError(
            f"Expected the path of a state dict (.safetensors, .pth) or of a run's folder as weights, got '{weights}': "
            "give a path; names of published weights are for networks of a library."
        )
    state, content = read(path)
    states = [state]
    if convert is not None:
        try:
            states.append(convert(_unwrapped(state)))
        except Exception:  # a file of another network, on which a library's conversion stumbles in its own way
            states = [state]
    best = max(_matches(net, states, rows), key=lambda m: (m.enough(), sum(map(m.fits, m.places))), default=None)
    if best is None or not best.enough() or not any(map(best.fits, best.places)):
        raise ValueError(_refusal(net, path, state, best))
    taken = [name for name in best.places if best.fits(name)]
    # masks of attention are -inf, and right
    if broken := [name for name in taken if (best.values[name].isnan() | best.values[name].isposinf()).any()]:
        raise ValueError(
            f"Expected numbers as weights, got NaN or infinity in {_listed(broken)} of {path}: take an earlier "
            "checkpoint of that training."
        )
    with torch.no_grad():
        for name in taken:
            best.places[name].copy_(best.values[name])
    filled = {best.places[name].data_ptr() for name in taken}
    names = content.get("class_names")
    brought = any(name.startswith(best.head) for name in taken)
    start = Start(
        source=str(path),
        normalization=_normalization(state) or normalization,
        class_names=tuple(names) if brought and rows is None and isinstance(names, list) else None,
        fitted=sum(not name.endswith(COUNTER) for name in taken),
        wanted=sum(not name.endswith(COUNTER) for name in net.state_dict()),
        unused=tuple(name for name in best.unused if not name.startswith("net.normalize.")),
        fresh=tuple(
            name
            for name, value in net.state_dict().items()
            if value.data_ptr() not in filled and not name.endswith(COUNTER)
        ),
    )
    net.start = start  # type: ignore[assignment]
    return start


def _unwrapped(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The names without what trainers put before them, for a library's own conversion."""
    found = {}
    for name, value in state.items():
        for wrapper in ("_orig_mod.", "module.", "net.backbone.", "body."):
            name = name.removeprefix(wrapper)
        found[name] = value
    return found


def _adapted(
    values: dict[str, Tensor], places: Mapping[str, Tensor], head: tuple[str, ...], rows: Rows | None
) -> dict[str, Tensor]:
    """Bring a first convolution over 3 channels to the network's, as timm does, and the last layer to its classes."""
    for name, value in values.items():
        place = places[name]
        if rows is not None and name.startswith(head):
            # without a place where the order is of another layer: the network's own begins anew
            values[name] = value[list(rows.chosen)] if value.ndim and rows.fit(len(value)) else value.new_empty(0)
        elif value.ndim == 4 == place.ndim and value.shape[1] == 3 and value[:, 0].shape == place[:, 0].shape:
            values[name] = adapt_input_conv(place.shape[1], value)  # as it is where the network's takes 3 as well
    return values


def _normalization(state: Mapping[str, Tensor]) -> Normalization | None:
    """The normalisation that a checkpoint of a run brings."""
    try:
        mean, std = (state[f"net.normalize.{key}"].flatten().tolist() for key in ("mean", "std"))
    except KeyError:
        return None
    return tuple(mean), tuple(std)


def for_channels(normalization: Normalization, channels: int) -> Normalization:
    """The normalisation of 3 channels for images of another number of channels: the mean of them for each.

    Example:
        >>> for_channels(((0.25, 0.5, 0.75), (0.5, 0.5, 0.5)), 1)
        ((0.5,), (0.5,))
    """
    mean, std = normalization
    if len(mean) == channels:
        return normalization
    return (sum(mean) / len(mean),) * channels, (sum(std) / len(std),) * channels


def _refusal(net: nn.Module, path: Path, state: Mapping[str, Tensor], best: Match | None) -> str:
    """What is said of a file that hardly fits."""
    kind = getattr(net, "name", None) or type(net).__name__
    if best is None:
        found = f"whose names are others ({', '.join(list(state)[:2])}, ...)"
    else:
        body = best.body()
        fitting = sum(map(best.fits, body))
        unfit = next((k for k in body if k in best.values and not best.fits(k)), None)
        why = f"it lacks {next((k for k in body if k not in best.values), '')}"
        if best.share() >= ENOUGH:
            why = f"but there is no place for {_listed(best.homeless())}"
        elif unfit is not None:
            why = f"{unfit} has shape {tuple(best.values[unfit].shape)}, not {tuple(best.places[unfit].shape)}"
        found = f"that fills {fitting} of {len(body)} tensors ({why})"
    return (
        f"Expected weights of {kind}, got {path}, {found}: give a file of this network, or the network that this file "
        "is of."
    )


def library_conversion(body: nn.Module) -> Convert | None:
    """What timm does to foreign and older files of a network: other frameworks' names, position embeddings resized.

    By timm's convention it stands in the network's own file, under one of a few names.
    """
    if not type(body).__module__.startswith("timm."):
        return None
    file = sys.modules[type(body).__module__]
    for name in ("checkpoint_filter_fn", "_filter_fn"):
        if (convert := getattr(file, name, None)) is not None:
            # some take the names alone
            return partial(convert, model=body) if "model" in signature(convert).parameters else convert
    return None
