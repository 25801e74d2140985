"""Hugging Face Trainer, image classification: `compute_loss_func` takes HEM; no model is downloaded here."""

import sys

import torch
from sklearn.datasets import load_digits
from torch.nn import functional as F
from torch.utils.data import Dataset
from transformers import ResNetConfig, ResNetForImageClassification, Trainer, TrainingArguments

from hem.losses import HEMLoss

EPOCHS = int(sys.argv[1]) if len(sys.argv) > 1 else 5


class Digits(Dataset):
    """Examples as the Trainer wants them: dicts of what the model takes."""

    def __init__(self, part):
        pixels, labels = load_digits(return_X_y=True)
        self.images = F.interpolate(torch.tensor(pixels).float().view(-1, 1, 8, 8) / 16, size=32)[part]
        self.labels = torch.tensor(labels)[part]

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, index):
        return {"pixel_values": self.images[index], "labels": self.labels[index]}


torch.manual_seed(0)
train, test = (Digits(part) for part in torch.randperm(1797).split([1472, 325]))
config = ResNetConfig(num_channels=1, embedding_size=16, hidden_sizes=[16, 32], depths=[1, 1], num_labels=10,
                      layer_type="basic")  # fmt: skip
criterion = HEMLoss(margin=0.5)


def hem_loss(outputs, labels, num_items_in_batch=None):
    """CHANGED: the criterion on the logits; the model's own loss is cross-entropy."""
    return criterion(outputs["logits"], labels)


def accuracy(predicted):
    return {"accuracy": float((predicted.predictions.argmax(1) == predicted.label_ids).mean())}


trainer = Trainer(
    model=ResNetForImageClassification(config),
    args=TrainingArguments(
        output_dir="runs/huggingface", num_train_epochs=EPOCHS, per_device_train_batch_size=64, learning_rate=3e-3,
        label_smoothing_factor=0.0,  # CHANGED: no smoothing with HEM
        metric_for_best_model="accuracy",  # CHANGED: not the loss
        use_cpu=True, report_to=[], save_strategy="no", disable_tqdm=True,
    ),
    train_dataset=train, eval_dataset=test,
    compute_loss_func=hem_loss,  # CHANGED
    compute_metrics=accuracy,
)  # fmt: skip
trainer.train()
print(f"test accuracy {trainer.evaluate()['eval_accuracy']:.1%}")
