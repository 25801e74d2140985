"""A trained network as an ONNX file: `python -m hem.export RUN_DIR [--output model.onnx] [--probabilities]`."""

from __future__ import annotations

import argparse
import copy
import json
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor, nn


def export_onnx(
    net: nn.Module,
    path: str | Path,
    image_size: tuple[int, int],
    in_channels: int,
    class_names: Sequence[str] | None = None,
    probabilities: nn.Module | None = None,
) -> float | None:
    """Writes a network as one ONNX file, through torch's exporter, and compares the two.

    The file's input `images` is float32 (N, in_channels, H, W) in [0, 1] with any N, its output `logits` is
    (N, num_classes). The network is exported in evaluation mode and is itself left as it is.

    Args:
        net: images (N, in_channels, H, W) to logits (N, num_classes); with its normalisation, if it has one.
        path: the file to write; it must not exist.
        image_size: (height, width) in pixels.
        in_channels: channels of an image.
        class_names: kept in the file's metadata under `class_names`, as a JSON list.
        probabilities: logits to probabilities, such as a `Temperature` of `hem.calibrate`: the file then has a second
            output, `probabilities`, and the numbers of the module in its metadata under `calibration`. None: no such.

    Returns:
        The largest difference between the file's logits and torch's over random images, in batches of other
        sizes than the one exported; None where onnxruntime, which runs the file, is not installed.

    Raises:
        ImportError: if onnx or onnxscript is missing.
        FileExistsError: if the file exists.
        RuntimeError: if the file's logits are not torch's; the file is then not left behind.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> with TemporaryDirectory() as folder:
        ...     export_onnx(nn.Flatten(), f"{folder}/flatten.onnx", image_size=(2, 2), in_channels=1)
        0.0
    """
    missing = [name for name in ("onnx", "onnxscript") if find_spec(name) is None]
    if missing:
        raise ImportError(f"ONNX export needs {' and '.join(missing)}: pip install 'hem[export]'")
    path = Path(path)
    if path.exists():
        raise FileExistsError(f"{path} exists and is not overwritten: remove it or name another file")
    net = _Outputs(net, probabilities)
    net = copy.deepcopy(net).cpu().eval()
    # two images, not one: a batch of one would be taken for a constant
    program = torch.onnx.export(
        net,
        (torch.rand(2, in_channels, *image_size),),
        dynamo=True,
        verbose=False,
        input_names=["images"],
        output_names=net.names,
        dynamic_shapes=({0: torch.export.Dim("batch")},),
    )
    assert program is not None  # dynamo=True gives a program
    if class_names is not None:
        program.model.metadata_props["class_names"] = json.dumps(list(class_names))
    if probabilities is not None:
        numbers = {name: value.tolist() for name, value in probabilities.named_buffers()}
        program.model.metadata_props["calibration"] = json.dumps(numbers)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.part")
    try:
        program.save(part, external_data=False)
        difference = _difference(net, part, [torch.rand(n, in_channels, *image_size) for n in (1, 5)])
        part.rename(path)
    finally:
        part.unlink(missing_ok=True)
    return difference


class _Outputs(nn.Module):
    """Images to the outputs of the file."""

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
    """The largest difference of the outputs, where onnxruntime is installed; float32's rounding is allowed."""
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
    """The command: loads a run's network and exports it, with its preprocessing and class names."""
    parser = argparse.ArgumentParser(prog="python -m hem.export", description="Export a run's network to ONNX.")
    parser.add_argument("run_dir", type=Path, help="folder of a run, e.g. runs/classification_mnist/hem/seed0")
    parser.add_argument("--output", type=Path, help="file to write (default: RUN_DIR/model.onnx)")
    parser.add_argument(
        "--probabilities", action="store_true", help="a second output: probabilities, by the run's calibration"
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
        difference = export_onnx(
            model,
            output,
            model.image_size,
            model.in_channels,
            model.class_names,
            None if calibration is None else calibration.probabilities,
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
