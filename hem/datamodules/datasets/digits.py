"""The 8 x 8 digits of scikit-learn, real data that need no download."""

from typing import ClassVar

import torch
from sklearn.datasets import load_digits

from hem.datamodules.base import ImageDataModule
from hem.datamodules.images import MemoryImages
from hem.datamodules.splits import Split, held_out


class DigitsDataModule(ImageDataModule):
    """1,797 handwritten digits of 8 x 8 pixels in 17 levels; a fifth of every class is the test part.

    Source: Kaynak, "Methods of combining multiple classifiers and their applications to handwritten digit
    recognition", 1995 (UCI, optical recognition of handwritten digits, test set); there is no official
    split, so a fixed one is defined here.

    Example:
        >>> data = DigitsDataModule(batch_size=32)
        >>> data.setup("fit")
        >>> batch = data.on_after_batch_transfer(next(iter(data.train_dataloader())), 0)
        >>> batch.input.shape, batch.target.shape
        (torch.Size([32, 1, 8, 8]), torch.Size([32]))
    """

    name = "digits"
    title = "scikit-learn's digits"
    source = "scikit-learn, within which it comes"
    class_names = tuple("0123456789")
    train_counts = (142, 146, 142, 146, 145, 146, 145, 143, 139, 144)
    in_channels = 1
    image_size = (8, 8)
    mean = (0.3051,)
    std = (0.3757,)
    test_fraction: ClassVar[float] = 0.2

    def load(self, split: Split) -> MemoryImages:
        """Read the digits from scikit-learn's installation."""
        pixels, targets = load_digits(return_X_y=True)
        targets = torch.from_numpy(targets).long()
        images = torch.from_numpy(pixels).mul(255 / 16).round().to(torch.uint8).reshape(-1, 1, 8, 8)
        test = held_out(targets, 10, self.test_fraction, seed=0x646967697473)  # "digits"
        chosen = test if split == "test" else ~test
        return MemoryImages(images[chosen], targets[chosen], f"digits/{split}")

    def fetch(self) -> None:
        """Do nothing: the images are installed with scikit-learn."""
