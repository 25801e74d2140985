"""Parse the merged config, build its objects and run the command in a run folder.

``configs/base.yaml`` is read first, then each ``--config`` in turn, then the options.
"""

from __future__ import annotations

import os
import re
import sys
import traceback
from collections.abc import Sequence
from contextlib import ExitStack
from functools import reduce
from inspect import Parameter
from operator import or_
from pathlib import Path
from typing import Any, NoReturn, get_args

import torch
import yaml
from jsonargparse import Namespace
from jsonargparse.typing import register_type
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI

import hem.datamodules
import hem.losses
import hem.modules
from hem.cli.configs import base_config
from hem.cli.errors import MONITOR, one_sentence
from hem.cli.examine import EXAMINES, fingerprint, inherited, place, refuse_contradictions
from hem.cli.foreign import foreign, name_of
from hem.cli.help import COMMANDS, program
from hem.cli.loggers import place_loggers
from hem.cli.own import Unusable
from hem.cli.registries import data_name, parameters, qualified, short_name, spelt_out, task_name
from hem.cli.resume import check, dumped, first_process, from_where, hold, prepare
from hem.networks.weights import without_start
from hem.runs import RunFolder, SaveConfig, SavePredictions, SaveResults
from hem.runs.checkpoints import identity, identity_of, refuse_programs
from hem.runs.data import KeepData
from hem.runs.progress import ProgressBar
from hem.runs.watch import Watch

# a config gives class weights as a list of numbers
register_type(torch.Tensor, torch.Tensor.tolist, torch.tensor)

COUNTS = ("limit_train_batches", "accumulate_grad_batches", "val_check_interval", "check_val_every_n_epoch")
STARTS = ("pretrained", "weights")  # arguments of networks that bring weights of their own
LOOSE = "a checkpoint outside any run: the loss is the config's; the checkpoint's own is not known"


class Parser(LightningArgumentParser):
    """Lightning's parser, which reports a mistake in one sentence and leaves with code 2."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Print one sentence and exit; a parser inside another one hands its message on."""
        if not self.exit_on_error:
            super().error(message, ex)
        if os.environ.get("HEM_TRACEBACK") and ex is not None:
            traceback.print_exception(ex)
        parsers = [
            self,
            *(p for action in self._actions for p in (getattr(action, "_name_parser_map", None) or {}).values()),
        ]
        options = {name.lstrip("-") for parser in parsers for each in parser._actions for name in each.option_strings}
        print(f"error: {one_sentence(message, options)}", file=sys.stderr)
        self.exit(2)

    def parse_string(self, content: str, *args: Any, **kwargs: Any) -> Any:
        """Parse a config, in which our classes may have their short names, as on the command line."""
        loaded = yaml.safe_load(content)
        try:
            spelt = spelt_out(loaded) if isinstance(loaded, dict) else loaded
        except Unusable as error:
            self.error(str(error), error)
        return super().parse_string(content if spelt == loaded else yaml.safe_dump(spelt), *args, **kwargs)


class HemCLI(LightningCLI):
    """Lightning's command line with our links from the data to the network, the loss and the task.

    Args:
        command: The only command whose options are made; None: all of them.
        kwargs: Lightning's.
    """

    def __init__(self, *args: Any, command: str | None = None, **kwargs: Any) -> None:
        self.command = command
        with ExitStack() as self.held:  # what is held for a run, its folder, is let go at the end
            super().__init__(*args, **kwargs)

    def subcommands(self) -> dict[str, set[str]]:  # type: ignore[override]  # Lightning's is static
        """Return the commands, or the one that is wanted: the options of each take a fifth of a second to make."""
        commands = LightningCLI.subcommands()
        return {self.command: commands[self.command]} if self.command else commands

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add the run folder and the checkpoint rule; link what the data module knows to whoever asks for it."""
        for name, help in (
            ("run_dir", "The run's folder (runs/<task>_<data>/<loss>/seed<k>)."),
            ("run", "The folder of a run to examine: network, data, loss and seed are its own, results lie in it."),
            ("name", "The name of an examination: results lie in <run>/evaluate/<name> (by default the task's)."),
        ):
            parser.add_argument(f"--{name}", type=str | None, default=None, help=help)
        parser.add_lightning_class_args(ModelCheckpoint, "checkpoint")
        parser.add_lightning_class_args(Watch, "watch")
        for name in ("num_classes", "class_names", "class_counts", "mean", "std"):
            parser.link_arguments(f"data.{name}", f"model.init_args.{name}", apply_on="instantiate")
        for name in ("ignore_index", "unknown_index", "palette"):  # of masks
            parser.link_arguments(f"data.{name}", f"model.init_args.{name}", apply_on="instantiate")
        for name in ("num_classes", "class_names", "in_channels", "image_size"):
            parser.link_arguments(f"data.{name}", f"model.init_args.net.init_args.{name}", apply_on="instantiate")
        for name in ("class_counts", "class_frequencies"):
            parser.link_arguments(f"data.{name}", f"model.init_args.loss.init_args.{name}", apply_on="instantiate")
        parser.link_arguments("seed_everything", "data.init_args.seed", compute_fn=int)

    def _parse_ckpt_path(self) -> None:
        """Leave the config as it is: Lightning would let hyper-parameters in a checkpoint override it."""

    def after_fit(self) -> None:
        """Say in one line where the run lies, and what to type next."""
        self._end("test")

    def after_test(self) -> None:
        """Say in one line where the results lie, and what to type next."""
        self._end("predict")

    def _end(self, following: str) -> None:
        made = (self.folder.checkpoints, self.folder.curves, self.folder.results)
        there = ", ".join(path.name for path in made if path.exists())
        if not there or not self.trainer.is_global_zero or self.trainer.interrupted:
            return
        run = RunFolder(self.config[self.subcommand].run or self.folder.path)
        more = f"; next: {program()} {following} --run {shown(run.path)}" if run.config.is_file() else ""
        print(f"run: {shown(self.folder.path)}/ ({there}){more}")

    def before_instantiate_classes(self) -> None:
        """Decide the run folder, and send the logs and checkpoints of the run there."""
        config = self.config[self.subcommand] if self.subcommand else self.config
        settle_nulls(config.model, "model")
        settle_nulls(config.data, "data")
        refuse_trainer(config.trainer)
        data = config.data.init_args.get("data") or config.data  # a stream has the name of what it is made of
        names = {
            "task": task_name(config.model.class_path),
            "data": data_name(data),
            "loss": short_name(config.model.init_args.loss.class_path, hem.losses.LOSSES),
            "seed": config.seed_everything,
        }
        if self.subcommand in EXAMINES and not config.ckpt_path and config.run is None:
            names["loss"] = name_of(config.model.init_args.net) or names["loss"]
        measures = self.subcommand in ("validate", "test")
        loose = measures and config.run is None and config.ckpt_path not in (None, "best", "last")
        self.folder = self._folder(config, names)
        folder = self.folder.path
        config.trainer.default_root_dir = str(folder)
        config.checkpoint.dirpath = str(self.folder.checkpoints)
        if config.data.init_args.get("val_fraction") == 0:  # nothing to choose by: the last epoch is the best
            config.checkpoint.monitor = None
        place_loggers(config.trainer, folder, training=self.subcommand == "fit")
        if self.subcommand in ("validate", "test", "predict") and not config.ckpt_path:
            refuse_untrained(self.subcommand, config.model.init_args.net)
        if self.subcommand == "fit":
            self._train_into(self.folder, config)
        elif self.subcommand and config.ckpt_path in ("best", "last"):
            run = RunFolder(Path(config.run).absolute()) if config.run else self.folder
            config.ckpt_path = str(run.checkpoint(config.ckpt_path))
        if self.subcommand and config.ckpt_path:
            refuse_programs(Path(config.ckpt_path))
            without_start(config.model.init_args.net.get("init_args") or {})
        if self.subcommand == "predict" and "record" in config.data.init_args:
            trained = (config.ckpt_path and RunFolder.of_checkpoint(config.ckpt_path)) or self.folder
            if config.data.init_args.record is None and "class_names" in (trained.read_data() or {}):
                config.data.init_args.record = str(trained.data)
        if loose and first_process():
            print(f"{config.ckpt_path}: {LOOSE}.")
        self.results = SaveResults(**names, run=config.run, note=LOOSE if loose else None)
        self.trainer_defaults["callbacks"] = [self.results, SavePredictions(), KeepData(config.get("ckpt_path"))]
        given = config.trainer.callbacks or []
        if config.trainer.enable_progress_bar is not False and not any("Progress" in c.class_path for c in given):
            self.trainer_defaults["callbacks"].append(ProgressBar())

    def _folder(self, config: Any, names: dict[str, Any]) -> RunFolder:
        """The folder that the command writes into."""
        run = RunFolder(Path(config.run).absolute()) if config.run else None
        made = RunFolder(Path(config.run_dir or "runs/{task}_{data}/{loss}/seed{seed}".format(**names)).absolute())
        if self.subcommand not in EXAMINES or (run is None and not made.config.is_file()):
            return made
        trained = made if run is None else run
        record = trained.read_config()
        refuse_contradictions(trained, record, dumped(self._parser(self.subcommand), config))
        return made if run is None or config.run_dir else place(run, record, names, config.name)

    def before_validate(self) -> None:
        """Set results of other weights or options aside."""
        self._make_room(self.folder.results_validate, "limit_val_batches")

    def before_test(self) -> None:
        """Set results of other weights or options aside."""
        self._make_room(self.folder.results, "limit_test_batches")

    def before_predict(self) -> None:
        """Set predictions of other weights or options aside."""
        self._make_room(self.folder.predicted, "limit_predict_batches")

    def _make_room(self, results: Path, limit: str) -> None:
        """Refuse a last layer that nobody trained; set aside what lies here of other weights, options or images."""
        config = self.config[self.subcommand]
        start = getattr(self.model.net.backbone, "start", None)
        if start is not None and start.fresh and not config.ckpt_path:
            raise ValueError(
                f"Expected a trained network, got one with new layers ({', '.join(start.fresh[:2])}), for its weights "
                f"have other classes than the {self.datamodule.num_classes} of {self.datamodule.title}: take the data "
                "that it was trained on, or say whose logits they are by --class_order."
            )
        if not first_process() or config.trainer.fast_dev_run:
            return
        own = identity_of(config.ckpt_path) if config.ckpt_path else identity(self.model.net.state_dict())
        self.results.weights = own
        share = config.trainer[limit]
        partial = share is not None and (isinstance(share, int) or share < 1)  # 1 is one batch, 1.0 all of them
        record = dumped(self._parser(self.subcommand), config)
        folder = self.datamodule.root if getattr(self.datamodule, "own", False) else None
        self.results.options = options = fingerprint(record, str(self.subcommand), folder)
        if kept := self.folder.make_room(results, own, partial, options):
            print(f"The results that were here are of other weights, options or images: they are kept in {kept}.")
        if results == self.folder.predicted:
            self.folder.write_predicted(own, config.ckpt_path, partial, options)

    def _train_into(self, run: RunFolder, config: Any) -> None:
        """Lock the folder of a training, find its checkpoint, and refuse changes of a resumed run."""
        path = from_where(run, config.ckpt_path)
        config.ckpt_path = None if path is None else str(path)
        if not first_process() or config.trainer.fast_dev_run:
            return
        hold(run.path, self.held)
        if (record := prepare(run, path)) is not None:
            self.save_config_kwargs = {"changed": check(self._parser("fit"), config, record)}
        if path is None:
            self.held.push(self._leave_no_run)

    def _leave_no_run(self, kind: type[BaseException] | None, error: BaseException | None, stack: Any) -> None:
        """Delete the checkpoints of a training that began here and whose monitor does not exist.

        Lightning looks a monitor up behind the first epoch that is validated. The folder must be free for the command
        with the right one, which would be refused to go on with a run of another config.
        """
        if error is None or not MONITOR.search(str(error)):
            return
        if self.trainer.fit_loop.epoch_progress.current.completed < (self.trainer.check_val_every_n_epoch or 1):
            for path in self.folder.checkpoints.glob("*.ckpt"):
                path.unlink()


def shown(path: Path) -> Path:
    """Return a path as it is typed here: relative to the current folder, where it lies inside."""
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path


def settle_nulls(value: Any, key: str) -> None:
    """Refuse null for numbers, which the parser lets through, and turn ``"None"`` back into null.

    Args:
        value: A part of the config, which is changed where a word may be null and is ``"None"``.
        key: The option that stands for it.

    Raises:
        ValueError: If a class takes a number, a word or a truth value, and got null.
    """
    if isinstance(value, list):
        for each in value:
            settle_nulls(each, key)
    if not isinstance(value, Namespace) or "class_path" not in value:
        return
    taken = parameters(value.class_path)
    given = value.get("init_args")
    for name, each in list((vars(given) if given else {}).items()):
        kind = taken[name].annotation if name in taken else ""
        kind = kind if isinstance(kind, str) else getattr(kind, "__name__", "")
        if each is None and name in taken and taken[name].default is Parameter.empty:
            continue  # it is still to come from the data
        if each is None and re.fullmatch(r"(int|float|str|bool)( \| (int|float|str|bool))*", kind):
            raise ValueError(
                f"{key}.{name} expects {kind.replace(' |', ' or')}, got null: leave it out for its default."
            )
        if each == "None" and re.search(r"\bNone\b", kind):  # of `--model.net.weights null`
            given[name] = None
        settle_nulls(each, f"{key}.{name}")


def refuse_trainer(trainer: Namespace) -> None:
    """Refuse options of the trainer on which Lightning fails with an unclear error.

    Raises:
        ValueError: If a number is 0 that counts what is done, or the checkpoints are to be left out.
    """
    for name in COUNTS:
        if trainer.get(name) == 0 and trainer[name] is not False:
            raise ValueError(f"trainer.{name} expects more than 0, got 0: leave it out for its default.")
    for name, wanted in (("enable_checkpointing", "true"), ("barebones", "false")):
        if trainer.get(name) is (wanted == "false"):
            raise ValueError(
                f"trainer.{name} expects {wanted}, for a run is kept by its checkpoints: a trial that leaves none is "
                "--trainer.fast_dev_run true."
            )


def refuse_untrained(command: str, net: Namespace) -> None:
    """Refuse to measure a network of random weights.

    Raises:
        ValueError: If the network, one of ours, brings no weights of its own.
    """
    if net.class_path.startswith("hem.") and not any((net.get("init_args") or {}).get(key) for key in STARTS):
        raise ValueError(
            f"{command} needs a trained network, or it would measure random weights: name its run by --run FOLDER, or "
            "give --ckpt_path best, last or the path of a checkpoint."
        )


def whole_numbers_first() -> None:
    """Let ``1`` mean one batch and ``1.0`` all batches, as Lightning does.

    The parser takes the first type of a union that fits, and typing hands out ``int | float`` in the order in which
    any library that was imported before Lightning has written it.
    """
    annotations = Trainer.__init__.__annotations__
    for name, union in annotations.items():
        if {int, float} <= set(kinds := get_args(union)):
            annotations[name] = reduce(or_, (kind for kind in kinds if kind not in (int, float)), int | float)


def build(args: Sequence[str] | dict[str, Any], run: bool = True) -> HemCLI:
    """Parse the arguments, build all objects and, where ``run`` says so, run the command.

    Args:
        args: What stands behind ``python cli.py``, or a config as a dict.
        run: Whether to run a command (the first argument); otherwise the objects are built only.
    """
    defaults = {"default_config_files": [str(base_config())]}
    command = next((each for each in args if each in COMMANDS), None) if run and not isinstance(args, dict) else None
    whole_numbers_first()
    return HemCLI(
        hem.modules.Task,
        hem.datamodules.ImageDataModule,
        subclass_mode_model=True,
        subclass_mode_data=True,
        auto_configure_optimizers=False,
        load_from_checkpoint_support=False,
        save_config_callback=SaveConfig,
        parser_class=Parser,
        parser_kwargs=dict.fromkeys([command] if command else COMMANDS, defaults) if run else defaults,
        args=args if isinstance(args, dict) else qualified(inherited(foreign(args))),
        run=run,
        command=command,
    )
