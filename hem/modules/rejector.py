"""Rejector of a run: threshold set on validation images by ``test``, saved with the run, used by ``predict``."""

from __future__ import annotations

import json
from typing import Any

from lightning.pytorch import Trainer
from torch import Tensor, nn

from hem.datamodules.base import ImageDataModule
from hem.datamodules.images import Images
from hem.rejection import LOGIT_SCORES, Rejector, accept_threshold, check_score
from hem.rng import some
from hem.runs import RunFolder
from hem.runs.checkpoints import identity
from hem.runs.files import read_json, write_atomically
from hem.runs.trainer import datamodule, keeping_folder, run_folder

CALIBRATION = 10_000  # validation images, at most, that a threshold is found on


def fingerprint(net: nn.Module) -> str:
    """Return a hash of a network's weights and buffers."""
    return identity(net.state_dict())


def load_rejector(folder: RunFolder, net: nn.Module) -> Rejector | None:
    """Return the rejector of a run; None where there is none for the weights of ``net``.

    Raises:
        ValueError: ``rejector.json`` is damaged.
    """
    weights = fingerprint(net)
    path = folder.of_weights(folder.rejector, weights)
    if not path.is_file():
        return None
    try:
        found = Rejector(**read_json(path))
        check_score(found.score)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"{path} is no rejector ({error}): delete it, or make it anew with `python cli.py test`."
        ) from error
    return found if found.weights == weights else None


def calibration_images(data: Any) -> tuple[Images, Tensor]:
    """Return clean validation images and the positions of those to look at, always the same ones.

    Raises:
        LookupError: There are none; the sentence says why.
    """
    if not isinstance(data, ImageDataModule):
        raise LookupError("there is no data module with a validation part")
    try:
        images, index = data.part("val")
    except FileNotFoundError as error:
        raise LookupError(str(error)) from error
    if len(index) == 0:
        raise LookupError("there is no validation part, since val_fraction is 0")
    return images, index[some(CALIBRATION, len(index), 0)]


def calibration_loader(trainer: Trainer) -> Any:
    """Return the batches of :func:`calibration_images`.

    Raises:
        LookupError: There are none; the sentence says why.
    """
    data = datamodule(trainer)
    images, index = calibration_images(data)
    return data.loader(images, index)


def save_rejector(trainer: Trainer, net: nn.Module, score: str, keep: float, logits: Tensor, target: Tensor) -> None:
    """Find the threshold that accepts a share of the rightly classified validation samples; save it with the run.

    Args:
        trainer: Of the test, at its end.
        net: The network that the threshold belongs to.
        score: One of :data:`hem.rejection.LOGIT_SCORES`.
        keep: The share, in (0, 1].
        logits: Of the validation samples of all processes, (N, C).
        target: Their classes, (N,).
    """
    folder = keeping_folder(trainer)
    if folder is None or not trainer.is_global_zero:
        return
    right = LOGIT_SCORES[score](logits)[logits.argmax(1) == target]
    if not len(right):
        print("no rejector: no validation sample is classified rightly")
        return
    found = Rejector(score, accept_threshold(right, keep), keep, fingerprint(net))
    write_atomically(RunFolder(folder).rejector, json.dumps(found._asdict(), indent=2) + "\n")


def run_rejector(trainer: Trainer, net: nn.Module) -> Rejector | None:
    """Return the run's rejector for these weights; print a line where there is none."""
    folder = run_folder(trainer)
    found = load_rejector(RunFolder(folder), net) if folder is not None else None
    if found is None and folder is not None and trainer.is_global_zero:
        path = RunFolder(folder).rejector
        state = "belongs to other weights" if path.is_file() else "is not there"
        print(f"predictions without `accepted`: {path} {state}; run `python cli.py test` with this checkpoint first.")
    return found
