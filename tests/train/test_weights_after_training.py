"""What is done to weights after training: stronger colours, and fewer bits."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch

from gpenlib.architecture.checkpoints import load_weights
from gpenlib.images import LUMA
from tests.test_docs import ROOT, load


@pytest.mark.parametrize("factor", [0.0, 1.0, 1.4])
def test_weights_with_more_chroma_answer_with_more_chroma_and_the_same_luma(factor: float) -> None:
    model, picture = load_weights("tiny-random").model, torch.rand(1, 3, 64, 64) - 0.5
    with torch.inference_mode():
        before = model(picture).numpy()
    load(ROOT / "scripts/strengthen_colours.py").strengthen(model, factor)
    with torch.inference_mode():
        after = model(picture).numpy()
    luma = np.tensordot(before, LUMA, (1, 0))[:, None]
    assert np.abs(before - luma).max() > 0.1, "there is colour to be scaled"
    assert np.abs(after - (luma + factor * (before - luma))).max() < 1e-4 * np.abs(before).max()


def test_shorter_weights_differ_by_half_of_their_last_bit_at_most() -> None:
    model = load_weights("tiny-random").model
    base, before = copy.deepcopy(model), [parameter.clone() for parameter in model.parameters()]
    shorten = load(ROOT / "scripts/shorten_weights.py").shorten
    shorten(model, 6, base)
    assert all(map(torch.equal, before, model.parameters())), "what training left alone stays as it is"
    shorten(model, 6)
    changed = 0
    for old, new in zip(before, model.parameters(), strict=True):
        bits, _ = torch.frexp(new)
        assert torch.equal(bits * 128, (bits * 128).round()), "the leading bit and six more"
        assert bool(((new - old).abs() <= old.abs() / 128).all())
        changed += int((new != old).sum())
    assert changed > 0.9 * sum(p.numel() for p in before if p.ndim > 1)
