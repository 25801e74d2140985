"""Linear probing: train the last layer on precomputed features of a frozen encoder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hem.datamodules.base import ImageDataModule
from hem.datamodules.features import FeatureImages
from hem.datamodules.splits import Split
from hem.modes import evaluating
from hem.modules.base import Task
from hem.runs.trainer import datamodule


def use_features(task: Task, folder: str | Path, stage: str) -> None:
    """Replace the images of the data module by features, computed once and kept in a folder.

    Args:
        task: Its encoder stands still for good, and its network has ``forward_features`` and ``head``.
        folder: Where the features are kept; runs of the same encoder on the same data share them.
        stage: Lightning's; predictions go through the whole network.

    Raises:
        ValueError: The encoder moves, the network has no last layer of its own, or training images are augmented.
        TypeError: The data has no parts of labelled images.
    """
    if stage == "predict":
        return
    net: Any = task.net.backbone
    if task.frozen_epochs != "all":
        raise ValueError(
            f"Expected an encoder that stands still for good where its features are kept, got frozen_epochs "
            f"{task.frozen_epochs}: set it to all, or leave features at null."
        )
    if not (hasattr(net, "forward_features") and hasattr(net, "head")):
        raise ValueError(
            f"Expected a network with `forward_features` and `head`, got {type(net).__name__}: take one of "
            "hem.networks, or leave features at null."
        )
    data = datamodule(task.trainer)
    if not isinstance(data, ImageDataModule) or not isinstance(getattr(data, "augment", None), list):
        raise TypeError(
            f"Expected a data module of labelled images, got {type(data).__name__}: leave features at null."
        )
    if data.augment or data.mixing:
        raise ValueError(
            f"Expected images that are the same in each epoch, got augmentation for {data.title}: set data.augment to "
            "[], or leave features at null."
        )
    normalize: Any = task.net.normalize

    @torch.inference_mode()
    def encode(images: Tensor) -> Tensor:
        input = task.trainer.precision_plugin.convert_input(images.to(task.device).float() / 255)
        with evaluating(task.net):  # features may be asked for in the midst of an epoch
            features: Tensor = net.forward_features(normalize(input))
        if features.ndim != 2:  # timm's own networks give maps or tokens
            raise ValueError(
                f"Expected features of shape (N, D) from {type(net).__name__}, got {tuple(features.shape)}: take the "
                "network by its name, hem.networks.Named, or leave features at null."
            )
        return features

    def identity() -> Sequence[bytes]:
        tensors = {f"body.{name}": value for name, value in net.encoder.state_dict().items()}
        tensors |= normalize.state_dict()
        shapes = repr((str(net.encoder), getattr(net, "resize", None), sorted(tensors)))
        parts = (tensors[name].cpu().reshape(-1).view(torch.uint8) for name in sorted(tensors))  # NumPy has no bfloat16
        return [shapes.encode(), *(part.numpy().tobytes() for part in parts)]

    parts: list[Split] = ["train"]
    parts += ["val"] if data.official_val else []
    parts += ["test"] if stage == "test" else []
    for part in parts:
        images = data.images(part)
        if not isinstance(images, FeatureImages):
            data.replace(part, FeatureImages(images, encode, identity, folder, data.eval_batch_size, data.num_workers))
