"""TorchScript files run alone, for any batch size, and are kept only if they agree."""

import pytest
import torch

from gpenlib.export import ParityError, export_torchscript
from gpenlib.export import graphs as torchscript
from gpenlib.export.graphs import assert_parity, example_input


@pytest.fixture(scope="module")
def script_path(tiny_deploy, tmp_path_factory):
    return export_torchscript(tiny_deploy, tmp_path_factory.mktemp("script") / "deploy.pt")


def test_equals_the_training_form_at_any_batch_size(script_path, tiny_model):
    script = torch.jit.load(str(script_path))
    for batch in (1, 3):
        image = example_input(tiny_model.config, batch)
        with torch.inference_mode():
            assert_parity(tiny_model(image).numpy(), script(image).numpy(), f"batch {batch}")


def test_weights_are_frozen_in(script_path):
    assert list(torch.jit.load(str(script_path)).parameters()) == []


def test_takes_the_training_form_too(tiny_model, tmp_path):
    assert export_torchscript(tiny_model, tmp_path / "new" / "deploy.pt").is_file()


def test_a_file_that_disagrees_is_not_kept(tiny_deploy, tmp_path, monkeypatch):
    def refuse(*arguments):
        raise ParityError("they differ")

    monkeypatch.setattr(torchscript, "assert_parity", refuse)
    with pytest.raises(ParityError, match="they differ"):
        export_torchscript(tiny_deploy, tmp_path / "wrong.pt")
    assert list(tmp_path.iterdir()) == []
