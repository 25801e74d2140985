"""The base of every task: a network, a loss, an optimiser and a schedule, put together for Lightning."""

from __future__ import annotations

import copy
import os
from collections import Counter, OrderedDict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any, Literal

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.callbacks import Callback, EarlyStopping, ModelCheckpoint
from lightning.pytorch.utilities import rank_zero_only
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, OneCycleLR, PolynomialLR, ReduceLROnPlateau

from hem.losses import evaluate, reduction
from hem.metrics import catalog
from hem.modules.finetuning import encoder_of, groups
from hem.networks import Normalize, Start, batch_dependent, random_layers
from hem.networks.weights import renew

OptimizerCallable = Callable[[Iterable[Any]], Optimizer]
LRSchedulerCallable = Callable[[Optimizer], LRScheduler]


def sgd(params: Iterable[Any]) -> Optimizer:
    """Return the optimiser of a task that names none: SGD, learning rate 0.05, momentum 0.9."""
    return torch.optim.SGD(params, lr=0.05, momentum=0.9, weight_decay=5e-4, nesterov=True)


def check_state(task: nn.Module, state: dict[str, Tensor]) -> None:
    """Refuse the weights of another network with a sentence.

    Args:
        task: The task that is to take the weights; its own are named ``net.*``.
        state: The ``state_dict`` of a checkpoint.

    Raises:
        ValueError: If names or shapes differ.
    """
    own = {name: tuple(value.shape) for name, value in task.state_dict().items() if name.startswith("net.")}
    given = {name: tuple(value.shape) for name, value in state.items() if name.startswith("net.")}
    if own == given:
        return
    for name in own.keys() & given.keys():
        if own[name] != given[name]:
            raise ValueError(
                f"The checkpoint holds another network: its {name} has shape {given[name]}, this config's "
                f"{own[name]}. The number of classes, channels or the width differ: use the data and network it "
                "was trained with."
            )
    missing, extra = sorted(own.keys() - given.keys()), sorted(given.keys() - own.keys())
    raise ValueError(
        f"The checkpoint holds another network: it lacks {len(missing)} of this config's tensors "
        f"({', '.join(missing[:2]) or 'none'}) and brings {len(extra)} others ({', '.join(extra[:2]) or 'none'}): "
        "use the network it was trained with."
    )


def sample_losses(criterion: nn.Module, logits: Tensor, target: Tensor) -> Tensor | None:
    """Return the loss of each sample, without gradient; None for a loss that is no mean over samples (Dice).

    Args:
        criterion: Any loss with torch's ``reduction``.
        logits: Shape (N, C, ...).
        target: Class indices (N, ...) or class probabilities (N, C, ...).

    Example:
        >>> sample_losses(nn.CrossEntropyLoss(), torch.zeros(2, 4), torch.tensor([0, 3]))
        tensor([1.3863, 1.3863])
    """
    if not hasattr(criterion, "reduction"):
        return None
    alike = copy.copy(criterion)
    alike.reduction = "none"  # type: ignore[assignment]
    with torch.no_grad():
        losses: Tensor = alike(logits, target)
    return losses if losses.shape == logits.select(1, 0).shape else None


def _normalization(net: nn.Module, given: tuple[Sequence[float], Sequence[float]] | None) -> Normalize | None:
    """The normalisation that a network's weights expect of the pixels, else the data's, else none."""
    start: Start | None = getattr(net, "start", None)
    found = start.normalization if start is not None and start.normalization is not None else given
    return None if found is None else Normalize(*found)


def _report(net: nn.Module, start: Start, normalize: Normalize | None, class_names: Sequence[str] | None) -> None:
    """Say what a network began with; a last layer that came with the names of other classes begins anew."""
    sentences = [str(start)]
    fresh = start.fresh
    if start.class_names is not None and class_names is not None and start.class_names != tuple(class_names):
        fresh += renew(net)
        sentences.append("Its last layer is begun anew, for its classes were others.")
    # once: what another task is given has learnt since
    net.start = start._replace(class_names=None, fresh=fresh)  # type: ignore[assignment]
    if normalize is not None:
        expected = start.normalization and Normalize(*start.normalization).extra_repr() == normalize.extra_repr()
        whose = "these weights expect it" if expected else "the data or the config has it"
        sentences.append(f"Pixels are normalised as {whose}: {normalize.extra_repr()}.")
    if getattr(rank_zero_only, "rank", 0) == 0:
        print(*sentences, sep="\n")


class Task(LightningModule):
    """A network and a loss, trained.

    The network sees images in [0, 1] through :class:`~hem.networks.Normalize`, so that attacks and
    corruptions work in pixel units. Checkpoints hold ``net.*`` alone: no loss, no hyper-parameters. Any
    task can therefore examine any checkpoint, and ``config.yaml`` in the run folder is the record of a run.

    A loss that is a mean over samples divides by a count: of the labelled samples, or, for HEM, of the
    samples that still carry error. During training that count is taken over the whole global batch: over
    all devices, and over all micro-batches of an accumulated step (see :mod:`hem.losses.reduction`).

    Args:
        net: The network: input (N, C, H, W), logits (N, num_classes) or (N, num_classes, H, W).
        loss: The criterion, called as ``loss(logits, target)``: one of :data:`hem.losses.LOSSES` or any other.
        optimizer: Makes the optimiser from the parameters.
        lr_scheduler: Makes the schedule from the optimiser. Where a schedule takes ``total_steps`` and the
            config leaves it null, it gets the number of optimiser steps of the whole training. ``ReduceLROnPlateau``
            reads its ``monitor`` after every validation (torch's own, which names none: ``val/loss``).
        lr_interval: Whether the schedule advances after each ``"step"`` or each ``"epoch"``.
        num_classes: Number of classes; linked from the data module.
        class_names: Names of the classes, for metrics and figures; linked from the data module.
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
            (ResNet-18) of the time, on a GPU it is what half precision wants.

    Raises:
        ValueError: If ``class_names`` has another length, ``skip_separated`` meets a network whose samples mix,
            ``encoder_lr``, ``layer_decay`` or ``frozen_epochs`` is out of its range or meets a network without an
            encoder, or a schedule overrides the learning rates of the layers.
    """

    resumes_within_epochs = True  # whether a checkpoint between two steps holds all that the next one needs

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
                "figures would replace the other's."
            )
        if skip_separated and (found := batch_dependent(net) + random_layers(net)):
            raise ValueError(
                f"skip_separated needs a network whose output for a sample depends on that sample alone, but "
                f"{type(net).__name__} has {', '.join(found[:3])}{' and more' if len(found) > 3 else ''}, which "
                "use the statistics of the batch or draw at random: take a network with group or layer "
                "normalisation and no dropout (for ours: --model.net.norm group), or leave skip_separated off."
            )
        given = (mean, std) if mean is not None and std is not None else None
        normalize = normalize or _normalization(net, given)
        if (start := getattr(net, "start", None)) is not None:
            _report(net, start, normalize, class_names)
        self.net = nn.Sequential(OrderedDict(normalize=normalize or nn.Identity(), backbone=net))
        if encoder_lr <= 0:
            raise ValueError(f"encoder_lr is a factor of the learning rate, above 0, but it is {encoder_lr}.")
        if not 0 < layer_decay <= 1:
            raise ValueError(f"layer_decay is a factor of the learning rate in (0, 1], but it is {layer_decay}.")
        if frozen_epochs != "all" and frozen_epochs < 0:
            raise ValueError(f"frozen_epochs is a number of epochs, 0 or more, or all, but it is {frozen_epochs}.")
        if frozen_epochs or (encoder_lr, layer_decay) != (1, 1):
            encoder = encoder_of(net)
            if frozen_epochs == "all":
                encoder.requires_grad_(False)
        self.encoder_lr, self.layer_decay, self.frozen_epochs = encoder_lr, layer_decay, frozen_epochs
        self._paused: list[str] = []  # parameters of the encoder that will learn when it does
        self.loss = loss
        self.optimizer = optimizer
        self.lr_scheduler = lr_scheduler
        self.lr_interval = lr_interval
        self.skip_separated = skip_separated
        self.accumulation = reduction.Accumulation()
        if channels_last:
            self.net.to(memory_format=torch.channels_last)
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
        """Add no callback; refuse one that would keep or wait for the worst of a metric."""
        if self.trainer.state.fn == "fit":
            for each in self.trainer.callbacks:  # type: ignore[attr-defined]
                if isinstance(each, EarlyStopping | ModelCheckpoint) and each.monitor is not None:
                    catalog.check_mode(type(each).__name__, each.monitor, each.mode)
        return []

    # -- training ------------------------------------------------------------------------------------------

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """Return the loss of one batch."""
        input, target, *_ = batch
        logits = self._logits_of_active(input, target) if self.skip_separated else self(input)
        loss = self.training_loss(logits, target)
        if self.logs_this_step:
            self.log("train/loss", loss.detach(), prog_bar=True)
            self.log_training(logits.detach(), target)
        return loss

    @property
    def logs_this_step(self) -> bool:
        """Whether this step's figures are kept: the loggers write a row after it, or an epoch ends with it.

        What is handed to ``self.log`` at other steps is shown nowhere, and costs as much as a small network's step.
        """
        trainer: Any = self.trainer
        every = trainer.log_every_n_steps
        return bool(trainer.is_last_batch or (every and (trainer.global_step + 1) % every == 0))

    def training_loss(self, logits: Tensor, target: Tensor, criterion: nn.Module | None = None) -> Tensor:
        """Return the loss of the global batch: its mean is over the samples of all devices and micro-batches.

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
        """Return the logits of the batch, with a graph through its error-carrying samples alone."""
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

    def log_training(self, logits: Tensor, target: Tensor) -> None:
        """Log what a task wants to see of a training batch; called once every ``log_every_n_steps``."""

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        """Log ``val/accuracy``, which chooses the best checkpoint; a task with figures of its own overrides this."""
        self.log_accuracy(batch, "val")

    def log_accuracy(self, batch: Any, stage: str) -> None:
        """Log ``<stage>/accuracy``: the share of all samples, on all devices, that is classified rightly."""
        input, target, *_ = batch
        right = (self(input).argmax(1) == target).float().mean()
        self.log(
            f"{stage}/accuracy",
            right,
            prog_bar=True,
            on_step=False,
            on_epoch=True,
            batch_size=len(target),
            sync_dist=True,
        )

    def log_found(self, values: Mapping[str, Tensor], shown: Collection[str] = ()) -> None:
        """Log figures of a whole part, the same numbers on all processes; NaN is a figure of nothing, and left out.

        A class without a sample has no accuracy: its key is not there, where 0 would say that all was wrong.

        Args:
            values: Numbers by key.
            shown: The keys that the progress bar shows.
        """
        absent = torch.stack([value.isnan() for value in values.values()]).tolist()
        for (key, value), nothing in zip(values.items(), absent, strict=True):
            if not nothing:
                # sync_dist takes the mean of equal numbers, and Lightning asks for it
                self.log(key, value.float(), prog_bar=key in shown, sync_dist=True)

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Seed what the network itself draws (dropout): by epoch, batch and rank, so that a resumed run repeats it."""
        seed = os.environ.get("PL_GLOBAL_SEED")
        if seed is not None:
            number = (int(seed) * 1_000_003 + self.current_epoch) * 1_000_003 + batch_idx
            number = (number * 1009 + self.global_rank) % 2**63
            # torch.manual_seed seeds every kind of device, and formats a stack trace for each that has not begun
            torch.default_generator.manual_seed(number)
            if self.device.type != "cpu":
                torch.get_device_module(self.device).manual_seed(number)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the names of the classes with the weights, for a network that starts from them."""
        checkpoint["class_names"] = list(self.class_names)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse a checkpoint of another network before torch does, in a sentence; keep double precision."""
        check_state(self, checkpoint["state_dict"])
        # Lightning converts the network only after it has taken the weights in
        if self._trainer is not None and self._trainer.precision == "64-true":
            self.double()

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        """Give gradients that were accumulated over micro-batches their common denominator."""
        if self.trainer.accumulate_grad_batches > 1:
            factor = self.accumulation.factor(self.trainer.accumulate_grad_batches)
            for parameter in self.net.parameters():
                if parameter.grad is not None:
                    parameter.grad.mul_(factor)
            self.accumulation.reset()

    # -- an encoder that stands still ----------------------------------------------------------------------

    @property
    def encoder_frozen(self) -> bool:
        """Whether the encoder stands still in this epoch."""
        return self.frozen_epochs == "all" or self.current_epoch < self.frozen_epochs

    def train(self, mode: bool = True) -> Task:
        """Put the network in training mode; an encoder that stands still stays in evaluation mode."""
        super().train(mode)
        if self.encoder_frozen:
            encoder_of(self.net.backbone).eval()  # type: ignore[arg-type]
        return self

    def on_train_start(self) -> None:
        """Hold the encoder where a run is resumed in the middle of an epoch, whose start is not told then."""
        self._hold_encoder()

    def on_train_epoch_start(self) -> None:
        """Hold the encoder, or let it go."""
        self._hold_encoder()

    def _hold_encoder(self) -> None:
        if not self.frozen_epochs:
            return
        frozen, encoder = self.encoder_frozen, encoder_of(self.net.backbone)  # type: ignore[arg-type]
        encoder.train(not frozen)
        if self.frozen_epochs == "all" or frozen == bool(self._paused):
            return
        if frozen and not getattr(self.trainer.strategy.model, "find_unused_parameters", True):
            raise ValueError(
                f"An encoder that stands still for {self.frozen_epochs} epochs has no gradients that devices could "
                "share, and DDP waits for them: set trainer.strategy to ddp_find_unused_parameters_true, or "
                "frozen_epochs to 0 or all."
            )
        parameters = dict(encoder.named_parameters())
        learning = [name for name, p in parameters.items() if p.requires_grad] if frozen else self._paused
        for name in learning:
            parameters[name].requires_grad_(not frozen)
        self._paused = learning if frozen else []

    # -- optimisation --------------------------------------------------------------------------------------

    def total_steps(self) -> int:
        """Return the number of optimiser steps that the schedule spans: those of the whole training.

        Raises:
            ValueError: If the training has no end.
        """
        steps = self.trainer.estimated_stepping_batches
        if steps == float("inf"):
            raise ValueError(
                "Expected a training of a known length for a schedule that goes over all of it, got one without "
                "an end: set trainer.max_epochs or max_steps, or the schedule's total_steps."
            )
        return int(steps)

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Build the optimiser over the network's parameters, and the schedule over the optimiser."""
        optimizer, scales = self._optimizer()
        if self.lr_scheduler is None:
            return optimizer
        make = self.lr_scheduler
        if isinstance(make, partial):
            if make.keywords.get("total_steps", 0) is None and not make.keywords.get("epochs"):
                make = partial(make, total_steps=self.total_steps())
            if isinstance(highest := make.keywords.get("max_lr"), (int, float)) and len(scales) > 1:
                make = partial(make, max_lr=[highest * scale for scale in scales])
        schedule = make(optimizer)
        self._check_span(schedule)
        rates = [group["lr"] for group in optimizer.param_groups]
        for rate, scale in zip(rates, scales, strict=True):
            if abs(rate * scales[-1] - scale * rates[-1]) > 1e-9:
                raise ValueError(
                    f"Expected learning rates in the proportion {_numbers(scales)}, got {_numbers(rates)} from the "
                    "schedule: take one that multiplies the optimiser's rates, or OneCycleLR with one number as max_lr."
                )
        if not isinstance(schedule, ReduceLROnPlateau):
            return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": self.lr_interval}}
        monitor = getattr(schedule, "monitor", "val/loss")  # is known at the end of an epoch that is validated
        catalog.check_mode(type(schedule).__name__, monitor, schedule.mode)
        trainer: Any = self.trainer
        frequency = trainer.check_val_every_n_epoch or 1 if monitor.startswith("val/") else 1
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": schedule, "monitor": monitor, "interval": "epoch", "frequency": frequency},
        }

    def _check_span(self, schedule: LRScheduler) -> None:
        """Refuse a schedule that ends, at no rate or with an error, before the training does.

        Raises:
            ValueError: If it does.
        """
        spans = {OneCycleLR: "total_steps", PolynomialLR: "total_iters"}
        span = next((getattr(schedule, each) for kind, each in spans.items() if isinstance(schedule, kind)), None)
        if span is None:
            return
        trainer: Any = self.trainer
        length, unit = self.total_steps(), "steps"
        if self.lr_interval == "epoch":
            length, unit = round(length * (trainer.max_epochs or 0) / trainer.estimated_stepping_batches), "epochs"
        if length > span:
            raise ValueError(
                f"Expected a schedule as long as the training, {length} {unit}, got {type(schedule).__name__} of "
                f"{span}, behind which nothing is learnt: set its length; OneCycleLR and PolyLR have the training's "
                "where total_steps is null and lr_interval is step."
            )

    def _optimizer(self) -> tuple[Optimizer, list[float]]:
        """The optimiser over what learns, and the factor of the learning rate of each of its groups."""
        if (self.encoder_lr, self.layer_decay) == (1, 1):
            return self.optimizer(p for p in self.net.parameters() if p.requires_grad), [1.0]
        net: Any = self.net.backbone
        found = [
            (learning, scale)
            for params, scale in groups(net, self.encoder_lr, self.layer_decay)
            if (learning := [p for p in params if p.requires_grad])
        ]
        optimizer = self.optimizer([{"params": params} for params, _ in found])
        for group, (_, scale) in zip(optimizer.param_groups, found, strict=True):
            group["lr"] *= scale
        return optimizer, [scale for _, scale in found]


def _numbers(values: Iterable[float]) -> str:
    return ", ".join(f"{value:g}" for value in values)
