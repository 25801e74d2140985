"""Base class of classifiers, of a body for features and a linear head for logits; queries about layers."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd
from torchvision.ops import StochasticDepth

from hem.networks.weights import Start, load_weights


class CosineLinear(nn.Module):
    """Normalised linear layer, the last layer in LDAM.

    z_j = <w_j / ||w_j||, f / ||f||>, so every logit is in [-1, 1]; the scale s is an argument of the loss (LDAM: 30).

    Args:
        in_features: Length D of a feature vector.
        out_features: Number of classes C.

    Source: Cao et al. 2019, "Learning imbalanced datasets with label-distribution-aware margin loss",
    section 3.2 and the authors' code, whose columns w_j start as directions drawn from a cube.

    Example:
        >>> logits = CosineLinear(16, 3)(torch.randn(5, 16))
        >>> logits.shape, bool((logits.abs() <= 1 + 1e-6).all())
        (torch.Size([5, 3]), True)
    """

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__()
        self.in_features, self.out_features = in_features, out_features
        self.weight = nn.Parameter(torch.empty(out_features, in_features))
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Initialise the weights."""
        self.weight.copy_(F.normalize(self.weight.uniform_(-1, 1)))

    def forward(self, input: Tensor) -> Tensor:
        """Return cosines (N, C) of features (N, D)."""
        return F.linear(F.normalize(input), F.normalize(self.weight))

    def extra_repr(self) -> str:
        """Return the sizes as in ``torch.nn.Linear``."""
        return f"in_features={self.in_features}, out_features={self.out_features}"


def linear_head(num_features: int, num_classes: int, cosine: bool = False) -> nn.Module:
    """Return the last layer of a network: ``nn.Linear``, or :class:`CosineLinear` for LDAM.

    Raises:
        ValueError: If ``num_classes`` is not positive.
    """
    if num_classes < 1:
        raise ValueError(f"Expected num_classes to be 1 or more, got {num_classes}.")
    return CosineLinear(num_features, num_classes) if cosine else nn.Linear(num_features, num_classes)


class Network(nn.Module):
    """Base class of a classifier, logits = head(body(images)).

    Args:
        body: From images (N, in_channels, H, W) to features (N, D).
        head: From features (N, D) to logits (N, num_classes).
        in_channels: Channels of an image; other inputs raise an error.
        image_size: The only (height, width) in pixels that the body takes; None: any size.
        weights: A state dict (.safetensors, .pth) or the folder of a run to start from, see :func:`load_weights`.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file cannot be read, or its weights are another network's.

    Example:
        >>> net = Network(nn.Flatten(), linear_head(64, 10), in_channels=1)
        >>> net(torch.rand(2, 1, 8, 8)).shape, net.forward_features(torch.rand(2, 1, 8, 8)).shape
        (torch.Size([2, 10]), torch.Size([2, 64]))
    """

    last_layers = ("head.",)

    def __init__(
        self,
        body: nn.Module,
        head: nn.Module,
        in_channels: int,
        image_size: tuple[int, int] | None = None,
        weights: str | None = None,
    ) -> None:
        super().__init__()
        self.body, self.head = body, head
        self.in_channels, self.image_size = in_channels, image_size
        self.start: Start | None = None if weights is None else load_weights(self, weights)

    @property
    def encoder(self) -> nn.Module:
        """The body, which may be frozen or have its own learning rate."""
        return self.body

    def forward_features(self, input: Tensor) -> Tensor:
        """Return the features (N, D) of images (N, in_channels, H, W), the input of the head.

        Raises:
            ValueError: If the images have other channels, or not the size that the network was built for.
        """
        if input.ndim != 4 or input.shape[1] != self.in_channels:
            raise ValueError(
                f"Expected images of shape (N, {self.in_channels}, H, W) for {type(self).__name__}, got "
                f"{tuple(input.shape)}: set in_channels to the channels of the data."
            )
        if self.image_size is not None and tuple(input.shape[2:]) != tuple(self.image_size):
            height, width = self.image_size
            raise ValueError(
                f"Expected images of {height}x{width} pixels, for which {type(self).__name__} was built, got "
                f"{tuple(input.shape)}: set image_size to the size of the data."
            )
        features: Tensor = self.body(input)
        return features

    def forward(self, input: Tensor) -> Tensor:
        """Return the logits (N, num_classes) of images (N, in_channels, H, W)."""
        logits: Tensor = self.head(self.forward_features(input))
        return logits


def batch_dependent(net: nn.Module) -> list[str]:
    """Return the names of layers by which, in training mode, the output of a sample depends on its batch.

    These are batch normalisations. Only if there are none may samples be left out of a forward pass without changing
    the outputs of the others.

    Example:
        >>> from hem.networks import LeNet
        >>> batch_dependent(LeNet(batch_norm=False)), batch_dependent(LeNet())
        ([], ['body.1', 'body.5', 'body.10'])
    """
    return [name for name, module in net.named_modules() if isinstance(module, _BatchNorm)]


def to_channels_last(net: nn.Module) -> None:
    """Let convolutions keep their weights, and so their activations, with the channels last in memory.

    Nothing is done to a network that has a 1x1 convolution with a stride and fewer than 16 input channels (a shortcut
    of a very thin residual network): on CPUs torch's gradient of its weights would be wrong, or end the process.

    Source: oneDNN's issue 6035, open as of its version 3.13 (of torch 2.15): the gradient is written past a buffer.

    Example:
        >>> for width in (8, 16):
        ...     net = nn.Sequential(nn.Conv2d(3, width, 3), nn.Conv2d(width, 32, 1, stride=2))
        ...     to_channels_last(net)
        ...     net[0].weight.is_contiguous(memory_format=torch.channels_last)
        False
        True
    """
    layers = (module for module in net.modules() if isinstance(module, nn.Conv2d))
    if not any(
        layer.kernel_size == (1, 1) and max(layer.stride) > 1 and layer.in_channels < 16 * layer.groups
        for layer in layers
    ):
        net.to(memory_format=torch.channels_last)


def random_layers(net: nn.Module) -> list[str]:
    """Return the names of layers that draw random numbers in training mode, so that two passes of a sample differ.

    These are all forms of dropout (of units, attention weights, branches) with a rate above 0, and RReLU.

    Example:
        >>> random_layers(nn.Sequential(nn.Dropout(0.5), nn.Dropout(0.0)))
        ['0']
    """
    return [name for name, module in net.named_modules() if _draws(module)]


def _draws(module: nn.Module) -> bool:
    match module:
        case _DropoutNd() | StochasticDepth():
            rate = module.p
        case nn.MultiheadAttention():
            rate = module.dropout
        case nn.RReLU():
            rate = module.upper - module.lower
        case _:
            rate = getattr(module, "drop_prob", None) or 0.0  # DropPath, of which each library has a class of its own
    return bool(rate > 0)
