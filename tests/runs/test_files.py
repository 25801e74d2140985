"""Files of runs, read as they were written whatever the locale of the terminal is."""

import os
import subprocess
import sys
from pathlib import Path

from hem.runs import files

CODE = (
    "import runpy, sys; print(ascii(runpy.run_path(sys.argv[1])['read_json'](__import__('pathlib').Path(sys.argv[2]))))"
)


def test_names_that_are_not_ascii_survive_another_locale(tmp_path):
    """A class of one's own folder may be called Bär; an ASCII terminal read its file as a damaged one."""
    path = tmp_path / "data.json"
    files.write_atomically(path, '{"class_names": ["Bär"]}')
    locale = {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}
    command = [sys.executable, "-c", CODE, str(Path(files.__file__)), str(path)]
    done = subprocess.run(command, env={**os.environ, **locale}, capture_output=True, text=True, check=True)
    assert done.stdout == "{'class_names': ['B\\xe4r']}\n"
