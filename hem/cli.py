"""The command line: one merged YAML in, one run folder out; a user's mistake gets a sentence.

``python cli.py fit --config configs/classification/mnist.yaml --config configs/loss/hem.yaml``
reads ``configs/base.yaml`` first, then each ``--config`` in turn, then the options.
"""

from __future__ import annotations

import errno
import inspect
import logging
import os
import re
import sys
import traceback
import warnings
from collections.abc import Iterable, Sequence
from itertools import pairwise
from pathlib import Path
from types import ModuleType
from typing import Any, NoReturn

import torch
import yaml
from jsonargparse.typing import register_type
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.utilities import rank_zero_only

import hem.datamodules
import hem.losses
import hem.modules
import hem.networks
import hem.strategies
from hem.memory import keep_freed
from hem.names import near
from hem.progress import ProgressBar
from hem.run import (
    BEFORE,
    LAST,
    SaveConfig,
    SavePredictions,
    SaveResults,
    last_checkpoint,
    refuse_programs,
    set_aside,
)
from hem.watch import Watch

# a config gives class weights as a list of numbers
register_type(torch.Tensor, torch.Tensor.tolist, torch.tensor)

BASE_CONFIG = Path(__file__).resolve().parents[1] / "configs" / "base.yaml"
COMMANDS = ("fit", "validate", "test", "predict")
MISTAKES = (ValueError, TypeError, OSError, ImportError, FloatingPointError, MisconfigurationException)
# what the system says of a disk that takes or gives no more, in words
VOLUME = {
    errno.ENOSPC: "the disk is full",
    errno.EDQUOT: "the quota is used up",
    errno.EROFS: "the file system is read-only",
    errno.EACCES: "this user may not",
    errno.EPERM: "this user may not",
    errno.EIO: "the volume does not answer",
    errno.ESTALE: "the volume does not answer",
    errno.ENOTCONN: "the volume does not answer",
}


def subclasses(package: ModuleType, base: type) -> list[str]:
    """Return the names of the concrete classes that a package offers under one base."""
    found = {name: value for name, value in vars(package).items() if isinstance(value, type) and name[0] != "_"}
    return sorted(name for name, value in found.items() if issubclass(value, base) and value is not base)


# what `--model.loss Hem` may have meant, by the last word of the option
CHOICES: dict[str, tuple[str, Iterable[str]]] = {
    "model": ("task", subclasses(hem.modules, hem.modules.Task)),
    "data": ("data module", subclasses(hem.datamodules, hem.datamodules.ImageDataModule)),
    "dataset": ("data set", sorted(entry.__name__ for entry in hem.datamodules.MASKS.values())),
    "loss": ("loss", sorted(entry.__name__ for entry in hem.losses.LOSSES.values())),
    "net": (
        "network",
        [*subclasses(hem.networks, hem.networks.Network), "EncoderDecoder", "SegNet", "TorchvisionSegmentation"],
    ),
    "strategy": ("strategy", subclasses(hem.strategies, hem.strategies.Strategy)),
    "optimizer": ("optimiser", subclasses(torch.optim, torch.optim.Optimizer)),
    "lr_scheduler": ("schedule", subclasses(torch.optim.lr_scheduler, torch.optim.lr_scheduler.LRScheduler)),
}


def parameters(class_path: str) -> list[str]:
    """Return the names that a class takes, its bases' among them where it hands arguments on to them."""
    names: dict[str, None] = {}
    for base in class_of(class_path).__mro__[:-1]:
        if "__init__" in vars(base):
            found = inspect.signature(base.__init__).parameters.values()  # type: ignore[misc]
            names |= {p.name: None for p in list(found)[1:] if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)}
            if not any(p.kind is p.VAR_KEYWORD for p in found):
                break
    return list(names)


def one_sentence(message: str, options: Iterable[str] = ()) -> str:
    """Return what the parser has to say about a mistake, in one sentence.

    Args:
        message: The parser's own message, which prints nested types over many lines.
        options: Every option that the command takes, for near names.

    Example:
        >>> one_sentence('''Parser key "model":
        ...   Errors:
        ...     - Problem with given class_path 'hem.modules.ClassificationTask':
        ...         Parser key "loss":
        ...           - Expected a dot import path string: Hem''')
        "unknown loss 'Hem'; did you mean 'HEMLoss' ...?; available: BalancedSoftmaxLoss, ..."
    """
    key = ".".join(part.removesuffix(".init_args") for part in re.findall(r'Parser key "([^"]+)"', message))
    owner = re.findall(r"Problem with given class_path '([^']+)'", message)
    if found := re.search(r"dot import path string: (\S+)|Import path (\S+)|No module named '([^']+)'", message):
        word = next(group for group in found.groups() if group)
        kind, names = CHOICES.get(key.rpartition(".")[2], ("class", ()))
        names = list(names)
        listing = f"; available: {', '.join(names)}, or the path of your own class" if names else ""
        where = "" if names else f" for {key}"
        return f"unknown {kind} '{word}'{where}{near(word, names)}{listing}"
    if (found := re.search(r"Option '([^']+)' is not accepted|unrecognized arguments: --([\w.]+)", message)) and owner:
        word = (found[1] or found[2]).partition(".")[0]
        names = parameters(owner[-1])
        return (
            f"{owner[-1].rpartition('.')[2]} has no argument '{word}'{near(word, names)}; it takes {', '.join(names)}"
        )
    if found := re.search(r"does not accept option '([^']+)'|nrecognized arguments: --([\w.]+)", message):
        word = found[1] or found[2]
        return f"there is no option '{word}'{near(word, options)}"
    if found := re.search(r"arguments are required: (.+)", message):
        example = "such as --config configs/classification/digits.yaml"
        return f"{key or 'the command'} needs {found[1]}: start from a file in configs/, {example}"
    if found := re.search(r"Expected an? (?:<class '([\w.]+)'>|(\w+))[^\n]*Got value: (.*)", message):
        return f"{key} expects {found[1] or found[2]}, got '{found[3].strip()}'"
    if "Subtypes:" in message and (given := re.search(r"Given value: (.*)", message)):
        kinds = re.findall(r"Expected an? <class '([\w.]+)'>", message)
        detail = re.search(r"(?:should|must|does not|invalid|not in|one of) .*", message.rpartition("Errors:")[2])
        expected = " or ".join(dict.fromkeys(kind.replace("NoneType", "null") for kind in kinds))
        what = detail[0] if detail and not kinds else f"expects {expected}"
        return f"{key} {what}, got '{given[1].strip()}'"
    return " ".join(message.split())


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


class HemCLI(LightningCLI):
    """Lightning's command line with our links from the data to the network, the loss and the task."""

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add the run folder and the checkpoint rule; link what the data module knows to whoever asks for it."""
        parser.add_argument(
            "--run_dir",
            type=str | None,
            default=None,
            help="The run's folder (runs/<task>_<data>/<loss>/seed<k>).",
        )
        parser.add_lightning_class_args(ModelCheckpoint, "checkpoint")
        parser.add_lightning_class_args(Watch, "watch")
        for name in ("num_classes", "class_names", "class_counts", "mean", "std"):
            parser.link_arguments(f"data.{name}", f"model.init_args.{name}", apply_on="instantiate")
        for name in ("ignore_index", "unknown_index", "palette"):  # of masks
            parser.link_arguments(f"data.{name}", f"model.init_args.{name}", apply_on="instantiate")
        for name in ("num_classes", "in_channels", "image_size"):
            parser.link_arguments(f"data.{name}", f"model.init_args.net.init_args.{name}", apply_on="instantiate")
        for name in ("class_counts", "class_frequencies"):
            parser.link_arguments(f"data.{name}", f"model.init_args.loss.init_args.{name}", apply_on="instantiate")
        parser.link_arguments("seed_everything", "data.init_args.seed", compute_fn=int)

    def _parse_ckpt_path(self) -> None:
        """Leave the config as it is: Lightning would let hyper-parameters in a checkpoint override it."""

    def before_instantiate_classes(self) -> None:
        """Decide the run folder, and send the logs and checkpoints of the run there."""
        config = self.config[self.subcommand] if self.subcommand else self.config
        data = config.data.init_args.get("data") or config.data  # a stream has the name of what it is made of
        names = {
            "task": task_name(config.model.class_path),
            "data": data_name(data),
            "loss": short_name(config.model.init_args.loss.class_path, hem.losses.LOSSES),
            "seed": config.seed_everything,
        }
        folder = Path(config.run_dir or "runs/{task}_{data}/{loss}/seed{seed}".format(**names)).absolute()
        config.trainer.default_root_dir = str(folder)
        config.checkpoint.dirpath = str(folder / "checkpoints")
        if config.data.init_args.val_fraction == 0:  # nothing to choose by: the last epoch is the best
            config.checkpoint.monitor = None
        if isinstance(config.trainer.logger, list):
            if self.subcommand != "fit":  # metrics.csv holds the curves of training alone; see results.json
                config.trainer.logger = [each for each in config.trainer.logger if "CSV" not in each.class_path]
            for logger in config.trainer.logger:
                logger.init_args.save_dir = str(folder)
        first = getattr(rank_zero_only, "rank", 0) == 0
        if self.subcommand == "fit" and config.ckpt_path == "auto":
            config.ckpt_path = "last" if last_checkpoint(folder / "checkpoints") else None
        elif self.subcommand == "fit" and not config.ckpt_path and first:
            refuse_used(folder)
        if self.subcommand and config.ckpt_path in ("best", "last"):
            path = checkpoint(folder, config.ckpt_path)
            config.ckpt_path = str(path)
            if path.name == BEFORE and self.subcommand == "fit" and first:
                set_aside(path.with_name(LAST))
        if self.subcommand and config.ckpt_path:
            refuse_programs(Path(config.ckpt_path))
        self.trainer_defaults["callbacks"] = [SaveResults(**names), SavePredictions()]
        given = config.trainer.callbacks or []
        if config.trainer.enable_progress_bar is not False and not any("Progress" in c.class_path for c in given):
            self.trainer_defaults["callbacks"].append(ProgressBar())


def class_of(class_path: str) -> type:
    """Return the class that a path names; its module is imported already, as the parser has checked it."""
    module, _, name = class_path.rpartition(".")
    found: type = getattr(sys.modules[module], name)
    return found


def short_name(class_path: str, registry: dict[str, type]) -> str:
    """Return the registry's name of a class, else the name of the class."""
    found = class_of(class_path)
    return next((key for key, entry in registry.items() if entry is found), found.__name__)


def data_name(data: Any) -> str:
    """Return the name of a data set as folders have it, from the ``data`` of a config."""
    if "dataset" in data.init_args:  # one data module for all data sets with masks
        return short_name(data.init_args.dataset.class_path, hem.datamodules.MASKS)
    return short_name(data.class_path, hem.datamodules.DATA)


def task_name(class_path: str) -> str:
    """Return the name of a task as folders have it: ``ClassificationTask`` is ``classification``."""
    return class_path.rpartition(".")[2].removesuffix("Task").lower()


def refuse_used(folder: Path) -> None:
    """Refuse to train into the folder of another run.

    Raises:
        FileExistsError: If the folder holds a config.
    """
    if (folder / "config.yaml").exists():
        raise FileExistsError(
            f"{folder} already holds a run: resume it with `--ckpt_path last` (or `auto`), train another with "
            "`--seed_everything <number>` or `--run_dir <folder>`, or delete the folder."
        )


def checkpoint(folder: Path, which: str) -> Path:
    """Return the best or last checkpoint of a run folder.

    Raises:
        FileNotFoundError: If the run has none.
    """
    path = folder / "checkpoints" / f"{which}.ckpt"
    if which == "last":
        path = last_checkpoint(path.parent) or path
    if not path.is_file():
        found = ", ".join(sorted(str(p) for p in folder.glob("checkpoints/*.ckpt"))) or "none"
        raise FileNotFoundError(
            f"Expected the {which} checkpoint of this run at {path}; the folder has: {found}. Train first with "
            "`python cli.py fit` and the same configs, or give the path of a checkpoint as --ckpt_path."
        )
    return path


def qualified(args: Sequence[str]) -> list[str]:
    """Return the arguments with our own class names spelt out: torchvision has an ``MLP`` and a ``ResNet``, too.

    Example:
        >>> qualified(["fit", "--model.net", "MLP", "--model.loss=HEMLoss"])
        ['fit', '--model.net', 'hem.networks.MLP', '--model.loss=hem.losses.HEMLoss']
    """
    rooms = {
        "model": hem.modules,
        "data": hem.datamodules,
        "dataset": hem.datamodules,
        "loss": hem.losses,
        "net": hem.networks,
        "strategy": hem.strategies,
    }
    out: list[str] = []
    for argument in args:
        option, equals, value = argument.rpartition("=") if argument.startswith("--") else ("", "", argument)
        key = (option or (out[-1] if out else "")).lstrip("-").rpartition(".")[2]
        if key in rooms and isinstance(getattr(rooms[key], value, None), type):
            argument = f"{option}{equals}{rooms[key].__name__}.{value}"
        out.append(argument)
    return out


def check_yaml(args: Sequence[str]) -> None:
    """Refuse a config that is no YAML, by its name, which the parser does not give.

    Raises:
        ValueError: If a file behind ``--config`` or ``-c`` cannot be read as YAML.
    """
    paths = [after for option, after in pairwise(args) if option in ("--config", "-c")]
    paths += [argument.partition("=")[2] for argument in args if argument.startswith("--config=")]
    for path in filter(os.path.isfile, paths):
        try:
            yaml.safe_load(Path(path).read_text())
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise ValueError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from None


def build(args: Sequence[str] | dict[str, Any], run: bool = True) -> HemCLI:
    """Parse the arguments, build all objects and, where ``run`` says so, run the command.

    Args:
        args: What stands behind ``python cli.py``, or a config as a dict.
        run: Whether to run a command (the first argument); otherwise the objects are built only.
    """
    defaults = {"default_config_files": [str(BASE_CONFIG)]}
    return HemCLI(
        hem.modules.Task,
        hem.datamodules.ImageDataModule,
        subclass_mode_model=True,
        subclass_mode_data=True,
        auto_configure_optimizers=False,
        load_from_checkpoint_support=False,
        save_config_callback=SaveConfig,
        parser_class=Parser,
        parser_kwargs=dict.fromkeys(COMMANDS, defaults) if run else defaults,
        args=args if isinstance(args, dict) else qualified(args),
        run=run,
    )


def mistake(error: BaseException) -> BaseException:
    """Return the error that a user should read: the parser wraps what a constructor raises into its own."""
    chain = [error]
    while (cause := chain[-1].__cause__ or chain[-1].__context__) is not None:
        chain.append(cause)

    def origin(link: BaseException) -> str:
        frames = traceback.extract_tb(link.__traceback__)
        return frames[-1].filename if frames else ""

    return next((link for link in chain if "jsonargparse" not in origin(link)), error)


def sentence(error: BaseException) -> str:
    """Return what a user should read of an error: what was wanted, what came, the mend.

    Example:
        >>> sentence(OSError(errno.ENOSPC, "No space left on device", "runs/last.ckpt"))
        'runs/last.ckpt cannot be read or written, for the disk is full: mend that, ... `--ckpt_path auto`.'
    """
    if isinstance(error, OSError) and error.errno in VOLUME:
        return (
            f"{error.filename or 'A file of the run'} cannot be read or written, for {VOLUME[error.errno]}: mend that, "
            "or take another --run_dir or --data.root; the checkpoints that were there are whole, a run that had begun "
            "goes on with `--ckpt_path auto`."
        )
    if isinstance(error, RuntimeError) and "DataLoader worker" in str(error):
        return (
            "A process that reads images was killed, most likely because the memory was full: take fewer "
            "(--data.num_workers) or smaller batches (--data.batch_size); the run goes on with `--ckpt_path auto`."
        )
    return str(error)


def quiet() -> None:
    """Silence what libraries say that is no news to a user."""
    for message in (
        "LightningCLI's args parameter is intended",  # it is: `main` takes arguments from Python
        r"`isinstance\(treespec, LeafSpec\)` is deprecated",  # Lightning's own use of torch
        "Checkpoint directory .* exists and is not empty",  # SaveConfig refuses what would overwrite
        "You defined a `validation_step` but have no `val_dataloader`",  # val_fraction 0 says so
        "Be aware that when using `ckpt_path`, callbacks used",  # a checkpoint is examined under another config
        "The dirpath has changed from",  # a checkpoint is tested into another folder, or its run was moved
        "Precision .* is not supported by the model summary",  # its estimate in MB is all that is concerned
        "Couldn't infer the batch indices fetched",  # predictions carry their own
        "The '(train|val|test|predict)_dataloader' does not have many workers",  # images in memory need none
        # a run resumed behind its validation; a figure that no validation has is an error
        r"`ModelCheckpoint\(monitor=.*could not find the monitored key",
        "The `srun` command is available",  # on a login node, or for a run on this machine alone
    ):
        warnings.filterwarnings("ignore", message=message)
    # Lightning 2.6 calls jsonargparse by names of an older release
    os.environ.setdefault("JSONARGPARSE_DEPRECATION_WARNINGS", "off")
    # device tables, advertisements, the seed; warnings and errors stay
    for name in ("lightning.pytorch.utilities.rank_zero", "lightning.fabric.utilities.seed"):
        logging.getLogger(name).setLevel(logging.WARNING)


def main(args: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        args: The arguments behind ``python cli.py``; None: those of the process.

    Returns:
        0 on success, 1 where the run could not be done, 2 where the arguments are wrong. Set
        ``HEM_TRACEBACK=1`` to see the stack of an error.
    """
    arguments = list(sys.argv[1:] if args is None else args)
    quiet()
    keep_freed()
    try:
        check_yaml(arguments)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    try:
        build(arguments)
    except (*MISTAKES, RuntimeError) as error:
        cause = mistake(error)
        answered = isinstance(cause, MISTAKES) or sentence(cause) != str(cause)
        if os.environ.get("HEM_TRACEBACK") or not answered:
            raise
        print(f"error: {sentence(cause)}", file=sys.stderr)
        return 1
    except SystemExit as stop:
        return int(stop.code or 0) if not isinstance(stop.code, str) else 1
    return 0
