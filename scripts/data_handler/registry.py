"""What is known of the twelve 2D MedMNIST v2 sets before any of their files is here.

The facts are those of the official package ``medmnist`` 3.0.2 (https://github.com/MedMNIST/MedMNIST), which a test
compares with this table field by field.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from scripts.core.config import Config

SYNTHBLOOD = "synthblood"
MULTI_CLASS, BINARY, ORDINAL, MULTI_LABEL = (
    "multi-class",
    "binary-class",
    "ordinal-regression",
    "multi-label, binary-class",
)
THRESHOLD = 0.5  # for BINARY and MULTI_LABEL, yes is what has a probability above it: half is no
VOLUMES = ("organmnist3d", "nodulemnist3d", "adrenalmnist3d", "fracturemnist3d", "vesselmnist3d", "synapsemnist3d")
ORGANS = (
    "bladder",
    "femur-left",
    "femur-right",
    "heart",
    "kidney-left",
    "kidney-right",
    "liver",
    "lung-left",
    "lung-right",
    "pancreas",
    "spleen",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class DatasetInfo:
    """One set of the MedMNIST v2 collection, at 28 x 28 pixels."""

    key: str  # as typed after --dataset, such as "bloodmnist"
    title: str  # as the authors write it, such as "BloodMNIST"
    task: str  # MULTI_CLASS, BINARY, ORDINAL or MULTI_LABEL
    channels: int  # 1 for grey, 3 for RGB
    class_names: tuple[str, ...]  # in the order of the label values
    num_samples: Mapping[str, int]  # images in "train", "val" and "test"
    md5: str
    url: str


def _info(
    title: str, task: str, channels: int, num_samples: tuple[int, int, int], md5: str, class_names: tuple[str, ...]
) -> DatasetInfo:
    key = title.lower()
    return DatasetInfo(
        key=key,
        title=title,
        task=task,
        channels=channels,
        class_names=class_names,
        num_samples=MappingProxyType(dict(zip(("train", "val", "test"), num_samples, strict=True))),
        md5=md5,
        url=f"https://zenodo.org/records/10519652/files/{key}.npz?download=1",
    )


_SETS = (
    _info(
        "PathMNIST",
        MULTI_CLASS,
        3,
        (89_996, 10_004, 7_180),
        "a8b06965200029087d5bd730944a56c1",
        (
            "adipose",
            "background",
            "debris",
            "lymphocytes",
            "mucus",
            "smooth muscle",
            "normal colon mucosa",
            "cancer-associated stroma",
            "colorectal adenocarcinoma epithelium",
        ),
    ),
    _info(
        "ChestMNIST",
        MULTI_LABEL,
        1,
        (78_468, 11_219, 22_433),
        "02c8a6516a18b556561a56cbdd36c4a8",
        (
            "atelectasis",
            "cardiomegaly",
            "effusion",
            "infiltration",
            "mass",
            "nodule",
            "pneumonia",
            "pneumothorax",
            "consolidation",
            "edema",
            "emphysema",
            "fibrosis",
            "pleural",
            "hernia",
        ),
    ),
    _info(
        "DermaMNIST",
        MULTI_CLASS,
        3,
        (7_007, 1_003, 2_005),
        "0744692d530f8e62ec473284d019b0c7",
        (
            "actinic keratoses and intraepithelial carcinoma",
            "basal cell carcinoma",
            "benign keratosis-like lesions",
            "dermatofibroma",
            "melanoma",
            "melanocytic nevi",
            "vascular lesions",
        ),
    ),
    _info(
        "OCTMNIST",
        MULTI_CLASS,
        1,
        (97_477, 10_832, 1_000),
        "c68d92d5b585d8d81f7112f81e2d0842",
        ("choroidal neovascularization", "diabetic macular edema", "drusen", "normal"),
    ),
    _info(
        "PneumoniaMNIST",
        BINARY,
        1,
        (4_708, 524, 624),
        "28209eda62fecd6e6a2d98b1501bb15f",
        ("normal", "pneumonia"),
    ),
    _info(
        "RetinaMNIST",
        ORDINAL,
        3,
        (1_080, 120, 400),
        "bd4c0672f1bba3e3a89f0e4e876791e4",
        ("0", "1", "2", "3", "4"),
    ),
    _info(
        "BreastMNIST",
        BINARY,
        1,
        (546, 78, 156),
        "750601b1f35ba3300ea97c75c52ff8f6",
        ("malignant", "normal, benign"),
    ),
    _info(
        "BloodMNIST",
        MULTI_CLASS,
        3,
        (11_959, 1_712, 3_421),
        "7053d0359d879ad8a5505303e11de1dc",
        (
            "basophil",
            "eosinophil",
            "erythroblast",
            "immature granulocytes(myelocytes, metamyelocytes and promyelocytes)",
            "lymphocyte",
            "monocyte",
            "neutrophil",
            "platelet",
        ),
    ),
    _info(
        "TissueMNIST",
        MULTI_CLASS,
        1,
        (165_466, 23_640, 47_280),
        "ebe78ee8b05294063de985d821c1c34b",
        (
            "Collecting Duct, Connecting Tubule",
            "Distal Convoluted Tubule",
            "Glomerular endothelial cells",
            "Interstitial endothelial cells",
            "Leukocytes",
            "Podocytes",
            "Proximal Tubule Segments",
            "Thick Ascending Limb",
        ),
    ),
    _info("OrganAMNIST", MULTI_CLASS, 1, (34_561, 6_491, 17_778), "68e3f8846a6bd62f0c9bf841c0d9eacc", ORGANS),
    _info("OrganCMNIST", MULTI_CLASS, 1, (12_975, 2_392, 8_216), "b9ceb9546e10131b32923c5bbeaea2b1", ORGANS),
    _info("OrganSMNIST", MULTI_CLASS, 1, (13_932, 2_452, 8_827), "9ab87b696fb54e2a387ebe992d6ed5f1", ORGANS),
)

DATASET_REGISTRY: Mapping[str, DatasetInfo] = MappingProxyType({info.key: info for info in _SETS})


def dataset_problems(config: Config) -> Iterator[str]:
    """One sentence if ``--dataset`` names a set that cannot be trained on; the content of files is not looked at."""
    name = config.dataset
    if config.is_dataset_path or name == SYNTHBLOOD:
        return
    choices = f"{', '.join([*DATASET_REGISTRY, SYNTHBLOOD])}, or the path of an .npz file"
    if name in DATASET_REGISTRY:
        return
    if name in VOLUMES:
        yield f"--dataset {name} is a set of 3D volumes; only 2D images are supported. Choose one of: {choices}."
    else:
        close = difflib.get_close_matches(name.lower(), [*DATASET_REGISTRY, SYNTHBLOOD], n=1)
        hint = f" Did you mean {close[0]!r}?" if close else ""
        yield f"Unknown --dataset {name!r}.{hint} Choose one of: {choices}."
