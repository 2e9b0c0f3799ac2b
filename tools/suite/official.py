"""The official ResNet-18 values of MedMNIST v2, and how they were measured.

Source: the benchmark table of https://medmnist.com (MedMNIST/medmnist.github.io, commit 74c5d44), which continues that
of J. Yang et al., Scientific Data 10, 41, 2023. The recipe is that of MedMNIST/experiments,
``MedMNIST2D/train_and_eval_pytorch.py``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType


@dataclass(frozen=True, slots=True)
class OfficialValues:
    """The values of ResNet-18 on the test split of one set: shares with three decimals."""

    accuracy_28: float
    auc_28: float
    accuracy_224: float  # the same images of 28 pixels, enlarged to 224
    auc_224: float


OFFICIAL: Mapping[str, OfficialValues] = MappingProxyType(
    {
        "pathmnist": OfficialValues(0.907, 0.983, 0.909, 0.989),
        "chestmnist": OfficialValues(0.947, 0.768, 0.947, 0.773),
        "dermamnist": OfficialValues(0.735, 0.917, 0.754, 0.920),
        "octmnist": OfficialValues(0.743, 0.943, 0.763, 0.958),
        "pneumoniamnist": OfficialValues(0.854, 0.944, 0.864, 0.956),
        "retinamnist": OfficialValues(0.524, 0.717, 0.493, 0.710),
        "breastmnist": OfficialValues(0.863, 0.901, 0.833, 0.891),
        "bloodmnist": OfficialValues(0.958, 0.998, 0.963, 0.998),
        "tissuemnist": OfficialValues(0.676, 0.930, 0.681, 0.933),
        "organamnist": OfficialValues(0.935, 0.997, 0.951, 0.998),
        "organcmnist": OfficialValues(0.900, 0.992, 0.920, 0.994),
        "organsmnist": OfficialValues(0.782, 0.972, 0.778, 0.974),
    }
)

# version 2.2.4 of the collection removed blank samples from these sets after the table was made
CHANGED_SINCE = frozenset({"organamnist", "organcmnist", "organsmnist"})

RECIPE = (
    "The official values are those of ResNet-18 in the MedMNIST v2 benchmark table (medmnist.com): trained from "
    "scratch for 100 epochs with Adam, a learning rate that falls in two steps and no augmentation; the epoch with the "
    "best validation AUC was evaluated. The table gives three decimals and no spread."
)
