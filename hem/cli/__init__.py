"""The command line: one merged YAML in, one run folder out; a user's mistake gets a sentence."""

from hem.cli.main import main, quiet
from hem.cli.parser import build, checkpoint

__all__ = ["build", "checkpoint", "main", "quiet"]
