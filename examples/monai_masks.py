"""MONAI, 2-D masks: its U-Net and transforms, with HEM as the loss of each pixel."""

import sys

import numpy as np
import torch
from monai.data import create_test_image_2d
from monai.metrics import DiceMetric
from monai.networks.nets import UNet
from monai.networks.utils import one_hot
from monai.transforms import Compose, RandFlip, ScaleIntensity

from hem.losses import HEMLoss

STEPS = int(sys.argv[1]) if len(sys.argv) > 1 else 60

scale = ScaleIntensity()
augment = Compose([RandFlip(prob=0.5, spatial_axis=1)])


def batch(number, first_seed):
    """Noisy images of discs and their masks, (N, 1, 64, 64) and (N, 64, 64)."""
    images, masks = [], []
    for seed in range(first_seed, first_seed + number):
        image, mask = create_test_image_2d(64, 64, num_objs=4, rad_max=12, num_seg_classes=2,
                                           random_state=np.random.RandomState(seed))  # fmt: skip
        both = augment(torch.stack([torch.as_tensor(scale(image)), torch.as_tensor(mask)]))
        images.append(both[:1].float())
        masks.append(both[1].long())
    return torch.stack([image.as_tensor() for image in images]), torch.stack([mask.as_tensor() for mask in masks])


torch.manual_seed(0)
net = UNet(spatial_dims=2, in_channels=1, out_channels=3, channels=(16, 32, 64), strides=(2, 2))
optimizer = torch.optim.AdamW(net.parameters(), lr=3e-3)

# CHANGED: was DiceCELoss(to_onehot_y=True, softmax=True); masks are (N, H, W), without MONAI's channel
criterion = HEMLoss(margin=2.0)

for step in range(STEPS):
    images, masks = batch(8, 8 * step)
    optimizer.zero_grad()
    criterion(net(images), masks).backward()
    optimizer.step()

net.eval()
images, masks = batch(16, 100_000)
with torch.no_grad():
    predicted = one_hot(net(images).argmax(1, keepdim=True), 3)
dice = DiceMetric(include_background=False)(predicted, one_hot(masks[:, None], 3))
print(f"mean Dice score {dice.nanmean():.1%}")
