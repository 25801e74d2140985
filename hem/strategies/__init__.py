"""Strategies against catastrophic forgetting in continual learning.

Each is a small class that :class:`~hem.modules.continual.ContinualTask` holds. All work with any loss.

Example:
    >>> sorted(STRATEGIES)
    ['derpp', 'ewc', 'joint', 'lwf', 'naive', 'replay', 'si']
"""

from hem.strategies.base import Joint, Learner, Naive, Samples, Strategy
from hem.strategies.buffer import ReplayBuffer
from hem.strategies.distillation import LwF
from hem.strategies.importance import EWC, SI
from hem.strategies.replay import DERPlusPlus, Replay

STRATEGIES: dict[str, type[Strategy]] = {
    "naive": Naive,
    "joint": Joint,
    "replay": Replay,
    "derpp": DERPlusPlus,
    "ewc": EWC,
    "si": SI,
    "lwf": LwF,
}
"""Each strategy by its short name."""

__all__ = [
    "EWC", "SI", "STRATEGIES", "DERPlusPlus", "Joint", "Learner", "LwF", "Naive", "Replay", "ReplayBuffer",
    "Samples", "Strategy",
]  # fmt: skip
