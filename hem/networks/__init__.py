"""Networks for images: small ones, and those of torchvision, timm and segmentation-models-pytorch by name."""

from hem.networks.base import CosineLinear, Network, batch_dependent, linear_head, random_layers, to_channels_last
from hem.networks.library import Named
from hem.networks.normalize import Normalize
from hem.networks.preact import PreActResNet18, WideResNet28_10, WideResNet40_2
from hem.networks.resnet import ResNet8, ResNet18, ResNet20, ResNet32, ResNet34, ResNeXt29
from hem.networks.segmentation import EncoderDecoder, TorchvisionSegmentation
from hem.networks.segnet import SegNet
from hem.networks.small import MLP, LeNet
from hem.networks.weights import Start, load_weights

__all__ = [
    "MLP",
    "CosineLinear",
    "EncoderDecoder",
    "LeNet",
    "Named",
    "Network",
    "Normalize",
    "PreActResNet18",
    "ResNeXt29",
    "ResNet8",
    "ResNet18",
    "ResNet20",
    "ResNet32",
    "ResNet34",
    "SegNet",
    "Start",
    "TorchvisionSegmentation",
    "WideResNet28_10",
    "WideResNet40_2",
    "batch_dependent",
    "linear_head",
    "load_weights",
    "random_layers",
    "to_channels_last",
]
