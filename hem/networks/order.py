"""Whose logit is which: the classes of a network that was trained elsewhere, in its own order."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import yaml
from timm.data.imagenet_info import ImageNetInfo

from hem.names import near


def order_of(order: str | Sequence[str], class_names: Sequence[str]) -> tuple[list[int], int]:
    """The logit of each class, and how many logits there are.

    Args:
        order: The names of the logits in their order; or the path of a file with them, a line each, or YAML (``.yaml``,
            ``.yml``, ``.json``) with a list of them or with the number of the logit of each class; or ``"imagenet"``,
            the synsets of ImageNet-1k.
        class_names: The data's classes.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: A class has no logit, or two names are the same.

    Example:
        >>> order_of(["dog", "cat", "cow"], ["cat", "dog"])
        ([1, 0], 3)
        >>> order_of("imagenet", ["n01440764", "n15075141"])
        ([0, 999], 1000)
    """
    places = _places(order)
    for name in class_names:
        if name not in places:
            raise ValueError(
                f"Expected a logit for each class, got none for '{name}'{near(name, places)}: name the network's "
                "classes in class_order as the data names them."
            )
    return [places[name] for name in class_names], max(places.values()) + 1


def _places(order: str | Sequence[str]) -> dict[str, int]:
    """The logit of each name."""
    if order == "imagenet":
        names: object = ImageNetInfo("imagenet-1k").label_names()  # type: ignore[no-untyped-call]
    elif isinstance(order, str):
        path = Path(order).expanduser()
        if not path.is_file():
            raise FileNotFoundError(
                f"Expected a file of class names at {path}, got nothing there: give its path, or imagenet for the "
                "synsets of ImageNet-1k."
            )
        text = path.read_text()
        names = yaml.safe_load(text) if path.suffix in (".yaml", ".yml", ".json") else text.split("\n")
    else:
        names = order
    if isinstance(names, Mapping):
        return {str(name): int(place) for name, place in names.items()}
    if not isinstance(names, Sequence):
        raise ValueError(f"Expected names of classes in {order}, got {type(names).__name__}: a list or a mapping.")
    found = [str(name).strip() for name in names]
    while found and not found[-1]:  # the end of a file
        found.pop()
    if twice := {name for name in found if found.count(name) > 1}:
        raise ValueError(f"Expected each class once, got '{min(twice)}' twice in class_order: name them apart.")
    return {name: place for place, name in enumerate(found)}
