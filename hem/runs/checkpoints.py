"""Checkpoints of a run: written atomically, the last two kept, loaded without executing what they hold."""

from __future__ import annotations

import hashlib
import os
import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from torch import Tensor, nn

from hem.runs.files import atomic_file
from hem.runs.newest import BEFORE, LAST, whole


def identity(state: Mapping[str, Tensor]) -> str:
    """Return a hash of a network's weights and buffers, by which results and thresholds are assigned to it.

    Args:
        state: The state dict of the network.

    Example:
        >>> identity({"w": torch.zeros(2)}) == identity({"w": torch.zeros(2)}) != identity({"w": torch.ones(2)})
        True
    """
    digest = hashlib.sha256()
    for name, value in state.items():
        value = value.detach().cpu()
        digest.update(name.encode())
        digest.update((value.float() if value.is_floating_point() else value).contiguous().numpy().tobytes())
    return digest.hexdigest()[:32]


def identity_of(checkpoint: str | Path) -> str:
    """Return the :func:`identity` of the network in a checkpoint.

    Raises:
        FileNotFoundError: If there is none.
        ValueError: If the file is damaged or no checkpoint.
    """
    state = AtomicCheckpointIO().load_checkpoint(checkpoint, map_location="cpu")["state_dict"]
    return identity({name.removeprefix("net."): value for name, value in state.items() if name.startswith("net.")})


def check_state(task: nn.Module, state: dict[str, Tensor]) -> None:
    """Raise an error if a checkpoint does not fit the network of a task.

    Args:
        task: The task that is to take the weights; its own are named ``net.*``.
        state: The ``state_dict`` of a checkpoint.

    Raises:
        ValueError: If names or shapes of its tensors differ from the network's.
    """
    own = {name: tuple(value.shape) for name, value in task.state_dict().items() if name.startswith("net.")}
    given = {name: tuple(value.shape) for name, value in state.items() if name.startswith("net.")}
    if own == given:
        return
    for name in own.keys() & given.keys():
        if own[name] != given[name]:
            raise ValueError(
                f"The checkpoint holds another network: its {name} has shape {given[name]}, this config's "
                f"{own[name]}. The number of classes, channels or the width differ: use the data and network it "
                "was trained with."
            )
    missing, extra = sorted(own.keys() - given.keys()), sorted(given.keys() - own.keys())
    raise ValueError(
        f"The checkpoint holds another network: it lacks {len(missing)} of this config's tensors "
        f"({', '.join(missing[:2]) or 'none'}) and brings {len(extra)} others ({', '.join(extra[:2]) or 'none'}): "
        "use the network it was trained with."
    )


def refuse_programs(path: Path) -> None:
    """Raise an error if a checkpoint holds more than tensors and plain values: Lightning 2.6 executes it under FSDP.

    Raises:
        ValueError: If it calls for other functions or classes.
    """
    try:
        calls = torch.serialization.get_unsafe_globals_in_checkpoint(path) if path.is_file() else []
    except Exception:  # no checkpoint, whatever its bytes mean to a pickle; loading it raises the error
        return
    if calls:
        raise ValueError(
            f"{path} cannot be read as a checkpoint: it calls for {calls[0]}, which could be a program, where tensors "
            "and plain values were expected; give one of those under runs/."
        )


class AtomicCheckpointIO(TorchCheckpointIO):
    """Checkpoint IO that writes to a temporary file, flushes and renames it, so a killed process leaves no half file.

    The ``last`` checkpoint that a new one replaces stays as ``last-1.ckpt``.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        """Save a checkpoint under ``path``, whole or not at all.

        Raises:
            OSError: If it cannot be written; the checkpoints that were there stay.
        """
        path = Path(path)
        with atomic_file(path) as file:
            torch.save(checkpoint, file)
            if path.name == LAST and path.is_file():
                self._keep(path)

    def _keep(self, last: Path) -> None:
        before, beside = last.with_name(BEFORE), last.with_name(f".{BEFORE}.{os.getpid()}")
        try:
            os.link(last, beside)  # a hard link, then a rename: there is a `last` at any moment
        except OSError:  # a file system without hard links
            os.replace(last, before)
        else:
            os.replace(beside, before)

    def load_checkpoint(
        self, path: Any, map_location: Any = lambda storage, loc: storage, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Load a checkpoint with ``weights_only``: tensors and plain values alone, nothing is executed.

        Raises:
            FileNotFoundError: If there is none.
            ValueError: If the file is damaged or no checkpoint.
        """
        if not Path(path).is_file():
            raise FileNotFoundError(
                f"Expected a checkpoint at {path}, but there is no such file: give the path of one, or `best` or "
                "`last` for those of this run."
            )
        try:
            if not whole(Path(path)):
                raise zipfile.BadZipFile  # torch.load does not check the checksums
            loaded: dict[str, Any] = super().load_checkpoint(path, map_location, weights_only=True)
        except (
            RuntimeError,
            OSError,
            EOFError,
            pickle.UnpicklingError,
            zipfile.BadZipFile,
            KeyError,
        ) as error:
            raise ValueError(
                f"{path} cannot be read as a checkpoint (cut short, changed on the disk, or another kind of file): "
                "give another one, `best` or `last`, or train again."
            ) from error
        if "state_dict" not in loaded:
            raise ValueError(f"{path} is no checkpoint of a run: it has no state_dict; give one of those under runs/.")
        return loaded
