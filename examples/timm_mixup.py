"""timm's training recipe: its model, mixup, optimiser and schedule, with HEM as the criterion."""

import sys

import timm
import torch
from sklearn.datasets import load_digits
from timm.data import Mixup
from timm.optim import create_optimizer_v2
from timm.scheduler import CosineLRScheduler
from torch.nn import functional as F

from hem.losses import HEMLoss

EPOCHS = int(sys.argv[1]) if len(sys.argv) > 1 else 10

torch.manual_seed(0)
pixels, labels = load_digits(return_X_y=True)
images = F.interpolate(torch.tensor(pixels).float().view(-1, 1, 8, 8) / 16, size=32)
labels = torch.tensor(labels)
train, test = torch.randperm(len(images)).split([1472, 325])
net = timm.create_model("test_resnet", num_classes=10, in_chans=1)
optimizer = create_optimizer_v2(net, opt="lamb", lr=5e-3, weight_decay=0.02)
schedule = CosineLRScheduler(optimizer, t_initial=EPOCHS)

# CHANGED: timm smooths labels by 0.1; HEM lets go of samples only without smoothing
mixup = Mixup(mixup_alpha=0.2, label_smoothing=0.0, num_classes=10)
criterion = HEMLoss(margin=0.5)  # CHANGED: was SoftTargetCrossEntropy(); HEM takes class probabilities as well

for epoch in range(EPOCHS):
    net.train()
    for batch in train[torch.randperm(len(train))].split(64):
        input, target = mixup(images[batch], labels[batch])  # target: (N, C)
        optimizer.zero_grad()
        criterion(net(input), target).backward()
        optimizer.step()
    schedule.step(epoch + 1)

net.eval()
with torch.no_grad():
    print(f"test accuracy {(net(images[test]).argmax(1) == labels[test]).float().mean():.1%}")
