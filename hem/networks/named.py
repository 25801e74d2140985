"""Any classification network of torchvision or timm, by its name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import timm
import torchvision
from torch import Tensor, nn

from hem.names import near
from hem.networks.base import Network
from hem.networks.published import published_weights

Source = Literal["auto", "torchvision", "timm"]


class Named(Network):
    """A network of torchvision or timm, its last linear layer made for `num_classes`.

    The network itself, without that layer, is `body`, under its own parameter names; the layer is `head`.
    Normalisation of the pixels is not part of it.

    Args:
        name: as in `torchvision.models.list_models()` or `timm.list_models()`, e.g. "resnet50",
            "vit_tiny_patch16_224", "convnext_atto".
        num_classes: C.
        in_channels: channels of an image.
        image_size: (height, width) of the images, in pixels, for networks built for one size, such as vision
            transformers; others take any size. None: the size the network was published with.
        source: where to look; "auto" looks in torchvision first.
        pretrained: start from the published weights (all but the last layer), which are downloaded. For other
            than 3 channels the filters of the first layer are averaged over the channels.
        options: further arguments of the library's constructor, e.g. `{"patch_size": 4}`.

    Raises:
        ValueError: if the name is unknown, or the network does not end in one linear layer.
        TypeError: if the constructor does not know one of the options.
        OSError: if the published weights cannot be fetched.

    Example:
        >>> import torch
        >>> net = Named("convnext_atto", num_classes=7, in_channels=1)
        >>> net(torch.rand(2, 1, 32, 32)).shape, net.forward_features(torch.rand(2, 1, 32, 32)).shape
        (torch.Size([2, 7]), torch.Size([2, 320]))
    """

    def __init__(
        self,
        name: str,
        num_classes: int = 10,
        in_channels: int = 3,
        image_size: tuple[int, int] | None = None,
        source: Source = "auto",
        pretrained: bool = False,
        options: Mapping[str, Any] | None = None,
    ) -> None:
        build = _from_torchvision if _library(name, source) == "torchvision" else _from_timm
        try:
            with published_weights(name, "set pretrained to false"):
                body, path = build(name, num_classes, in_channels, image_size, pretrained, dict(options or {}))
        except TypeError as error:
            raise TypeError(f"network '{name}' does not take the options {options}: {error}") from error
        head = body.get_submodule(path)
        body.set_submodule(path, nn.Identity())
        super().__init__(body, head, in_channels)
        self.name = name

    def forward_features(self, input: Tensor) -> Tensor:
        """The features (N, D) that the last layer sees."""
        features = super().forward_features(input)
        if features.ndim != 2:
            raise ValueError(
                f"'{self.name}' should give features of shape (N, D), got {tuple(features.shape)}: "
                "its last layer is not applied to one vector per image; choose another network"
            )
        return features


def _library(name: str, source: Source) -> Literal["torchvision", "timm"]:
    """Which library has the network."""
    known = {
        "torchvision": torchvision.models.list_models(module=torchvision.models),
        "timm": timm.list_models(),
    }
    if source in ("auto", "torchvision") and name in known["torchvision"]:
        return "torchvision"
    if source in ("auto", "timm") and timm.is_model(name):
        return "timm"
    names = [*known["torchvision"], *known["timm"]] if source == "auto" else known[source]
    raise ValueError(
        f"Unknown network '{name}' (source: {source}){near(name, sorted(set(names))) or '.'} "
        "torchvision.models.list_models() and timm.list_models() give all."
    )


def _from_timm(
    name: str,
    num_classes: int,
    in_channels: int,
    image_size: tuple[int, int] | None,
    pretrained: bool,
    options: dict[str, Any],
) -> tuple[nn.Module, str]:
    """The network and the path of its last layer."""
    published = timm.get_pretrained_cfg(name)
    if image_size is not None and published is not None and published.fixed_input_size:
        options.setdefault("img_size", tuple(image_size))
    body: Any = timm.create_model(name, pretrained=pretrained, num_classes=num_classes, in_chans=in_channels, **options)
    return body, _path(body, body.get_classifier(), name)


def _from_torchvision(
    name: str,
    num_classes: int,
    in_channels: int,
    image_size: tuple[int, int] | None,
    pretrained: bool,
    options: dict[str, Any],
) -> tuple[nn.Module, str]:
    """The network and the path of its last layer."""
    if not pretrained:
        options["num_classes"] = num_classes
        if name.startswith("vit_") and image_size is not None:
            options.setdefault("image_size", image_size[0])
        if name in ("googlenet", "inception_v3"):
            options.setdefault("init_weights", True)  # a warning says that the default is about to change
    body: Any = torchvision.models.get_model(name, weights="DEFAULT" if pretrained else None, **options)
    if getattr(body, "aux_logits", False):
        body.aux_logits = False  # GoogLeNet and Inception v3 would return the auxiliary logits as well
        for auxiliary in {"aux1", "aux2", "AuxLogits"} & dict(body.named_children()).keys():
            setattr(body, auxiliary, None)
    layers = [module for module in body.modules() if isinstance(module, nn.Linear)]
    path = _path(body, layers[-1] if layers else None, name)
    if pretrained:
        body.set_submodule(path, nn.Linear(layers[-1].in_features, num_classes))
    if in_channels != 3:
        _replace_stem(body, in_channels)
    return body, path


def _path(body: nn.Module, head: object, name: str) -> str:
    """The path of the last layer, where it is one linear layer."""
    path: str
    for path, module in body.named_modules():
        if module is head and isinstance(module, nn.Linear):
            return path
    raise ValueError(
        f"'{name}' does not end in one linear layer, so its features and its head cannot be told apart: "
        "choose another network, or give your own module as the net"
    )


def _replace_stem(body: nn.Module, in_channels: int) -> None:
    """Makes the first convolution take `in_channels`, the sum of its filters shared out among them."""
    stem = next(module for module in body.modules() if isinstance(module, nn.Conv2d))
    weight = stem.weight.detach().sum(1, keepdim=True) / in_channels
    stem.in_channels, stem.weight = in_channels, nn.Parameter(weight.repeat(1, in_channels, 1, 1))
