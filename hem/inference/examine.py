"""Examine any network from Python on known, unknown, corrupted and attacked images."""

from __future__ import annotations

import inspect
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import yaml
from jsonargparse import ArgumentParser
from lightning.pytorch import Trainer
from torch import Tensor, nn

from hem import modules
from hem.cli import quiet
from hem.cli.configs import SHIPPED
from hem.datamodules import ImageDataModule
from hem.modes import evaluating
from hem.modules import ClassificationTask, Task
from hem.names import check_name
from hem.networks import Normalize
from hem.networks.order import order_of
from hem.networks.weights import Rows, for_channels

EXAMINATIONS = ("clean", "rejection", "corruption", "adversarial")


class Reordered(nn.Module):
    """A network with its logits in the order of the data's classes.

    Args:
        net: From images to logits (N, K).
        rows: The logit of each class.
    """

    def __init__(self, net: nn.Module, rows: Rows) -> None:
        super().__init__()
        self.net = net
        self.rows = rows

    def forward(self, input: Tensor) -> Tensor:
        """Return the logits (N, C) of images.

        Raises:
            ValueError: The number of the network's logits is not that of the order, or one is missing.
        """
        logits: Tensor = self.net(input)
        if not self.rows.fit(logits.shape[1]):
            raise ValueError(
                f"Expected {self.rows.size} logits, as class_order has it, got {logits.shape[1]}: name all classes of "
                "the network in their order, or in a YAML file the number of the logit for each class of the data."
            )
        return logits[:, list(self.rows.chosen)]


def evaluate(
    net: nn.Module,
    data: ImageDataModule,
    examinations: Sequence[str] = ("clean",),
    *,
    loss: nn.Module | None = None,
    normalize: Normalize | None = None,
    class_order: str | Sequence[str] | None = None,
    folder: str | Path | None = None,
    options: Mapping[str, Mapping[str, Any]] | None = None,
    trainer: Mapping[str, Any] | None = None,
) -> dict[str, dict[str, float]]:
    """Examine a network, trained anywhere, as ``python cli.py test --config configs/evaluate/<name>.yaml`` does.

    Args:
        net: Any module from images (N, C, H, W) to logits; its modes, device and parameters are restored.
        data: The known images.
        examinations: Some of :data:`EXAMINATIONS`, each with its shipped config.
        loss: The loss of ``test/loss`` and of the attack on the loss itself; None: cross-entropy.
        normalize: Normalisation of pixels before the network. None: the one that its weights expect, if the network has
            it (networks of :mod:`hem.networks` and timm); else none, for a network that normalises itself.
        class_order: Classes of the logits, if they are not the data's in the data's order; see
            :class:`~hem.networks.Named`.
        folder: Tables and plots are written to ``<folder>/<examination>``; None: they are not.
        options: Arguments of the task by examination, in place of those in its config.
        trainer: Arguments of Lightning's Trainer, such as ``{"accelerator": "gpu"}``.

    Returns:
        Metrics by name for each examination.

    Raises:
        ValueError: There is no such examination, or there is not one logit for each class.

    Example:
        >>> from hem.datamodules import DigitsDataModule
        >>> from hem.networks import LeNet
        >>> found = evaluate(LeNet(image_size=(8, 8)), DigitsDataModule(), trainer={"accelerator": "cpu"})
        Pixels ... as they are in [0, 1].
        >>> "test/accuracy" in found["clean"]
        True
    """
    quiet()
    for name in examinations:
        check_name(name, EXAMINATIONS, "examination")
    normalize = _expected(net, data.in_channels) if normalize is None else normalize
    numbers = "as they are in [0, 1]" if normalize is None else f"normalised by {normalize.extra_repr()}"
    print(f"Pixels go into {type(net).__name__} {numbers}.")
    examined = net if class_order is None else Reordered(net, order_of(class_order, data.class_names))
    found = {}
    with _left_alone(net):
        _check(examined if normalize is None else nn.Sequential(normalize, examined), data)
        for name in examinations:
            task = _task(name, examined, data, loss, normalize, dict((options or {}).get(name, {})))
            with tempfile.TemporaryDirectory() as nowhere:
                place = nowhere if folder is None else str(Path(folder) / name)
                settings: dict[str, Any] = {
                    "logger": False,
                    "enable_checkpointing": False,
                    "enable_progress_bar": False,
                    "enable_model_summary": False,
                    "devices": 1,
                    "default_root_dir": place,
                    **(trainer or {}),
                }
                runner = Trainer(**settings)
                runner.test(task, datamodule=data, verbose=False)
            found[name] = {key: float(value) for key, value in sorted(runner.callback_metrics.items())}
    return found


def _expected(net: nn.Module, channels: int) -> Normalize | None:
    """Return the normalisation that a network's weights expect; None: the network does not have it."""
    start = getattr(net, "start", None)
    if start is not None and start.normalization is not None:
        return Normalize(*for_channels(start.normalization, channels))
    config = getattr(net, "pretrained_cfg", None)  # timm's
    if isinstance(config, Mapping) and {"mean", "std"} <= config.keys():
        return Normalize(*for_channels((tuple(config["mean"]), tuple(config["std"])), channels))
    return None


@torch.no_grad()
def _check(net: nn.Module, data: ImageDataModule) -> None:
    """Raise an error unless a network has one logit for each class."""
    parameter = next(net.parameters(), torch.zeros(()))
    logits = net(torch.rand(1, data.in_channels, *data.image_size).to(parameter))
    if not isinstance(logits, Tensor) or logits.shape != (1, data.num_classes):
        shape = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise ValueError(
            f"Expected logits of shape (N, {data.num_classes}), one for each class of {data.title}, got {shape}: take "
            "the data that the network was trained on, or name its classes by class_order."
        )


def _task(
    name: str,
    net: nn.Module,
    data: ImageDataModule,
    loss: nn.Module | None,
    normalize: Normalize | None,
    options: dict[str, Any],
) -> Task:
    """Return the task of an examination, with the arguments of its shipped config."""
    kind: Callable[..., Task] = ClassificationTask
    if name != "clean":
        path = SHIPPED / "evaluate" / f"{name}.yaml"
        given: dict[str, Any] = {}
        for file in (path, path.with_suffix("") / f"{data.name}.yaml"):
            if file.is_file():
                content = yaml.safe_load(file.read_bytes())["model"]
                kind = getattr(modules, content.get("class_path", "").rpartition(".")[2], kind)
                given |= content.get("init_args", {})
        options = given | options
    parser = ArgumentParser(exit_on_error=False)
    skip = {"net", "loss", "optimizer", "lr_scheduler", "normalize", "num_classes", "class_names", "mean", "std"}
    parser.add_class_arguments(kind, "task", skip=skip, instantiate=False)
    plain = {key: value for key, value in options.items() if not _built(value)}
    arguments = parser.instantiate_classes(parser.parse_object({"task": plain})).task
    given = {key: value for key, value in vars(arguments).items() if key in options} | {
        key: value for key, value in options.items() if _built(value)
    }
    return kind(
        net,
        nn.CrossEntropyLoss() if loss is None else loss,
        num_classes=data.num_classes,
        class_names=data.class_names,
        normalize=normalize,
        channels_last=False,  # do not change the user's network
        **given,
    )


def _built(value: Any) -> bool:
    """Return whether an option is an object, not the description of one."""
    return not isinstance(value, (str, int, float, bool, list, tuple, dict, type(None))) and not inspect.isclass(value)


@contextmanager
def _left_alone(net: nn.Module) -> Iterator[None]:
    """Set a network to evaluation mode; restore its modes, its device and what requires gradients afterwards."""
    device = next((p.device for p in net.parameters()), None)
    began = vars(net).pop("start", None)  # a task would renew a last layer of other class names
    try:
        with evaluating(net):
            yield
    finally:
        if began is not None:
            net.start = began
        if device is not None:
            net.to(device)
