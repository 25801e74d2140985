"""hem: high error margin losses, and everything needed to compare losses fairly.

``from hem.losses import HEMLoss`` needs torch alone; ``hem.load`` brings back a trained network, ``hem.calibrate``
makes probabilities of any network's logits, and ``hem.evaluate`` examines any network.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from hem import moved

if TYPE_CHECKING:
    from hem.calibration import calibrate
    from hem.inference.examine import evaluate
    from hem.inference.predictor import Segmenter, Trained

moved.install()
__version__ = "0.2.0"
__all__ = ["__version__", "calibrate", "evaluate", "load"]


def __getattr__(name: str) -> Any:
    if name == "calibrate":  # deferred: it imports torchmetrics, which the losses alone must not need
        from hem.calibration import calibrate

        return calibrate
    if name == "evaluate":
        from hem.inference.examine import evaluate

        return evaluate
    raise AttributeError(f"module 'hem' has no attribute '{name}'")


def load(run_dir: str | Path, checkpoint: str | None = None) -> Trained | Segmenter:
    """Return the trained network of a run, with its preprocessing and class names, for use anywhere.

    Args:
        run_dir: The folder of a run, ``runs/<task>_<data>/<loss>/seed<k>``.
        checkpoint: ``"best"``, ``"last"`` or the path of a checkpoint; None: the one that `hem test --run` takes, which
            is the one that a study tested, the last one of a stream, else the best.

    Returns:
        A module in evaluation mode: images in, logits out; see :class:`hem.inference.predictor.Trained`, and
        :class:`hem.inference.predictor.Segmenter` for a run of segmentation.

    Raises:
        FileNotFoundError: If the folder holds no run or not that checkpoint.
        ValueError: If the config does not fit the checkpoint.
    """
    from hem.inference.predictor import load_run  # the losses alone must not need Lightning

    return load_run(run_dir, checkpoint)
