"""Post-hoc corrections for long tails: logit adjustment and tau-normalisation."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hem.networks import CosineLinear


def adjusted(logits: Tensor, class_counts: Sequence[int], tau: float = 1.0) -> Tensor:
    """Return z_j - tau log p_j, where p_j is the share of class j in the training samples.

    Args:
        logits: z, shape (N, C).
        class_counts: Training samples of each class, (C).
        tau: Strength; 1 is right for logits that estimate log-probabilities, as cross-entropy's do. Logits of a
            margin loss are shorter, about as long as its margin: 0.2 suits HEM's margin of 0.5.

    Source: Menon et al., "Long-tail learning via logit adjustment", ICLR 2021, equation 9.

    Example:
        >>> adjusted(torch.zeros(1, 2), [3, 1])
        tensor([[0.2877, 1.3863]])
    """
    counts = torch.tensor(class_counts, dtype=torch.float64)
    return logits - tau * (counts / counts.sum()).log().to(logits)


def tau_normalized(features: Tensor, head: nn.Linear | CosineLinear, tau: float = 1.0) -> Tensor:
    """Return the logits under weights scaled to w_j / ||w_j||^tau, without biases.

    A :class:`~hem.networks.CosineLinear` has weights of length 1 already, so that its logits stay as they are.

    Args:
        features: What the last layer sees, (N, D).
        head: The last layer, from D features to C logits.
        tau: 0 changes nothing but the biases, 1 makes all weights equally long.

    Source: Kang et al., "Decoupling representation and classifier for long-tailed recognition", ICLR 2020,
    section 4.1, tau-normalised classifier.

    Example:
        >>> head = nn.Linear(2, 2)
        >>> _ = head.weight.data.copy_(torch.tensor([[2.0, 0.0], [0.0, 1.0]]))
        >>> tau_normalized(torch.tensor([[1.0, 1.0]]), head)
        tensor([[1., 1.]], grad_fn=<MmBackward0>)
    """
    if isinstance(head, CosineLinear):
        logits: Tensor = head(features)
        return logits
    length = head.weight.norm(dim=1, keepdim=True).clamp_min(torch.finfo(head.weight.dtype).tiny)
    return F.linear(features, head.weight / length**tau)
