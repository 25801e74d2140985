"""Hugging Face Trainer, token classification: labels of -100 (padding, word pieces) are left out."""

import sys

import torch
from torch.utils.data import TensorDataset
from transformers import BertConfig, BertForTokenClassification, Trainer, TrainingArguments

from hem.losses import HEMLoss

EPOCHS = int(sys.argv[1]) if len(sys.argv) > 1 else 5

torch.manual_seed(0)
words = torch.randint(1, 50, (512, 16))
labels = words % 3  # each word's class
lengths = torch.randint(4, 16, (512, 1))
padded = torch.arange(16) >= lengths
words[padded], labels[padded] = 0, -100

config = BertConfig(vocab_size=50, hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64,
                    max_position_embeddings=16, num_labels=3)  # fmt: skip
criterion = HEMLoss(margin=0.5, ignore_index=-100)


def hem_loss(outputs, labels, num_items_in_batch=None):
    """CHANGED: (N, tokens, C) becomes (N, C, tokens), as torch's losses want it."""
    return criterion(outputs["logits"].transpose(1, 2), labels)


def collate(rows):
    ids, targets = map(torch.stack, zip(*rows, strict=True))
    return {"input_ids": ids, "attention_mask": (ids != 0).long(), "labels": targets}


def accuracy(predicted):
    known = predicted.label_ids != -100
    return {"accuracy": float((predicted.predictions.argmax(-1) == predicted.label_ids)[known].mean())}


train, test = torch.utils.data.random_split(TensorDataset(words, labels), [448, 64])
trainer = Trainer(
    model=BertForTokenClassification(config),
    args=TrainingArguments(
        output_dir="runs/huggingface", num_train_epochs=EPOCHS, per_device_train_batch_size=32, learning_rate=5e-3,
        use_cpu=True, report_to=[], save_strategy="no", disable_tqdm=True,
    ),
    train_dataset=train, eval_dataset=test,
    data_collator=collate,
    compute_loss_func=hem_loss,  # CHANGED
    compute_metrics=accuracy,
)  # fmt: skip
trainer.train()
print(f"accuracy of the labelled tokens {trainer.evaluate()['eval_accuracy']:.1%}")
