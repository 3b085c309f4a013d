"""LPIPS, FID and KID, where the user has the weights; a row that says what is missing where not.

None of them is replaced by a look-alike: LPIPS is torchmetrics' on torchvision's own backbone file, and
distances on other features than the standard Inception's carry the name of their file.
"""

from __future__ import annotations

import importlib
import importlib.util
import statistics
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from gpenlib.data.packs import Pack
from gpenlib.errors.feature_distance import features_of, frechet_distance, kernel_distance, open_extractor
from gpenlib.images import Image, to_tensor
from gpenlib.progress import progress
from gpenlib.run import sha256

Row = dict[str, Any]
Reader = Callable[[str], Image]
ALL = "all"  # in the column dtype of a row that says what is missing
BACKBONES = {"alex": "alexnet", "vgg": "vgg16", "squeeze": "squeezenet1_1"}  # torchmetrics', torchvision's
ENOUGH_FOR_FID = 2048  # features of the standard Inception: below, its covariances are singular


def perceptual_rows(
    pack: Pack,
    readers: Mapping[str, Reader],
    lpips_weights: Path | None = None,
    features_file: Path | None = None,
    features_are_inception: bool = False,
) -> list[Row]:
    """Return LPIPS and the feature distances of every dtype's outputs to the truths.

    Parameters
    ----------
    pack : Pack
        With truths.
    readers : mapping of dtype to callable
        Name of a face -> restored image, uint8 [S, S, 3].
    lpips_weights : Path, optional
        torchvision's ImageNet weights of AlexNet, VGG-16 or SqueezeNet 1.1, under their original file name.
    features_file : Path, optional
        TorchScript feature extractor, see :func:`gpenlib.errors.feature_distance.open_extractor`.
    features_are_inception : bool
        Whether that file is the standard Inception network, so that the distances are FID and KID.

    Returns
    -------
    list of dict
        ``metric``, ``dtype``, ``value`` (None if it could not be computed) and ``note``.

    Raises
    ------
    FeatureError
        If ``features_file`` is given, but cannot be used.
    """
    return [
        *_lpips_rows(pack, readers, lpips_weights),
        *_distance_rows(pack, readers, features_file, features_are_inception),
    ]


def _lpips_rows(pack: Pack, readers: Mapping[str, Reader], weights: Path | None) -> list[Row]:
    """Return LPIPS per dtype, or the one row that says what is missing."""
    if missing := _lpips_obstacle(weights):
        return [_row("lpips", ALL, None, missing)]
    assert weights is not None  # else there was an obstacle
    net, measure = _open_lpips(weights)
    note = f"mean over {len(pack)} images, backbone {BACKBONES[net]}; lower is better"
    rows = []
    for dtype, read in readers.items():
        bar = progress(range(len(pack)), desc=f"LPIPS {dtype}", unit="image", leave=False)
        values = [_lpips(measure, read(pack.paths[i].stem), pack.truths(i)) for i in bar]
        rows.append(_row(f"lpips[{net}]", dtype, statistics.fmean(values), note))
    return rows


def _distance_rows(
    pack: Pack, readers: Mapping[str, Reader], file: Path | None, inception: bool
) -> list[Row]:
    """Return the two feature distances per dtype, or the rows that say what is missing."""
    if file is None:
        note = (
            "no weights file given: set features_file to a TorchScript file, and features_are_inception to "
            "true if it is the standard Inception network (inception-2015-12-05.pt)"
        )
        return [_row(metric, ALL, None, note) for metric in ("fid", "kid")]
    names = (
        ("fid", "kid") if inception else tuple(f"{n}_distance[{file.name}]" for n in ("frechet", "kernel"))
    )
    if len(pack) < 2:
        return [_row(metric, ALL, None, "needs at least two images") for metric in names]
    extract = open_extractor(file, inception)
    truths = features_of((pack.truths(i) for i in range(len(pack))), extract)
    note = f"{len(pack)} images; lower is better"
    biased = f"{note}; biased upwards below some {ENOUGH_FOR_FID} images: compare only equal numbers"
    rows = []
    for dtype, read in progress(readers.items(), desc="feature distances", unit="dtype", leave=False):
        found = features_of((read(path.stem) for path in pack.paths), extract)
        rows.append(_row(names[0], dtype, frechet_distance(found, truths), biased))
        rows.append(_row(names[1], dtype, kernel_distance(found, truths), note))
    return rows


def _lpips_obstacle(weights: Path | None) -> str:
    """Return why LPIPS cannot be computed and what to do, or nothing if it can."""
    absent = [name for name in ("torchmetrics", "torchvision") if importlib.util.find_spec(name) is None]
    reasons = [f"{name} is not installed" for name in absent]
    todo = ["pip install -e '.[metrics]'"] if absent else []
    if weights is None:
        reasons.append("no weights file given")
        todo.append("set lpips_weights to torchvision's file of AlexNet, VGG-16 or SqueezeNet 1.1")
    elif not absent:
        wanted = list(_backbone_files().values())
        if weights.name not in wanted:
            reasons.append(f"{weights.name} is none of torchvision's files {', '.join(wanted)}")
            todo.append("give one of them under its own name")
        elif not sha256(weights).startswith(weights.stem.rpartition("-")[2]):
            reasons.append(f"{weights.name} is damaged: its SHA-256 is not the one in its name")
            todo.append("fetch it again")
    return f"{'; '.join(reasons)}. To do: {'; '.join(todo)}" if reasons else ""


def _backbone_files() -> dict[str, str]:
    """Return the file names that torchvision itself looks for, by torchmetrics' name of the backbone."""
    models = importlib.import_module("torchvision.models")
    urls = {net: models.get_model_weights(name).IMAGENET1K_V1.url for net, name in BACKBONES.items()}
    return {net: url.rpartition("/")[2] for net, url in urls.items()}


def _open_lpips(weights: Path) -> tuple[str, Any]:
    """Return the backbone's name and torchmetrics' LPIPS on the given file; nothing is downloaded.

    torchvision takes weights from torch's hub folder if a file of the right name lies there, so
    that folder is moved to one that holds this file while the network is made.
    """
    net = next(net for net, name in _backbone_files().items() if name == weights.name)
    lpip = importlib.import_module("torchmetrics.image.lpip")
    before = torch.hub.get_dir()
    with tempfile.TemporaryDirectory() as folder:
        checkpoints = Path(folder) / "checkpoints"
        checkpoints.mkdir()
        (checkpoints / weights.name).symlink_to(weights.resolve())
        torch.hub.set_dir(folder)
        try:
            return net, lpip.LearnedPerceptualImagePatchSimilarity(net_type=net)
        finally:
            torch.hub.set_dir(before)


def _lpips(measure: Any, output: Image, truth: Image) -> float:
    """Return the LPIPS of one pair of images."""
    with torch.inference_mode():
        return float(measure(torch.from_numpy(to_tensor(output)), torch.from_numpy(to_tensor(truth))))


def _row(metric: str, dtype: str, value: float | None, note: str) -> Row:
    return {"metric": metric, "dtype": dtype, "value": value, "note": note}
