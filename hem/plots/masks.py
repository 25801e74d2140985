"""Pictures of segmentation masks: overlays with a legend, and PNG files with a palette."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from PIL import Image
from torch import Tensor

from hem.plots.style import styled

Color = tuple[int, int, int]
ERRORS: Sequence[Color] = ((200, 0, 200), (220, 30, 30), (255, 140, 0), (0, 200, 200))
RIGHT: Color = (235, 235, 235)


class Example(NamedTuple):
    """An image with its true and its predicted mask and maps of scores; all on the CPU."""

    input: Tensor  # (3, H, W) in [0, 1]
    target: Tensor  # (H, W); values of C and above have no label
    prediction: Tensor  # (H, W) in 0..C-1
    scores: dict[str, Tensor]  # by name, each (H, W); larger: more likely unknown


def colored(mask: Tensor, palette: Sequence[Color]) -> np.ndarray:
    """Return the colours (H, W, 3) uint8 of a mask (H, W); values that are no class are black.

    Example:
        >>> colored(torch.tensor([[1, 255]]), [(0, 0, 9), (7, 8, 9)]).tolist()
        [[[7, 8, 9], [0, 0, 0]]]
    """
    table = np.zeros((len(palette) + 1, 3), dtype=np.uint8)
    table[:-1] = palette
    return np.asarray(table[mask.clamp(max=len(palette)).numpy()])


def indexed_png(mask: Tensor, palette: Sequence[Color]) -> bytes:
    """Encode a mask (H, W) as a PNG file whose pixels are class indices and whose palette has their colours."""
    image = indexed(mask, palette)
    file = io.BytesIO()
    image.save(file, format="png")
    return file.getvalue()


def indexed(mask: Tensor, palette: Sequence[Color]) -> Image.Image:
    """Return a mask (H, W) of class indices as a PIL image with a palette."""
    image = Image.fromarray(mask.to(torch.uint8).cpu().numpy(), mode="L")
    image.putpalette([value for color in palette for value in color])
    return image


@styled
def overlays(examples: Sequence[Example], palette: Sequence[Color], class_names: Sequence[str]) -> Figure:
    """Draw a row per image: the image, its true and predicted masks, the errors and the maps of scores.

    Args:
        examples: The images.
        palette: RGB of each class.
        class_names: Name of each class.
    """
    shown = len(palette)
    maps = list(examples[0].scores)
    titles = ["image", "truth", "prediction", "error"]
    scales = {}  # of each score one for all images
    for name in maps:
        values = torch.cat([example.scores[name].flatten() for example in examples])
        scales[name] = (float(values.min()), float(values.max()))
        low, high = scales[name]
        titles.append(f"bright: unknown by {name.replace('_', ' ')}\nfrom {low:.2g} to {high:.2g}")
    # the colour that is least like that of any class
    wrong_color = max(ERRORS, key=lambda color: min(math.dist(color, other) for other in palette))
    ratio = examples[0].input.shape[1] / examples[0].input.shape[2]
    width = 2.3
    rows = -(-(shown + 3) // 6)  # of the legend, in columns of names
    figure = Figure(figsize=(width * len(titles), (width * ratio + 0.04) * len(examples) + 0.45 + 0.2 * rows))
    height = figure.get_figheight()
    panels = figure.subplots(len(examples), len(titles), squeeze=False)
    figure.subplots_adjust(
        left=0.004, right=0.996, top=1 - 0.4 / height, bottom=(0.2 * rows + 0.05) / height, wspace=0.02, hspace=0.03
    )
    for row, example in zip(panels, examples, strict=True):
        photo = (255 * example.input.permute(1, 2, 0).numpy()).astype(np.uint8)
        labelled = (example.target < shown).numpy()[..., None]
        truth = np.where(labelled, 0.4 * photo + 0.6 * colored(example.target, palette), 0)
        guess = 0.4 * photo + 0.6 * colored(example.prediction, palette)
        wrong = (example.target != example.prediction).numpy()[..., None]
        error = np.where(labelled, np.where(wrong, wrong_color, RIGHT), 0)
        pictures: list[np.ndarray] = [photo, truth, guess, error]
        for panel, picture in zip(row, pictures, strict=False):
            panel.imshow(picture.astype(np.uint8))
        for panel, name in zip(row[4:], maps, strict=True):
            low, high = scales[name]
            panel.imshow(example.scores[name].numpy(), cmap="magma", vmin=low, vmax=high)
        for panel in row:
            panel.set_axis_off()
    for panel, title in zip(panels[0], titles, strict=True):
        panel.set_title(title, fontsize=8, pad=3)
    entries = [*zip(class_names, palette, strict=True), ("void", (0, 0, 0)), ("right", RIGHT), ("error", wrong_color)]
    patches = [Patch(color=(r / 255, g / 255, b / 255), label=name) for name, (r, g, b) in entries]
    figure.legend(handles=patches, loc="lower center", ncol=-(-len(entries) // rows), fontsize=8, frameon=False,
                  handlelength=1.2, columnspacing=1.2, borderaxespad=0.1)  # fmt: skip
    return figure
