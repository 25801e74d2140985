"""Published weights: what is said where they cannot be fetched."""

from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def published_weights(name: str, otherwise: str) -> Iterator[None]:
    """Build a network whose weights may have to be fetched; where they cannot be, say what mends it.

    Args:
        name: The network's.
        otherwise: How to do without them, such as ``"set pretrained to false"``.

    Raises:
        OSError: If the weights cannot be fetched.

    Example:
        >>> with published_weights("resnet18", "set pretrained to false"):
        ...     raise OSError("no route")
        Traceback (most recent call last):
        OSError: the published weights of 'resnet18' could not be fetched (no route): bring torch's or ...
    """
    try:
        yield
    except OSError as error:
        raise OSError(
            f"the published weights of '{name}' could not be fetched ({error}): "
            f"bring torch's or the hub's cache from a machine that has them, or {otherwise}"
        ) from error
