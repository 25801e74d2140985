"""Segmentation networks of segmentation-models-pytorch and torchvision by name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import segmentation_models_pytorch as smp
import timm
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn

from hem.names import check_name, near
from hem.networks.library import published_normalization, published_weights
from hem.networks.weights import IMAGENET, Normalization, Start, for_channels, load_weights

Logits = Tensor | tuple[Tensor, ...]


class EncoderDecoder(nn.Module):
    """An encoder-decoder of segmentation-models-pytorch, with any encoder of that library or of timm.

    Images whose sides are no multiple of the encoder's stride are padded at the right and bottom by their last pixels,
    and the logits are cropped.

    Args:
        name: The decoder: "FPN", "Unet", "DeepLabV3Plus", "PSPNet", "Segformer", ...
        encoder: The encoder: "resnet34", "mobilenet_v2", or "tu-<name>" for one of timm's.
        num_classes: Number of classes C.
        in_channels: Channels of an image.
        encoder_weights: Name of published weights, such as "imagenet", which are downloaded; None: from scratch.
        options: Further arguments of the library's constructor, e.g. `{"decoder_pyramid_channels": 64}`.
        weights: Other weights to start from: a state dict (.safetensors, .pth) of the encoder, such as that of a
            classifier (timm's file for a "tu-" encoder, torchvision's for "resnet34"), or of the whole network, or the
            folder of a run.

    Raises:
        ValueError: If the library has no such decoder or encoder, `encoder_weights` and `weights` are both given, or
            the weights cannot be read or are another network's.
        TypeError: If the constructor does not know one of the options.
        OSError: If the weights are not there, or the published ones cannot be fetched.

    Example:
        >>> import torch
        >>> net = EncoderDecoder("FPN", "tu-mobilenetv3_small_050", num_classes=5).eval()
        >>> net(torch.rand(1, 3, 45, 60)).shape
        torch.Size([1, 5, 45, 60])
    """

    last_layers = ("model.segmentation_head.",)

    def __init__(
        self,
        name: str,
        encoder: str = "resnet34",
        num_classes: int = 10,
        in_channels: int = 3,
        encoder_weights: str | None = None,
        options: Mapping[str, Any] | None = None,
        weights: str | None = None,
    ) -> None:
        super().__init__()
        if encoder_weights is not None and weights is not None:
            raise ValueError(
                f"Expected encoder_weights or weights, got both ('{encoder_weights}' and '{weights}'): leave "
                "encoder_weights at null to start from a file."
            )
        check_name(name, [each.__name__ for each in smp.MODEL_ARCHITECTURES_MAPPING.values()], "decoder")
        if encoder.startswith("tu-"):
            if not timm.is_model(timms := encoder.removeprefix("tu-")):
                raise ValueError(f"Unknown encoder '{encoder}': timm has no '{timms}'{near(timms, timm.list_models())}")
        else:
            check_name(encoder, smp.encoders.get_encoder_names(), "encoder")
            if encoder_weights is not None:
                there = list(smp.encoders.encoders[encoder]["pretrained_settings"])
                check_name(encoder_weights, there, f"weights of {encoder}")
        # for encoders of timm the library only takes whether to load weights, not which
        which = True if encoder_weights and encoder.startswith("tu-") else encoder_weights
        try:
            with published_weights(encoder, "give a file as weights, or set encoder_weights to null"):
                self.model = smp.create_model(
                    name, encoder, which, in_channels=in_channels, classes=num_classes, **(options or {})
                )
        except TypeError as error:
            raise TypeError(f"'{name}' does not take the options {options}: {error}") from error
        self.stride: int = getattr(self.model.encoder, "output_stride", 32)
        self.name = f"{name} with {encoder}"
        self.start: Start | None = None
        if weights is not None:
            load_weights(self, weights, for_channels(_expected(encoder, None), in_channels))
        elif encoder_weights is not None:
            with published_weights(encoder, "give a file as weights, or set encoder_weights to null"):
                expected = for_channels(_expected(encoder, encoder_weights), in_channels)
            self.start = Start(f"published for {encoder} ({encoder_weights})", expected)

    @property
    def encoder(self) -> nn.Module:
        """The encoder, which may have its own learning rate."""
        encoder: nn.Module = self.model.encoder
        return encoder

    def forward(self, input: Tensor) -> Tensor:
        """Return the logits (N, num_classes, H, W) of images (N, in_channels, H, W)."""
        height, width = input.shape[-2:]
        padded = F.pad(input, (0, -width % self.stride, 0, -height % self.stride), mode="replicate")
        logits: Tensor = self.model(padded)
        return logits[..., :height, :width]


def _expected(encoder: str, published: str | None) -> Normalization:
    """Return the normalisation that an encoder's weights expect; torchvision's if the library does not say."""
    if encoder.startswith("tu-"):
        return published_normalization(encoder.removeprefix("tu-"), "timm", None)
    if published is None:
        return IMAGENET
    found = smp.encoders.get_preprocessing_params(encoder, published)
    return tuple(found["mean"]), tuple(found["std"])


class TorchvisionSegmentation(nn.Module):
    """A segmentation network of torchvision: DeepLabV3, FCN or LRASPP.

    With an auxiliary head it returns (logits, logits of the auxiliary head) in training mode.

    Args:
        name: As in `torchvision.models.list_models(module=torchvision.models.segmentation)`.
        num_classes: Number of classes C.
        auxiliary: Whether there is an auxiliary head on the last layer but one (DeepLabV3 and FCN).
        pretrained: Start from the encoder's published ImageNet weights, which are downloaded.
        weights: Other weights to start from: a state dict of the whole network or of its encoder (torchvision's
            classifiers), or the folder of a run.

    Raises:
        ValueError: If torchvision has no such network, or it has no auxiliary head, `pretrained` and `weights` are both
            given, or the weights cannot be read or are another network's.
        OSError: If the weights are not there, or the published ones cannot be fetched.

    Example:
        >>> import torch
        >>> net = TorchvisionSegmentation("lraspp_mobilenet_v3_large", num_classes=5).eval()
        >>> net(torch.rand(1, 3, 45, 60)).shape
        torch.Size([1, 5, 45, 60])
    """

    last_layers = (
        *("model.classifier.4.", "model.aux_classifier.4."),
        *("model.classifier.low_classifier.", "model.classifier.high_classifier."),
    )

    def __init__(
        self,
        name: str,
        num_classes: int = 10,
        auxiliary: bool = False,
        pretrained: bool = False,
        weights: str | None = None,
    ) -> None:
        super().__init__()
        if pretrained and weights is not None:
            raise ValueError(
                f"Expected pretrained or weights, got both (weights '{weights}'): leave pretrained at false to start "
                "from a file."
            )
        known = torchvision.models.list_models(module=torchvision.models.segmentation)
        check_name(name, known, "segmentation network")
        if auxiliary and name.startswith("lraspp"):
            raise ValueError(f"'{name}' has no auxiliary head: take a deeplabv3_* or fcn_*, or set auxiliary to false.")
        options: dict[str, Any] = {} if name.startswith("lraspp") else {"aux_loss": auxiliary}
        with published_weights(name, "give a file as weights, or set pretrained to false"):
            self.model = torchvision.models.get_model(
                name,
                weights=None,
                weights_backbone="DEFAULT" if pretrained else None,
                num_classes=num_classes,
                **options,
            )
        self.name = name
        self.start: Start | None = Start(f"published for the encoder of {name}", IMAGENET) if pretrained else None
        if weights is not None:
            load_weights(self, weights, IMAGENET)

    @property
    def encoder(self) -> nn.Module:
        """The encoder, which may have its own learning rate."""
        encoder: nn.Module = self.model.backbone
        return encoder

    def forward(self, input: Tensor) -> Logits:
        """Return the logits (N, num_classes, H, W), in training mode with those of the auxiliary head."""
        found: dict[str, Tensor] = self.model(input)
        if self.training and "aux" in found:
            return found["out"], found["aux"]
        return found["out"]
