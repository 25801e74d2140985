"""An examination inherits the run that it examines: network, data, loss and seed come from the run's own config.

``test --run runs/classification_mnist/hem/seed0 --config configs/evaluate/rejection.yaml`` reads the model, the data
and the seed of the run's ``config.yaml`` first, then the configs and options of the command. So does a command that
names a checkpoint in the folder of a run. Where they say something else of what was trained, the command is refused.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import dict_to_namespace

from hem.cli.configs import OPTIONS
from hem.cli.registries import data_name, task_name
from hem.cli.resume import may_change
from hem.runs import RunFolder

EXAMINES = ("validate", "test", "predict")
INHERITED = ("seed_everything", "model", "data")
# what a validation part and a threshold found on it depend on
SPLIT = ("val_fraction", "split_seed", "test_fraction")
FILES = ("data.record", "model.net.weights")  # paths of what is known by its content
# options of the Trainer that the results of a test depend on, for it takes the temperature from validation images
TRAINER = {"test": ("limit_val_batches",)}


def last_value(args: Sequence[str], option: str) -> str | None:
    """Return what an option was given last, None where it was not given.

    Example:
        >>> last_value(["test", "--run", "a", "--run=b"], "--run")
        'b'
    """
    found = [after for word, after in pairwise([*args, ""]) if word == option]
    found += [word.partition("=")[2] for word in args if word.startswith(f"{option}=")]
    return found[-1] if found else None


def inherited(args: Sequence[str]) -> list[str]:
    """Return the arguments of a command behind those of the run that it examines.

    Args:
        args: What stands behind ``python cli.py``; configs by their paths.

    Raises:
        ValueError: If ``fit`` is given a run, or ``--run`` and the checkpoint are of two runs.
        FileNotFoundError: If the folder holds no run.
    """
    command, *rest = args or [""]
    named, checkpoint = last_value(rest, "--run"), last_value(rest, "--ckpt_path")
    of_checkpoint = RunFolder.of_checkpoint(checkpoint) if checkpoint else None
    if command not in EXAMINES:
        if named is not None:
            raise ValueError(
                f"Expected --run with {', '.join(EXAMINES)}, got it with {command}: it names a run to examine; "
                "--run_dir names the folder of a run that is made."
            )
        return list(args)
    run = of_checkpoint if named is None else RunFolder(named)
    if run is None:
        return list(args)
    if of_checkpoint is not None and of_checkpoint.path.resolve() != run.path.resolve():
        raise ValueError(
            f"Expected a checkpoint of the run {run.path}, got {checkpoint}, which is of {of_checkpoint.path}: "
            "name one run alone."
        )
    record = {key: value for key, value in run.read_config().items() if key in INHERITED}
    data = data_name(dict_to_namespace(record["data"]))
    out = [command, "--config", yaml.safe_dump(record), *examinations(rest, data)]
    if named is None:
        out += ["--run", str(run.path)]
    if not checkpoint:
        out += ["--ckpt_path", usual_checkpoint(run, record)]
    return out


def usual_checkpoint(run: RunFolder, record: Mapping[str, Any]) -> str:
    """Return which checkpoint of a run is meant where none is named.

    The one that its study tests, whose results, threshold and temperature lie in the folder. Else that of the best
    epoch; behind a stream the last one, for a monitor chooses a network before the row of its task.

    Args:
        run: The run.
        record: Its config.

    Returns:
        ``"best"`` or ``"last"``.

    Raises:
        ValueError: If the study's record is damaged.
    """
    tested = last_value(run.read_study().get("test", {}).get("arguments", ()), "--ckpt_path")
    if tested and (which := Path(tested).stem) in ("best", "last") and (run.checkpoints / f"{which}.ckpt").is_file():
        return which
    stream = task_name(record["model"]["class_path"]) == "continual"
    return "best" if not stream and (run.checkpoints / "best.ckpt").is_file() else "last"


def examinations(args: Sequence[str], data: str) -> list[str]:
    """Return the arguments, each config without a network of its own, and followed by what differs by data set.

    Args:
        args: Options and their values; configs by their paths.
        data: The name of the data set.
    """
    out: list[str] = []
    for option, value in pairwise(["", *args]):
        if option in OPTIONS:
            out += [*without_own(value), *of_data(option, value, data)]
        elif value.startswith("--config="):
            path = value.partition("=")[2]
            out += ["--config", *without_own(path), *of_data("--config", path, data)]
        else:
            out.append(value)
    return out


def without_own(value: str) -> list[str]:
    """Return a config of an examination without its own network and loss."""
    if not (path := Path(value)).is_file():
        return [value]
    content = yaml.safe_load(path.read_bytes())
    model = content.get("model") if isinstance(content, dict) else None
    if not isinstance(model, dict) or "class_path" not in model:
        return [value]
    given = model.get("init_args") or {}
    kept = {key: each for key, each in given.items() if key not in ("net", "loss")}
    if len(kept) == len(given):
        return [value]
    return [yaml.safe_dump({**content, "model": {**model, "init_args": kept}})]


def of_data(option: str, value: str, data: str) -> Iterator[str]:
    """``rejection.yaml`` is followed by ``rejection/<data>.yaml``, where there is one: what differs by data set."""
    path = Path(value)
    if path.is_file() and (own := path.with_suffix("") / f"{data}.yaml").is_file():
        yield from (option, str(own))


def refuse_contradictions(run: RunFolder, record: Mapping[str, Any], config: Mapping[str, Any]) -> None:
    """Refuse options that contradict the record of the run.

    Args:
        run: The run.
        record: Its config.
        config: That of the command, merged.

    Raises:
        ValueError: If network, loss, seed or split differ; the sentence names the options.
    """
    pairs = {"seed_everything": (record.get("seed_everything"), config.get("seed_everything"))}
    models = [each["model"].get("init_args") or {} for each in (record, config)]
    for part in ("net", "loss"):
        if all(part in model for model in models):
            pairs |= _differences(f"model.{part}", models[0][part], models[1][part])
    if record["data"].get("class_path") == config["data"].get("class_path"):
        datas = [each["data"].get("init_args") or {} for each in (record, config)]
        pairs |= {f"data.{key}": (datas[0][key], datas[1].get(key)) for key in SPLIT if key in datas[0]}
    differing = [f"--{option} {own} (the run: {made})" for option, (made, own) in pairs.items() if made != own]
    if differing:
        raise ValueError(
            f"Expected the options that the run {run.path} was trained with, got {', '.join(differing[:4])}: leave "
            "them out, for an examination takes network, loss, seed and split from the run."
        )


def _differences(option: str, made: Any, own: Any) -> dict[str, tuple[Any, Any]]:
    """The values of a class and its arguments in two configs, by option, as far as both have them."""
    if not (isinstance(made, Mapping) and isinstance(own, Mapping)):
        return {option: (made, own)}
    if made.get("class_path") != own.get("class_path"):
        return {option: (made.get("class_path"), own.get("class_path"))}
    if "class_path" in made:
        made, own = made.get("init_args") or {}, own.get("init_args") or {}
    found: dict[str, tuple[Any, Any]] = {}
    for key in made.keys() & own.keys():
        found |= _differences(f"{option}.{key}", made[key], own[key])
    return found


def place(run: RunFolder, record: Mapping[str, Any], names: Mapping[str, Any], name: str | None) -> RunFolder:
    """Return the folder of an examination's results: the run's own for its task and data, else one inside it.

    Args:
        run: The run.
        record: Its config.
        names: Task and data of the command, as folders have them.
        name: A name for the examination; None: the task's, and the data's where they are not the run's.
    """
    data = dict_to_namespace(record["data"])
    own = (task_name(record["model"]["class_path"]), data_name(data.init_args.get("data") or data))
    if name is None and own == (names["task"], names["data"]):
        return run
    if name is None:
        name = names["task"] if own[1] == names["data"] else f"{names['task']}_{names['data']}"
    return run.evaluation(name)


def fingerprint(config: Mapping[str, Any], stage: str, folder: Path | None = None) -> str:
    """Return a hash of the options of an examination that its results depend on.

    Args:
        config: The merged config.
        stage: ``validate``, ``test`` or ``predict``.
        folder: Of the images, if they are a user's own: other folders hold other images.
    """
    trainer = {name: config["trainer"].get(name) for name in ("precision", *TRAINER.get(stage, ()))}
    parts = {"trainer": trainer, **{name: config[name] for name in INHERITED}}
    counts = {
        name: value
        for name, value in _options(parts)
        if (name == "data.predict_folder" and stage == "predict") or not (may_change(name) or name in FILES)
    }
    counts["folder"] = folder and str(folder.resolve())
    return hashlib.sha256(json.dumps(counts, sort_keys=True).encode()).hexdigest()[:16]


def _options(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """The options that a config consists of, by name as on the command line, and their values."""
    if isinstance(value, Mapping):
        for key, each in value.items():
            yield from _options(each, name if key == "init_args" else f"{name}.{key}".lstrip("."))
    elif isinstance(value, list):
        for number, each in enumerate(value):
            yield from _options(each, f"{name}.{number}")
    else:
        yield name, value
