"""Export of networks to ONNX: `python -m hem.inference.onnx RUN_DIR [--output model.onnx] [--probabilities]`."""

from __future__ import annotations

import argparse
import copy
import json
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hem.datamodules.images import Fit
from hem.networks import Normalize


class Pixels(nn.Module):
    """A network with preprocessing: it takes bytes of any height and width, and scales them as in training.

    Scaling is bilinear and antialiased, in floating point: within 1/255 of the bytes that torchvision makes of a PIL
    image.

    Args:
        net: From images (N, C, H, W) in [0, 1] of one size to logits.
        image_size: That size, (height, width).
        shorter: Pixels to which the shorter side is scaled before a centre crop; None: stretch.

    Example:
        >>> Pixels(nn.Flatten(), (2, 2))(torch.full((1, 1, 5, 3), 255, dtype=torch.uint8)).shape
        torch.Size([1, 4])
        >>> Pixels(nn.Flatten(), (2, 2), shorter=3)(torch.zeros(1, 1, 3, 9, dtype=torch.uint8)).shape
        torch.Size([1, 4])
    """

    def __init__(self, net: nn.Module, image_size: tuple[int, int], shorter: int | None = None) -> None:
        super().__init__()
        self.net = net
        self.image_size = image_size
        self.shorter = shorter

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits of images (N, C, any height, any width), uint8."""
        input = images.float() / 255
        size: Any = self.image_size
        if self.shorter is not None:
            height, width = input.shape[2:]
            least = torch.sym_min(height, width)
            size = (self.shorter * height // least, self.shorter * width // least)
        input = F.interpolate(input, size, mode="bilinear", antialias=True)
        if self.shorter is not None:
            top, left = (_centred(total, part) for total, part in zip(size, self.image_size, strict=True))
            # by index: the exporter takes the length of a slice for dependent on the image
            for dim, start in ((2, top), (3, left)):
                place = start + torch.arange(self.image_size[dim - 2], device=input.device)
                input = input.index_select(dim, place)
        logits: Tensor = self.net(input)
        return logits


def _centred(total: int, part: int) -> int:
    """Return the start of a centre crop, half of the rest, rounded to even like torchvision's."""
    left = total - part
    half = left // 2
    return half + (left % 2) * (half % 2)


def preprocessing_of(model: Any, pixels: bool) -> dict[str, Any]:
    """Return a description of the preprocessing for an ONNX file's metadata.

    Args:
        model: A network as returned by :func:`hem.load`.
        pixels: Whether scaling is part of the file.
    """
    fit = getattr(model, "transform", None)
    if type(fit) is Fit:
        scaling = "stretched" if fit.shorter is None else f"shorter side to {fit.shorter}, then the centre cut out"
    else:
        scaling = type(fit or getattr(model, "shape", None)).__name__
    height, width = model.image_size
    normalize = next((module for module in model.modules() if isinstance(module, Normalize)), None)
    return {
        "input": "uint8 in [0, 255], any height and width" if pixels else f"float32 in [0, 1], {height} x {width}",
        "layout": "N, C, H, W",
        "channels": "RGB" if model.in_channels == 3 else "grey",
        "image_size": [height, width],
        "scaling": f"{scaling}; bilinear, antialiased{', in the graph' if pixels else ''}",
        "normalisation": "none" if normalize is None else f"in the graph: {normalize.extra_repr()}",
    }


def export_onnx(
    net: nn.Module,
    path: str | Path,
    image_size: tuple[int, int],
    in_channels: int,
    class_names: Sequence[str] | None = None,
    probabilities: nn.Module | None = None,
    preprocessing: Mapping[str, Any] | None = None,
    pixels: bool = False,
) -> float | None:
    """Export a network to one ONNX file by torch's exporter, and compare the outputs of both.

    The file's input ``images`` is float32 (N, in_channels, H, W) in [0, 1] with any N, its output ``logits`` is
    (N, num_classes). A copy of the network in evaluation mode is exported.

    Args:
        net: From images (N, in_channels, H, W) to logits (N, num_classes), including any normalisation.
        path: The file to write; it must not exist.
        image_size: (height, width) in pixels.
        in_channels: Channels of an image.
        class_names: Written to the file's metadata as ``class_names``, a JSON list.
        probabilities: From logits to probabilities, such as a ``Temperature`` of :func:`hem.calibrate`: the file gets a
            second output, ``probabilities``, and the module's parameters are in its metadata as ``calibration``. None:
            no such output.
        preprocessing: The preprocessing of images, written to the metadata as ``preprocessing``, in JSON.
        pixels: Whether the input is an image of any height and width; ``net`` is :class:`Pixels` then.

    Returns:
        The largest difference between the file's logits and torch's over random images, in batches of other sizes than
        the exported one; None if onnxruntime, which runs the file, is not installed.

    Raises:
        ImportError: If onnx or onnxscript is missing.
        FileExistsError: If the file exists.
        RuntimeError: If the file's logits are not torch's; the file is then removed.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> with TemporaryDirectory() as folder:
        ...     export_onnx(nn.Flatten(), f"{folder}/flatten.onnx", image_size=(2, 2), in_channels=1)
        0.0
    """
    missing = [name for name in ("onnx", "onnxscript") if find_spec(name) is None]
    if missing:
        raise ImportError(f"ONNX export needs {' and '.join(missing)}: pip install 'hem-loss[export]'")
    path = Path(path)
    if path.exists():
        raise FileExistsError(f"Expected a new file, got {path}, which exists: remove it or name another file.")
    net = _Outputs(net, probabilities)
    net = copy.deepcopy(net).cpu().eval()
    sizes = {0: torch.export.Dim("batch")}
    if pixels:  # an example of another size, since the exporter takes `image_size` itself for a constant
        sizes |= {2: torch.export.Dim("height"), 3: torch.export.Dim("width")}
    height, width = (image_size[0] + 13, image_size[1] + 24) if pixels else image_size

    def example(count: int, height: int, width: int) -> Tensor:
        images = torch.rand(count, in_channels, height, width)
        return (images * 256).to(torch.uint8) if pixels else images

    # two images: the exporter takes a batch size of one for a constant
    program = torch.onnx.export(
        net,
        (example(2, height, width),),
        dynamo=True,
        verbose=False,
        input_names=["images"],
        output_names=net.names,
        dynamic_shapes=(sizes,),
    )
    assert program is not None  # dynamo=True gives a program
    buffers = None if probabilities is None else dict(probabilities.named_buffers())
    metadata = {"class_names": class_names, "calibration": buffers, "preprocessing": preprocessing}
    for key, value in metadata.items():
        if value is not None:
            program.model.metadata_props[key] = json.dumps(value, default=Tensor.tolist)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.part")
    try:
        program.save(part, external_data=False)
        difference = _difference(
            net, part, [example(1, height, width), example(5, width, height) if pixels else example(5, height, width)]
        )
        part.rename(path)
    finally:
        part.unlink(missing_ok=True)
    return difference


class _Outputs(nn.Module):
    """A module from images to all outputs of the file."""

    def __init__(self, net: nn.Module, probabilities: nn.Module | None) -> None:
        super().__init__()
        self.net = net
        self.probabilities = probabilities
        self.names = ["logits"] if probabilities is None else ["logits", "probabilities"]

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        logits: Tensor = self.net(images)
        return (logits,) if self.probabilities is None else (logits, self.probabilities(logits))


@torch.no_grad()
def _difference(net: _Outputs, path: Path, batches: list[Tensor]) -> float | None:
    """Return the largest difference of the outputs, None without onnxruntime; an error if it is more than rounding."""
    if find_spec("onnxruntime") is None:
        return None
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    largest = 0.0
    for images in batches:
        found = session.run(net.names, {"images": images.numpy()})
        for name, own, exported in zip(net.names, net(images), map(torch.from_numpy, found), strict=True):
            difference = (own - exported).abs().max().item()
            if not difference <= 1e-4 * max(1.0, own.abs().max().item()):
                raise RuntimeError(
                    f"the exported network's {name} differ from torch's by {difference:.3g}: nothing was written"
                )
            largest = max(largest, difference)
    return largest


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command: load a run's network, and export it with its preprocessing and class names."""
    parser = argparse.ArgumentParser(prog="python -m hem.inference.onnx", description="Export a run's network to ONNX.")
    parser.add_argument("run_dir", type=Path, help="folder of a run, e.g. runs/classification_mnist/hem/seed0")
    parser.add_argument("--output", type=Path, help="file to write (default: RUN_DIR/model.onnx)")
    parser.add_argument(
        "--probabilities", action="store_true", help="a second output: probabilities, by the run's calibration"
    )
    parser.add_argument(
        "--pixels",
        action="store_true",
        help="the file takes images as bytes, of any height and width: scaling is part of it, too",
    )
    chosen = parser.parse_args(arguments)
    output = chosen.output or chosen.run_dir / "model.onnx"
    try:
        from hem import load

        model = load(chosen.run_dir)
        calibration = model.calibration if chosen.probabilities else None
        if chosen.probabilities and calibration is None:
            raise ValueError(
                f"Expected the calibration of these weights in {chosen.run_dir}, got none: make it with "
                "`python cli.py test` and this checkpoint, or leave --probabilities out."
            )
        fit = getattr(model, "transform", None)
        if chosen.pixels and type(fit) is not Fit:
            raise ValueError(
                "Expected a run of a classifier whose images are stretched or cut out of their centre, got another "
                "one: leave --pixels out, and scale images before they go in."
            )
        net = Pixels(model.net, model.image_size, fit.shorter) if type(fit) is Fit and chosen.pixels else model
        difference = export_onnx(
            net,
            output,
            model.image_size,
            model.in_channels,
            model.class_names,
            None if calibration is None else calibration.probabilities,
            preprocessing_of(model, chosen.pixels),
            chosen.pixels,
        )
    except (ImportError, OSError, RuntimeError, ValueError) as error:
        parser.error(str(error))
    checked = (
        "not compared with torch: onnxruntime is not installed"
        if difference is None
        else f"{'logits and probabilities' if chosen.probabilities else 'logits'} within {difference:.1e} of torch's"
    )
    print(f"{output}: {checked}")


if __name__ == "__main__":
    main()
