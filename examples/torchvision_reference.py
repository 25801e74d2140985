"""torchvision's reference training of classifiers: the step of `references/classification/train.py`, with HEM."""

import sys

import torch
import torchvision
from sklearn.datasets import load_digits
from torch.utils.data import DataLoader, TensorDataset
from torchvision.transforms import v2

from hem.losses import HEMLoss

EPOCHS = int(sys.argv[1]) if len(sys.argv) > 1 else 4

torch.manual_seed(0)
pixels, labels = load_digits(return_X_y=True)
images = torch.tensor(pixels).float().view(-1, 1, 8, 8).repeat(1, 3, 1, 1) / 16
images = v2.functional.resize(images, [32, 32])
data = TensorDataset(images, torch.tensor(labels))
train, test = torch.utils.data.random_split(data, [1472, 325])
model = torchvision.models.mobilenet_v3_small(num_classes=10)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-4)
schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, EPOCHS)

criterion = HEMLoss(margin=0.5)  # CHANGED: was nn.CrossEntropyLoss(label_smoothing=args.label_smoothing)


def train_one_epoch(model, criterion, optimizer, loader):
    """As in the reference: autocast around the network and the loss (HEM computes in float32 within)."""
    model.train()
    for image, target in loader:
        with torch.amp.autocast("cpu", dtype=torch.bfloat16):
            loss = criterion(model(image), target)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()


for _ in range(EPOCHS):
    train_one_epoch(model, criterion, optimizer, DataLoader(train, batch_size=64, shuffle=True))
    schedule.step()

model.eval()
with torch.inference_mode():
    images, labels = next(iter(DataLoader(test, batch_size=len(test))))
    logits = model(images)
    print(f"test accuracy {(logits.argmax(1) == labels).float().mean():.1%}")
    # CHANGED: the mean over all samples; the reference logs the criterion, whose mean is over those with error
    print(f"test loss {HEMLoss(margin=0.5, reduction='none')(logits, labels).mean():.3f}")
