"""The conventional way to train on small images: the baseline that the pipeline is compared with.

torchvision's transforms augment PIL images one by one in the worker processes of a DataLoader; the network computes in
NCHW and fp32, and the loss is read after every step. Model, optimiser, batch size, views and reports are the same as
the pipeline's, so that only the way differs.

python -m benchmarks.conventional DATA.npz --epochs 1      a whole run, from start to last report
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms
from torchvision.transforms import functional as pil

from scripts.data_handler.augmentation import MEAN, STD
from scripts.models.factory import new_model

BATCH_SIZE = 128
NUM_WORKERS = max(2, min(os.cpu_count() or 1, 16))
VIEWS = ((False, 0), (True, 0), (False, 5), (False, -5))  # flip, degrees: those of the pipeline's TTA

TRAINING = transforms.Compose(
    [
        transforms.ToPILImage(),
        transforms.RandomHorizontalFlip(),
        transforms.RandomRotation(10, interpolation=transforms.InterpolationMode.BILINEAR),
        transforms.ColorJitter(brightness=0.2, contrast=0.2),
        transforms.ToTensor(),
        transforms.Normalize(MEAN, STD),
    ]
)


def view_transform(flip: bool, angle: float) -> transforms.Compose:
    """Transforms of the test images for one view."""
    view = partial(apply_view, flip=flip, angle=angle)
    steps = [transforms.ToPILImage(), view, transforms.ToTensor(), transforms.Normalize(MEAN, STD)]
    return transforms.Compose(steps)


def apply_view(image: Any, *, flip: bool, angle: float) -> Any:
    """Mirror and rotate one PIL image; torchvision's annotations say that it is a tensor."""
    image = pil.hflip(image) if flip else image
    return pil.rotate(image, angle, pil.InterpolationMode.BILINEAR) if angle else image


class ImageDataset(Dataset[tuple[Tensor, int]]):
    """Images and labels, transformed one at a time."""

    def __init__(self, images: NDArray[np.uint8], labels: NDArray[np.integer], transform: transforms.Compose) -> None:
        self.images, self.labels, self.transform = images, labels, transform

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.transform(self.images[index]), int(self.labels[index])


def loader(
    images: NDArray[np.uint8], labels: NDArray[np.integer], transform: transforms.Compose = TRAINING, **options: object
) -> DataLoader[tuple[Tensor, int]]:
    """Make a DataLoader with worker processes, as tutorials do."""
    settings = {
        "batch_size": BATCH_SIZE,
        "num_workers": NUM_WORKERS,
        "persistent_workers": NUM_WORKERS > 0,
        "pin_memory": torch.cuda.is_available(),
    } | options
    return DataLoader(ImageDataset(images, labels, transform), **settings)  # type: ignore[arg-type]


def new_training(num_classes: int, device: torch.device) -> tuple[nn.Module, torch.optim.Optimizer]:
    """Build the pipeline's network and PyTorch's SGD with default options."""
    model = new_model("resnet18", num_classes, seed=42).to(device)
    return model, torch.optim.SGD(model.parameters(), lr=0.008, momentum=0.9, weight_decay=5e-4)


def train_epoch(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    batches: DataLoader[tuple[Tensor, int]],
    device: torch.device,
    *,
    alpha: float = 0.002,
) -> float:
    """Train one epoch in fp32, reading the loss after every step; return the mean loss."""
    model.train()
    total = 0.0
    for stored_images, stored_labels in batches:
        images, labels = stored_images.to(device, non_blocking=True), stored_labels.to(device, non_blocking=True)
        weight = float(np.random.beta(alpha, alpha))
        partner = torch.randperm(len(images), device=device)
        logits = model(weight * images + (1 - weight) * images[partner])
        loss = weight * F.cross_entropy(logits, labels) + (1 - weight) * F.cross_entropy(logits, labels[partner])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        total += loss.item() * len(images)
    return total / len(batches.dataset)  # type: ignore[arg-type]


@torch.no_grad()
def predict(model: nn.Module, loaders: Sequence[DataLoader[tuple[Tensor, int]]], device: torch.device) -> Tensor:
    """Average class probabilities over the views; each has a loader."""
    model.eval()
    views = [torch.cat([model(images.to(device)).softmax(1).cpu() for images, _ in view]) for view in loaders]
    return torch.stack(views).mean(0)


def main() -> None:
    """Train, evaluate with TTA and report, as a typical training script does."""
    parser = argparse.ArgumentParser()
    parser.add_argument("data", type=Path)
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--output_dir", type=Path, default=Path("outputs"))
    given = parser.parse_args()

    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt
    from sklearn.metrics import classification_report, confusion_matrix, roc_auc_score

    device = torch.device(given.device)
    with np.load(given.data) as data:
        arrays = {name: data[name] for name in data.files}
    labels = {split: arrays[f"{split}_labels"][:, 0] for split in ("train", "val", "test")}
    model, optimizer = new_training(int(labels["train"].max()) + 1, device)
    batches = loader(arrays["train_images"], labels["train"], shuffle=True)
    val = loader(arrays["val_images"], labels["val"], view_transform(False, 0))
    given.output_dir.mkdir(parents=True, exist_ok=True)
    for _ in range(given.epochs):
        train_epoch(model, optimizer, batches, device)
        predict(model, [val], device)
        torch.save(model.state_dict(), given.output_dir / "conventional.pth")
    views = [
        loader(arrays["test_images"], labels["test"], view_transform(*view), persistent_workers=False) for view in VIEWS
    ]
    scores = predict(model, views, device).numpy()
    predicted = scores.argmax(1)
    print(classification_report(labels["test"], predicted, zero_division=0))
    print("accuracy", (predicted == labels["test"]).mean())
    print(
        "AUC",
        np.mean([roc_auc_score(labels["test"] == label, scores[:, label]) for label in np.unique(labels["test"])]),
    )
    figure, axes = plt.subplots()
    axes.imshow(confusion_matrix(labels["test"], predicted))
    figure.savefig(given.output_dir / "conventional.png")
    plt.close(figure)


if __name__ == "__main__":
    main()
