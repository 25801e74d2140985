"""Segmentation task: a class for every pixel."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor
from torchmetrics import MetricCollection

from hem.metrics import Accuracy, MeanLoss, ScoreHistogram, catalog, collection
from hem.metrics.masks import Overlap
from hem.modules.base import Task
from hem.modules.calibrator import Calibrator
from hem.modules.optimization import most_accumulated
from hem.networks.views import scaled, sliding_window
from hem.plots.masks import Example, indexed_png, overlays
from hem.plots.matrices import confusion
from hem.rejection import max_logit, msp
from hem.rng import integers, key
from hem.runs import RunFolder
from hem.runs.outputs import folder_of, write, write_figure
from hem.runs.ranks import of_all_ranks
from hem.runs.trainer import datamodule, run_folder

PIXELS = 9  # the first word of the keys that choose pixels
UNKNOWNNESS = {"max_logit": max_logit, "msp": msp}


class SegmentationTask(Task):
    """Train and test a network that labels every pixel.

    A sample is a pixel: the losses' means go over the labelled pixels of the whole global batch, HEM's over those
    of them that still carry error. A batch without a label has the loss 0.

    Logged for validation (``val/``) and test (``test/``), all over the labelled pixels of the whole set: ``miou``
    (the mean over the classes that are there or predicted), ``iou/<name>``, ``mean_accuracy`` (over the classes
    that are there), ``accuracy`` (of pixels), ``loss``, ``active``, the share of pixels whose loss is not 0, and
    ``active_loss``, the mean over these.
    The test fits probabilities on a sample of the validation pixels and judges them on one of the test's, as
    :class:`~hem.modules.Calibrator` says. It adds ``unknown/auroc_max_logit`` and ``unknown/auroc_msp``: how well these
    scores tell the pixels of held-out classes, or, without such, the void ones, from the labelled ones. It leaves
    ``confusion.png`` and ``overlays.png`` in the run folder; ``predict`` leaves ``masks/<image>.png``, indexed, in the
    files' sizes.

    Args:
        *args: See :class:`~hem.modules.base.Task`.
        ignore_index: The label of pixels without a label; the loss gets it as well. Linked from the data module.
        unknown_index: The label of pixels of unknown classes, which count as without a label everywhere else;
            linked from the data module.
        palette: RGB of each class; linked from the data module. None: shades of grey.
        auxiliary: The factor of each auxiliary head's loss, for networks that give (logits, auxiliary, ...) in
            training.
        window: Height and width of the windows that slide over images in validation and test; None: whole images.
        stride: Their steps; None: two thirds of the window.
        scales: Scales over which the logits are averaged in test and prediction.
        flip: Whether to average over mirror images as well.
        examples: Number of test images in ``overlays.png``.
        calibrator: Fits the probabilities; None: one temperature.
        pixels: Pixels of each image that probabilities are fitted on and judged by, always the same ones.
        **kwargs: See :class:`~hem.modules.base.Task`.
    """

    shown = Task.shown | {catalog.MIOU.key("val"), catalog.MIOU.key("test")}

    def __init__(
        self,
        *args: Any,
        ignore_index: int = 255,
        unknown_index: int = 255,
        palette: Sequence[tuple[int, int, int]] | None = None,
        auxiliary: Sequence[float] = (0.4,),
        window: tuple[int, int] | None = None,
        stride: tuple[int, int] | None = None,
        scales: Sequence[float] = (1.0,),
        flip: bool = False,
        examples: int = 4,
        calibrator: Calibrator | None = None,
        pixels: int = 500,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        if pixels < 1:
            raise ValueError(f"Expected pixels as a number for each image, 1 or more, got {pixels}: 500 is usual.")
        self.ignore_index = ignore_index
        self.unknown_index = unknown_index
        shades = [round(255 * c / max(self.num_classes - 1, 1)) for c in range(self.num_classes)]
        self.palette = [(v, v, v) for v in shades] if palette is None else [(r, g, b) for r, g, b in palette]
        self.auxiliary = list(auxiliary)
        self.window = window
        self.stride = stride or (window and (max(1, 2 * window[0] // 3), max(1, 2 * window[1] // 3)))
        self.scales = list(scales)
        self.flip = flip
        self.examples = examples
        self.calibrator = Calibrator() if calibrator is None else calibrator
        self.pixels = pixels
        self.images: dict[int, Example] = {}  # of the overlays, by number
        for criterion in self.loss.modules():  # the data alone decides what has no label
            if hasattr(criterion, "ignore_index"):
                criterion.ignore_index = ignore_index  # type: ignore[assignment]

    def configure_metrics(self, stage: str) -> dict[str, MetricCollection]:
        """Return loss and mask overlap; in the test also the AUROC of unknown pixels."""
        if stage == "train":
            accuracy = Accuracy(self.ignore_index)
            return {
                "plain": collection({"losses": MeanLoss(self.loss, self.ignore_index), catalog.ACCURACY.path: accuracy})
            }
        overlap = Overlap(self.class_names, self.ignore_index)
        found = {"plain": collection({"losses": MeanLoss(self.loss, self.ignore_index), "overlap": overlap})}
        if stage == "test":
            scores = {catalog.UNKNOWN_AUROC.key(score=name): score for name, score in UNKNOWNNESS.items()}
            found["unknown"] = collection({name: ScoreHistogram(score) for name, score in scores.items()})
        return found

    def forward(self, input: Tensor) -> Tensor:
        """Return the logits (N, num_classes, H, W) of a batch of images in [0, 1]."""
        return self._heads(input)[0]

    def _heads(self, input: Tensor) -> tuple[Tensor, ...]:
        found = self.net(input)
        return found if isinstance(found, tuple) else (found,)

    # -- training ------------------------------------------------------------------------------------------

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """Return the loss of one batch, those of the auxiliary heads included."""
        input, target, *_ = batch
        target = self._labels(target)
        heads = (self._logits_of_active(input, target),) if self.skip_separated else self._heads(input)
        if len(heads) > 1:
            self._check_heads(len(heads) - 1)
        loss = self.training_loss(heads[0], target)
        for factor, logits in zip(self.auxiliary, heads[1:], strict=False):
            loss = loss + factor * self.training_loss(logits, target)
        self.log_training(heads[0], target)
        return loss

    def _check_heads(self, count: int) -> None:
        if count != len(self.auxiliary):
            raise ValueError(
                f"auxiliary holds a factor for each auxiliary head, but it has {len(self.auxiliary)} and the network "
                f"{count} such heads."
            )
        if most_accumulated(self.trainer) > 1:
            raise ValueError(
                "With auxiliary heads a step has several means, whose gradients cannot be accumulated exactly: set "
                "trainer.accumulate_grad_batches to 1, or take the network without its auxiliary head."
            )

    def _labels(self, target: Tensor) -> Tensor:
        """Return the target with unknown classes marked as unlabelled."""
        return torch.where(target == self.unknown_index, self.ignore_index, target)

    # -- evaluation ----------------------------------------------------------------------------------------

    def evaluate(self, batch: Any, stage: str) -> Tensor:
        """Update the metrics of a stage with a batch; return its logits."""
        input, target, *_ = batch
        logits = self._logits(input, every_view=stage == "test")
        self.measure(stage, logits, self._labels(target))
        return logits

    def test_step(self, batch: Any, batch_idx: int) -> None:
        """Update the test metrics with a batch; keep some images for the overlays."""
        logits = self.evaluate(batch, "test")
        input, target, *rest = batch
        unknown, labels = target == self.unknown_index, self._labels(target)
        judged = unknown | (labels != self.ignore_index)
        self.measure("test", logits.movedim(1, -1)[judged], unknown[judged], "unknown")
        index = rest[0] if rest else torch.arange(len(target))
        self.calibrator.update(*self._sampled(logits, labels, index))
        if rest:
            self._keep(index, input, labels, logits)

    def on_test_start(self) -> None:
        """Fit the probabilities on a sample of the validation pixels."""
        self.calibrator.begin(self.trainer, self._validation)

    def _validation(self, batch: Any) -> tuple[Tensor, Tensor]:
        """Return the logits (M, C) and labels (M,) of a sample of the pixels of a batch."""
        input, target, index = batch
        return self._sampled(self._logits(input, every_view=True), self._labels(target), index)

    def _sampled(self, logits: Tensor, labels: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
        """Return logits (M, C) and labels (M,) of sampled pixels, chosen by the images' indices alone."""
        flat, labels = logits.flatten(2), labels.flatten(1)
        count = flat.shape[2]
        if count <= self.pixels:
            place = torch.arange(count, device=flat.device).expand(len(flat), -1)
        else:
            words = key(PIXELS, index.cpu()[:, None], torch.arange(self.pixels))
            place = integers(words, count).to(flat.device)
        chosen = flat.gather(2, place[:, None].expand(-1, flat.shape[1], -1)).movedim(1, -1)
        labels = labels.gather(1, place)
        return chosen[labels != self.ignore_index], labels[labels != self.ignore_index]

    def _keep(self, index: Tensor, input: Tensor, labels: Tensor, logits: Tensor) -> None:
        """Keep the images of a batch that ``overlays.png`` shows, evenly spread over the set."""
        data: Any = self.trainer.test_dataloaders
        count = len(data.images) if hasattr(data, "images") else self.examples
        wanted = {(2 * k + 1) * count // (2 * self.examples) for k in range(self.examples)}
        for place, at in enumerate(index.tolist()):
            if at in wanted:
                pixels = logits[place].movedim(0, -1)
                maps = {name: score(pixels).float().cpu() for name, score in UNKNOWNNESS.items()}
                self.images[at] = Example(
                    input[place].float().cpu(), labels[place].cpu(), logits[place].argmax(0).cpu(), maps
                )

    def predict_step(self, batch: Any, batch_idx: int) -> dict[str, Any]:
        """Write an indexed mask for each image; return the columns of ``predictions.csv``: index and mask."""
        input, _, index = batch
        prediction = self._logits(input, every_view=True).argmax(1).to(torch.uint8).cpu()
        data = datamodule(self.trainer)
        folder = RunFolder(folder_of(self.trainer)).masks
        columns: dict[str, Any] = {"index": index, "mask": []}
        for at, mask in zip(index.tolist(), prediction, strict=True):
            path = folder / f"{self.stems[at]}.png"
            write(self.trainer, f"{folder.name}/{path.name}", indexed_png(data.file_mask(at, mask), self.palette))
            columns["mask"].append(str(path))
        return columns

    def on_predict_start(self) -> None:
        """Name the masks after their images, with the index where names repeat."""
        data = datamodule(self.trainer)
        stems = [Path(data.name_of(at)).stem for at in range(len(data.predict_images()))]
        times = Counter(stems)
        self.stems = [stem if times[stem] == 1 else f"{at:05d}_{stem}" for at, stem in enumerate(stems)]

    def _logits(self, input: Tensor, every_view: bool) -> Tensor:
        """Return the logits in float32, by sliding windows and averaged over scales and flips where asked for."""

        def net(view: Tensor) -> Tensor:
            if self.window is None or self.stride is None:
                logits: Tensor = self(view)
                return logits.float()
            return sliding_window(self, view, self.window, self.stride)

        if every_view:
            return scaled(net, input, self.scales, self.flip)
        return net(input)

    def log_metrics(self, stage: str) -> None:
        """Log the metrics of a stage; refuse to measure masks without a label.

        Raises:
            ValueError: No pixel of the test has one.
        """
        super().log_metrics(stage)
        if stage != "train" and int(self._overlap(stage).matrix.sum()) == 0:
            nothing = (
                f"Expected pixels with a label in the {stage} images, got masks that are void (ignore_index "
                f"{self.ignore_index}) as a whole: there is nothing to measure; look at the masks' values."
            )
            if self.trainer.state.fn != "fit":
                raise ValueError(nothing)
            rank_zero_warn(nothing)

    def _overlap(self, stage: str) -> Overlap:
        metrics: Any = self.metrics[f"{stage}/plain"]
        found: Overlap = metrics["overlap"]
        return found

    def on_test_epoch_end(self) -> None:
        """Log the metrics of the test and draw the pictures."""
        super().on_test_epoch_end()
        self.log_found(self.calibrator.finish(self.trainer, self.net))
        shown = {at: example for part in of_all_ranks(self.trainer, self.images) for at, example in part.items()}
        self.images = {}
        if self.trainer.is_global_zero and run_folder(self.trainer) is not None:
            write_figure(self.trainer, "confusion", confusion(self._overlap("test").matrix.cpu(), self.class_names))
            if shown:
                examples = [shown[at] for at in sorted(shown)]
                write_figure(self.trainer, "overlays", overlays(examples, self.palette, self.class_names))
