"""Networks that take `num_classes` and `in_channels`; further ones come by name from torchvision and timm."""

from hem.networks.base import CosineLinear, Network, linear_head
from hem.networks.normalize import Normalize
from hem.networks.resnet import ResNet8, ResNet18, ResNet20, ResNet32, ResNet34, ResNeXt29
from hem.networks.small import MLP, LeNet

__all__ = [
    "MLP",
    "CosineLinear",
    "LeNet",
    "Network",
    "Normalize",
    "ResNeXt29",
    "ResNet8",
    "ResNet18",
    "ResNet20",
    "ResNet32",
    "ResNet34",
    "linear_head",
]
