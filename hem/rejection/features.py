"""Scores fitted on the features of training images, the input of the last layer."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable

import torch
from torch import Tensor, nn

from hem.rejection.library import in_float64, library

Scorer = Callable[[Tensor], Tensor]  # features (N, D) to unknownness (N,)


class FeatureScore(ABC):
    """Base class of scores fitted on features: a subclass implements :meth:`fit`.

    Example:
        >>> class Norm(FeatureScore):
        ...     def fit(self, features, target, head):
        ...         usual = features.norm(dim=1).mean()
        ...         return lambda each: usual - each.norm(dim=1)
        >>> score = Norm().fit(torch.ones(4, 3), torch.zeros(4), nn.Linear(3, 2))
        >>> str(Norm()), bool(score(torch.zeros(1, 3)) > score(torch.ones(1, 3)))
        ('norm', True)
    """

    name: str | None = None  #: what its metrics are called; None: its class, in small letters

    def __str__(self) -> str:
        return self.name or type(self).__name__.lower()

    @abstractmethod
    def fit(self, features: Tensor, target: Tensor, head: nn.Module) -> Scorer:
        """Fit the score on training features; return it as a function.

        Args:
            features: Shape (N, D), on the CPU.
            target: Class indices, shape (N,), on the CPU.
            head: The last layer: (N, D) to logits (N, C).

        Returns:
            Maps features (M, D) to unknownness (M,), on the features' device; higher is more unknown.

        Raises:
            ValueError: The score cannot be fitted on such features; the sentence says why.
            ImportError: A library that it needs is not installed.
        """


class Mahalanobis(FeatureScore):
    """Distance to the nearest class mean under the shared covariance.

    Source: Lee et al., "A simple unified framework for detecting out-of-distribution samples", NeurIPS 2018.
    """

    def fit(self, features: Tensor, target: Tensor, head: nn.Module) -> Scorer:
        """Fit means and covariance, in float64; every class needs features."""
        detector = library(str(self))
        classes = int(head(features[:1].to(next(head.parameters()))).shape[-1])
        if absent := (torch.bincount(target, minlength=classes) == 0).nonzero()[:, 0].tolist():
            raise ValueError(
                f"The score '{self}' needs features of every class, but {len(absent)} of {classes} have none (class "
                f"{absent[0]} first): fit on more training images, or leave this score out."
            )
        with in_float64():
            gaussian = detector.Mahalanobis(None).fit_features(features.double(), target)
        return lambda z: gaussian.predict_features(z.double().cpu()).to(z.device)


class ViM(FeatureScore):
    """The residual outside the principal subspace as a virtual logit.

    Args:
        dimension: Of that subspace; None: the authors', of features of width D: 1000 where D >= 2048, 512 where
            D >= 768, else D // 2.

    Source: Wang et al., "ViM: out-of-distribution with virtual-logit matching", CVPR 2022.
    """

    def __init__(self, dimension: int | None = None) -> None:
        self.dimension = dimension

    def fit(self, features: Tensor, target: Tensor, head: nn.Module) -> Scorer:
        """Fit the subspace; the last layer must be linear."""
        if not isinstance(head, nn.Linear):
            raise ValueError(
                f"The score '{self}' needs a linear last layer, but this one is {type(head).__name__}: leave it out."
            )
        width = features.shape[1]
        dimension = self.dimension or (1000 if width >= 2048 else 512 if width >= 768 else width // 2)
        bias = torch.zeros(head.out_features) if head.bias is None else head.bias
        virtual = library(str(self)).ViM(None, dimension, head.weight.detach().cpu(), bias.detach().cpu())
        virtual.fit_features(features, target)
        return lambda z: virtual.predict_features(z.cpu()).to(z.device)


class KNN(FeatureScore):
    """Distance to the k-th nearest feature, all of unit length.

    Args:
        k: Which neighbour.

    Source: Sun et al., "Out-of-distribution detection with deep nearest neighbors", ICML 2022.
    """

    def __init__(self, k: int = 50) -> None:
        self.k = k

    def fit(self, features: Tensor, target: Tensor, head: nn.Module) -> Scorer:
        """Store the features; at least k are needed."""
        if len(features) < self.k:
            raise ValueError(
                f"The score '{self}' looks at {self.k} neighbours, but there are {len(features)} training features: "
                "fit on more training images, or leave this score out."
            )
        neighbours = library(str(self)).KNN(None, k=self.k).fit_features(features, target)
        return lambda z: neighbours.predict_features(z.float().cpu()).to(z.device)


class ReAct(FeatureScore):
    """Energy of the logits of features clipped at their 90th percentile.

    Source: Sun et al., "ReAct: out-of-distribution detection with rectified activations", NeurIPS 2021.
    """

    def fit(self, features: Tensor, target: Tensor, head: nn.Module) -> Scorer:
        """Find the percentile."""
        rectified = library(str(self)).ReAct(nn.Identity(), head).fit_feature_maps(features, target)
        return lambda z: rectified.predict_feature_maps(z).to(z.device)
