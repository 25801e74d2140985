"""Make all loggers of a config write into the run folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml
from jsonargparse import Namespace, dict_to_namespace

from hem.cli.configs import base_config


def place_loggers(trainer: Namespace, folder: Path, training: bool) -> None:
    """Set the folder of all loggers; drop callbacks that need a logger where there is none.

    Args:
        trainer: The config's ``trainer``, which is changed.
        folder: The run folder.
        training: Whether the run trains: ``metrics.csv`` holds the curves of training alone; see ``results.json``.
    """
    given: Any = trainer.logger
    if given is True:  # those of the base config
        given = [dict_to_namespace(each) for each in yaml.safe_load(base_config().read_text())["trainer"]["logger"]]
    loggers = given if isinstance(given, list) else [given] if given else []
    if not training:
        loggers = [each for each in loggers if "CSV" not in each.class_path]
    for logger in loggers:
        if logger.class_path.startswith("lightning.") and logger.class_path.endswith("CSVLogger"):
            logger.class_path = "hem.runs.csv_logger.CSVLogger"  # Lightning's deletes the curves of a resumed run
        arguments = logger.init_args
        if "save_dir" in arguments:
            arguments.save_dir = str(folder)
        if arguments.get("name") == "lightning_logs":  # Lightning's default: a folder of its own for each version
            arguments.name = arguments.version = ""
        if "flush_logs_every_n_steps" in arguments:  # a row is in the file before any checkpoint of a later step
            arguments.flush_logs_every_n_steps = 1
    trainer.logger = loggers or False
    if not loggers and isinstance(trainer.callbacks, list):  # the base config's, which refuses to work without one
        trainer.callbacks = [each for each in trainer.callbacks if "LearningRateMonitor" not in each.class_path]
