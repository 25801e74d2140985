"""Whether two runs have the same weights and test figures, to 1e-5: ``python compare.py <run> <run>``."""

import json
import sys
from pathlib import Path

import torch


def main(first: Path, second: Path) -> int:
    """Print the largest differences; 1 where one is above 1e-5 + 1e-4 of the value."""
    states = [torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"] for run in (first, second)]
    results = [json.loads((run / "results.json").read_text())["metrics"] for run in (first, second)]
    assert states[0].keys() == states[1].keys()
    assert results[0].keys() == results[1].keys()
    weights = max(float((states[0][name] - states[1][name]).abs().max()) for name in states[0])
    figures = max(abs(results[0][name] - results[1][name]) for name in results[0])
    print(f"{second}: weights differ by {weights:.1e}, figures by {figures:.1e}")
    return int(max(weights, figures) > 1e-5)


if __name__ == "__main__":
    sys.exit(main(*map(Path, sys.argv[1:])))
