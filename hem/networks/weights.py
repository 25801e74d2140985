"""Starting a network from the weights of a file or run, matched by name and shape.

A state dict may have prefixes (of data parallelism, compilation, another trainer), hold more than the network (a
classifier for an encoder), or be of another network. Tensors are matched by names and shapes; if few match, it is an
error.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from inspect import signature
from pathlib import Path
from typing import Any, NamedTuple

import timm
import torch
from timm.models import adapt_input_conv
from torch import Tensor, nn

from hem.networks.files import find, read

COUNTER = "num_batches_tracked"  # of BatchNorm: outputs do not depend on it
ENOUGH = 0.9  # share of a network's tensors, without the last layer's, that must be in the file
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))  # mean and deviation that torchvision's weights expect

Normalization = tuple[tuple[float, ...], tuple[float, ...]]  # mean and standard deviation of each channel
Convert = Callable[[dict[str, Tensor]], dict[str, Tensor]]


class Start(NamedTuple):
    """What a network started from, as :func:`load_weights` returns it."""

    source: str  # the file, or the name of published weights
    normalization: Normalization | None = None  # normalisation that the weights expect; None: unknown
    class_names: tuple[str, ...] | None = None  # classes of a last layer that was loaded; None: unknown
    fitted: int | None = None  # loaded tensors; None: loaded by a library
    wanted: int = 0  # tensors of the whole network; both without BatchNorm's counters
    unused: tuple[str, ...] = ()  # tensors of the file that were not used
    fresh: tuple[str, ...] = ()  # tensors of the network that are not from the file

    def __str__(self) -> str:
        """Return a sentence on which tensors were loaded, not used, and new."""
        if self.fitted is None:
            return f"Weights: {self.source}"
        text = f"Weights: {self.fitted} of the network's {self.wanted} tensors from {self.source}"
        text += f"; left out of it: {_listed(self.unused)}" if self.unused else ""
        return text + (f"; begun anew: {_listed(self.fresh)}" if self.fresh else "")


def _listed(names: Sequence[str]) -> str:
    """Return the layers of some tensors as text, the first three of them by name."""
    layers = list(dict.fromkeys(name.rpartition(".")[0] or name for name in names))
    more = f" and {len(layers) - 3} more layers" if len(layers) > 3 else ""
    return ", ".join(layers[:3]) + more


def without_start(init_args: Any) -> None:
    """Remove the weights to start from from a network's arguments, since a checkpoint follows and the file may be gone.

    Args:
        init_args: Arguments in a config, a mapping; changed in place.

    Example:
        >>> arguments = {"name": "resnet18", "pretrained": True}
        >>> without_start(arguments)
        >>> arguments
        {'name': 'resnet18', 'pretrained': False}
    """
    named = f"{init_args.get('name')}.{init_args.get('weights')}"
    if init_args.get("source") == "auto" and named in timm.list_pretrained(f"{init_args['name']}.*"):
        init_args["source"] = "timm"  # whose network it is, as the tag of the weights said
    for name, nothing in (("weights", None), ("pretrained", False), ("encoder_weights", None), ("class_order", None)):
        if name in init_args:
            init_args[name] = nothing


class Match(NamedTuple):
    """A candidate mapping of the names in a file to those of a network."""

    places: dict[str, Tensor]  # the network's tensors, or those of a part of it
    values: dict[str, Tensor]  # the file's tensors by the network's names, of any shape
    names: dict[str, str]  # their names in the file, without the prefix
    unused: tuple[str, ...]
    prefix: str
    head: tuple[str, ...]  # prefixes of the names of the last layer

    def fits(self, name: str) -> bool:
        """Return whether the file has a tensor of that name and shape."""
        return name in self.values and self.values[name].shape == self.places[name].shape

    def body(self) -> list[str]:
        """Names of the network without the last layer and BatchNorm's counters."""
        return [k for k in self.places if not k.endswith(COUNTER) and not k.startswith(self.head)]

    def share(self) -> float:
        """Share of the body that is in the file."""
        body = self.body()
        return sum(map(self.fits, body)) / len(body) if body else 1.0

    def homeless(self) -> list[str]:
        """Tensors of the file that belong to modules of the network which have no such tensor.

        They belong to layers between the network's own: the file is of a deeper or another network. Modules that only
        the file has (later stages, heads, decoders) do not count.
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
        """Whether enough of the network is in the file, and not too much else."""
        return self.share() >= ENOUGH and len(self.homeless()) <= (1 - ENOUGH) * len(self.body())


class Rows(NamedTuple):
    """Choice of the logits of a last layer."""

    chosen: Sequence[int]  # their positions, in the order of the network's logits
    total: int | None = None  # number of logits of the layer; None: any

    def fit(self, count: int) -> bool:
        """Return whether the choice is for a layer of so many logits."""
        return count > max(self.chosen) if self.total is None else count == self.total

    @property
    def size(self) -> str:
        """The expected number of logits as text."""
        return f"{max(self.chosen) + 1} or more" if self.total is None else str(self.total)


def _matches(net: nn.Module, states: Iterable[dict[str, Tensor]], rows: Rows | None) -> Iterator[Match]:
    """Yield candidate matches: names without each prefix, compared with the whole network and with its parts."""
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
            # timm's encoders have stages_0 for the classifier's stages.0
            found = {k.removeprefix(start).replace(".", "_"): k for k in state if k.startswith(start)}
            for places, inside in parts:
                values = {k: state[found[flat]] for k in places if (flat := k.replace(".", "_")) in found}
                if values:
                    names = {k: found[k.replace(".", "_")] for k in values}
                    unused = tuple(k for k in state if k not in names.values())
                    bare = {k: name.removeprefix(start) for k, name in names.items()}
                    yield Match(places, _adapted(values, places, inside, rows), bare, unused, start, inside)


def last_layers(net: nn.Module) -> tuple[str, ...]:
    """Return the prefixes of names of a network's last layer: as it says itself, else its last module with weights."""
    said: tuple[str, ...] | None = getattr(net, "last_layers", None)
    if said is not None:
        return said
    leaves = [name for name, module in net.named_modules() if list(module.parameters(recurse=False))]
    return (f"{leaves[-1]}.",) if leaves and leaves[-1] else ()


def renew(net: nn.Module) -> tuple[str, ...]:
    """Initialise a network's last layer, and return the names of its tensors."""
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
    """Load the weights of a file or of a run into a network, as far as they fit.

    Names are compared without prefixes such as ``module.``; a classifier's file is loaded into the encoder of a
    segmentation network. The last layer is loaded if it has the same shape. A first convolution over 3 channels is
    converted to the network's channels. The result is kept as ``net.start``, from which a task takes the normalisation
    and the class names.

    Args:
        net: Any network; changed in place.
        weights: A ``.safetensors`` file, a file of ``torch.save``, the folder of a run or of a hub's model.
        normalization: Normalisation that the weights expect, if the file does not have it (checkpoints of runs do).
        convert: Converts names and shapes of a library's older or foreign files.
        rows: Logits of the file's last layer that the network has; None: all.

    Returns:
        What was loaded, and what was not.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is damaged, no state dict, holds NaN, has less than 9 in 10 of the network's tensors (without the
            last layer), or layers between the network's own, more than 1 in 10.

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
        except Exception:  # a library's conversion may raise any exception for the file of another network
            states = [state]
    best = max(_matches(net, states, rows), key=lambda m: (m.enough(), sum(map(m.fits, m.places))), default=None)
    if best is None or not best.enough() or not any(map(best.fits, best.places)):
        raise ValueError(_refusal(net, path, state, best))
    taken = [name for name in best.places if best.fits(name)]
    # attention masks are -inf by design
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
    """Return tensors by names without the prefixes of trainers, for a library's conversion."""
    found = {}
    for name, value in state.items():
        for wrapper in ("_orig_mod.", "module.", "net.backbone.", "body."):
            name = name.removeprefix(wrapper)
        found[name] = value
    return found


def _adapted(
    values: dict[str, Tensor], places: Mapping[str, Tensor], head: tuple[str, ...], rows: Rows | None
) -> dict[str, Tensor]:
    """Convert a first convolution over 3 channels to the network's, as timm does, and the last layer to its classes."""
    for name, value in values.items():
        place = places[name]
        if rows is not None and name.startswith(head):
            # not loaded if the order is of another layer: the network's own is initialised
            values[name] = value[list(rows.chosen)] if value.ndim and rows.fit(len(value)) else value.new_empty(0)
        elif value.ndim == 4 == place.ndim and value.shape[1] == 3 and value[:, 0].shape == place[:, 0].shape:
            values[name] = adapt_input_conv(place.shape[1], value)  # unchanged if the network has 3 channels, too
    return values


def _normalization(state: Mapping[str, Tensor]) -> Normalization | None:
    """Return the normalisation in a checkpoint of a run."""
    try:
        mean, std = (state[f"net.normalize.{key}"].flatten().tolist() for key in ("mean", "std"))
    except KeyError:
        return None
    return tuple(mean), tuple(std)


def for_channels(normalization: Normalization, channels: int) -> Normalization:
    """Return a normalisation of 3 channels for another number of channels, each with the mean over the 3.

    Example:
        >>> for_channels(((0.25, 0.5, 0.75), (0.5, 0.5, 0.5)), 1)
        ((0.5,), (0.5,))
    """
    mean, std = normalization
    if len(mean) == channels:
        return normalization
    return (sum(mean) / len(mean),) * channels, (sum(std) / len(std),) * channels


def _refusal(net: nn.Module, path: Path, state: Mapping[str, Tensor], best: Match | None) -> str:
    """Return the error message for a file that does not fit."""
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
    """Return timm's conversion of foreign and older files of a network, which renames tensors and resizes embeddings.

    By timm's convention it is a function in the network's module, with one of a few names.
    """
    if not type(body).__module__.startswith("timm."):
        return None
    file = sys.modules[type(body).__module__]
    for name in ("checkpoint_filter_fn", "_filter_fn"):
        if (convert := getattr(file, name, None)) is not None:
            # some take only the state dict
            return partial(convert, model=body) if "model" in signature(convert).parameters else convert
    return None
