"""Images to train on: CIFAR's binary files, held as tensors, or folders of JPEG files as ImageNet has them."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional
from torch.utils.data import DataLoader, Dataset
from training import seed_of

SIDE = 32
IMAGENET_MEAN, IMAGENET_DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
Batch = tuple[Tensor, Tensor]


class Source(Protocol):
    """Batches of images [N, 3, H, W], normalised, and labels [N], on the device of the run.

    Attributes:
        classes: how many there are.
        steps: batches of an epoch, the same on every rank.
    """

    classes: int
    steps: int

    def training(self, epoch: int) -> Iterator[Batch]:
        """This rank's share, augmented, in an order that seed, rank and epoch say."""

    def test(self) -> Iterator[Batch]:
        """This rank's share of the test images."""


class Share(NamedTuple):
    """Which images are a rank's: each `size`-th, from `rank` on."""

    rank: int
    size: int
    batch_size: int
    seed: int

    def steps(self, images: int) -> int:
        """Batches of an epoch, the same on every rank: what is left over stays out.

        Raises:
            ValueError: if there is not one.
        """
        steps = images // self.size // self.batch_size
        if steps == 0:
            raise ValueError(f"--batch-size must be at most a rank's share of the images, {images // self.size}, but "
                             f"is {self.batch_size}")  # fmt: skip
        return steps

    def generator(self, epoch: int, device: torch.device | str = "cpu") -> torch.Generator:
        """For the order and the augmentation of an epoch."""
        return torch.Generator(device).manual_seed(seed_of(self.seed, self.rank, epoch))


def read_cifar(folder: Path, names: list[str], label_bytes: int) -> Batch:
    """Images [N, 3, 32, 32], uint8, and labels [N] of binary files: of each image the labels, then its pixels."""
    records = np.concatenate(
        [np.fromfile(folder / name, np.uint8).reshape(-1, label_bytes + 3 * SIDE * SIDE) for name in names]
    )
    labels = records[:, label_bytes - 1].astype(np.int64)  # CIFAR-100 has the coarse label first
    return torch.from_numpy(records[:, label_bytes:].reshape(-1, 3, SIDE, SIDE)), torch.from_numpy(labels)


def mean_and_deviation(images: Tensor) -> tuple[Tensor, Tensor]:
    """Of each channel, over all images; a thousand at a time, since as numbers they take eight times the memory."""
    sums = torch.zeros(2, 3, dtype=torch.float64)
    for part in images.split(1000):
        pixels = part.double()
        sums += torch.stack([pixels.sum((0, 2, 3)), pixels.square().sum((0, 2, 3))])
    mean, square = sums / (images.numel() / 3)
    return mean.float(), (square - mean**2).sqrt().float()


def augmented(images: Tensor, size: int, padding: int, generator: torch.Generator) -> Tensor:
    """Crops of size × size at random places of images that are padded with zeros, half of them mirrored.

    Args:
        images: [N, C, H, W].
        size: at most H + 2·padding, and W + 2·padding.
        padding: pixels on each side.
        generator: on the device of the images.
    """
    images = functional.pad(images, (padding,) * 4)
    count, device = len(images), images.device

    def random(end: int) -> Tensor:
        return torch.randint(end, (count, 1), generator=generator, device=device)

    line = torch.arange(size, device=device)
    rows = random(images.shape[2] - size + 1) + line
    columns = random(images.shape[3] - size + 1) + torch.where(random(2) == 1, line.flip(0), line)
    number = torch.arange(count, device=device)
    # Indices on both sides of a slice put what they index first: [N, size, size, C].
    return images[number[:, None, None], :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


class Cifar:
    """CIFAR-10 or CIFAR-100 in their binary form, whole on the device; normalised by the training images' own mean.

    Args:
        folder: with data_batch_1.bin … and test_batch.bin (CIFAR-10), or with train.bin and test.bin (CIFAR-100).
        share: this rank's.
        crop: side and padding of the crops to train on; the middle of a test image has the same side.
        device: where the images are.

    Raises:
        ValueError: if the folder has neither, or too few images.
    """

    def __init__(self, folder: Path, share: Share, crop: tuple[int, int], device: torch.device) -> None:
        ten = sorted(path.name for path in folder.glob("data_batch_*.bin"))
        if not ten and not (folder / "train.bin").exists():
            raise ValueError(f"--data must be a folder with data_batch_*.bin (CIFAR-10) or train.bin (CIFAR-100), but "
                             f"{folder} has neither")  # fmt: skip
        label_bytes, self.classes = (1, 10) if ten else (2, 100)
        images, labels = read_cifar(folder, ten or ["train.bin"], label_bytes)
        held_out = read_cifar(folder, ["test_batch.bin" if ten else "test.bin"], label_bytes)
        self._mean, self._deviation = (value.view(3, 1, 1).to(device) for value in mean_and_deviation(images))
        self._share, (self._size, self._padding) = share, crop
        self.steps = share.steps(len(images))
        self._training = tuple(tensor[share.rank :: share.size].to(device) for tensor in (images, labels))
        self._test = tuple(tensor[share.rank :: share.size].to(device) for tensor in held_out)

    def training(self, epoch: int) -> Iterator[Batch]:
        """See `Source`."""
        images, labels = self._training
        generator = self._share.generator(epoch, images.device)
        order = torch.randperm(len(images), generator=generator, device=images.device)
        for batch in order.split(self._share.batch_size)[: self.steps]:
            crops = augmented(images[batch], self._size, self._padding, generator)
            yield (crops - self._mean) / self._deviation, labels[batch]

    def test(self) -> Iterator[Batch]:
        """See `Source`."""
        edge = (SIDE - self._size) // 2
        inside = slice(edge, edge + self._size)
        batches = zip(*(tensor.split(self._share.batch_size) for tensor in self._test), strict=True)
        for images, labels in batches:
            yield (images[:, :, inside, inside] - self._mean) / self._deviation, labels


class ClassFolders(Dataset[tuple[Tensor, int]]):
    """JPEG files in a folder a class: image [3, side, side], uint8, and the number of its class.

    Args:
        folder: with a folder a class, which are numbered by name.
        share: this rank's.
        side: of the image that comes of it.
        augments: whether that is a random part of the file, mirrored by chance, or its middle.
    """

    def __init__(self, folder: Path, share: Share, side: int, augments: bool) -> None:
        classes = sorted(path for path in folder.iterdir() if path.is_dir())
        files = [(file, number) for number, name in enumerate(classes) for file in sorted(name.iterdir())]
        self.classes, self.total, self.files = len(classes), len(files), files[share.rank :: share.size]
        self._side, self._augments = side, augments

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        from PIL import Image  # noqa: PLC0415  (CIFAR does without it)

        path, label = self.files[index]
        with Image.open(path) as file:
            image = file.convert("RGB")
        box = random_part(*image.size) if self._augments else middle(*image.size)
        pixels = np.array(image.resize((self._side, self._side), Image.Resampling.BILINEAR, box))
        if self._augments and torch.rand(()) < 0.5:
            pixels = pixels[:, ::-1].copy()
        return torch.from_numpy(pixels).permute(2, 0, 1), label


def random_part(width: int, height: int) -> tuple[float, float, float, float]:
    """Left, top, right, bottom of a part with 8 to 100% of the area and sides of 3:4 to 4:3, if it fits."""
    area = width * height * torch.empty(()).uniform_(0.08, 1).item()
    ratio = math.exp(torch.empty(()).uniform_(-1, 1).item() * math.log(4 / 3))
    wide, high = min(width, math.sqrt(area * ratio)), min(height, math.sqrt(area / ratio))
    left, top = (torch.rand(2) * torch.tensor([width - wide, height - high])).tolist()
    return left, top, left + wide, top + high


def middle(width: int, height: int) -> tuple[float, float, float, float]:
    """Of the square in the middle, 224 of 256 pixels."""
    side = min(width, height) * 224 / 256
    return (width - side) / 2, (height - side) / 2, (width + side) / 2, (height + side) / 2


class Folders:
    """A folder with `train` and `val`, which have a folder a class: ImageNet, or what is laid out like it.

    Args:
        folder: the folder.
        share: this rank's.
        side: of the images to train on and to test with.
        device: where batches go.
        loaders: processes that read files; 0: this one does.

    Raises:
        ValueError: if one of the two is missing, or there are too few images.
    """

    def __init__(self, folder: Path, share: Share, side: int, device: torch.device, loaders: int) -> None:
        if not all((folder / part).is_dir() for part in ("train", "val")):
            raise ValueError(f"--data must be a folder with train/ and val/, but is {folder}")
        self._training = ClassFolders(folder / "train", share, side, augments=True)
        self._test = ClassFolders(folder / "val", share, side, augments=False)
        self.classes, self.steps = self._training.classes, share.steps(self._training.total)
        self._share, self._device = share, device
        # A process that is forked beside the threads of MPI or of InfiniBand may hang.
        self._how: dict[str, Any] = {
            "num_workers": loaders, "multiprocessing_context": "forkserver" if loaders else None,
            "batch_size": share.batch_size, "pin_memory": device.type == "cuda",
        }  # fmt: skip

    def _normalised(self, loader: DataLoader[tuple[Tensor, int]]) -> Iterator[Batch]:
        mean, deviation = (
            torch.tensor(values, device=self._device).view(3, 1, 1) for values in (IMAGENET_MEAN, IMAGENET_DEVIATION)
        )
        for images, labels in loader:
            pixels, numbers = (tensor.to(self._device, non_blocking=True) for tensor in (images, labels))
            yield (pixels / 255 - mean) / deviation, numbers

    def training(self, epoch: int) -> Iterator[Batch]:
        """See `Source`."""
        generator = self._share.generator(epoch)
        loader = DataLoader(self._training, shuffle=True, drop_last=True, generator=generator, **self._how)
        for _, batch in zip(range(self.steps), self._normalised(loader), strict=False):
            yield batch

    def test(self) -> Iterator[Batch]:
        """See `Source`."""
        yield from self._normalised(DataLoader(self._test, **self._how))
