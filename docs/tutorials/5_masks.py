# ---
# jupyter:
#   jupytext:
#     text_representation: {extension: .py, format_name: percent}
# ---

# %% [markdown]
# # Masks
#
# In segmentation each pixel is a sample. We draw discs and bars on noise, leave their edges unlabelled, and train a
# small network of segmentation-models-pytorch with three losses. About a minute on two cores.

# %%
import os

import matplotlib.pyplot as plt
import segmentation_models_pytorch as smp
import torch
from torch import nn
from torchmetrics.functional.segmentation import mean_iou

from hem.losses import DiceLoss, HEMLoss

QUICK = bool(os.environ.get("HEM_QUICK"))  # the tests set it
IMAGES, STEPS = (16, 3) if QUICK else (256, 150)
NAMES, VOID = ("ground", "disc", "bar"), 255

# %% [markdown]
# ## Images with masks
#
# Pixels that nobody labelled have the value 255: `ignore_index` leaves them out of the loss.


# %%
def draw(number, seed):
    """Images (N, 3, 64, 64) and masks (N, 64, 64)."""
    random = torch.Generator().manual_seed(seed)
    y, x = torch.meshgrid(torch.arange(64), torch.arange(64), indexing="ij")
    images, masks = torch.rand(number, 3, 64, 64, generator=random), torch.zeros(number, 64, 64).long()
    for image, mask in zip(images, masks, strict=True):
        cy, cx, radius, top = torch.randint(12, 40, (4,), generator=random).tolist()
        distance = ((y - cy) ** 2 + (x - cx) ** 2).sqrt() - radius / 3
        disc, bar = distance < 0, (y > top) & (y < top + 4)
        mask[bar], mask[disc] = 2, 1
        image[0] += 0.3 * disc
        image[1] += 0.3 * (bar & ~disc)
        mask[distance.abs() < 1] = VOID  # the edge is nobody's
    return images.clamp(0, 1), masks


images, masks = draw(IMAGES, seed=1)
test_images, test_masks = draw(max(IMAGES // 4, 4), seed=2)
shares = [f"{name} {(masks == index).float().mean():.1%}" for index, name in enumerate(NAMES)]
print("pixels:", ", ".join(shares), f"unlabelled {(masks == VOID).float().mean():.1%}")

# %% [markdown]
# ## Three losses, one loop
#
# Masks want wider margins in our measurements: 2 rather than 0.5.


# %%
def fit(criterion):
    torch.manual_seed(0)
    net = smp.Unet(
        "tu-mobilenetv3_small_050", encoder_weights=None, classes=3, encoder_depth=3, decoder_channels=(32, 16, 16)
    )
    optimizer = torch.optim.AdamW(net.parameters(), lr=3e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=3e-3, total_steps=STEPS)
    for _ in range(STEPS):
        batch = torch.randint(len(images), (8,))
        optimizer.zero_grad()
        criterion(net(images[batch]), masks[batch]).backward()
        optimizer.step()
        schedule.step()
    return net.eval()


LOSSES = {
    "cross-entropy": nn.CrossEntropyLoss(ignore_index=VOID),
    "HEM, margin 2": HEMLoss(margin=2.0, ignore_index=VOID),
    "Dice": DiceLoss(ignore_index=VOID),
}
predictions = {}
for name, criterion in LOSSES.items():
    net = fit(criterion)
    with torch.no_grad():
        predictions[name] = net(test_images).argmax(1)
    labelled = test_masks != VOID  # outside of them every answer is right
    ious = mean_iou(
        predictions[name].where(labelled, 0)[labelled][None], test_masks.where(labelled, 0)[labelled][None],
        num_classes=3, per_class=True, input_format="index",
    )[0]  # fmt: skip
    print(
        f"{name:14} IoU: "
        + ", ".join(f"{each} {100 * iou:.1f} %" for each, iou in zip(NAMES, ious.tolist(), strict=True))
    )

# %%
figure, panels = plt.subplots(1, 5, figsize=(10, 2.3), layout="constrained", num="image, truth and three predictions")
shown = {"image": test_images[0].permute(1, 2, 0), "truth": test_masks[0].where(test_masks[0] != VOID, 3)}
for panel, (name, picture) in zip(
    panels, {**shown, **{key: value[0] for key, value in predictions.items()}}.items(), strict=True
):
    panel.imshow(picture, vmin=0, vmax=3)
    panel.set(title=name, xticks=[], yticks=[])

# %% [markdown]
# One seed of drawn shapes shows how it is done. What real masks showed, CamVid with three seeds, stands in [the
# results](../results.md#segmentation): there Dice and cross-entropy were ahead of HEM.
#
# From the terminal, with your folder of images and masks: [Masks](../guides/segmentation.md)
