"""The command line itself: ``python cli.py fit --config configs/classification/mnist.yaml``."""

from __future__ import annotations

import logging
import os
import sys
import warnings
from collections.abc import Sequence

from hem.cli.errors import MISTAKES, check_yaml, mistake, sentence
from hem.cli.parser import build
from hem.memory import keep_freed


def quiet() -> None:
    """Silence what libraries say that is no news to a user."""
    for message in (
        "LightningCLI's args parameter is intended",  # it is: `main` takes arguments from Python
        r"`isinstance\(treespec, LeafSpec\)` is deprecated",  # Lightning's own use of torch
        "Checkpoint directory .* exists and is not empty",  # SaveConfig refuses what would overwrite
        "You defined a `validation_step` but have no `val_dataloader`",  # val_fraction 0 says so
        "Be aware that when using `ckpt_path`, callbacks used",  # a checkpoint is examined under another config
        "The dirpath has changed from",  # a checkpoint is tested into another folder, or its run was moved
        "Precision .* is not supported by the model summary",  # its estimate in MB is all that is concerned
        "Couldn't infer the batch indices fetched",  # predictions carry their own
        "The '(train|val|test|predict)_dataloader' does not have many workers",  # images in memory need none
        # a run resumed behind its validation; a figure that no validation has is an error
        r"`ModelCheckpoint\(monitor=.*could not find the monitored key",
        "The `srun` command is available",  # on a login node, or for a run on this machine alone
    ):
        warnings.filterwarnings("ignore", message=message)
    # Lightning 2.6 calls jsonargparse by names of an older release
    os.environ.setdefault("JSONARGPARSE_DEPRECATION_WARNINGS", "off")
    # device tables, advertisements, the seed; warnings and errors stay
    for name in ("lightning.pytorch.utilities.rank_zero", "lightning.fabric.utilities.seed"):
        logging.getLogger(name).setLevel(logging.WARNING)


def main(args: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        args: The arguments behind ``python cli.py``; None: those of the process.

    Returns:
        0 on success, 1 where the run could not be done, 2 where the arguments are wrong. Set
        ``HEM_TRACEBACK=1`` to see the stack of an error.
    """
    arguments = list(sys.argv[1:] if args is None else args)
    quiet()
    keep_freed()
    try:
        check_yaml(arguments)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    try:
        build(arguments)
    except (*MISTAKES, RuntimeError) as error:
        cause = mistake(error)
        answered = isinstance(cause, MISTAKES) or sentence(cause) != str(cause)
        if os.environ.get("HEM_TRACEBACK") or not answered:
            raise
        print(f"error: {sentence(cause)}", file=sys.stderr)
        return 1
    except SystemExit as stop:
        return int(stop.code or 0) if not isinstance(stop.code, str) else 1
    return 0
