"""Entry point of the command line: ``python cli.py fit --config classification/mnist --config loss/hem``."""

from __future__ import annotations

import logging
import os
import sys
import warnings
from collections.abc import Sequence
from typing import NoReturn

from hem.cli.allocator import keep_freed
from hem.cli.configs import base_config, expanded
from hem.cli.help import COMMANDS, LISTINGS, PROGRAMS, of_command, overview, program
from hem.cli.listings import listing
from hem.names import near

OTHER_NAMES = {"train": "fit", "eval": "test", "evaluate": "test"}  # of the commands
HELP = ("-h", "--help")


def quiet() -> None:
    """Silence warnings of libraries that a user cannot act on."""
    for message in (
        "LightningCLI's args parameter is intended",  # it is: `main` takes arguments from Python
        r"`isinstance\(treespec, LeafSpec\)` is deprecated",  # Lightning's own use of torch
        # a damaged note of how an image is to be turned, or of anything else: the image itself is as it is stored
        "Corrupt EXIF data|Tag data larger than file|Truncated File Read|Metadata Warning, tag",
        "Checkpoint directory .* exists and is not empty",  # SaveConfig refuses what would overwrite
        "You defined a `validation_step` but have no `val_dataloader`",  # val_fraction 0 says so
        "Be aware that when using `ckpt_path`, callbacks used",  # a checkpoint is examined under another config
        "The dirpath has changed from",  # a checkpoint is tested into another folder, or its run was moved
        "Precision .* is not supported by the model summary",  # its estimate in MB is all that is concerned
        "You called `self.log.* but have no logger configured",  # results.json holds what is logged
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
        0 on success, 1 where the run could not be done, 2 where the arguments are wrong, 75 where it was told to stop
        and can be continued, 130 where Ctrl-C stopped it. Set ``HEM_TRACEBACK=1`` to see the stack of an error.
    """
    arguments = list(sys.argv[1:] if args is None else args)
    if arguments[:1] and arguments[0] in HELP:
        print(overview())
        return 0
    if arguments[:1] and arguments[0] in COMMANDS and arguments[-1] in HELP:
        print(of_command(arguments[0]))
        return 0
    if arguments[-2:-1] and arguments[-2] in HELP and arguments[-1] == "all":
        arguments.pop()  # the parser's own
    try:
        first = next(iter(arguments), "")
        if first in LISTINGS:
            print(listing(first, arguments[1:]))
            return 0
        if first not in COMMANDS:
            refuse(first)
        arguments = expanded(arguments)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    try:
        base_config()
    except FileNotFoundError as error:  # of a damaged installation: said before what takes seconds to import
        print(f"error: {error}", file=sys.stderr)
        return 1
    try:
        return run(arguments)
    except KeyboardInterrupt:  # also while libraries are imported
        return interrupted()


def interrupted() -> int:
    """Print how to resume after Ctrl-C, and return the shell's exit code."""
    print("stopped by Ctrl-C: a training goes on from its last checkpoint with `--ckpt_path auto`.", file=sys.stderr)
    return 130


def refuse(first: str) -> NoReturn:
    """Refuse a first word that is no command.

    Raises:
        ValueError: Always.
    """
    known = (*COMMANDS, *PROGRAMS, *LISTINGS)
    given = f"'{first}'{near(OTHER_NAMES.get(first, first), known)}" if first else "none"
    given = "an option first" if first.startswith("-") else given
    raise ValueError(f"Expected a command, one of {', '.join(known)}, got {given}: see `{program()} --help`.")


def run(arguments: Sequence[str]) -> int:
    """Run a command; heavy imports happen here, so that mistakes found before are answered at once."""
    quiet()
    keep_freed()
    if not sys.flags.safe_path and os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())  # own classes: `hem` finds them as `python cli.py` does
    from lightning.pytorch.utilities.exceptions import SIGTERMException

    from hem.cli.errors import mistake, sentence
    from hem.cli.own import Unusable
    from hem.cli.parser import build
    from hem.runs.watch import AGAIN

    try:
        build(arguments)
    except Exception as error:
        if os.environ.get("HEM_TRACEBACK"):
            raise
        cause = mistake(error)
        print(f"error: {sentence(cause)}", file=sys.stderr)
        return 2 if isinstance(cause, Unusable) else 1
    except SystemExit as stop:
        if isinstance(stop.__context__, KeyboardInterrupt):  # Lightning makes a 1 of it
            return interrupted()
        if isinstance(stop, SIGTERMException) or (stop.code == AGAIN and arguments[0] != "fit"):
            # Lightning's, where a signal comes before the first step, has no code, which would be a success
            print("stopped by a signal before there was a result: the same command does it.", file=sys.stderr)
            return AGAIN
        return int(stop.code or 0) if not isinstance(stop.code, str) else 1
    return 0
