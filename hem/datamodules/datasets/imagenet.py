"""ImageNet-1k (ILSVRC 2012), from one folder per class."""

from torchvision.models import ResNet18_Weights

from hem.datamodules.augment import RandomFlip
from hem.datamodules.base import ImageDataModule
from hem.datamodules.datasets.folder import scan
from hem.datamodules.images import FileImages, RandomFit, subfolders
from hem.datamodules.splits import Split

# training images of the 105 classes with fewer than 1,300
# fmt: off
FEWER = {
    43: 1117, 51: 1266, 62: 1071, 98: 1141, 103: 1272, 147: 1150, 152: 772, 158: 860, 164: 1136, 165:
    732, 166: 1025, 167: 754, 168: 1290, 175: 738, 181: 1258, 183: 1273, 188: 977, 190: 936, 194: 1156,
    206: 1218, 221: 969, 252: 954, 262: 1070, 268: 755, 335: 1206, 390: 1165, 392: 969, 409: 1292, 418:
    1236, 426: 1199, 439: 1209, 465: 1176, 481: 1186, 491: 1194, 499: 1067, 501: 1029, 503: 1154, 507:
    1216, 521: 1187, 531: 889, 536: 1211, 550: 1136, 551: 1153, 567: 1222, 577: 1282, 583: 1283, 585:
    980, 590: 1034, 596: 891, 610: 1285, 623: 986, 630: 1137, 631: 1272, 635: 1155, 653: 1097, 662:
    1149, 663: 1155, 675: 1159, 676: 1133, 678: 1180, 686: 1120, 689: 1005, 706: 1152, 708: 1156, 712:
    962, 714: 1157, 722: 1282, 723: 1117, 724: 1118, 727: 1270, 728: 1069, 729: 1053, 731: 1254, 740:
    908, 747: 1247, 753: 1253, 771: 1029, 772: 1259, 782: 1267, 789: 1249, 798: 1162, 810: 1045, 811:
    1004, 812: 1238, 821: 1153, 826: 1084, 838: 1217, 841: 931, 854: 1264, 857: 976, 860: 1250, 869:
    1053, 872: 1160, 885: 1062, 891: 1137, 892: 1299, 901: 1055, 906: 1213, 914: 1206, 921: 1154, 925:
    1207, 926: 1149, 940: 1239, 946: 1125, 969: 1193,
}
# fmt: on


class ImageNetDataModule(ImageDataModule):
    """A thousand classes, 1,281,167 training images; the official validation part (50,000) is the test part.

    Training: random crops of 8 to 100 % of the area, scaled to 224 x 224 pixels, and random flips. Evaluation: the
        shorter
    side is scaled to 256 pixels, then a centre crop of 224 x 224. Images are decoded by ``num_workers`` processes.

    Source: Russakovsky et al., "ImageNet large scale visual recognition challenge", 2015; augmentation:
    Szegedy et al., "Going deeper with convolutions", CVPR 2015, section 6.

    Example:
        >>> data = ImageNetDataModule(val_fraction=0)
        >>> sum(data.class_counts), data.class_names[0]
        (1281167, 'tench')
    """

    name = "imagenet"
    title = "ImageNet"
    source = (
        "https://image-net.org (after registration; torchvision.datasets.ImageNet unpacks the archives "
        "into imagenet/train/<wnid> and imagenet/val/<wnid>)"
    )
    class_names = tuple(ResNet18_Weights.IMAGENET1K_V1.meta["categories"])  # in the order of sorted wnids
    train_counts = tuple(FEWER.get(i, 1300) for i in range(1000))
    in_channels = 3
    image_size = (224, 224)
    mean = (0.485, 0.456, 0.406)
    std = (0.229, 0.224, 0.225)
    usual = (RandomFlip(),)  # the random crop is part of decoding
    shorter = 256  # before the centre crop

    def load(self, split: Split) -> FileImages:
        """List ``imagenet/{train,val}/<wnid>/*``; the root may be ImageNet's folder itself."""
        part = "train" if split == "train" else "val"
        folder = self.root / "imagenet" / part
        if not folder.is_dir() and (self.root / part).is_dir():
            folder = self.root / part
        if not folder.is_dir():
            raise self.missing(split, folder)
        classes = subfolders(folder)
        if len(classes) != self.num_classes:
            raise ValueError(
                f"{folder} holds {len(classes)} class folders, but ImageNet has {self.num_classes}: "
                f"expected {folder}/<wnid>/<image>, as torchvision.datasets.ImageNet unpacks the archives."
            )
        return FileImages(*scan(folder, classes), self.eval_transform(), RandomFit(self.image_size, (0.08, 1.0)))
