"""Task base class: a network, a loss, an optimiser and a scheduler for Lightning, and the metrics of each stage."""

from __future__ import annotations

import os
from collections import Counter, OrderedDict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from typing import Any, ClassVar, Literal

import torch
from lightning.pytorch import Callback, LightningModule
from torch import Tensor, nn
from torch.optim import Optimizer
from torchmetrics import MetricCollection

from hem.losses import evaluate, reduction
from hem.metrics import Accuracy, MeanLoss, catalog, collection, sample_losses
from hem.modules.finetuning import begin, encoder_of, hold, normalization, prepare_encoder
from hem.modules.optimization import (
    LRSchedulerCallable,
    OptimizerCallable,
    check_callbacks,
    length_of,
    make_optimizer,
    make_scheduler,
    scheduler_config,
)
from hem.networks import Normalize, batch_dependent, random_layers, to_channels_last
from hem.runs.checkpoints import check_state


def sgd(params: Iterable[Any]) -> Optimizer:
    """Return the default optimiser: SGD, learning rate 0.05, Nesterov momentum 0.9."""
    return torch.optim.SGD(params, lr=0.05, momentum=0.9, weight_decay=5e-4, nesterov=True)


class Task(LightningModule):
    """Base class of tasks: trains a network with a loss.

    The network sees images in [0, 1] through :class:`~hem.networks.Normalize`, so that attacks and
    corruptions work in pixel units. Checkpoints hold ``net.*`` alone: no loss, no hyper-parameters. Any
    task can therefore examine any checkpoint, and ``config.yaml`` in the run folder is the record of a run.

    A loss that is a mean over samples divides by a count: of the labelled samples, or, for HEM, of the
    samples that still carry error. During training that count is taken over the whole global batch: over
    all devices, and over all micro-batches of an accumulated step (see :mod:`hem.losses.reduction`).

    What is logged in training (``train/``), validation (``val/``) and test (``test/``) are the metrics that
    :meth:`configure_metrics` returns, here ``accuracy``, and ``loss``, ``active`` and ``active_loss``:

    * ``loss`` is the sum over all labelled samples divided by their number, whatever the loss divides by in training.
      It falls as the network learns, so early stopping and the best checkpoint can go by it.
    * ``active`` is the share of samples that still carry error, and ``active_loss`` the mean over those: what HEM
      minimises, which *rises* as fewer and harder samples are left.

    Args:
        net: The network: input (N, C, H, W), logits (N, num_classes) or (N, num_classes, H, W).
        loss: The criterion, called as ``loss(logits, target)``: one of :data:`hem.losses.LOSSES` or any other.
        optimizer: Makes the optimiser from the parameters.
        lr_scheduler: Makes the scheduler from the optimiser. Where a scheduler takes ``total_steps`` and the
            config leaves it null, it gets the number of optimiser steps of the whole training. ``ReduceLROnPlateau``
            reads its ``monitor`` after every validation (torch's own, which names none: ``val/loss``).
        lr_interval: Whether the scheduler steps after each ``"step"`` or each ``"epoch"``.
        num_classes: Number of classes; linked from the data module.
        class_names: Names of the classes, for metrics and plots; linked from the data module.
        mean: Mean of each input channel, in [0, 1]; linked from the data module. None: no normalisation. Where the
            network started from weights that expect another one, it is theirs that counts.
        std: Standard deviation of each input channel; linked from the data module.
        normalize: The normalisation, in place of the weights' or the data's.
        encoder_lr: The learning rate of the network's encoder as a factor of the other layers'.
        layer_decay: The learning rate of each layer of the encoder as a factor of the next one's: layer-wise decay,
            0.65 to 0.85 for transformers; see :func:`~hem.modules.finetuning.groups`.
        frozen_epochs: For how many epochs the encoder stands still, its BatchNorm statistics and dropout too; "all":
            for good.
        skip_separated: Whether to run the backward pass on those samples alone that still carry error. The
            others have exactly zero gradient, so the step is the same to rounding; it costs a forward pass more
            and saves the forward and backward passes of what is learnt. For losses that reach 0 (the margin
            losses) and networks whose output for a sample depends on that sample alone.
        compile: Whether to compile the network (torch.compile); or the mode to compile it in, such as
            ``"reduce-overhead"`` (CUDA graphs).
        channels_last: Whether convolutions keep their weights, and so their activations, with the channels last in
            memory: shapes and meaning stay, results to rounding as well. On a CPU a step takes 0.7 (LeNet) to 1.0
            (ResNet-18) of the time, on a GPU it is what half precision wants. Networks that torch would train wrongly
            so are left as they are: :func:`~hem.networks.to_channels_last`.

    Raises:
        ValueError: If ``class_names`` has another length, ``skip_separated`` meets a network whose samples mix,
            ``encoder_lr``, ``layer_decay`` or ``frozen_epochs`` is out of its range or meets a network without an
            encoder, or a scheduler overrides the learning rates of the layers.
    """

    #: the keys of metrics that the progress bar shows
    shown: ClassVar[frozenset[str]] = frozenset({"train/loss", "train/accuracy", "val/accuracy", "test/accuracy"})
    resumes_within_epochs = True  # whether a checkpoint between two steps holds all that the next one needs
    _averaged = False  # whether a callback averages weights: kept, for a copy of the task has no trainer to ask

    def __init__(
        self,
        net: nn.Module,
        loss: nn.Module,
        optimizer: OptimizerCallable = sgd,
        lr_scheduler: LRSchedulerCallable | None = None,
        lr_interval: Literal["step", "epoch"] = "epoch",
        num_classes: int = 10,
        class_names: Sequence[str] | None = None,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        skip_separated: bool = False,
        compile: bool | Literal["reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs"] = False,
        channels_last: bool = True,
        normalize: Normalize | None = None,
        encoder_lr: float = 1.0,
        layer_decay: float = 1.0,
        frozen_epochs: int | Literal["all"] = 0,
    ) -> None:
        super().__init__()
        if class_names is not None and len(class_names) != num_classes:
            raise ValueError(
                f"Expected one name per class, got {len(class_names)} names for {num_classes} classes: "
                "give `class_names` of that length, or none."
            )
        if class_names is not None and (twice := [name for name, n in Counter(class_names).items() if n > 1]):
            raise ValueError(
                f"Expected class names that differ, got '{twice[0]}' more than once: rename one of them, or one's "
                "metrics would replace the other's."
            )
        if skip_separated and (found := batch_dependent(net) + random_layers(net)):
            raise ValueError(
                f"skip_separated needs a network whose output for a sample depends on that sample alone, but "
                f"{type(net).__name__} has {', '.join(found[:3])}{' and more' if len(found) > 3 else ''}, which "
                "use the statistics of the batch or draw at random: take a network with group or layer "
                "normalisation and no dropout (for ours: --model.net.norm group), or leave skip_separated off."
            )
        normalize = normalize or normalization(net, (mean, std) if mean is not None and std is not None else None)
        begin(net, normalize, class_names)
        self.net = nn.Sequential(OrderedDict(normalize=normalize or nn.Identity(), backbone=net))
        prepare_encoder(net, encoder_lr, layer_decay, frozen_epochs)
        self.encoder_lr, self.layer_decay, self.frozen_epochs = encoder_lr, layer_decay, frozen_epochs
        self._paused: list[str] = []  # parameters of the encoder that will learn when it does
        self.loss = loss
        self.optimizer = optimizer
        self.lr_scheduler = lr_scheduler
        self.lr_interval = lr_interval
        self.skip_separated = skip_separated
        self.accumulation = reduction.Accumulation()
        self.metrics = nn.ModuleDict()  # collections by stage and name, "val/plain"
        if channels_last:
            to_channels_last(self.net)
        if compile:
            self.net.compile(mode=compile if isinstance(compile, str) else None)
        self.num_classes = num_classes
        self.class_names = list(class_names) if class_names is not None else [str(c) for c in range(num_classes)]

    def forward(self, input: Tensor) -> Tensor:
        """Return the logits of a batch of images in [0, 1], or of features (N, D): see :mod:`hem.modules.probe`."""
        net: Any = self.net
        logits: Tensor = net.backbone.head(input) if input.ndim == 2 else net(input)
        return logits

    def configure_callbacks(self) -> list[Callback]:
        """Refuse callbacks that the metrics or the precision do not suit; add none."""
        if self.trainer.state.fn == "fit":
            self._averaged = check_callbacks(self.trainer)
        return []

    def named_buffers(self, *args: Any, **kwargs: Any) -> Iterator[tuple[str, Tensor]]:
        """Yield the buffers; where weights are averaged, without the loss's, which are settings and have no average."""
        loss = set(map(id, self.loss.buffers())) if self._averaged else set()
        return (pair for pair in super().named_buffers(*args, **kwargs) if id(pair[1]) not in loss)

    # -- training ------------------------------------------------------------------------------------------

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """Return the loss of one batch."""
        input, target, *_ = batch
        logits = self._logits_of_active(input, target) if self.skip_separated else self(input)
        loss = self.training_loss(logits, target)
        self.log_training(logits, target)
        return loss

    @property
    def logs_this_step(self) -> bool:
        """Whether the metrics of this step are logged: by ``log_every_n_steps``, or as the last of an epoch.

        What is handed to ``self.log`` at other steps is shown nowhere, and costs as much as a small network's step.
        """
        trainer: Any = self.trainer
        every = trainer.log_every_n_steps
        return bool(trainer.is_last_batch or (every and (trainer.global_step + 1) % every == 0))

    def training_loss(self, logits: Tensor, target: Tensor, criterion: nn.Module | None = None) -> Tensor:
        """Return the loss of the global batch, averaged over all devices and micro-batches.

        Args:
            logits: Shape (N, C, ...).
            target: What the criterion takes.
            criterion: Another one than the task's own.
        """
        if criterion is None and logits.shape[1:2] != (self.num_classes,):
            raise ValueError(
                f"Expected {self.num_classes} logits of the network for each sample, one for each class, got shape "
                f"{tuple(logits.shape)}: give the network's last layer as many outputs, two for two classes."
            )
        self.latest_logits = logits.detach()  # what is saved with a batch whose loss is no number
        with self._loss_scopes():
            loss = evaluate(self.loss if criterion is None else criterion, logits, target)
        if loss.ndim:
            raise ValueError(
                f"Training needs one number from the loss, got shape {tuple(loss.shape)}: "
                "set its reduction to 'mean' (or 'sum')."
            )
        return loss

    def _loss_scopes(self) -> ExitStack:
        scopes = ExitStack()
        if self.trainer.world_size > 1:
            scopes.enter_context(reduction.global_mean())
        if self.trainer.accumulate_grad_batches > 1:
            scopes.enter_context(reduction.accumulate(self.accumulation))
        return scopes

    def _logits_of_active(self, input: Tensor, target: Tensor) -> Tensor:
        """Return the logits of the batch, with a graph through the samples of non-zero loss alone."""
        with torch.no_grad():
            logits: Tensor = self(input)
            losses = sample_losses(self.loss, logits, target)
        if losses is None:
            raise ValueError(
                f"skip_separated needs a loss of each sample, which {type(self.loss).__name__} has not: "
                "take a margin loss such as HEMLoss, or leave skip_separated off."
            )
        active = (losses.flatten(1).amax(1) if losses.ndim > 1 else losses) != 0  # a NaN counts as an error
        active[0] = True  # one at least, so that every process has a graph
        index = active.nonzero().squeeze(1)
        return logits.index_copy(0, index, self(input[index]))

    # -- metrics -------------------------------------------------------------------------------------------

    def configure_metrics(self, stage: str) -> dict[str, MetricCollection]:
        """Return the metrics of a stage, as collections by name; they are logged as ``<stage>/<path>``.

        Every batch of the stage is taken into the metrics of ``"plain"``; a task updates the others. They count every
        sample once, on however many devices.

        Args:
            stage: ``"train"``, ``"val"`` or ``"test"``.
        """
        return {"plain": collection({"losses": MeanLoss(self.loss), catalog.ACCURACY.path: Accuracy()})}

    def setup(self, stage: str) -> None:
        """Create the metrics of the coming stages."""
        stages = {"fit": ("train", "val"), "validate": ("val",), "test": ("test",)}.get(stage, ())
        self.metrics = nn.ModuleDict(
            {f"{each}/{name}": group for each in stages for name, group in self.configure_metrics(each).items()}
        )

    def measure(self, stage: str, logits: Tensor, target: Tensor, name: str = "plain") -> None:
        """Update the metrics of a stage with a batch: logits (N, C, ...) and the target that the metrics take."""
        metrics: Any = self.metrics[f"{stage}/{name}"]
        metrics.update(logits, target)

    def log_metrics(self, stage: str) -> None:
        """Log the metrics of a stage, over all devices, and reset them."""
        found: dict[str, Tensor] = {}
        for name, metrics in self.metrics.items():
            if name.startswith(f"{stage}/") and any(metric.update_called for metric in metrics.values()):  # type: ignore[operator]
                found |= {f"{stage}/{path}": value for path, value in metrics.compute().items()}  # type: ignore[operator]
                metrics.reset()  # type: ignore[operator]
        self.log_found(found)

    def log_found(self, values: Mapping[str, Tensor]) -> None:
        """Log values that are equal on all processes; NaN (no samples) is left out.

        A class without a sample has no accuracy: its key is not there, where 0 would say that all was wrong. A loss
        that is no number is told.
        """
        if not values:
            return
        absent = torch.stack([value.isnan() for value in values.values()]).tolist()
        for (key, value), nothing in zip(values.items(), absent, strict=True):
            stage, _, path = key.partition("/")
            if not nothing or path == catalog.LOSS.path:
                # sync_dist takes the mean of equal numbers, and Lightning asks for it behind an epoch
                self.log(key, value.float(), prog_bar=key in self.shown, sync_dist=stage != "train")

    def log_training(self, logits: Tensor, target: Tensor) -> None:
        """Log the metrics of a training batch, as it is trained on, over all devices."""
        if self.logs_this_step:
            self.measure("train", logits.detach().float(), target)
            self.log_metrics("train")

    def labelled(self, batch: Any) -> tuple[Tensor, Tensor]:
        """Return the logits of a batch, in float, and its target."""
        input, target, *_ = batch
        return self(input).float(), target

    def evaluate(self, batch: Any, stage: str) -> Tensor:
        """Update the metrics of a stage with a batch; return its logits."""
        logits, target = self.labelled(batch)
        self.measure(stage, logits, target)
        return logits

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        """Update the validation metrics with a batch."""
        self.evaluate(batch, "val")

    def on_validation_epoch_end(self) -> None:
        """Log the metrics of validation."""
        self.log_metrics("val")

    def test_step(self, batch: Any, batch_idx: int) -> None:
        """Update the test metrics with a batch."""
        self.evaluate(batch, "test")

    def on_test_epoch_end(self) -> None:
        """Log the metrics of the test."""
        self.log_metrics("test")

    # -- hooks around a step -------------------------------------------------------------------------------

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Seed dropout by epoch, batch and rank, so that a resumed run repeats it."""
        seed = os.environ.get("PL_GLOBAL_SEED")
        if seed is not None:
            number = (int(seed) * 1_000_003 + self.current_epoch) * 1_000_003 + batch_idx
            number = (number * 1009 + self.global_rank) % 2**63
            # torch.manual_seed seeds every kind of device, and formats a stack trace for each that has not begun
            torch.default_generator.manual_seed(number)
            if self.device.type != "cpu":
                torch.get_device_module(self.device).manual_seed(number)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add the class names, for networks that start from this checkpoint."""
        checkpoint["class_names"] = list(self.class_names)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse a checkpoint of another network before torch does, in a sentence; keep double precision."""
        check_state(self, checkpoint["state_dict"])
        # Lightning converts the network only after it has taken the weights in
        if self._trainer is not None and self._trainer.precision == "64-true":
            self.double()

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        """Divide gradients accumulated over micro-batches by their common denominator."""
        if self.trainer.accumulate_grad_batches > 1:
            factor = self.accumulation.factor(self.trainer.accumulate_grad_batches)
            for parameter in self.net.parameters():
                if parameter.grad is not None:
                    parameter.grad.mul_(factor)
            self.accumulation.reset()

    # -- an encoder that stands still ----------------------------------------------------------------------

    @property
    def encoder_frozen(self) -> bool:
        """Whether the encoder is frozen in this epoch."""
        return self.frozen_epochs == "all" or self.current_epoch < self.frozen_epochs

    def train(self, mode: bool = True) -> Task:
        """Set training mode; a frozen encoder stays in evaluation mode."""
        super().train(mode)
        if self.encoder_frozen:
            encoder_of(self.net.backbone).eval()  # type: ignore[arg-type]
        return self

    def on_train_start(self) -> None:
        """Freeze the encoder where a run resumes within an epoch, which has no ``on_train_epoch_start``."""
        self._hold_encoder()

    def on_train_epoch_start(self) -> None:
        """Freeze or unfreeze the encoder."""
        self._hold_encoder()

    def _hold_encoder(self) -> None:
        if self.frozen_epochs:
            waits = self.frozen_epochs != "all" and not getattr(
                self.trainer.strategy.model, "find_unused_parameters", True
            )
            self._paused = hold(encoder_of(self.net.backbone), self.encoder_frozen, self._paused, waits)  # type: ignore[arg-type]

    # -- optimisation --------------------------------------------------------------------------------------

    def total_steps(self) -> int:
        """Return the number of optimiser steps that a scheduler spans: those of the whole training.

        Raises:
            ValueError: If the training has no end.
        """
        return length_of(self.trainer)

    def configure_optimizers(self) -> Any:
        """Build the optimiser over the network's parameters, and the scheduler over the optimiser."""
        net: Any = self.net.backbone
        optimizer, scales = make_optimizer(self.optimizer, net, self.encoder_lr, self.layer_decay)
        if self.lr_scheduler is None:
            return optimizer
        scheduler = make_scheduler(self.lr_scheduler, optimizer, scales, self.total_steps)
        config = scheduler_config(scheduler, self.lr_interval, self.trainer, self.total_steps)
        return {"optimizer": optimizer, "lr_scheduler": config}
