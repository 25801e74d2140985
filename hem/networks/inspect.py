"""What, in training mode, makes the output for a sample depend on other samples or on chance."""

from __future__ import annotations

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd
from torchvision.ops import StochasticDepth


def batch_dependent(net: nn.Module) -> list[str]:
    """Names the layers that, in training mode, tie the output of a sample to the rest of its batch.

    Those are the batch normalisations; a sample may be left out of a forward pass, with the outputs of the
    others unchanged, only where this list is empty.

    Example:
        >>> from hem.networks import LeNet
        >>> batch_dependent(LeNet(batch_norm=False)), batch_dependent(LeNet())
        ([], ['body.1', 'body.5', 'body.10'])
    """
    return [name for name, module in net.named_modules() if isinstance(module, _BatchNorm)]


def random_layers(net: nn.Module) -> list[str]:
    """Names the layers that draw random numbers in training mode: two passes of one sample differ.

    Those are dropout in its forms (units, attention weights, whole branches) with a rate above 0, and RReLU.

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
            rate = getattr(module, "drop_prob", None) or 0.0  # DropPath, of which every library has its own
    return bool(rate > 0)
