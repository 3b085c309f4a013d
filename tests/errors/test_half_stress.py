"""Extreme styles in fp16: the naive graph breaks, the deploy form does not."""

import numpy as np
import pytest
import torch

from gpenlib.errors.layers import scaled_styles, stress_half

ORDINARY = 60.0  # dB against float32 that fp16 reaches where nothing overflows


@pytest.fixture(scope="module")
def rows(tiny_model):
    images = np.random.default_rng(0).uniform(-1, 1, (2, 3, 64, 64)).astype(np.float32)
    found = stress_half(tiny_model, torch.from_numpy(images), (1e-4, 1.0, 1e3, 1e6))
    return {row["factor"]: row for row in found}


def test_the_deploy_form_holds_everywhere(rows):
    for row in rows.values():
        assert row["deploy_psnr"] > ORDINARY and row["deploy_overflow"] is None


def test_ordinary_styles_are_safe_in_both(rows):
    assert rows[1.0]["original_psnr"] > ORDINARY and rows[1.0]["original_overflow"] is None


def test_the_original_breaks_and_the_tensor_is_named(rows):
    assert rows[1e-4]["original_psnr"] is None  # NaN: 1e-8 and the squares vanish, the root is divided by
    assert "conv1.conv: aten.rsqrt" in rows[1e-4]["original_overflow"]
    assert rows[1e3]["original_psnr"] < 20
    assert "conv1.conv: aten" in rows[1e3]["original_overflow"]
    assert "constant" in rows[1e6]["original_overflow"]


def test_scaling_large_styles_changes_nothing_in_float32(rows):
    assert rows[1e3]["change_psnr"] > 90 and rows[1e6]["change_psnr"] > 90


def test_the_model_is_not_changed(tiny_model):
    before = {name: value.clone() for name, value in tiny_model.state_dict().items()}
    scaled = scaled_styles(tiny_model, 7.0)
    assert all(torch.equal(value, before[name]) for name, value in tiny_model.state_dict().items())
    changed = [n for n, v in scaled.state_dict().items() if not torch.equal(v, before[n])]
    assert len(changed) == 2 * (1 + len(tiny_model.generator.convs))
    assert all(".conv.modulation." in name and "to_rgb" not in name for name in changed)
