"""LPIPS, FID, KID: rows that say what is missing, honest names, closed forms, what extractors must give."""

import hashlib
import itertools
import sys
import types
from importlib.machinery import ModuleSpec

import numpy as np
import pytest
import torch
from scipy.linalg import sqrtm

from gpenlib import metrics

BACKBONE = b"the weights"
NAME = f"alexnet-owt-{hashlib.sha256(BACKBONE).hexdigest()[:8]}.pth"


class Means(torch.nn.Module):
    """Mean of each channel when asked for features, as the Inception file is; else of the first one."""

    def forward(self, images, return_features: bool = False):
        means = images.float().mean(dim=(2, 3))
        return means if return_features else means[:, :1]


def script(module, folder):
    path = folder / f"{type(module).__name__.lower()}.pt"
    torch.jit.script(module).save(str(path))
    return path


def pictures(count):
    return list(np.random.default_rng(0).integers(0, 256, (count, 8, 8, 3), dtype=np.uint8))


TRUTHS = dict(zip("bdac", pictures(4), strict=True))
PAIRS = types.SimpleNamespace(names=list(TRUTHS), truths=list(TRUTHS.values()).__getitem__)
READERS = {"fp32": TRUTHS.__getitem__, "int8": lambda name: TRUTHS[name] // 2}


@pytest.fixture
def backbone(tmp_path):
    path = tmp_path / NAME
    path.write_bytes(BACKBONE)
    return path


@pytest.fixture
def stand_ins(monkeypatch):
    """Modules with the parts of torchmetrics and torchvision that are used; the metric is a mean distance."""
    opened = []

    class Lpips:
        def __init__(self, net_type):
            hub = metrics.Path(torch.hub.get_dir()) / "checkpoints"
            opened.append((net_type, {path.name: path.read_bytes() for path in hub.iterdir()}))

        def __call__(self, a, b):
            assert a.shape == b.shape and a.min() >= -1 and a.max() <= 1 and a.dtype == torch.float32
            return (a - b).abs().mean()

    def weights(name):
        url = f"https://nowhere/{NAME if name == 'alexnet' else name + '-0.pth'}"
        return types.SimpleNamespace(IMAGENET1K_V1=types.SimpleNamespace(url=url))

    lpip = {"LearnedPerceptualImagePatchSimilarity": Lpips}
    used = {"torchmetrics.image.lpip": lpip, "torchvision.models": {"get_model_weights": weights}}
    for name in ("torchmetrics", "torchmetrics.image", "torchvision", *used):
        module = types.ModuleType(name)
        module.__dict__.update(used.get(name, {}), __spec__=ModuleSpec(name, None), __path__=[])
        monkeypatch.setitem(sys.modules, name, module)
    return opened


def by_metric(rows):
    return {(row["metric"], row["dtype"]): row for row in rows}


def test_without_anything_each_row_says_what_is_missing(monkeypatch, backbone):
    monkeypatch.setattr(metrics.importlib.util, "find_spec", lambda _: None)
    rows = by_metric(metrics.perceptual_rows(PAIRS, READERS))
    assert set(rows) == {("lpips", "all"), ("fid", "all"), ("kid", "all")}
    assert all(row["value"] is None for row in rows.values())
    note = rows["lpips", "all"]["note"]
    assert "torchmetrics" in note and "weights" in note and "features_file" in rows["fid", "all"]["note"]
    note = by_metric(metrics.perceptual_rows(PAIRS, READERS, backbone))["lpips", "all"]["note"]
    assert "torchmetrics" in note and "weights" not in note


def test_distances_on_other_features_carry_the_name_of_their_file(tmp_path):
    extractor = script(Means(), tmp_path)
    rows = by_metric(metrics.perceptual_rows(PAIRS, READERS, features_file=extractor))
    names = ("frechet_distance[means.pt]", "kernel_distance[means.pt]")
    assert {key for key in rows if key[0] != "lpips"} == {(n, d) for n in names for d in READERS}
    assert rows[names[0], "fp32"]["value"] == pytest.approx(0, abs=1e-4)
    assert rows[names[0], "int8"]["value"] > 100 and "4 images" in rows[names[0], "int8"]["note"]
    inception = {"features_file": extractor, "features_are_inception": True}
    as_inception = metrics.perceptual_rows(PAIRS, READERS, **inception)
    assert {row["metric"] for row in as_inception} == {"lpips", "fid", "kid"}


def test_lpips_is_asked_of_torchmetrics_with_the_given_file(stand_ins, backbone):
    before = torch.hub.get_dir()
    rows = by_metric(metrics.perceptual_rows(PAIRS, READERS, backbone))
    assert stand_ins == [("alex", {NAME: BACKBONE})] and torch.hub.get_dir() == before
    expected = np.mean([np.abs(t.astype(float) - t // 2).mean() / 127.5 for t in pictures(4)])
    assert rows["lpips[alex]", "fp32"]["value"] == 0
    assert rows["lpips[alex]", "int8"]["value"] == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(("name", "content"), [("my_alexnet.pth", BACKBONE), (NAME, b"others")])
def test_other_weights_are_refused(stand_ins, tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    row = by_metric(metrics.perceptual_rows(PAIRS, READERS, tmp_path / name))["lpips", "all"]
    assert row["value"] is None and name in row["note"] and stand_ins == []


def test_frechet_distance_by_the_formula_of_the_paper():
    random = np.random.default_rng(0)
    a = random.normal(size=(200, 6)) @ random.normal(size=(6, 6))
    b = 1 + random.normal(size=(150, 6)) @ random.normal(size=(6, 6))
    root = sqrtm(np.cov(a.T) @ np.cov(b.T)).real
    expected = ((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(np.cov(a.T) + np.cov(b.T) - 2 * root)
    assert metrics.frechet_distance(a, b) == pytest.approx(expected)
    few = random.normal(size=(5, 40))  # singular: fewer rows than columns
    assert metrics.frechet_distance(few, few) == pytest.approx(0, abs=1e-5)
    assert metrics.frechet_distance(few, few + 2) == pytest.approx(160, rel=1e-6)


def test_kernel_distance_by_sums_over_pairs():
    random = np.random.default_rng(0)
    a, b = random.normal(size=(6, 3)), random.normal(size=(4, 3)) + 1

    def kernel(x, y):
        return (x @ y / 3 + 1) ** 3

    within = [np.mean([kernel(x, y) for x, y in itertools.permutations(s, 2)]) for s in (a, b)]
    across = np.mean([kernel(x, y) for x in a for y in b])
    assert metrics.kernel_distance(a, b) == pytest.approx(sum(within) - 2 * across)


def test_features_are_of_every_image_and_asked_for_by_name_of_inception(tmp_path):
    images, path = pictures(metrics.BATCH + 3), script(Means(), tmp_path)
    features = metrics.features_of(images, metrics.open_extractor(path, inception=True))
    np.testing.assert_allclose(features, [image.mean(axis=(0, 1)) for image in images], rtol=1e-6)
    assert metrics.features_of(images, metrics.open_extractor(path)).shape == (metrics.BATCH + 3, 1)


def test_what_is_no_extractor_and_features_that_do_not_fit_are_named(tmp_path):
    path = tmp_path / "notes.pt"
    path.write_text("not a network")
    flatten = metrics.open_extractor(script(torch.nn.Flatten(0), tmp_path))
    cases = {
        # an error, not a row
        r"notes\.pt": lambda: metrics.perceptual_rows(PAIRS, READERS, features_file=path),
        r"flatten\.pt.*\(384,\)": lambda: metrics.features_of(pictures(2), flatten),
        "no image": lambda: metrics.features_of([], flatten),
        "NaN": lambda: metrics.features_of(pictures(2), lambda batch: np.full((len(batch), 3), np.nan)),
        r"\(1, 4\)": lambda: metrics.frechet_distance(np.zeros((1, 4)), np.zeros((5, 4))),
        r"\(5, 3\)": lambda: metrics.kernel_distance(np.zeros((5, 3)), np.zeros((5, 4))),
    }
    for named, refused in cases.items():
        with pytest.raises(metrics.FeatureError, match=named):
            refused()
