"""Samples of a prior that serve as faces: those with a face, but the least real."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from gpenlib.architecture import Discriminator, Generator, GpenConfig, save_checkpoint
from gpenlib.architecture.checkpoints import discriminator_file
from gpenlib.data.faces import prior_faces
from gpenlib.files import read_json
from gpenlib.images import to_tensor
from tests.test_docs import ROOT, load


def test_samples_with_a_face_and_without_the_worst_logits_are_chosen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.manual_seed(0)
    config, script = GpenConfig(64, 64, 1, 0.0625), load(ROOT / "scripts/choose_samples.py")
    prior = save_checkpoint(Generator(config), tmp_path / "mine.safetensors")
    judge = Discriminator(config)
    monkeypatch.setattr(sys, "argv", ["", str(prior), "--count", "5", "--truncation", "0.9"])
    monkeypatch.setattr(script, "DRAWN", 8)
    with pytest.raises(SystemExit):
        script.main()
    assert "no discriminator beside" in capsys.readouterr().err
    save_checkpoint(judge, discriminator_file(prior))
    with pytest.raises(SystemExit):  # noise, in which the true detector finds nobody
        script.main()
    assert "found no face" in capsys.readouterr().err

    samples = prior_faces(str(prior), 40, 0.9, 0.0)
    pictures = [samples.read(index) for index in range(40)]
    bright = np.array([picture.mean() for picture in pictures]) > np.median(pictures)
    limit = np.median(pictures)
    monkeypatch.setattr(script, "score", lambda picture, _: max(0.0, picture.mean() - limit))
    script.main()
    kept = read_json(prior.with_suffix(".samples.json"))["numbers"]
    expected = []
    for first in range(0, 40, 8):
        logits = script.logits(judge, pictures[first : first + 8])
        expected += [first + index for index in range(8) if np.argsort(np.argsort(logits))[index] >= 2]
    first_five = [number for number in expected if bright[number]][:5]
    assert kept == sorted(first_five, key=lambda number: -pictures[number].mean()), "the surest first"
    assert np.array_equal(prior_faces(str(prior), 3).read(2), pictures[kept[2]])
    plain = judge(torch.from_numpy(to_tensor(pictures[:8]))).flatten().detach().numpy()
    in_order = script.logits(judge, pictures[:8])
    assert np.corrcoef(in_order, plain)[0, 1] > 0.9, "each picture has its own logit, in whatever order"
