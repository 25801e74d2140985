"""How often a study of pure noise finds something: `python benchmarks/false_findings.py [--studies 20000]`.

Losses that do not differ are compared with a baseline as a report compares them: paired t-tests of each task's primary
metric, Holm's correction over the losses, the level over the tasks. Beside it: each task at 0.05 by itself. A metric is
normal, or has heavy tails (Student's t with 3 degrees of freedom), which the t-test does not expect. What examines one
run shares its noise.
"""

from __future__ import annotations

import argparse
import math
from itertools import product

import numpy as np
from scipy import stats

from hem.report.statistics import LEVEL, holm, level_within


def p_values(
    studies: int, tasks: int, losses: int, seeds: int, shared: float, heavy: bool, rng: np.random.Generator
) -> np.ndarray:
    """p-values (studies, tasks, losses) of losses that do not differ.

    Args:
        studies: How many.
        tasks: Of each.
        losses: Beside the baseline.
        seeds: Of each loss.
        shared: Standard deviation of the noise that all tasks share, over that of each task's own.
        heavy: Whether the noise has heavy tails.
        rng: Draws.
    """

    def noise(*shape: int) -> np.ndarray:
        return rng.standard_t(3, shape) if heavy else rng.normal(size=shape)

    values = shared * noise(studies, 1, losses + 1, seeds) + noise(studies, tasks, losses + 1, seeds)
    return np.asarray(stats.ttest_rel(values[:, :, 1:], values[:, :, :1], axis=-1).pvalue)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--studies", type=int, default=20_000)
    studies = parser.parse_args().studies
    rng = np.random.default_rng(0)
    print("| tasks | losses | seeds | noise | shared | finds something, % | each task by itself, % |")
    print("|---|---|---|---|---|---|---|")
    for (tasks, losses), seeds, heavy, shared in product(
        ((1, 1), (1, 5), (5, 1), (8, 5)), (3, 5), (False, True), (0.0, 2.0)
    ):
        if tasks == 1 and shared:
            continue
        found = alone = 0
        for study in p_values(studies, tasks, losses, seeds, shared, heavy, rng).tolist():
            smallest = [min(holm(task)) for task in study]
            found += min(smallest) <= level_within(smallest)
            alone += min(smallest) <= LEVEL
        error = 100 * math.sqrt(LEVEL / studies)
        print(f"| {tasks} | {losses} | {seeds} | {'heavy' if heavy else 'normal'} | {shared:g} | "
              f"{100 * found / studies:.2f} ± {error:.2f} | {100 * alone / studies:.2f} |", flush=True)  # fmt: skip


if __name__ == "__main__":
    main()
