"""Properties of a Lightning Trainer: its data module, the folder of its run, its limits on batches."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sized
from itertools import islice
from pathlib import Path
from typing import Any

from lightning.pytorch import Trainer


def datamodule(trainer: Trainer) -> Any:
    """Return the data module of a trainer; None: it was given data loaders."""
    return getattr(trainer, "datamodule", None)


def trial(trainer: Trainer) -> bool:
    """Return whether this is a trial run (``fast_dev_run``), which writes no files."""
    return bool(getattr(trainer, "fast_dev_run", False))


def run_folder(trainer: Trainer) -> Path | None:
    """Return the folder of a run of the command line; None for a trial run and for a Trainer used from Python."""
    folder = Path(trainer.default_root_dir)
    return folder if not trial(trainer) and any(folder.glob("config*.yaml")) else None


def keeping_folder(trainer: Trainer) -> Path | None:
    """Return the folder for thresholds and temperatures of a test; None if batches are limited, or files are others.

    The limit on test batches holds for the validation batches that these are fitted on as well, and they must not
    replace those of a test on all images, nor those of the images of the training.
    """
    others = any(getattr(each, "other_files", False) for each in trainer.callbacks)  # type: ignore[attr-defined]
    return None if others or partial(trainer) else run_folder(trainer)


def partial(trainer: Trainer) -> str | None:
    """Return how much of the test or validation part was used, such as "3 of 10 batches"; None: all of it."""
    testing = trainer.state.fn == "test"
    limit = trainer.limit_test_batches if testing else trainer.limit_val_batches
    given: Any = trainer.test_dataloaders if testing else trainer.val_dataloaders
    if limit == 1.0 and isinstance(limit, float):
        return None
    loaders = given if isinstance(given, list) else [given]
    if not all(isinstance(each, Sized) for each in loaders):
        return f"{limit} of all batches"
    sizes = [len(each) for each in loaders]
    done = sum(min(limit, size) if isinstance(limit, int) else int(limit * size) for size in sizes)
    return f"{done} of {sum(sizes)} batches" if done < sum(sizes) else None


def limited(limit: int | float, count: int) -> int:
    """Return the number of batches that remain of ``count`` under Lightning's limit, a number or a share.

    Example:
        >>> limited(3, 10), limited(1.0, 10), limited(0.1, 5)
        (3, 10, 1)
    """
    return limit if isinstance(limit, int) else max(int(limit * count), int(limit > 0))


def passed(trainer: Trainer, loader: Any) -> Iterator[Any]:
    """Yield batches as a ``test_step`` gets them: on the device, in the run's precision, within its limit.

    A test that its limit leaves whole has all batches of other loaders as well, though they may be more.
    """
    whole = trainer.state.fn == "test" and partial(trainer) is None
    batches: Iterable[Any] = loader if whole else islice(loader, limited(trainer.limit_test_batches, len(loader)))
    for batch in batches:
        with trainer.precision_plugin.test_step_context():
            yield trainer.strategy.batch_to_device(batch, dataloader_idx=0)
