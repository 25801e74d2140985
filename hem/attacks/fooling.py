"""Fooling images: noise optimised until the network is confident of a class."""

from __future__ import annotations

import torch
from torch import Tensor

from hem.attacks.base import Model


def nonsense(net: Model, input: Tensor, steps: int = 20, size: float = 0.02) -> Tensor:
    """Return fooling images: gradient ascent from noise on the margin of the leading class.

    x <- clip(x + size * sign(grad_x g(x)), 0, 1) where g is the margin of the class that leads at the start
    over the best other one, z_k - max_{j != k} z_j. The margin asks for no particular loss; the image stays
    within steps * size of the noise, which nobody recognises.

    Args:
        net: Images to logits.
        input: Noise (N, C, H, W) in [0, 1].
        steps: Number of steps.
        size: Length of a step, in pixel units of [0, 1].

    Returns:
        Images (N, C, H, W) in [0, 1].

    Source: Nguyen et al., "Deep neural networks are easily fooled", CVPR 2015, section 3.3 (gradient ascent).
    """
    with torch.inference_mode(False), torch.enable_grad():
        image = input.clone()
        label: Tensor | None = None
        for _ in range(steps):
            image.requires_grad_()
            logits = net(image)
            label = logits.argmax(1, keepdim=True) if label is None else label
            rival = logits.scatter(1, label, -torch.inf).amax(1)
            (gradient,) = torch.autograd.grad((logits.gather(1, label).squeeze(1) - rival).sum(), image)
            image = (image.detach() + size * gradient.sign()).clamp(0, 1)
    return image
