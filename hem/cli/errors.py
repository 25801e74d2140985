"""A user's mistake in one sentence: what was wanted, what came, the mend."""

from __future__ import annotations

import errno
import re
import sys
import traceback
from collections.abc import Iterable
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
        kind, names = REGISTRIES.get(key.rpartition(".")[2], ("class", {}))
        listing = f"; available: {', '.join(names)}, or the path of your own class" if names else ""
        where = "" if names else f" for {key}"
        return f"unknown {kind} '{word}'{where}{near(word, names)}{listing}"
    if (found := re.search(r"Option '([^']+)' is not accepted|unrecognized arguments: --([\w.]+)", message)) and owner:
        word = (found[1] or found[2]).partition(".")[0]
        takes = parameters(owner[-1])
        name = owner[-1].rpartition(".")[2]
        return f"{name} has no argument '{word}'{near(word, takes)}; it takes {', '.join(takes)}"
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
    if found := MONITOR.search(str(error)):
        who, monitor, listed = (
            found["who"] or found["checkpoint"] or "EarlyStopping",
            found["monitor"],
            re.findall(r"[`'](.*?)[`']", found["rest"]),
        )
        return (
            f"Expected the name of a metric of this run as the monitor of {who}, got '{monitor}'"
            f"{near(monitor, listed) or ':'} there are {', '.join(listed) or 'none'}."
        )
    place = origin(error)
    own = place is not None and not place.filename.startswith((str(PACKAGE), sys.prefix, sys.base_prefix))
    if isinstance(error, MISTAKES) and not own:
        return str(error)
    at = f" in {place.filename}, line {place.lineno}, {place.name}" if place else ""
    return f"{type(error).__name__}{at}: {error}; HEM_TRACEBACK=1 shows the whole way there."


def origin(error: BaseException) -> traceback.FrameSummary | None:
    """Return where an error comes from: the innermost line of our own or of a user's code, not of a library."""
    frames = traceback.extract_tb(error.__traceback__)
    ours = [f for f in frames if "site-packages" not in f.filename and not f.filename.startswith(sys.base_prefix)]
    return next(iter(reversed(ours)), None)
