"""A rejector for use: the threshold on a score that accepts most of what a network classifies rightly."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Trainer
from torch import Tensor, nn

from hem.datamodules.base import ImageDataModule
from hem.datamodules.images import Images
from hem.datamodules.loader import Batch
from hem.modules.base import Task, datamodule
from hem.rejection import LOGIT_SCORES, Rejector, accept_threshold, check_score
from hem.rng import permutation
from hem.runs import RunFolder
from hem.runs.callbacks import partial
from hem.runs.checkpoints import identity
from hem.runs.files import write_atomically
from hem.runs.ranks import of_all_ranks

CALIBRATION = 10_000  # validation images, at most, that a threshold is found on


def fingerprint(net: nn.Module) -> str:
    """A hash of a network's weights and buffers: what a threshold belongs to."""
    return identity(net.state_dict())


def load_rejector(folder: RunFolder, net: nn.Module) -> Rejector | None:
    """Return the rejector of a run, or None where the run has none, or one for other weights than ``net`` has.

    Raises:
        ValueError: ``rejector.json`` is damaged.
    """
    weights = fingerprint(net)
    path = folder.of_weights(folder.rejector, weights)
    if not path.is_file():
        return None
    try:
        found = Rejector(**json.loads(path.read_text()))
        check_score(found.score)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"{path} is no rejector ({error}): delete it, or make it anew with `python cli.py test`."
        ) from error
    return found if found.weights == weights else None


def run_folder(trainer: Trainer) -> Path | None:
    """The folder of a run of the command line; None where a Trainer is used from Python, and for a trial run."""
    folder = Path(trainer.default_root_dir)
    written = not trainer.fast_dev_run and any(folder.glob("config*.yaml"))  # type: ignore[attr-defined]
    return folder if written else None


def keeping_folder(trainer: Trainer) -> Path | None:
    """The folder of a run where a test keeps what predictions need; None as well where a part of the images is tested.

    A limit on test batches is one on the validation batches that thresholds and temperatures are found on, too: what
    the whole test found is not to be replaced.
    """
    return None if partial(trainer) else run_folder(trainer)


def passed(task: Task, loader: Any) -> Iterator[Batch]:
    """Batches as a ``test_step`` gets them: on the device, of the run's precision, within its limit."""
    trainer: Any = task.trainer
    for batch in islice(loader, limited(trainer.limit_test_batches, len(loader))):
        with trainer.precision_plugin.test_step_context():
            yield trainer.strategy.batch_to_device(batch, dataloader_idx=0)


def limited(limit: int | float, count: int) -> int:
    """How many of ``count`` batches a limit of Lightning's leaves: a number, or a share, but then one at least.

    Example:
        >>> limited(3, 10), limited(1.0, 10), limited(0.1, 5)
        (3, 10, 1)
    """
    return limit if isinstance(limit, int) else max(int(limit * count), int(limit > 0))


def gathered(task: Task, parts: Sequence[Tensor]) -> Tensor:
    """The parts in one tensor on the CPU, those of all processes together."""
    whole = torch.cat([part.detach().cpu() for part in parts]) if parts else torch.empty(0)
    return torch.cat([part for part in of_all_ranks(task.trainer, whole) if part.numel()] or [whole])


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
    if len(index) > CALIBRATION:
        index = index[permutation(len(index), 0)[:CALIBRATION]].sort().values
    return images, index


def calibration_loader(task: Task) -> Any:
    """Return the batches of :func:`calibration_images`.

    Raises:
        LookupError: There are none; the sentence says why.
    """
    data = datamodule(task.trainer)
    images, index = calibration_images(data)
    return data.loader(images, index)


def save_rejector(task: Task, score: str, keep: float, logits: Tensor, target: Tensor) -> None:
    """Find the threshold that accepts a share of the rightly classified validation samples; save it with the run.

    Args:
        task: A classifier at the end of its test.
        score: One of :data:`hem.rejection.LOGIT_SCORES`.
        keep: The share, in (0, 1].
        logits: Of the validation samples of all processes, (N, C).
        target: Their classes, (N,).
    """
    folder = keeping_folder(task.trainer)
    if folder is None or not task.trainer.is_global_zero:
        return
    right = LOGIT_SCORES[score](logits)[logits.argmax(1) == target]
    if not len(right):
        print("no rejector: no validation sample is classified rightly")
        return
    found = Rejector(score, accept_threshold(right, keep), keep, fingerprint(task.net))
    write_atomically(RunFolder(folder).rejector, json.dumps(found._asdict(), indent=2) + "\n")


def say(task: Task, *lines: str) -> None:
    """Print lines, once for all processes, where a run of the command line has a reader."""
    if task.trainer.is_global_zero and run_folder(task.trainer) is not None:
        for line in lines:
            print(line)


def run_rejector(task: Task) -> Rejector | None:
    """The rejector of the run for the weights that predict now; a line says so where there is none."""
    folder = run_folder(task.trainer)
    found = load_rejector(RunFolder(folder), task.net) if folder is not None else None
    if found is None and folder is not None and task.trainer.is_global_zero:
        path = RunFolder(folder).rejector
        state = "belongs to other weights" if path.is_file() else "is not there"
        print(f"predictions without `accepted`: {path} {state}; run `python cli.py test` with this checkpoint first.")
    return found
