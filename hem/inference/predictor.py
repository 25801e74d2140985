"""Predictors: trained networks that return logits, labels and scores of images."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, get_args

import numpy as np
import torch
from jsonargparse import ArgumentParser
from PIL import Image
from torch import Tensor, nn
from torchvision.transforms.v2 import functional as TF

from hem.checks import check_pixels
from hem.datamodules.base import ImageDataModule
from hem.datamodules.images import Fit
from hem.datamodules.pairs import Pad, Shape, Stretch
from hem.decoder import decode_image
from hem.modules.calibrator import RunCalibration, Scores, most_probable, named_sets, probabilities
from hem.modules.rejector import load_rejector
from hem.names import check_name
from hem.networks import Normalize, to_channels_last
from hem.networks.weights import without_start
from hem.plots.masks import Color, indexed
from hem.rejection import Rejector
from hem.runs import AtomicCheckpointIO, RunFolder
from hem.runs.checkpoints import check_state

Picture = Image.Image | str | Path | np.ndarray[Any, Any]  # anything that is decoded to one image


class Prediction(NamedTuple):
    """Prediction of one image: the most probable class, its probability, and whether it is accepted."""

    label: str
    score: float
    rejection_score: float | None = None  # rejection score, higher: more likely unknown; None: the run has no rejector
    accepted: bool | None = None  # False: rejected as unknown
    calibrated: bool = False  # whether probabilities are calibrated, not the softmax of the logits
    top: tuple[tuple[str, float], ...] = ()  # the five most probable classes and their probabilities
    labels: tuple[str, ...] | None = None  # the classes of the prediction set; None: the run has no sets


class Trained(nn.Module):
    """A trained classifier with its preprocessing and class names.

    Args:
        net: Normalisation and network, from (N, C, H, W) in [0, 1] to logits (N, num_classes).
        class_names: Name of each class.
        in_channels: Channels of an input image: 1 (grey) or 3 (RGB).
        image_size: Height and width that the network was trained with.
        transform: From a PIL image to (C, H, W) uint8 of that size; None: stretch.
        rejector: The rejector of the run; None: no test has found one for these weights.
        calibration: The calibration of the run; None: no test has fitted one for these weights.
    """

    def __init__(
        self,
        net: nn.Module,
        class_names: Sequence[str],
        in_channels: int,
        image_size: tuple[int, int],
        transform: Callable[[Image.Image], Tensor] | None = None,
        rejector: Rejector | None = None,
        calibration: RunCalibration | None = None,
    ) -> None:
        super().__init__()
        self.net = net
        self.class_names = list(class_names)
        self.in_channels = in_channels
        self.image_size = image_size
        self.transform = Fit(image_size) if transform is None else transform
        self.rejector = rejector
        self.calibration = calibration

    def forward(self, images: Tensor) -> Tensor:
        """Return logits (N, num_classes).

        Args:
            images: (N, C, H, W), uint8 or floating point in [0, 1].
        """
        return _logits(self.net, images)

    def probabilities(self, images: Tensor) -> Tensor:
        """Return probabilities (N, num_classes) of logits, calibrated if the run has a calibration."""
        return probabilities(self(images), self.calibration)

    def prepare(self, image: Image.Image | str | Path) -> Tensor:
        """Return an image file or PIL image as a tensor (C, H, W) in [0, 1] of the network's size and channels."""
        return self.transform(decode_image(image, self.in_channels)).float() / 255

    @torch.inference_mode()
    def predict(self, images: Tensor | Picture | Sequence[Picture], scores: Scores = "calibrated") -> list[Prediction]:
        """Return a :class:`Prediction` for each image.

        Args:
            images: A batch as for :meth:`forward`, or one or several image files, PIL images or uint8 arrays (H, W) or
                (H, W, 3).
            scores: ``"calibrated"``: calibrated probabilities if the run has them; ``"raw"``: the softmax of the
                logits.

        Raises:
            ValueError: There is no such kind of scores, or a batch has another shape.
            TypeError: An element is no image.
        """
        check_name(scores, get_args(Scores), "kind of scores")
        images = _listed(images)
        if len(images) == 0:
            return []
        if not isinstance(images, Tensor):
            images = torch.stack([self.prepare(image) for image in images])
        device = next(self.net.parameters()).device
        logits = self(images.to(device))
        calibration = self.calibration if scores == "calibrated" else None
        found = [
            Prediction(best[0][0], best[0][1], calibrated=calibration is not None, top=best)
            for best in most_probable(probabilities(logits, calibration), self.class_names)
        ]
        if calibration is not None and calibration.sets is not None:
            sets = named_sets(calibration.sets.to(device)(logits), self.class_names)
            found = [each._replace(labels=labels) for each, labels in zip(found, sets, strict=True)]
        if self.rejector is None:
            return found
        unknownness = self.rejector.unknownness(logits)
        verdicts = zip(unknownness.tolist(), self.rejector.accepts(unknownness).tolist(), strict=True)
        return [each._replace(rejection_score=u, accepted=a) for each, (u, a) in zip(found, verdicts, strict=True)]


class Segmenter(nn.Module):
    """A trained segmentation network with its preprocessing, class names and colours.

    Args:
        net: Normalisation and network, from (N, 3, H, W) in [0, 1] to logits (N, num_classes, H, W).
        class_names: Name of each class.
        palette: RGB of each class.
        shape: Scales images to the size that the network was trained with, and masks back to the images' sizes.
        calibration: The calibration of the run; None: no test has fitted one for these weights.
    """

    in_channels = 3

    def __init__(
        self,
        net: nn.Module,
        class_names: Sequence[str],
        palette: Sequence[Color],
        shape: Shape,
        calibration: RunCalibration | None = None,
    ) -> None:
        super().__init__()
        self.net = net
        self.class_names = list(class_names)
        self.palette = list(palette)
        self.shape = shape
        self.calibration = calibration
        self.image_size = shape.size

    def forward(self, images: Tensor) -> Tensor:
        """Return logits (N, num_classes, H, W) of images (N, 3, H, W), uint8 or floating point in [0, 1]."""
        return _logits(self.net, images)

    def probabilities(self, images: Tensor) -> Tensor:
        """Return probabilities (N, num_classes, H, W) of logits, calibrated if the run has a calibration."""
        return probabilities(self(images), self.calibration)

    @torch.inference_mode()
    def predict(self, images: Tensor | Picture | Sequence[Picture]) -> list[Image.Image]:
        """Return a mask for each image in the image's size, a PIL image of class indices with a palette.

        Args:
            images: A batch as for :meth:`forward`, or one or several image files, PIL images or uint8 arrays (H, W) or
                (H, W, 3).

        Raises:
            ValueError: A batch has another shape.
            TypeError: An element is no image.
        """
        images = _listed(images)
        if len(images) == 0:
            return []
        device = next(self.net.parameters()).device
        if isinstance(images, Tensor):
            masks = list(self(images.to(device)).argmax(1).cpu())
        else:
            masks = []
            for each in images:
                image = decode_image(each)
                logits = self(self.shape.image(TF.pil_to_tensor(image))[None].to(device))
                mask = logits[0].argmax(0).to(torch.uint8).cpu()
                masks.append(self.shape.back(mask, (image.height, image.width)))
        return [indexed(mask, self.palette) for mask in masks]


def _listed(images: Tensor | Picture | Sequence[Picture]) -> Tensor | list[Image.Image | str | Path]:
    """Return a batch as it is, other images as a list; one image gives a list of one."""
    if isinstance(images, Tensor):
        if images.ndim != 4:
            raise ValueError(
                f"Expected a batch of images of shape (N, C, H, W), got shape {tuple(images.shape)}: a single image "
                "(C, H, W) becomes a batch by image[None]."
            )
        return images
    single = isinstance(images, (str, Path, Image.Image)) or (isinstance(images, np.ndarray) and images.ndim != 4)
    return [_picture(each) for each in ([images] if single else images)]  # type: ignore[union-attr]


def _picture(image: Any) -> Image.Image | str | Path:
    if isinstance(image, np.ndarray):
        if image.dtype != np.uint8 or image.ndim not in (2, 3) or (image.ndim == 3 and image.shape[2] not in (3, 4)):
            raise TypeError(
                f"Expected an image as an array of bytes (H, W) or (H, W, 3), got {image.dtype} of shape {image.shape}"
                ": give other batches as a tensor (N, C, H, W), floating point in [0, 1]."
            )
        return Image.fromarray(image)
    if not isinstance(image, (str, Path, Image.Image)):
        raise TypeError(
            f"Expected image files, PIL images, arrays or a batch as one tensor, got {type(image).__name__} among them."
        )
    return image


def _logits(net: nn.Module, images: Tensor) -> Tensor:
    if images.dtype == torch.uint8:
        images = images.float() / 255
    check_pixels(images)
    logits: Tensor = net(images)
    return logits


def load_run(run_dir: str | Path, which: str | None = None) -> Trained | Segmenter:
    """Build the network of a run's ``config.yaml`` and load the weights of a checkpoint.

    Class names and preprocessing are in the run's ``data.json``, so no data is needed.

    Args:
        run_dir: The folder of the run.
        which: ``"best"``, ``"last"`` or the path of a checkpoint; None: see :func:`hem.load`.
    """
    from hem.cli.examine import usual_checkpoint  # deferred: the command line imports everything

    run = RunFolder(run_dir)
    record = run.read_config()
    which = which or usual_checkpoint(run, record)
    path = run.checkpoint(which) if which in ("best", "last") else Path(which)
    state = AtomicCheckpointIO().load_checkpoint(path, map_location="cpu")["state_dict"]
    facts = run.read_data() or {}
    transform = None
    if {"class_names", "shorter"} <= facts.keys() or "palette" in facts:
        holder: nn.Module = nn.ModuleDict({"net": _network(record["model"]["init_args"], facts, state)})
    else:  # an older record, or a custom transform
        holder, data = _with_data(run, record)
        facts, transform = data.facts(), data.eval_transform()
    check_state(holder, state)
    holder.load_state_dict({name: value for name, value in state.items() if name.startswith("net.")}, strict=False)
    net, size = holder.get_submodule("net"), (facts["image_size"][0], facts["image_size"][1])
    calibration = RunCalibration.load(run, net)
    if "palette" in facts:
        palette = [(red, green, blue) for red, green, blue in facts["palette"]]
        shape = Stretch(size) if facts["fit"] == "resize" else Pad(size)
        return Segmenter(net, facts["class_names"], palette, shape, calibration).eval()
    form = (facts["class_names"], facts["in_channels"], size, transform or Fit(size, facts["shorter"]))
    return Trained(net, *form, load_rejector(run, net), calibration).eval()


def _network(model: dict[str, Any], facts: dict[str, Any], state: dict[str, Tensor]) -> nn.Module:
    """Return the network of a config with its normalisation, as in a task, but without data, loss and task."""
    from hem.cli import quiet  # deferred: the command line imports everything
    from hem.cli.registries import parameters

    quiet()
    spec = model["net"]
    arguments = dict(spec.get("init_args") or {})
    without_start(arguments)
    known = {"num_classes": len(facts["class_names"]), **{k: facts[k] for k in ("in_channels", "image_size")}}
    arguments |= {name: value for name, value in known.items() if name in parameters(spec["class_path"])}
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(nn.Module, "net")
    parsed = parser.parse_object({"net": {"class_path": spec["class_path"], "init_args": arguments}})
    normalized = "net.normalize.mean" in state  # the numbers are in the checkpoint
    normalize = Normalize(facts["mean"], facts["std"]) if normalized else nn.Identity()
    net = nn.Sequential(OrderedDict(normalize=normalize, backbone=parser.instantiate_classes(parsed).net))
    if model.get("channels_last", True):
        to_channels_last(net)
    return net


def _with_data(run: RunFolder, record: dict[str, Any]) -> tuple[nn.Module, ImageDataModule]:
    """Return the task and data module of a run without a record of its data, which must be where it was."""
    from hem.cli import build, quiet  # deferred: the command line imports everything
    from hem.cli.errors import mistake

    quiet()
    parts = {key: record[key] for key in ("seed_everything", "model", "data")}
    without_start(record["model"]["init_args"]["net"].get("init_args", {}))
    # the trainer is not used: no logs, no accelerator
    unused = {"logger": False, "accelerator": "cpu", "devices": 1}
    try:
        cli = build({**parts, "run_dir": str(run.path), "trainer": unused}, run=False)
    except (ValueError, OSError) as error:
        raise ValueError(
            f"Expected the data of the run {run.path} where it was trained, for the run keeps no record of what its "
            f"outputs mean ({run.data.name}): {mistake(error)}"
        ) from None
    return cli.model, cli.datamodule
