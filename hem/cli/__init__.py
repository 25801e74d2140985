"""The command line: one merged YAML in, one run folder out; a user's mistake gets a sentence."""

from typing import TYPE_CHECKING, Any

from hem.cli.main import main, quiet

if TYPE_CHECKING:
    from hem.cli.parser import build, checkpoint

__all__ = ["build", "checkpoint", "main", "quiet"]


def __getattr__(name: str) -> Any:
    """Import what needs torch and Lightning when it is asked for: ``--help`` and a misspelt config need neither."""
    if name in ("build", "checkpoint"):
        from hem.cli import parser

        return getattr(parser, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
