"""Classification networks of torchvision and timm by name, and published weights."""

from __future__ import annotations

import pickle
import re
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import timm
import torch
import torch.nn.functional as F
import torchvision
from huggingface_hub.constants import HF_HUB_CACHE
from safetensors import SafetensorError
from torch import Tensor, nn
from torchvision.models.vision_transformer import interpolate_embeddings

from hem.names import check_name, near
from hem.networks.base import Network
from hem.networks.files import find
from hem.networks.order import order_of
from hem.networks.weights import (
    IMAGENET,
    Convert,
    Normalization,
    Start,
    for_channels,
    library_conversion,
    load_weights,
    renew,
)

Source = Literal["auto", "torchvision", "timm"]
Size = tuple[int, int]


class Named(Network):
    """A network of torchvision or timm whose last linear layer has ``num_classes`` outputs.

    The network without that layer is ``body``, with the library's parameter names; the layer is ``head``. It does not
    normalise pixels; ``start.normalization`` is the normalisation that its weights expect.

    Args:
        name: Name as in ``torchvision.models.list_models()`` or ``timm.list_models()``, such as "resnet50",
            "vit_tiny_patch16_224", "convnext_atto".
        num_classes: Number of classes C.
        in_channels: Channels of an image.
        image_size: (height, width) of the images in pixels, for networks built for one size, such as vision
            transformers; others take any size. None: the size the network was published with.
        source: The library; "auto" is torchvision if it has the network, unless the published weights are timm's.
        pretrained: Start from the published weights, which are downloaded. If there are not 3 channels, the filters of
            the first layer are averaged over the channels. The last layer is kept if it has as many classes.
        options: Further arguments of the library's constructor, such as ``{"patch_size": 4}``.
        weights: Other weights to start from: a state dict (.safetensors, .pth) with the library's names, the folder of
            a run, or the name of published weights that are in the library's cache or can be downloaded (torchvision:
            "IMAGENET1K_V2"; timm: "a1_in1k"). The last layer is taken from a file if it has as many classes.
        class_order: Classes of the logits of ``weights``, if they are not the data's in the data's order: names in the
            order of the logits, or the path of a file with them (one per line, or YAML: a list, or the number of the
            logit of each class). "imagenet": the synsets of ImageNet-1k ("n01440764", ...). The last layer keeps only
            the data's classes, in the data's order.
        class_names: Class names of the data, for ``class_order``; linked from the data module.
        resize: Size to which images are scaled (bilinear) on their device: a number of pixels, (height, width), or
            "published", the size the network was published with. None: no scaling.

    Raises:
        ValueError: If the name is unknown, the network does not end in one linear layer, ``pretrained`` and ``weights``
            are both given, the weights cannot be read or are another network's, or ``class_order`` lacks a class.
        TypeError: If the constructor does not know one of the options.
        OSError: If the weights are missing, or the published ones cannot be downloaded.

    Example:
        >>> import torch
        >>> net = Named("convnext_atto", num_classes=7, in_channels=1, resize=64)
        >>> net(torch.rand(2, 1, 32, 32)).shape, net.forward_features(torch.rand(2, 1, 32, 32)).shape
        (torch.Size([2, 7]), torch.Size([2, 320]))
    """

    def __init__(
        self,
        name: str,
        num_classes: int = 10,
        in_channels: int = 3,
        image_size: Size | None = None,
        source: Source = "auto",
        pretrained: bool = False,
        options: Mapping[str, Any] | None = None,
        weights: str | None = None,
        resize: int | Size | Literal["published"] | None = None,
        class_order: str | Sequence[str] | None = None,
        class_names: Sequence[str] | None = None,
    ) -> None:
        if pretrained and weights is not None:
            raise ValueError(
                f"Expected pretrained or weights, got both (weights '{weights}'): leave pretrained at false to start "
                "from a file."
            )
        file = None if weights is None else find(weights)
        published = "default" if pretrained else weights if file is None else None
        library = _library(name, source, published)
        if resize is not None:
            size = _published_size(name, library) if resize == "published" else resize
            image_size = (size, size) if isinstance(size, int) else (size[0], size[1])
            if min(image_size) < 1:
                raise ValueError(f"Expected resize in pixels, 1 or more, got {resize}: leave it out for no scaling.")
        build = _from_torchvision if library == "torchvision" else _from_timm
        rows, outputs = None, num_classes
        if class_order is not None:
            rows = order_of(class_order, class_names or [str(k) for k in range(num_classes)])
            if published is not None:  # the library loads the whole last layer
                outputs = rows.total or _published_classes(name, library, published) or num_classes
        try:
            with published_weights(name, "give a file as weights, or set pretrained to false"):
                body, path, new = build(name, outputs, in_channels, image_size, published, dict(options or {}))
        except TypeError as error:
            raise TypeError(f"network '{name}' does not take the options {options}: {error}") from error
        head = body.get_submodule(path)
        body.set_submodule(path, nn.Identity())
        super().__init__(body, head, in_channels)
        self.name = name
        self.head_path = path
        self.resize = None if resize is None else image_size
        if published is not None or file is not None:
            expected = for_channels(published_normalization(name, library, published), in_channels)
            if file is None:
                fresh = ("head.weight", "head.bias") if new else ()
                self.start = Start(f"published for {name} ({library}, {published})", expected, fresh=fresh)
            else:
                try:
                    load_weights(self, file, expected, _conversion(self, library), rows)
                except ValueError as error:
                    raise ValueError(f"{error}{_other_library(name, source)}") from error
        if self.start is not None and "head.weight" in self.start.fresh:
            if rows is not None:
                raise ValueError(
                    f"Expected a last layer with {rows.size} logits, as class_order has it, got another one from "
                    f"{published or file}: name all of its classes in their order, or in a YAML file the number of the "
                    "logit for each class of the data."
                )
            # timm initialises some last layers in +-1/sqrt(C), which gives logits of standard deviation 8
            renew(self)
        if rows is not None and published is not None:
            chosen = {key: value[list(rows.chosen)] for key, value in self.head.state_dict().items()}
            self.head = nn.Linear(chosen["weight"].shape[1], num_classes, bias="bias" in chosen)
            self.head.load_state_dict(chosen)

    def library_layout(self) -> tuple[dict[str, Tensor], tuple[str, ...]]:
        """Return the tensors by the library's names, and the prefixes of those of the last layer."""
        head = {f"{self.head_path}.{name}": value for name, value in self.head.state_dict().items()}
        return {**self.body.state_dict(), **head}, (f"{self.head_path}.",)

    def forward_features(self, input: Tensor) -> Tensor:
        """Return the features (N, D), the input of the last layer."""
        if self.resize is not None and input.ndim == 4 and tuple(input.shape[2:]) != self.resize:
            smaller = self.resize[0] < input.shape[2] or self.resize[1] < input.shape[3]
            input = F.interpolate(input, self.resize, mode="bilinear", antialias=smaller)
        features = super().forward_features(input)
        if features.ndim != 2:
            raise ValueError(
                f"'{self.name}' should give features of shape (N, D), got {tuple(features.shape)}: "
                "its last layer is not applied to one vector per image; choose another network"
            )
        return features


Library = Literal["torchvision", "timm"]
MINUS_ONE_TO_ONE = ("googlenet", "inception_v3")  # torchvision's networks whose published weights expect [-1, 1]


def _library(name: str, source: Source, published: str | None) -> Library:
    """Return the library that has the network, or its published weights."""
    known = {
        "torchvision": torchvision.models.list_models(module=torchvision.models),
        "timm": timm.list_models(),
    }
    tagged = source == "auto" and f"{name}.{published}" in timm.list_pretrained(f"{name}.*")
    if source in ("auto", "torchvision") and name in known["torchvision"] and not tagged:
        return "torchvision"
    if source in ("auto", "timm") and timm.is_model(name):
        return "timm"
    names = [*known["torchvision"], *known["timm"]] if source == "auto" else known[source]
    raise ValueError(
        f"Unknown network '{name}' (source: {source}){near(name, sorted(set(names))) or '.'} "
        "torchvision.models.list_models() and timm.list_models() give all."
    )


def _published_size(name: str, library: Library) -> Size:
    """Return the height and width that a network was published with."""
    if library == "torchvision":
        size: int = torchvision.models.get_model_weights(name).DEFAULT.transforms().crop_size[0]
        return size, size
    published = timm.get_pretrained_cfg(name)
    if published is None:
        raise ValueError(f"Expected a published size of '{name}', got none from timm: give resize in pixels.")
    return published.input_size[1], published.input_size[2]


def published_normalization(name: str, library: Library, published: str | None) -> Normalization:
    """Return the normalisation that a network's published weights expect, according to its library."""
    if library == "torchvision" and name in MINUS_ONE_TO_ONE:
        return (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)  # torchvision does it in two steps, the second in the network
    if library == "torchvision":
        transforms = torchvision.models.get_weight(_member(name, published or "default")).transforms()
        return tuple(transforms.mean), tuple(transforms.std)
    config = timm.get_pretrained_cfg(_tagged(name, published or "default"))
    return (tuple(config.mean), tuple(config.std)) if config is not None else IMAGENET


def _published_classes(name: str, library: Library, published: str) -> int | None:
    """Return the number of logits of a network's published weights; None if the library does not say."""
    if library == "torchvision":
        return len(torchvision.models.get_weight(_member(name, published)).meta["categories"])
    config = timm.get_pretrained_cfg(_tagged(name, published))
    return None if config is None else config.num_classes


def _other_library(name: str, source: Source) -> str:
    """Return a hint that a file may be of timm's network, if torchvision has one of the same name."""
    both = source == "auto" and name in torchvision.models.list_models(module=torchvision.models)
    return " Where it is timm's, set the network's source to timm." if both and timm.is_model(name) else ""


def _member(name: str, published: str) -> str:
    """Return torchvision's full name of published weights, such as ResNet50_Weights.IMAGENET1K_V2."""
    known = torchvision.models.get_model_weights(name)
    if published == "default":
        return str(known.DEFAULT)
    word = published.rpartition(".")[2]
    check_name(word, [str(each.name) for each in known], f"weights of {name}")
    return f"{known.__name__}.{word}"


def _tagged(name: str, published: str) -> str:
    """Return timm's full name of published weights, such as resnet50.a1_in1k."""
    if published == "default":
        return name
    architecture, tag = name.partition(".")[0], published.removeprefix(f"{name.partition('.')[0]}.")
    known = [each.partition(".")[2] for each in timm.list_pretrained(f"{architecture}.*")]
    check_name(tag, known, f"weights of {architecture}")
    return f"{architecture}.{tag}"


def _conversion(net: Named, library: Library) -> Convert | None:
    """Return the library's conversion of files with other names or sizes of tensors."""
    if net.name.startswith("densenet"):  # published with names that torch no longer allows
        return lambda state: {re.sub(r"\.(norm|conv)\.([12])\.", r".\1\2.", name): v for name, v in state.items()}
    if library == "timm":
        return library_conversion(net.body)
    if not net.name.startswith("vit_"):
        return None
    size, patch = net.body.image_size, net.body.patch_size
    return lambda state: dict(interpolate_embeddings(size, patch, OrderedDict(state)))


def _from_timm(
    name: str,
    num_classes: int,
    in_channels: int,
    image_size: Size | None,
    published: str | None,
    options: dict[str, Any],
) -> tuple[nn.Module, str, bool]:
    """Return the network, the path of its last layer, and whether that layer is new despite published weights."""
    config = timm.get_pretrained_cfg(name)
    if image_size is not None and config is not None and config.fixed_input_size:
        options.setdefault("img_size", tuple(image_size))
    options |= {"num_classes": num_classes, "in_chans": in_channels, "pretrained": published is not None}
    body: Any = timm.create_model(_tagged(name, published or "default"), **options)
    new = published is not None and _published_classes(name, "timm", published) not in (None, num_classes)
    return body, _path(body, body.get_classifier(), name), new


def _from_torchvision(
    name: str,
    num_classes: int,
    in_channels: int,
    image_size: Size | None,
    published: str | None,
    options: dict[str, Any],
) -> tuple[nn.Module, str, bool]:
    """Return the network, the path of its last layer, and whether that layer is new despite published weights."""
    if published is None:
        options["num_classes"] = num_classes
        if name.startswith("vit_") and image_size is not None:
            options.setdefault("image_size", image_size[0])
        if name in MINUS_ONE_TO_ONE:
            options.setdefault("init_weights", True)  # its default is about to change, says a warning
    body: Any = torchvision.models.get_model(name, weights=published and _member(name, published), **options)
    if name in MINUS_ONE_TO_ONE:
        body.transform_input = False  # turned on by published weights alone; published_normalization has it
    if getattr(body, "aux_logits", False):
        body.aux_logits = False  # GoogLeNet and Inception v3 would also return auxiliary logits
        for auxiliary in {"aux1", "aux2", "AuxLogits"} & dict(body.named_children()).keys():
            setattr(body, auxiliary, None)
    layers = [module for module in body.modules() if isinstance(module, nn.Linear)]
    path = _path(body, layers[-1] if layers else None, name)
    new = published is not None and layers[-1].out_features != num_classes
    if new:
        body.set_submodule(path, nn.Linear(layers[-1].in_features, num_classes))
    if in_channels != 3:
        _replace_stem(body, in_channels)
    return body, path, new


def _path(body: nn.Module, head: object, name: str) -> str:
    """Return the path of the last layer; an error if it is not one linear layer."""
    path: str
    for path, module in body.named_modules():
        if module is head and isinstance(module, nn.Linear):
            return path
    raise ValueError(
        f"'{name}' does not end in one linear layer, so its features and its head cannot be told apart: "
        "choose another network, or give your own module as the net"
    )


def _replace_stem(body: nn.Module, in_channels: int) -> None:
    """Make the first convolution take ``in_channels``; each gets an equal share of the sum of its filters."""
    stem = next(module for module in body.modules() if isinstance(module, nn.Conv2d))
    weight = stem.weight.detach().sum(1, keepdim=True) / in_channels
    stem.in_channels, stem.weight = in_channels, nn.Parameter(weight.repeat(1, in_channels, 1, 1))


@contextmanager
def published_weights(name: str, otherwise: str) -> Iterator[None]:
    """Turn errors of downloading published weights inside the ``with`` into helpful ones.

    Args:
        name: Name of the network.
        otherwise: How to do without the weights, such as ``"set pretrained to false"``.

    Raises:
        OSError: If the weights cannot be downloaded, or are damaged in the cache.

    Example:
        >>> with published_weights("resnet18", "set pretrained to false"):
        ...     raise OSError("no route")
        Traceback (most recent call last):
        OSError: the published weights of 'resnet18' could not be fetched (no route): bring torch's or ...
    """
    try:
        yield
    except (SafetensorError, pickle.UnpicklingError, EOFError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and "PytorchStreamReader" not in str(error):
            raise
        raise OSError(
            f"the published weights of '{name}' are cut short or damaged in the cache ({error}): delete them in "
            f"{torch.hub.get_dir()}/checkpoints or {HF_HUB_CACHE}, where they are fetched anew, or {otherwise}"
        ) from error
    except OSError as error:
        raise OSError(
            f"the published weights of '{name}' could not be fetched ({error}): "
            f"bring torch's or the hub's cache from a machine that has them, or {otherwise}"
        ) from error
