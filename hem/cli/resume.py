"""Resume a training: from which checkpoint, and which options may have changed.

A run that goes on is the run that began. What may change is its length, and what it is done with and where: devices,
folders, loggers, callbacks that only observe. All else would make a run that its record does not describe: half of it
trained at one rate, half at another, or on images that were held out before. Precision is of the second kind: it is
part of what is computed.
"""

from __future__ import annotations

import os
import sys
from argparse import ArgumentError
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import yaml
from lightning.pytorch.callbacks import (
    Checkpoint,
    DeviceStatsMonitor,
    EarlyStopping,
    LearningRateMonitor,
    ModelSummary,
    ProgressBar,
    ThroughputMonitor,
    Timer,
)
from lightning.pytorch.utilities import rank_zero_only

from hem.cli.errors import one_sentence
from hem.cli.registries import class_of
from hem.datamodules import ContinualDataModule
from hem.runs.folder import RunFolder
from hem.runs.lock import holder, lock, remove_empty
from hem.runs.newest import BEFORE, LAST, last_checkpoint, set_aside

SPAN = ("trainer.max_epochs", "trainer.max_steps")  # what a schedule over the whole training depends on
LENGTH = (*SPAN, "trainer.min_epochs", "trainer.min_steps", "trainer.max_time")
MACHINE = (
    *(
        f"trainer.{name}"
        for name in (
            "accelerator", "barebones", "benchmark", "default_root_dir", "detect_anomaly", "deterministic", "devices",
            "enable_autolog_hparams", "enable_checkpointing", "enable_model_summary", "enable_progress_bar",
            "fast_dev_run", "inference_mode", "limit_predict_batches", "limit_test_batches", "log_every_n_steps",
            "logger", "model_registry", "num_nodes", "plugins", "profiler", "strategy", "sync_batchnorm",
            "use_distributed_sampler",
        )
    ),
    "checkpoint.dirpath", "checkpoint.verbose", "ckpt_path", "model.channels_last", "model.compile", "name", "run",
    "run_dir", "watch.save_minutes", "watch.save_steps", "weights_only",
)  # fmt: skip
# the last word of an option, wherever it stands
ANYWHERE = ("download", "eval_batch_size", "foreach", "fused", "in_memory", "num_workers", "on_device",
            "predict_folder", "root")  # fmt: skip
#: callbacks that leave the training as it is, or end it; one's own says so by an attribute ``observes = True``
OBSERVERS = (
    *(Checkpoint, DeviceStatsMonitor, EarlyStopping, LearningRateMonitor, ModelSummary, ProgressBar),
    *(ThroughputMonitor, Timer),
)


def first_process() -> bool:
    """Whether this is the process of a run that writes: the first one of the first node."""
    node = os.environ.get("GROUP_RANK") or os.environ.get("NODE_RANK") or "0"
    return getattr(rank_zero_only, "rank", 0) == 0 and node == "0"


def may_change(option: str) -> bool:
    """Whether an option may differ when a run is resumed.

    Example:
        >>> may_change("trainer.max_epochs"), may_change("data.root"), may_change("model.optimizer.lr")
        (True, True, False)
    """
    words = option.split(".")
    return any(".".join(words[:2]) == each for each in (*LENGTH, *MACHINE)) or words[-1] in ANYWHERE


def differences(record: Any, config: Any, option: str = "") -> dict[str, tuple[Any, Any]]:
    """Return the options in which two configs differ: then and now.

    Args:
        record: What YAML has; classes as ``class_path`` and ``init_args``.
        config: The other one.
        option: The option that both are the value of.

    Example:
        >>> sgd = "torch.optim.SGD"
        >>> differences({"lr": 1, "a": [1, {"b": 2}]}, {"lr": 1, "a": [1, {"b": 3}]}, "model")
        {'model.a.1.b': (2, 3)}
    """
    if isinstance(record, list) and isinstance(config, list) and len(record) == len(config):
        record, config = dict(enumerate(record)), dict(enumerate(config))
    if not (isinstance(record, dict) and isinstance(config, dict)):
        return {} if record == config else {option: (record, config)}
    if "class_path" in record and "class_path" in config:
        if class_of(record["class_path"]) is not class_of(config["class_path"]):
            return {option: (record["class_path"], config["class_path"])}
        record, config = record.get("init_args") or {}, config.get("init_args") or {}
    found: dict[str, tuple[Any, Any]] = {}
    for name in dict.fromkeys((*record, *config)):
        found |= differences(record.get(name), config.get(name), f"{option}.{name}" if option else str(name))
    return found


def _trained_with(config: dict[str, Any]) -> dict[str, Any]:
    """Return a config with the callbacks alone that take part in a training."""
    callbacks = [(each, class_of(each["class_path"])) for each in config["trainer"]["callbacks"] or []]
    kept = [each for each, kind in callbacks if not (issubclass(kind, OBSERVERS) or getattr(kind, "observes", False))]
    return {**config, "trainer": {**config["trainer"], "callbacks": kept}}


#: what changes with the place of a run, and is no news in its record
PLACE = ("checkpoint.dirpath", "ckpt_path", "run_dir", "trainer.default_root_dir")


def compare(record: dict[str, Any], config: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Return the differences of two merged configs, callbacks that only observe left out."""
    found = differences(_trained_with(record), _trained_with(config))
    return {option: pair for option, pair in found.items() if option not in PLACE and not option.endswith("save_dir")}


def shown(value: Any) -> str:
    """Return the value of an option as it is typed; a class by its name."""
    if isinstance(value, dict) and "class_path" in value:
        value = value["class_path"]
    if value is None or isinstance(value, bool):
        return str(value).lower().replace("none", "null")
    text = (
        value.rpartition(".")[2] if isinstance(value, str) and value[:1].isalpha() and "/" not in value else str(value)
    )
    return text if len(text) <= 60 else f"{text[:60]}..."


def refuse_changes(run: RunFolder, config: dict[str, Any], changed: Mapping[str, tuple[Any, Any]]) -> None:
    """Refuse changes of a resumed run's options, and of a length that its schedule depends on.

    Args:
        run: The run.
        config: The merged config now.
        changed: What differs from the run's own.

    Raises:
        ValueError: If something differs that may not, or the length of a training that its schedule spans.
    """
    another = f"train another run from its weights, `--model.net.weights {run.path} --run_dir <new folder>`"
    refused = {option: pair for option, pair in changed.items() if not may_change(option)}
    if refused:
        listed = [f"{option} {shown(now)} (it was {shown(then)})" for option, (then, now) in refused.items()]
        more = f" and {len(listed) - 8} more" if len(listed) > 8 else ""
        raise ValueError(
            f"Expected the config that {run.path} was begun with, got another: {', '.join(listed[:8])}{more}: leave it "
            f"as it was to go on with the run, or {another}."
        )
    spans = [option for option in SPAN if option in changed]
    model, data = config["model"]["init_args"], config["data"]
    schedule = model.get("lr_scheduler") or {}
    arguments = schedule.get("init_args") or {}
    if not spans:
        return
    then, now = changed[spans[0]]
    length = f"Expected the length that {run.path} was begun with, {spans[0]} {shown(then)}, got {shown(now)}: "
    if "total_steps" in arguments and arguments["total_steps"] is None and not arguments.get("epochs"):
        raise ValueError(
            f"{length}its schedule, {shown(schedule)}, goes over the whole training and ends at (almost) no rate, so "
            "that the epochs that are done would have had other rates in a training of another length: give the length "
            f"it was begun with, train anew, or {another}."
        )
    if issubclass(class_of(data["class_path"]), ContinualDataModule):
        raise ValueError(
            f"{length}the epochs of a stream are dealt out to its tasks, and those that are done would have had other "
            "epochs: give the length it was begun with, or train anew."
        )


def check(parser: Any, config: Any, run: RunFolder) -> dict[str, tuple[Any, Any]]:
    """Compare the config with the run's own; refuse changes that are not allowed.

    Args:
        parser: Of the command.
        config: The merged config, parsed.
        run: The run.

    Returns:
        What has changed, and may: by option, then and now.

    Raises:
        ValueError: If more has changed.
    """
    now = dumped(parser, config)
    changed = compare(read_as_now(parser, run.config), now)
    refuse_changes(run, now, changed)
    return changed


def read_as_now(parser: Any, path: Path) -> dict[str, Any]:
    """Return a run's merged config with the options added since it was written.

    Args:
        parser: Of the command.
        path: The record.

    Raises:
        ValueError: If it cannot be read any more.
    """
    before, parser.exit_on_error = parser.exit_on_error, False
    try:
        record = yaml.safe_load(path.read_bytes())
        if not isinstance(record, dict):
            raise ValueError("it is empty" if record is None else "it holds no mapping")
        return dumped(parser, parser.parse_object(record))
    except (ArgumentError, yaml.YAMLError, TypeError, ValueError, ImportError) as error:
        raise ValueError(
            f"{path}, the config that the run was begun with, cannot be read ({one_sentence(str(error))}): mend it, or "
            "train anew."
        ) from None
    finally:
        parser.exit_on_error = before


def hold(folder: Path, held: ExitStack) -> None:
    """Hold a folder until the stack is closed.

    Raises:
        BlockingIOError: If another process holds it.
    """
    if held.enter_context(lock(folder)) is None:
        raise BlockingIOError(
            f"Expected a folder that nobody works in, got {folder}, where {holder(folder)} does: wait until it has "
            "ended, or give another --run_dir."
        )
    held.callback(remove_empty, folder)


def dumped(parser: Any, config: Any) -> dict[str, Any]:
    """Return a parsed config as YAML has it."""
    found: dict[str, Any] = yaml.safe_load(parser.dump(config, skip_none=False, skip_validation=True))
    return found


def from_where(run: RunFolder, asked: str | None) -> Path | None:
    """Return the checkpoint that a training goes on from, None where it begins.

    Args:
        run: The folder that it trains into.
        asked: ``--ckpt_path``.
    """
    if asked == "auto":
        return last_checkpoint(run.checkpoints)
    if asked in ("best", "last"):
        return run.checkpoint(asked)
    return Path(asked).absolute() if asked else None


def prepare(run: RunFolder, checkpoint: Path | None) -> RunFolder | None:
    """Prepare a folder for training; done by the first process, which holds the lock.

    What a training left that came to no checkpoint is cleared away: a folder without a checkpoint holds no run.

    Args:
        run: The folder.
        checkpoint: What to go on from; None: begin.

    Returns:
        The run that the checkpoint is of, where there is its config.

    Raises:
        FileExistsError: If the folder holds another run.
    """
    own = checkpoint is not None and checkpoint.parent.resolve() == run.checkpoints.resolve()
    if not own and run.used:
        there = ", ".join(str(path) for path in sorted(run.checkpoints.glob("*.ckpt"))) or "its results alone"
        go_on = (
            "resume it with `--ckpt_path last` (or `auto`)"
            if last_checkpoint(run.checkpoints)
            else f"it has no last checkpoint, but {there}: give that as --ckpt_path"
        )
        raise FileExistsError(
            f"{run.path} already holds a run: {go_on}, train another with `--seed_everything <number>` or `--run_dir "
            "<folder>`, or delete the folder."
        )
    run.clear()
    if checkpoint is None or not checkpoint.is_file():
        return None  # a missing one has a sentence of its own
    if own and checkpoint.name == BEFORE:
        set_aside(run.checkpoints / LAST)
    other = RunFolder(checkpoint.parent.parent)
    if not other.config.is_file():
        print(f"{checkpoint} has no config.yaml beside it: whether it was trained by these options is not known.",
              file=sys.stderr)  # fmt: skip
        return None
    return other
