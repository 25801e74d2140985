"""Turn errors into one sentence: what was expected, what came, the mend."""

from __future__ import annotations

import errno
import re
import sys
import traceback
from collections.abc import Callable, Iterable
from pathlib import Path

from lightning.fabric.utilities.exceptions import MisconfigurationException

from hem.cli.registries import REGISTRIES, parameters
from hem.names import near

PACKAGE = Path(__file__).resolve().parents[1]
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

# how Lightning says that a metric is not there, and which ones are
MONITOR = re.compile(
    r"(?:(?P<who>ReduceLROnPlateau) conditioned on metric |Early stopping conditioned on metric `"
    r"|`(?P<checkpoint>ModelCheckpoint)\(monitor=')(?P<monitor>[^\s`']+).*?(?:following:|metrics are:|metrics:)"
    r"(?P<rest>[^\]]*)",
    re.DOTALL,
)


# how Lightning says that a share of the batches is less than one
SHARE = re.compile(
    r"You requested to check (?P<share>\S+) of the `(?P<part>\w+)_dataloader` but .* \* (?P<count>\d+) < 1"
)

# what a user may mean by an option of one word, where the parser knows it by another
MEANT = {
    "epochs": "trainer.max_epochs",
    "devices": "trainer.devices",
    "gpus": "trainer.devices",
    "lr": "model.optimizer.lr",
    "learning_rate": "model.optimizer.lr",
    "weight_decay": "model.optimizer.weight_decay",
    "margin": "model.loss.margin",
    "batch_size": "data.batch_size",
    "root": "data.root",
    "dataset": "data",
    "checkpoint": "ckpt_path",
    **{key: registry.option for key, registry in REGISTRIES.items() if key not in ("model", "dataset", "losses")},
}
START = "start from a config such as --config classification/digits (`hem configs` lists them)"


class Said:
    """A message of the parser, reduced to its innermost part, which concerns the user.

    Args:
        message: The parser's own message.
        options: Every option that the command takes, for near names.
    """

    def __init__(self, message: str, options: Iterable[str] = ()) -> None:
        self.message = message
        self.options = list(options)
        keys = [(found[1], found.end()) for found in re.finditer(r'Parser key "([^"]+)"', message)]
        #: the option that is concerned, as it is typed
        self.key = ".".join(dict.fromkeys(key.removesuffix(".init_args") for key, _ in keys))
        #: what is said of it
        self.inner = message[keys[-1][1] :] if keys else message
        owners = re.findall(r"Problem with given class_path '([^']+)'", message)
        owners += re.findall(r"is not accepted\. Got value: Namespace\(class_path='([^']+)'", message)
        #: the path of the class that is asked for, if there is one
        self.owner = owners[-1] if owners else ""

    @property
    def owner_name(self) -> str:
        """The name of the class."""
        return self.owner.rpartition(".")[2]


def several(said: Said, found: re.Match[str]) -> str:
    """Two libraries have a class of that name."""
    return f"{said.key} '{found[1]}' could be several classes: name one by its path, {found[2]}"


def unknown(said: Said, found: re.Match[str]) -> str:
    """No class has that name."""
    word, key = found[1], said.key.rpartition(".")[2]
    if (registry := REGISTRIES.get(key)) is None:
        return f"{said.key} expects the path of a class, got '{word}'"
    listing = f"available: {', '.join(registry.names)}, or the path of your own class"
    return f"unknown {registry.what} '{word}'{near(word, registry.names) or ';'} {listing}"


def unknown_argument(said: Said, found: re.Match[str]) -> str:
    """A class has no argument of that name."""
    word = found[1].partition(".")[0]
    takes = [name for name in parameters(said.owner) if name not in ("params", "optimizer")]  # what it is built on
    return f"{said.owner_name} has no argument '{word}'{near(word, takes) or ';'} it takes {', '.join(takes) or 'none'}"


def unknown_option(said: Said, found: re.Match[str]) -> str:
    """The command has no option of that name."""
    word = found[1].removesuffix(".class_path")
    meant = MEANT.get(word.rpartition(".")[2])
    return f"there is no option '{word}'" + (f"; did you mean '{meant}'?" if meant else near(word, said.options))


def stray(said: Said, found: re.Match[str]) -> str:
    """A word belongs to no option."""
    word = found[1]
    meant = f"; did you mean '-{word}'?" if word.startswith("-") else ": a value stands behind its --option"
    return f"expected options such as --trainer.max_epochs 3, got '{word}'{meant}"


def required(said: Said, found: re.Match[str]) -> str:
    """Something is missing that has no default."""
    names = re.sub(r"\b(fit|validate|test|predict)\.", "", found[1])
    if said.owner and ("." in said.key or said.key.startswith("trainer")):
        # a class that is called with more than the config says is not named there
        who = said.key if "callable class" in said.message else said.owner_name
        return f"{who} needs {names}: give it as --{said.key}.{names.partition(',')[0]} VALUE, or in a config"
    if names == "root":  # of one's own folder; all other data know where to look
        return "no folder of images is given: say where it is by --data.root FOLDER"
    return f"{said.key or 'the command'} needs {names}: {START}"


def no_value(said: Said, found: re.Match[str]) -> str:
    """An option is the last word, or another option follows it."""
    return f"an option {found[1]}... stands without a value: give one behind it"


def group(said: Said, found: re.Match[str]) -> str:
    """A value stands where options of its own are wanted."""
    return f"{said.key} is a group of options, such as --trainer.max_epochs 3, got '{found[1]}'"


def wrong_value(said: Said, found: re.Match[str]) -> str:
    """A value is of another kind."""
    said_of_it = said.inner[: found.start()]
    kinds = re.findall(r"Expected an? (<class '[^']+'>|[\w.]+\[.*\])", said_of_it + found[0])
    if "Not of type Tensor" in said_of_it:
        kinds.append("a list of numbers")
    expected = " or ".join(dict.fromkeys(word for kind in kinds for word in in_words(kind).split(" or ")))
    detail = re.search(r"(?:should|must|does not|invalid|not in|one of) .*", said_of_it.rpartition("Errors:")[2])
    what = f"expects {expected}" if expected else detail[0] if detail else "has a value of the wrong kind"
    value = found["value"].strip()
    if value == "None" and "NestedArg" in said.message:  # the parser makes a word of it on its way into a class
        return f"{said.key} cannot be null on the command line: leave it out, or write it into a config"
    return f"{said.key} {what}, got '{value}'"


def in_words(kind: str) -> str:
    """Return a type as a user would say it.

    Example:
        >>> in_words("<class 'NoneType'>"), in_words("typing.Literal['step', 'epoch']"), in_words("list[int]")
        ('null', 'step or epoch', 'a list')
    """
    if found := re.fullmatch(r"typing\.Literal\[(.*)\]", kind):
        return " or ".join(word.strip("'") for word in found[1].split(", "))
    if kind.startswith(("list[", "collections.abc.Iterable[")) or kind == "<class 'list'>":
        return "a list"
    if kind.startswith("dict["):
        return "a mapping"
    name = re.sub(r"<class '(?:[\w.]+\.)?(\w+)'>", r"\1", kind)
    return "null" if name == "NoneType" else name


#: what is looked for in the parser's messages, and who answers; the first that is found
RULES: tuple[tuple[str, Callable[[Said, re.Match[str]], str]], ...] = (
    (r"Multiple subclasses with name (\S+)\. .* ambiguity: (.*)\.", several),
    (r"dot import path string: (\S+)", unknown),
    (r"Option '([^']+)' is not accepted", unknown_argument),
    (r"does not accept option '([^']+)'", unknown_option),
    (r"[Uu]nrecognized arguments: --(\S+)", unknown_option),
    (r"[Uu]nrecognized arguments: (.*)", stray),
    (r"arguments are required: ([^\n]+)", required),
    (r"argument (--\S+): expected one argument", no_value),
    (r"Unable to load config ['\"]([^'\"\n]*)", group),
    (r"Expected an? [^\n]+?\. Got value: (?P<value>[^\n]*)", wrong_value),
    (r"Given value: (?P<value>[^\n]*?)(?:\. Got value: Namespace[^\n]*)?(?:\n|$)", wrong_value),
)


def one_sentence(message: str, options: Iterable[str] = ()) -> str:
    """Return the parser's message about a mistake as one sentence.

    Args:
        message: The parser's own message, which prints nested types over many lines.
        options: Every option that the command takes, for near names.

    Example:
        >>> one_sentence('''Parser key "model":
        ...   Errors:
        ...     - Problem with given class_path 'hem.modules.ClassificationTask':
        ...         Parser key "loss":
        ...           - Expected a dot import path string: Hem''')
        "unknown loss 'Hem'; did you mean 'HEMLoss' ...? available: BalancedSoftmaxLoss, ..."
    """
    said = Said(message, options)
    for pattern, answer in RULES:
        if found := re.search(pattern, said.inner):
            return answer(said, found)
    return " ".join(message.split())


def mistake(error: BaseException) -> BaseException:
    """Return the error that a user should read: the parser wraps what a constructor raises into its own."""
    chain = [error]
    while (cause := chain[-1].__cause__ or chain[-1].__context__) is not None:
        chain.append(cause)

    def file(link: BaseException) -> str:
        frames = traceback.extract_tb(link.__traceback__)
        return frames[-1].filename if frames else ""

    return next((link for link in chain if "jsonargparse" not in file(link)), error)


def sentence(error: BaseException) -> str:
    """Return the sentence that a user reads for an error: what was expected, what came, the mend.

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
    if "Expected more than 1 value per channel" in str(error):  # torch's BatchNorm, of (1, C) or (1, C, 1, 1)
        return (
            "Expected two samples or more in each batch of a device, which BatchNorm needs for its averages, got one: "
            "raise --data.batch_size (it counts the samples of all devices), or take a network with another "
            "normalisation or none (of ours some have --model.net.norm group, others --model.net.batch_norm false)."
        )
    if found := SHARE.search(str(error)):
        return (
            f"Expected one batch at least by trainer.limit_{found['part']}_batches, got {found['share']} of "
            f"{found['count']}: give a larger share, or a number of batches such as 1."
        )
    if found := MONITOR.search(str(error)):
        who, monitor, listed = (
            found["who"] or found["checkpoint"] or "EarlyStopping",
            found["monitor"],
            re.findall(r"[`'](.*?)[`']", found["rest"]),
        )
        return (
            f"Expected the name of a metric of this run as the monitor of {who}, got '{monitor}'"
            f"{near(monitor, listed) or ':'} there are {', '.join(listed) or 'none'}. "
            "Give the right one; where the folder holds a run by now, begin anew in another --run_dir."
        )
    place = origin(error)
    own = place is not None and not place.filename.startswith((str(PACKAGE), sys.prefix, sys.base_prefix))
    if isinstance(error, MISTAKES) and not own:
        return str(error)
    at = f" in {place.filename}, line {place.lineno}, {place.name}" if place else ""
    return f"{type(error).__name__}{at}: {error}; HEM_TRACEBACK=1 shows the whole way there."


def origin(error: BaseException) -> traceback.FrameSummary | None:
    """Return where an error comes from: the innermost line of our own or of a user's code, else of a library."""
    frames = traceback.extract_tb(error.__traceback__)
    library = ("site-packages", sys.base_prefix, str(PACKAGE / "cli"))  # the command line has only called it
    ours = [frame for frame in frames if not any(part in frame.filename for part in library)]
    return next(iter(reversed(ours or frames)), None)
