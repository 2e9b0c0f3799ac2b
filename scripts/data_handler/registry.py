"""The registry: facts about the twelve 2D MedMNIST v2 sets that are known before any of their files is downloaded.

The facts are those of the official package ``medmnist`` 3.0.2 (https://github.com/MedMNIST/MedMNIST); a test compares
them field by field.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from scripts.core.config import RESOLUTIONS, STANDARD_RESOLUTION, Config

SYNTHBLOOD = "synthblood"
MULTI_CLASS, BINARY = "multi-class", "binary-class"
ORDINAL, MULTI_LABEL = "ordinal-regression", "multi-label, binary-class"
# whether a mirrored or rotated image is as plausible: under a microscope or a dermatoscope there is no left or up, in a
# body there is (the organ sets even distinguish kidney-left from kidney-right)
FREE, FIXED = True, False
FILES_URL = "https://zenodo.org/records/10519652/files"
THRESHOLD = 0.5  # for BINARY and MULTI_LABEL: positive is a probability above it, so 0.5 itself is negative
VOLUMES = ("organmnist3d", "nodulemnist3d", "adrenalmnist3d", "fracturemnist3d", "vesselmnist3d", "synapsemnist3d")


@dataclass(frozen=True, slots=True, kw_only=True)
class DatasetInfo:
    """One set of the MedMNIST v2 collection, in every size that it is published in."""

    key: str  # as typed after --dataset, such as "bloodmnist"
    title: str  # as the authors write it, such as "BloodMNIST"
    task: str  # MULTI_CLASS, BINARY, ORDINAL or MULTI_LABEL
    channels: int  # 1 for grey, 3 for RGB
    class_names: tuple[str, ...]  # in the order of the label values
    num_samples: Mapping[str, int]  # images in "train", "val" and "test"
    orientation_free: bool  # whether left and right may be exchanged, in augmentation and in TTA's views
    md5s: Mapping[int, str]  # of the file, by resolution
    files_url: str = FILES_URL  # where the files of all resolutions are

    def file_name(self, resolution: int) -> str:
        """The official name of the file of one resolution, such as ``bloodmnist_64.npz``."""
        return f"{self.key}{'' if resolution == STANDARD_RESOLUTION else f'_{resolution}'}.npz"

    def url(self, resolution: int) -> str:
        """The address of the file of one resolution."""
        return f"{self.files_url}/{self.file_name(resolution)}?download=1"


def _info(
    title: str, task: str, channels: int, counts: tuple[int, ...], free: bool, class_names: tuple[str, ...], *md5s: str
) -> DatasetInfo:
    return DatasetInfo(
        key=title.lower(),
        title=title,
        task=task,
        channels=channels,
        class_names=class_names,
        num_samples=MappingProxyType(dict(zip(("train", "val", "test"), counts, strict=True))),
        orientation_free=free,
        md5s=MappingProxyType(dict(zip(RESOLUTIONS, md5s, strict=True))),
    )


# fmt: off
ORGANS = (
    "bladder", "femur-left", "femur-right", "heart", "kidney-left", "kidney-right", "liver", "lung-left",
    "lung-right", "pancreas", "spleen",
)
_SETS = (
    _info("PathMNIST", MULTI_CLASS, 3, (89_996, 10_004, 7_180), FREE,
          ("adipose", "background", "debris", "lymphocytes", "mucus", "smooth muscle", "normal colon mucosa",
           "cancer-associated stroma", "colorectal adenocarcinoma epithelium"),
          "a8b06965200029087d5bd730944a56c1", "55aa9c1e0525abe5a6b9d8343a507616",
          "ac42d08fb904d92c244187169d1fd1d9", "2c51a510bcdc9cf8ddb2af93af1eadec"),
    _info("ChestMNIST", MULTI_LABEL, 1, (78_468, 11_219, 22_433), FIXED,
          ("atelectasis", "cardiomegaly", "effusion", "infiltration", "mass", "nodule", "pneumonia", "pneumothorax",
           "consolidation", "edema", "emphysema", "fibrosis", "pleural", "hernia"),
          "02c8a6516a18b556561a56cbdd36c4a8", "9de6cd0b934ebb5b7426cfba5efbae16",
          "db107e5590b27930b62dbaf558aebee3", "45bd33e6f06c3e8cdb481c74a89152aa"),
    _info("DermaMNIST", MULTI_CLASS, 3, (7_007, 1_003, 2_005), FREE,
          ("actinic keratoses and intraepithelial carcinoma", "basal cell carcinoma", "benign keratosis-like lesions",
           "dermatofibroma", "melanoma", "melanocytic nevi", "vascular lesions"),
          "0744692d530f8e62ec473284d019b0c7", "b70a2f5635c6199aeaa28c31d7202e1f",
          "2defd784463fa5243564e855ed717de1", "8974907d8e169bef5f5b96bc506ae45d"),
    _info("OCTMNIST", MULTI_CLASS, 1, (97_477, 10_832, 1_000), FIXED,
          ("choroidal neovascularization", "diabetic macular edema", "drusen", "normal"),
          "c68d92d5b585d8d81f7112f81e2d0842", "e229e9440236b774d9f0dfef9d07bdaf",
          "0a97e76651ace45c5d943ee3f65b63ae", "abc493b6d529d5de7569faaef2773ba3"),
    _info("PneumoniaMNIST", BINARY, 1, (4_708, 524, 624), FIXED, ("normal", "pneumonia"),
          "28209eda62fecd6e6a2d98b1501bb15f", "8f4eceb4ccffa70c672198ea285246c6",
          "05b46931834c231683c68f40c47b2971", "d6a3c71de1b945ea11211b03746c1fe1"),
    _info("RetinaMNIST", ORDINAL, 3, (1_080, 120, 400), FIXED, ("0", "1", "2", "3", "4"),
          "bd4c0672f1bba3e3a89f0e4e876791e4", "afda852cc34dcda56f86ad2b2457dbcc",
          "e48e916a24454daf90583d4e6efb1a18", "eae7e3b6f3fcbda4ae613ebdcbe35348"),
    _info("BreastMNIST", BINARY, 1, (546, 78, 156), FIXED, ("malignant", "normal, benign"),
          "750601b1f35ba3300ea97c75c52ff8f6", "742edef2a1fd1524b2efff4bd7ba9364",
          "363e4b3f8d712e9b5de15470a2aaadf1", "b56378a6eefa9fed602bb16d192d4c8b"),
    _info("BloodMNIST", MULTI_CLASS, 3, (11_959, 1_712, 3_421), FREE,
          ("basophil", "eosinophil", "erythroblast",
           "immature granulocytes(myelocytes, metamyelocytes and promyelocytes)", "lymphocyte", "monocyte",
           "neutrophil", "platelet"),
          "7053d0359d879ad8a5505303e11de1dc", "2b94928a2ae4916078ca51e05b6b800b",
          "adace1e0ed228fccda1f39692059dd4c", "b718ff6835fcbdb22ba9eacccd7b2601"),
    _info("TissueMNIST", MULTI_CLASS, 1, (165_466, 23_640, 47_280), FREE,
          ("Collecting Duct, Connecting Tubule", "Distal Convoluted Tubule", "Glomerular endothelial cells",
           "Interstitial endothelial cells", "Leukocytes", "Podocytes", "Proximal Tubule Segments",
           "Thick Ascending Limb"),
          "ebe78ee8b05294063de985d821c1c34b", "123ece2eba09d0aa5d698fda57103344",
          "61b955355d7425a89687b06cca3ce0c2", "b077128c4a949f0a4eb01517f9037b9c"),
    _info("OrganAMNIST", MULTI_CLASS, 1, (34_561, 6_491, 17_778), FIXED, ORGANS,
          "68e3f8846a6bd62f0c9bf841c0d9eacc", "2dcccc29b88e6da5a01161ef20cda288",
          "eeae80d0a227a8d099027e1b3cfd3b60", "50747347e05c87dd3aaf92c49f9f3170"),
    _info("OrganCMNIST", MULTI_CLASS, 1, (12_975, 2_392, 8_216), FIXED, ORGANS,
          "b9ceb9546e10131b32923c5bbeaea2b1", "3ce34a8724ea6f548e6db4744d03b6a9",
          "773c1f009daa3fe5d9a2a201b2a7ed94", "050f5e875dc056f6768abf94ec9995d1"),
    _info("OrganSMNIST", MULTI_CLASS, 1, (13_932, 2_452, 8_827), FIXED, ORGANS,
          "9ab87b696fb54e2a387ebe992d6ed5f1", "53a6d115339d874c25e309a994ff46d3",
          "ded0c5fa01a95dc4978b956f613e9b8e", "b354719e553fbbb2513d5533f52a4cb1"),
)
# fmt: on

DATASET_REGISTRY: Mapping[str, DatasetInfo] = MappingProxyType({info.key: info for info in _SETS})


def dataset_problems(config: Config) -> Iterator[str]:
    """Yield one sentence if ``--dataset`` names no set to train on, or not at ``--resolution``; no file is read."""
    name = config.dataset
    if config.is_dataset_path or name == SYNTHBLOOD:
        if config.resolution != STANDARD_RESOLUTION:
            what = f"--dataset {SYNTHBLOOD}" if name == SYNTHBLOOD else "a file of your own"
            yield (
                f"--resolution {config.resolution} cannot be used with {what}: only the MedMNIST sets are published in "
                "several sizes. Leave --resolution out, and the images are taken as they are."
            )
        return
    if name in DATASET_REGISTRY:
        asked = config.symmetries == "all" and config.recipe_settings["symmetries"] != "all"
        if asked and not DATASET_REGISTRY[name].orientation_free:
            title = DATASET_REGISTRY[name].title
            yield f"--symmetries all cannot be used with {title}, whose orientation has a meaning. Take flip or none."
        return
    choices = f"{', '.join([*DATASET_REGISTRY, SYNTHBLOOD])}, or the path of an .npz file"
    # published files, such as bloodmnist_64, which may be typed for a set and its resolution
    names_with_resolution = {f"{key}_{size}": (key, size) for key in DATASET_REGISTRY for size in RESOLUTIONS}
    if name.lower().removesuffix("_64") in VOLUMES:
        yield (
            f"--dataset {name} is a set of 3D volumes at every --resolution; only 2D images are supported. "
            f"Choose one of: {choices}."
        )
    elif name.lower() in names_with_resolution:
        key, resolution = names_with_resolution[name.lower()]
        yield f"Unknown --dataset {name!r}. Did you mean --dataset {key} --resolution {resolution}?"
    else:
        close = difflib.get_close_matches(name.lower(), [*DATASET_REGISTRY, SYNTHBLOOD], n=1)
        hint = f" Did you mean {close[0]!r}?" if close else ""
        yield f"Unknown --dataset {name!r}.{hint} Choose one of: {choices}."
