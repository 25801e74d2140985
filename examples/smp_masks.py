"""segmentation-models-pytorch: a U-Net whose loss is HEM; pixels without a label are left out."""

import sys

import segmentation_models_pytorch as smp
import torch

from hem.losses import HEMLoss

STEPS = int(sys.argv[1]) if len(sys.argv) > 1 else 60
VOID = 255


def draw(number):
    """Bright squares on noise, with an unlabelled border of the image."""
    images, masks = torch.rand(number, 3, 64, 64), torch.zeros(number, 64, 64).long()
    for image, mask, (top, left) in zip(images, masks, torch.randint(8, 40, (number, 2)).tolist(), strict=True):
        image[:, top : top + 16, left : left + 16] += 0.5
        mask[top : top + 16, left : left + 16] = 1
        mask[:2], mask[-2:] = VOID, VOID
    return images.clamp(0, 1), masks


torch.manual_seed(0)
net = smp.Unet(
    "tu-mobilenetv3_small_050", encoder_weights=None, classes=2, encoder_depth=3, decoder_channels=(32, 16, 8)
)
optimizer = torch.optim.AdamW(net.parameters(), lr=3e-3)

# CHANGED: was smp.losses.DiceLoss("multiclass", ignore_index=VOID); a margin for each pixel, wider than for images
criterion = HEMLoss(margin=2.0, ignore_index=VOID)

for _ in range(STEPS):
    images, masks = draw(8)
    optimizer.zero_grad()
    criterion(net(images), masks).backward()
    optimizer.step()

net.eval()
images, masks = draw(32)
with torch.no_grad():
    counts = smp.metrics.get_stats(net(images).argmax(1), masks, mode="multiclass", ignore_index=VOID, num_classes=2)
print(f"mean IoU {smp.metrics.iou_score(*counts, reduction='macro'):.1%}")
