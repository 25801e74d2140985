"""A trained network outside its task: images in, logits, labels and scores out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
import yaml
from PIL import Image
from torch import Tensor, nn

from hem.datamodules.images import Fit
from hem.modules.base import check_state
from hem.modules.rejector import Rejector
from hem.run import AtomicCheckpointIO


class Prediction(NamedTuple):
    """What a network says of one image: the class, its probability by softmax, and whether to believe it."""

    label: str
    score: float
    rejection_score: float | None = None  # higher means more unknown; None: the run has no rejector
    accepted: bool | None = None  # False: unknown


class Trained(nn.Module):
    """A network with the preprocessing and the class names that it was trained with.

    Args:
        net: Normalisation and network: (N, C, H, W) in [0, 1] to logits (N, num_classes).
        class_names: Name of each class.
        in_channels: Channels of an input image: 1 (grey) or 3 (RGB).
        image_size: Height and width that the network was trained with.
        transform: Brings a PIL image to that size, (C, H, W) uint8; None: stretches it.
        rejector: The rejector of the run, or None where no test has found one for these weights.
    """

    def __init__(
        self,
        net: nn.Module,
        class_names: Sequence[str],
        in_channels: int,
        image_size: tuple[int, int],
        transform: Callable[[Image.Image], Tensor] | None = None,
        rejector: Rejector | None = None,
    ) -> None:
        super().__init__()
        self.net = net
        self.class_names = list(class_names)
        self.in_channels = in_channels
        self.image_size = image_size
        self.transform = Fit(image_size) if transform is None else transform
        self.rejector = rejector

    def forward(self, images: Tensor) -> Tensor:
        """Return logits (N, num_classes).

        Args:
            images: Shape (N, C, H, W); bytes in [0, 255] or floating point in [0, 1].
        """
        if images.dtype == torch.uint8:
            images = images.float() / 255
        logits: Tensor = self.net(images)
        return logits

    def prepare(self, image: Image.Image | str | Path) -> Tensor:
        """Return an image file or PIL image as a tensor (C, H, W) in [0, 1] of the network's size and channels."""
        if not isinstance(image, Image.Image):
            with Image.open(image) as file:
                image = file.convert("L" if self.in_channels == 1 else "RGB")
        image = image.convert("L" if self.in_channels == 1 else "RGB")
        return self.transform(image).float() / 255

    @torch.inference_mode()
    def predict(self, images: Tensor | Sequence[Image.Image | str | Path]) -> list[Prediction]:
        """Return label and score of each image, and whether the run's rejector accepts it as known.

        Args:
            images: A batch as :meth:`forward` takes it, or image files, or PIL images.
        """
        if not isinstance(images, Tensor):
            images = torch.stack([self.prepare(image) for image in images])
        device = next(self.net.parameters()).device
        logits = self(images.to(device))
        score, label = logits.softmax(1).max(1)
        found = [Prediction(self.class_names[k], s) for k, s in zip(label.tolist(), score.tolist(), strict=True)]
        if self.rejector is None:
            return found
        unknownness = self.rejector.unknownness(logits)
        verdicts = zip(unknownness.tolist(), self.rejector.accepts(unknownness).tolist(), strict=True)
        return [each._replace(rejection_score=u, accepted=a) for each, (u, a) in zip(found, verdicts, strict=True)]


def load_run(run_dir: str | Path, which: str) -> Trained:
    """Build the network that a run's ``config.yaml`` describes and fill it with a checkpoint's weights."""
    from hem.cli import build, checkpoint, quiet  # deferred: the command line imports everything

    folder = Path(run_dir)
    config = folder / "config.yaml"
    if not config.is_file():
        raise FileNotFoundError(
            f"Expected the folder of a run with its config.yaml, got {folder}: train one with `python cli.py fit`, "
            "or name the folder that lies under runs/."
        )
    path = checkpoint(folder, which) if which in ("best", "last") else Path(which)
    quiet()
    record = yaml.safe_load(config.read_text())
    parts = {key: record[key] for key in ("seed_everything", "model", "data")}
    # the trainer goes unused: no logs, no accelerator
    cli = build(
        {**parts, "run_dir": str(folder), "trainer": {"logger": False, "accelerator": "cpu", "devices": 1}},
        run=False,
    )
    state = AtomicCheckpointIO().load_checkpoint(path, map_location="cpu")["state_dict"]
    check_state(cli.model, state)
    cli.model.load_state_dict({k: v for k, v in state.items() if k.startswith("net.")}, strict=False)
    data = cli.datamodule
    rejector = Rejector.load(folder, cli.model.net)
    form = (data.class_names, data.in_channels, data.image_size, data.eval_transform())
    return Trained(cli.model.net, *form, rejector).eval()
