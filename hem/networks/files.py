"""Files of weights: finding and reading them, without executing what they hold."""

from __future__ import annotations

import os
import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

SUFFIXES = (".safetensors", ".pth", ".pt", ".bin", ".ckpt", ".tar")
WRAPPERS = ("state_dict_ema", "model_ema", "state_dict", "model", "model_state_dict", "net")  # in checkpoints of others


def find(weights: str | Path) -> Path | None:
    """Return the path of weights; None: ``weights`` is a name, not a path.

    A relative path that does not exist is looked up in the folder named by the environment variable ``HEM_WEIGHTS``.

    Raises:
        FileNotFoundError: It looks like a path, but does not exist.
    """
    path = Path(weights).expanduser()
    shelf = os.environ.get("HEM_WEIGHTS")
    places = [path, *([Path(shelf).expanduser() / path] if shelf and not path.is_absolute() else [])]
    for place in places:
        if place.exists():
            return place
    if path.suffix not in SUFFIXES and len(path.parts) == 1:
        return None
    raise FileNotFoundError(
        f"Expected weights at {' or '.join(str(place) for place in places)}, got nothing there: give the path of a "
        "state dict (.safetensors, .pth) or the folder of a run; a relative path is also looked for in the folder that "
        "the environment's HEM_WEIGHTS names."
    )


def read(path: Path) -> tuple[dict[str, Tensor], Mapping[str, Any]]:
    """Read a state dict, without executing anything in the file: only tensors and plain values are loaded.

    Args:
        path: A ``.safetensors`` file, a file of ``torch.save``, or the folder of a run (its best checkpoint, else its
            last) or of a hub's model.

    Returns:
        The tensors by name, and the other entries of the file.

    Raises:
        FileNotFoundError: The folder holds no weights.
        ValueError: The file is damaged, holds more than tensors and plain values, or is no state dict.
    """
    if path.is_dir():
        names = ("checkpoints/best.ckpt", "checkpoints/last.ckpt", "model.safetensors", "pytorch_model.bin")
        found = next((path / name for name in names if (path / name).is_file()), None)
        if found is None:
            raise FileNotFoundError(
                f"Expected the folder of a run or of a model at {path}, got one without {', '.join(names)}: train it "
                "first, or give the path of the file."
            )
        path = found
    damaged = f"Expected a state dict at {path}, got a file that is cut short or damaged: copy or fetch it anew."
    if path.suffix == ".safetensors":
        try:
            return load_file(path), {}
        except SafetensorError as error:
            raise ValueError(f"{damaged[:-1]} ({error}).") from error
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            if any(name.endswith("/constants.pkl") for name in archive.namelist()):
                raise ValueError(
                    f"Expected a state dict at {path}, got a TorchScript program: load it yourself and save its state "
                    "dict, torch.save(torch.jit.load(path).state_dict(), path)."
                )
            if archive.testzip() is not None:  # torch.load does not check the checksums
                raise ValueError(damaged)
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if "Unsupported" in str(error) or "GLOBAL" in str(error):
            raise ValueError(
                f"Expected tensors and plain values at {path}, got a file that calls for more, which could be a "
                "program: where you trust it, load it yourself and save its state dict, "
                "torch.save(net.state_dict(), path)."
            ) from error
        raise ValueError(damaged) from error
    except (RuntimeError, EOFError, zipfile.BadZipFile, KeyError, ValueError, IndexError) as error:
        raise ValueError(damaged) from error
    inner = content
    if isinstance(content, Mapping):
        inner = next((content[key] for key in WRAPPERS if isinstance(content.get(key), Mapping)), content)
    tensors = {k: v for k, v in inner.items() if isinstance(v, Tensor)} if isinstance(inner, Mapping) else {}
    if not tensors:
        raise ValueError(
            f"Expected a state dict at {path}, tensors by name, got {type(content).__name__}: save one by "
            "torch.save(net.state_dict(), path)."
        )
    return tensors, content
