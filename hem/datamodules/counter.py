"""The former place of :mod:`hem.rng`."""

from hem.rng import GAMMA, START, integers, key, normal, permutation, seed_of, uniform

__all__ = ["GAMMA", "START", "integers", "key", "normal", "permutation", "seed_of", "uniform"]
