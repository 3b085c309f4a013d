"""Ranking of layers, the budget, and the comparison of artefacts."""

import weakref
from dataclasses import replace

import numpy as np
import pytest
import torch

from gpenlib.compile import sensitivity
from gpenlib.compile.rounding import QuantisationError
from gpenlib.compile.sensitivity import Probe, choose_exclusions, compare_artefacts, rank_layers
from gpenlib.export import deploy_form
from gpenlib.images import from_tensor, to_tensor
from gpenlib.metrics import finite_psnr


def test_ranking_finds_the_spoilt_layer_and_the_drop_is_from_the_truth(tiny_model, image, calibrated):
    layers = calibrated.round()
    victim = "generator.convs.1.conv"
    spoilt = layers[victim]
    worse = replace(spoilt, activation_scales=tuple(30 * step for step in spoilt.activation_scales))
    deploy = deploy_form(tiny_model)
    with torch.inference_mode():
        (truth,) = from_tensor(deploy(torch.from_numpy(image)).numpy())
    probe = Probe(deploy, torch.from_numpy(image), [truth])
    assert probe.measure({})["drop_db"] == 0
    lost = probe.measure(layers)["drop_db"]
    assert lost > 10  # the float output is the truth here, int8 is some 40 dB away from it
    ranking = rank_layers(probe, {**layers, victim: worse})
    assert ranking[0].name == victim
    assert [row.psnr for row in ranking] == sorted(row.psnr for row in ranking)
    assert sum(row.share for row in ranking) == pytest.approx(1)


def test_the_budget_decides_how_many_are_excluded():
    cost = {"a": 0.5, "b": 0.2, "c": 0.01, "d": 0.0}

    def drop(kept):
        return sum(cost[name] for name in kept)

    assert choose_exclusions(drop, "abcd", 1.0)[0] == []
    excluded, steps = choose_exclusions(drop, "abcd", 0.05)
    assert excluded == ["a", "b"]
    assert [step["excluded"] for step in steps] == [0, 1, 2]
    assert [step["drop_db"] for step in steps] == pytest.approx([0.71, 0.21, 0.01])
    with pytest.raises(QuantisationError, match=r"0\.100 dB.*max_drop_db=0\.05"):
        choose_exclusions(lambda kept: 0.1, "abcd", 0.05)


def test_artefacts_are_compared_one_runtime_at_a_time(monkeypatch):
    """At 512 px a runtime takes a gigabyte, and a choice has eleven of them."""
    rng = np.random.default_rng(0)
    pictures = rng.integers(0, 256, (2, 3, 8, 8, 3), dtype=np.uint8)  # inputs and truths of three pairs

    class Three:
        __len__ = lambda self: 3  # noqa: E731
        inputs = lambda self, index: pictures[0, index]  # noqa: E731
        truths = lambda self, index: pictures[1, index]  # noqa: E731

    runtimes = []

    def open_runtime(shift, device):
        assert not [runtime for runtime in runtimes if runtime() is not None], "another one is still open"

        def runtime(batch):
            return batch + np.float32(shift)

        runtimes.append(weakref.ref(runtime))
        return runtime

    monkeypatch.setattr(sensitivity, "open_runtime", open_runtime)
    shifts = {
        ("int8", "max", 0): 0.1,
        ("fp32", None, 0): 0.0,
        ("int8", "max", 1): 0.07,
        ("int8", "mse", 0): 0.05,
    }
    rows = compare_artefacts(shifts, Three(), faces=2)
    assert [(row["dtype"], row["mode"], row["draw"]) for row in rows] == list(shifts), "in the given order"

    def output(index, shift):
        return from_tensor(to_tensor([pictures[0, index]]) + np.float32(shift))[0]

    for row, shift in zip(rows, shifts.values(), strict=True):
        psnr = [np.mean([finite_psnr(output(i, s), pictures[1, i]) for i in (0, 1)]) for s in (shift, 0.0)]
        assert row["psnr"] == pytest.approx(psnr[0]) and row["psnr_drop"] == pytest.approx(psnr[1] - psnr[0])
        distance = [finite_psnr(output(i, shift), output(i, 0.0)) for i in (0, 1)]
        assert row["psnr_to_fp32"] == pytest.approx(np.mean(distance))
