"""The command line: one merged YAML in, one run folder out."""

from typing import TYPE_CHECKING, Any

from hem.cli.main import main, quiet

if TYPE_CHECKING:
    from hem.cli.parser import build

__all__ = ["build", "main", "quiet"]


def __getattr__(name: str) -> Any:
    """Import what needs torch and Lightning when it is asked for: ``--help`` and a misspelt config need neither."""
    if name == "build":
        from hem.cli.parser import build

        return build
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
