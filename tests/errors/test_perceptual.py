"""LPIPS, FID, KID: rows that say what is missing, honest names, and the hand-over to torchmetrics."""

import hashlib
import sys
import types
from importlib.machinery import ModuleSpec

import numpy as np
import pytest
import torch

from gpenlib import metrics as perceptual
from gpenlib.metrics import FeatureError, perceptual_rows

BACKBONE = b"the weights"
NAME = f"alexnet-owt-{hashlib.sha256(BACKBONE).hexdigest()[:8]}.pth"


class Means(torch.nn.Module):
    def forward(self, images, return_features: bool = False):
        return images.float().mean(dim=(2, 3))


@pytest.fixture
def readers(pack):
    """fp32 answers with the truth, int8 with something darker."""

    def truth(name):
        return pack.truths(pack.names.index(name))

    return {"fp32": truth, "int8": lambda name: truth(name) // 2}


@pytest.fixture
def extractor(tmp_path):
    torch.jit.script(Means()).save(str(tmp_path / "means.pt"))
    return tmp_path / "means.pt"


@pytest.fixture
def backbone(tmp_path):
    path = tmp_path / NAME
    path.write_bytes(BACKBONE)
    return path


@pytest.fixture
def no_torchmetrics(monkeypatch):
    monkeypatch.setattr(perceptual.importlib.util, "find_spec", lambda _: None)


@pytest.fixture
def stand_ins(monkeypatch):
    """Modules with the parts of torchmetrics and torchvision that are used; the metric is a mean distance."""
    opened = []

    class Lpips:
        def __init__(self, net_type):
            hub = perceptual.Path(torch.hub.get_dir()) / "checkpoints"
            opened.append((net_type, {path.name: path.read_bytes() for path in hub.iterdir()}))

        def __call__(self, a, b):
            assert a.shape == b.shape and a.min() >= -1 and a.max() <= 1 and a.dtype == torch.float32
            return (a - b).abs().mean()

    def weights(name):
        file = {"alexnet": NAME, "vgg16": "vgg16-0.pth", "squeezenet1_1": "squeezenet1_1-0.pth"}[name]
        return types.SimpleNamespace(IMAGENET1K_V1=types.SimpleNamespace(url=f"https://nowhere/{file}"))

    contents = {
        "torchmetrics": {}, "torchmetrics.image": {}, "torchvision": {},
        "torchmetrics.image.lpip": {"LearnedPerceptualImagePatchSimilarity": Lpips},
        "torchvision.models": {"get_model_weights": weights},
    }  # fmt: skip
    for name, attributes in contents.items():
        module = types.ModuleType(name)
        module.__dict__.update(attributes, __spec__=ModuleSpec(name, None), __path__=[])
        monkeypatch.setitem(sys.modules, name, module)
    return opened


def by_metric(rows):
    return {(row["metric"], row["dtype"]): row for row in rows}


def test_without_anything_each_row_says_what_is_missing(pack, readers, no_torchmetrics):
    rows = by_metric(perceptual_rows(pack, readers))
    assert set(rows) == {("lpips", "all"), ("fid", "all"), ("kid", "all")}
    assert all(row["value"] is None for row in rows.values())
    note = rows["lpips", "all"]["note"]
    assert "torchmetrics is not installed" in note and "no weights file given" in note and "metrics]" in note
    assert "no weights file given: set features_file" in rows["fid", "all"]["note"]


def test_weights_without_torchmetrics(pack, readers, no_torchmetrics, backbone):
    note = by_metric(perceptual_rows(pack, readers, backbone))["lpips", "all"]["note"]
    assert "torchmetrics is not installed" in note and "no weights" not in note


def test_distances_on_other_features_carry_the_name_of_their_file(pack, readers, extractor):
    rows = by_metric(perceptual_rows(pack, readers, features_file=extractor))
    names = ("frechet_distance[means.pt]", "kernel_distance[means.pt]")
    assert {key for key in rows if key[0] != "lpips"} == {(n, d) for n in names for d in readers}
    assert rows[names[0], "fp32"]["value"] == pytest.approx(0, abs=1e-4)
    assert rows[names[0], "int8"]["value"] > 100
    assert "4 images" in rows[names[0], "int8"]["note"]


def test_they_are_fid_and_kid_only_if_the_user_says_so(pack, readers, extractor):
    rows = perceptual_rows(pack, readers, features_file=extractor, features_are_inception=True)
    assert {row["metric"] for row in rows} == {"lpips", "fid", "kid"}


def test_a_wrong_features_file_is_an_error_not_a_row(pack, readers, backbone):
    with pytest.raises(FeatureError, match="not a readable TorchScript file"):
        perceptual_rows(pack, readers, features_file=backbone)


def test_lpips_is_asked_of_torchmetrics_with_the_given_file(pack, readers, stand_ins, backbone):
    before = torch.hub.get_dir()
    rows = by_metric(perceptual_rows(pack, readers, backbone))
    assert stand_ins == [("alex", {NAME: BACKBONE})]
    assert torch.hub.get_dir() == before
    assert rows["lpips[alex]", "fp32"]["value"] == 0
    truths = [pack.truths(index) for index in range(len(pack))]
    expected = np.mean([np.abs(t.astype(float) - t // 2).mean() / 127.5 for t in truths])
    assert rows["lpips[alex]", "int8"]["value"] == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("my_alexnet.pth", BACKBONE, "my_alexnet.pth is none of torchvision's files alexnet-owt-"),
        (NAME, b"other weights", "damaged: its SHA-256"),
    ],
)
def test_other_weights_are_refused(pack, readers, stand_ins, tmp_path, name, content, said):
    (tmp_path / name).write_bytes(content)
    row = by_metric(perceptual_rows(pack, readers, tmp_path / name))["lpips", "all"]
    assert row["value"] is None and said in row["note"]
    assert stand_ins == []
