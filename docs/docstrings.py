"""Docstrings as the site's reader wants them: the project writes for ``help()``, with Sphinx's roles."""

import re
from typing import Any

import griffe


class Docstrings(griffe.Extension):
    """Rewrite each docstring before it is parsed."""

    def on_instance(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        """Take ``Example:`` for Google's ``Examples:``, and roles for code."""
        if obj.docstring:
            text = re.sub(r"^(\s*)Example:$", r"\1Examples:", obj.docstring.value, flags=re.MULTILINE)
            text = re.sub(r":\w+:`~(?:[\w.]+\.)?(\w+)`", r"`\1`", text)
            obj.docstring.value = re.sub(r":(?:class|func|mod|data|meth|attr):`([^`]+)`", r"`\1`", text)
