"""The text of ``--help``: commands, examples and the usual options; nothing heavy is imported."""

from __future__ import annotations

import sys
from pathlib import Path

COMMANDS = {
    "fit": "train a network; its best and last checkpoint, curves and config are kept",
    "validate": "measure a checkpoint on the validation part",
    "test": "measure a checkpoint on the test part, or examine it",
    "predict": "write the labels of the test images",
}
PROGRAMS = {
    "study": "train and test a grid of tasks, losses and seeds",
    "report": "make one page of a study, or of all runs in a folder",
}
LISTINGS = {
    "configs": "list the configs that come with hem; `configs loss` those of one folder",
    "losses": "list the losses",
    "data": "list the data of classification, streams and masks",
    "datasets": "list the data sets of masks, which SegmentationDataModule takes",
    "networks": "list the networks",
    "tasks": "list the tasks: what is trained, measured and examined",
    "strategies": "list the strategies against forgetting",
    "attacks": "list the attacks",
    "scores": "list the scores that tell known classes from unknown ones",
}
EXAMPLES = {
    "fit": """\
  {hem} fit --config classification/digits --config loss/hem
  {hem} fit --config classification/digits --model.loss HEMLoss --model.loss.margin 0.2 --seed_everything 1
  {hem} fit --config classification/folder --data.root my_images --run_dir runs/mine
  {hem} fit --config classification/digits --config loss/hem --ckpt_path last   # goes on with a stopped run
  {hem} fit --config classification/digits --config loss/hem --print_config    # the config that would be run""",
    "validate": "  {hem} validate --config classification/digits --config loss/hem --ckpt_path best",
    "test": """\
  {hem} test --config classification/digits --config loss/hem --ckpt_path best
  {hem} test --run runs/classification_digits/hem/seed0
  {hem} test --run runs/classification_digits/hem/seed0 --config evaluate/rejection
  {hem} test --net resnet50 --weights resnet50.pth --config evaluate/corruption --data ImageNetDataModule""",
    "predict": "  {hem} predict --run runs/classification_digits/hem/seed0",
}
#: each with the part of a command that it is about; a test tries all of them
OPTIONS = {
    "--config NAME_OR_FILE": "a config (`hem configs`); of several a later one overrules an earlier one, options all",
    "--print_config": "print the config that would be run, and stop",
    "--run FOLDER": "the run to test, validate or predict with: network, data, loss and seed are its own",
    "--run_dir FOLDER": "where everything is written; runs/<task>_<data>/<loss>/seed<k> if it is not given",
    "--ckpt_path best|last|FILE": "the checkpoint to go on from, or to measure; auto: goes on if there is one",
    "--seed_everything NUMBER": "the seed of weights, order and augmentation",
    "--model TASK": "`hem tasks`; its options: --model.help TASK",
    "--model.net NETWORK": "`hem networks`; its options: --model.net.help NETWORK",
    "--model.loss LOSS": "`hem losses`; its options: --model.loss.help LOSS",
    "--model.optimizer CLASS": "torch's, such as SGD; with --model.optimizer.lr NUMBER and the like",
    "--model.lr_scheduler CLASS": "torch's, such as OneCycleLR",
    "--data DATA": "`hem data`; its options: --data.help DATA",
    "--data.root FOLDER": "where the data set lies; the environment's HEM_DATA otherwise",
    "--data.batch_size NUMBER": "samples of a step, over all devices",
    "--trainer.max_epochs NUMBER": "how long to train",
    "--trainer.accelerator cpu|gpu": "with --trainer.devices NUMBER and --trainer.precision bf16-mixed",
    "--trainer.logger false": "no curves",
    "--checkpoint.monitor KEY": "what the best checkpoint is chosen by, with --checkpoint.mode min|max",
    "--watch.save_minutes NUMBER": "how often the last checkpoint is written within an epoch",
}


def program() -> str:
    """Return what was typed to come here: ``hem``, ``python -m hem`` or ``python cli.py``."""
    path = Path(sys.argv[0])
    if path.name == "__main__.py" and path.parent.name == "hem":
        return "python -m hem"
    return "hem" if path.name == "hem" else "python cli.py"


def overview() -> str:
    """Return the help of the program."""
    hem = program()
    lines = [f"usage: {hem} COMMAND [--config NAME_OR_FILE ...] [--OPTION VALUE ...]", ""]
    lines += [f"  {name:12}{what}" for name, what in (*COMMANDS.items(), *PROGRAMS.items(), *LISTINGS.items())]
    lines += ["", "examples:", EXAMPLES["fit"].format(hem=hem), EXAMPLES["test"].format(hem=hem)]
    lines += [
        f"  {hem} study folder --data.root my_images && {hem} report runs/folder   # losses, compared on own images"
    ]
    lines += ["", f"Options: `{hem} fit --help`, `{hem} study --help`."]
    return "\n".join([*lines, "HEM_TRACEBACK=1 shows the stack of an error."])


def of_command(command: str) -> str:
    """Return the help of a command; ``--help all`` is the parser's, with all of Lightning's options."""
    hem = program()
    width = max(map(len, OPTIONS))
    lines = [f"usage: {hem} {command} --config NAME_OR_FILE [--config ...] [--OPTION VALUE ...]", ""]
    lines += [f"{COMMANDS[command].capitalize()}.", "", "examples:", EXAMPLES[command].format(hem=hem), "", "options:"]
    lines += [f"  {option:{width}}  {what}" for option, what in OPTIONS.items()]
    return "\n".join([*lines, "", f"All options, Lightning's among them: `{hem} {command} --help all`."])
