"""A process that keeps what it frees asks the system for fewer pages, and computes the same."""

import subprocess
import sys

import pytest

from hem.cli.allocator import keep_freed

FAULTS = """
import resource, sys
from hem.cli.allocator import keep_freed
kept = keep_freed() if sys.argv[1] == "keep" else None
for _ in range(30):
    blocks = [bytearray(48 * 2**20) for _ in range(3)]
    del blocks
print(kept, resource.getrusage(resource.RUSAGE_SELF).ru_minflt)
"""


def faults(how: str) -> tuple[str, int]:
    out = subprocess.run([sys.executable, "-c", FAULTS, how], capture_output=True, text=True, check=True).stdout
    kept, number = out.split()
    return kept, int(number)


@pytest.mark.skipif(not keep_freed(), reason="the C library is not glibc, or its settings are in the environment")
def test_the_same_pages_serve_again():
    kept, few = faults("keep")
    _, many = faults("leave")
    assert kept == "True"
    assert many - few > 20 * 3 * 48 * 2**20 // 4096 // 4  # a quarter of the pages of 20 rounds, at least


def test_settings_of_the_user_are_left_alone(monkeypatch):
    monkeypatch.setenv("MALLOC_ARENA_MAX", "2")
    assert not keep_freed()


def test_other_systems(monkeypatch):
    monkeypatch.setattr(sys, "platform", "darwin")
    assert not keep_freed()
