"""Order of the classes of a network that was trained elsewhere."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import yaml
from timm.data.imagenet_info import ImageNetInfo

from hem.names import near
from hem.networks.weights import Rows


def order_of(order: str | Sequence[str], class_names: Sequence[str]) -> Rows:
    """Return the logit of each class, and the number of logits if the order has it.

    Args:
        order: Names of the classes in the order of the logits; or the path of a file with them, one per line, or YAML
            (``.yaml``, ``.yml``, ``.json``) with a list or with the number of the logit of each class; or
            ``"imagenet"``, the synsets of ImageNet-1k.
        class_names: Class names of the data.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: A class has no logit, a name is repeated, or the number of a logit is invalid.

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
    """Return the logit of each name, and the number of logits; None for a mapping, which does not have it."""
    if order == "imagenet":
        names: object = ImageNetInfo("imagenet-1k").label_names()  # type: ignore[no-untyped-call]
    elif isinstance(order, str):
        path = Path(order).expanduser()
        if not path.is_file():
            raise FileNotFoundError(
                f"Expected a file of class names at {path}, got nothing there: give its path, or imagenet for the "
                "synsets of ImageNet-1k."
            )
        text = path.read_text("utf-8-sig")
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
    while found and not found[-1]:  # blank lines at the end of a file
        found.pop()
    if twice := {name for name in found if found.count(name) > 1}:
        raise ValueError(f"Expected each class once, got '{min(twice)}' twice in class_order: name them apart.")
    return {name: place for place, name in enumerate(found)}, len(found)
