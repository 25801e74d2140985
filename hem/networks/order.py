"""Whose logit is which: the classes of a network that was trained elsewhere, in its own order."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import yaml
from timm.data.imagenet_info import ImageNetInfo

from hem.names import near
from hem.networks.weights import Rows


def order_of(order: str | Sequence[str], class_names: Sequence[str]) -> Rows:
    """The logit of each class, and how many logits there are, where the order says so.

    Args:
        order: The names of the logits in their order; or the path of a file with them, a line each, or YAML (``.yaml``,
            ``.yml``, ``.json``) with a list of them or with the number of the logit of each class; or ``"imagenet"``,
            the synsets of ImageNet-1k.
        class_names: The data's classes.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: A class has no logit, two names are the same, or the number of a logit is none.

    Example:
        >>> order_of(["dog", "cat", "cow"], ["cat", "dog"])
        Rows(chosen=[1, 0], total=3)
        >>> order_of("imagenet", ["n01440764", "n15075141"])
        Rows(chosen=[0, 999], total=1000)
    """
    places, count = _places(order)
    for name in class_names:
        if name not in places:
            raise ValueError(
                f"Expected a logit for each class, got none for '{name}'{near(name, places)}: name the network's "
                "classes in class_order as the data names them."
            )
    chosen = [places[name] for name in class_names]
    if twice := {name for name in class_names if chosen.count(places[name]) > 1}:
        raise ValueError(
            f"Expected a logit of its own for each class, got the same for {' and '.join(sorted(twice))}: tell them "
            "apart in class_order."
        )
    return Rows(chosen, count)


def _places(order: str | Sequence[str]) -> tuple[dict[str, int], int | None]:
    """The logit of each name, and how many logits there are: a mapping does not say it."""
    if order == "imagenet":
        names: object = ImageNetInfo("imagenet-1k").label_names()  # type: ignore[no-untyped-call]
    elif isinstance(order, str):
        path = Path(order).expanduser()
        if not path.is_file():
            raise FileNotFoundError(
                f"Expected a file of class names at {path}, got nothing there: give its path, or imagenet for the "
                "synsets of ImageNet-1k."
            )
        text = path.read_text("utf-8")
        names = yaml.safe_load(text) if path.suffix in (".yaml", ".yml", ".json") else text.split("\n")
    else:
        names = order
    if isinstance(names, Mapping):
        for name, place in names.items():
            if not isinstance(place, int) or place < 0:
                raise ValueError(
                    f"Expected the number of a logit for each class, 0 or more, got {place!r} for '{name}' in {order}: "
                    "write such as {cat: 3, dog: 5}."
                )
        return {str(name): place for name, place in names.items()}, None
    if not isinstance(names, Sequence):
        raise ValueError(f"Expected names of classes in {order}, got {type(names).__name__}: a list or a mapping.")
    found = [str(name).strip() for name in names]
    while found and not found[-1]:  # the end of a file
        found.pop()
    if twice := {name for name in found if found.count(name) > 1}:
        raise ValueError(f"Expected each class once, got '{min(twice)}' twice in class_order: name them apart.")
    return {name: place for place, name in enumerate(found)}, len(found)
