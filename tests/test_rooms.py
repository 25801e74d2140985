"""The rooms that know nothing of training: they load in torch's own time."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def test_pure_rooms_do_without_lightning():
    """In one process, without the modules that this one has loaded."""
    rooms = ("losses", "scores", "attacks", "corruptions", "metrics", "calibration", "rng")
    code = (
        f"import sys; import {', '.join(f'hem.{room}' for room in rooms)}; "
        "sys.exit(str({'lightning', 'timm', 'hem.datamodules', 'hem.networks'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stderr == "set()\n"
