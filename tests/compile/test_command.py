"""python -m gpenlib.compile: a build file with dotted overrides becomes an artefact."""

import json
from pathlib import Path

import pytest

from gpenlib.architecture import save_checkpoint
from gpenlib.compile import __main__ as command
from gpenlib.compile.__main__ import main
from gpenlib.export import export_training_form
from gpenlib.settings import BuildConfig

VENDOR_FILE = Path(__file__).parents[1] / "data_files" / "vendor_build.yaml"
RESIZE = "[{type: DecodeImage}, {type: Resize, size: [64, 64]}, {type: Normalize}, {type: ToTensor}]"


@pytest.fixture
def overrides(tmp_path, picture_folder):
    """What the vendor's file needs on this machine: paths, the size of the tiny network, our backend."""
    return [
        f"dataset.path={picture_folder(4)}",
        "dataset.sampler={suffix: png, get_data_num: 3}",
        f"dataset.process_ops={RESIZE}",
        "frontend.shape={input: [1, 3, 64, 64]}",
        "backend.type=openvino",
        "backend.quantize.exclude_layers=[1]",
        f"workspace.path={tmp_path / 'deploy_weights'}",
    ]


def manifest_of(tmp_path):
    return json.loads((tmp_path / "deploy_weights" / "official_gpen_int8" / "manifest.json").read_text())


def test_the_vendors_file_with_overridden_paths(tmp_path, overrides, capsys):
    assert main([str(VENDOR_FILE), "frontend.checkpoint=tiny-random", *overrides]) == 0
    manifest = manifest_of(tmp_path)
    quantisation = manifest["quantisation"]
    assert (manifest["dtype"], quantisation["calibrate_mode"]) == ("int8", "mse")
    assert (quantisation["calibration_images"], len(quantisation["excluded"])) == (3, 1)
    printed = capsys.readouterr().out
    assert "official_gpen_int8: int8 for openvino" in printed and " dB" in printed
    assert "backend.compile.data_transport_mode" in printed  # every key that is not used is named


@pytest.mark.parametrize(
    ("given", "expected"), [({}, "restore-mild"), ({"dataset": {"task": "inpaint"}}, "inpaint")]
)
def test_calibration_degrades_as_in_the_task_of_the_weights(
    tmp_path, tiny_model, monkeypatch, given, expected
):
    path = save_checkpoint(tiny_model, tmp_path / "mine.safetensors", notes={"task": "restore-mild"})
    seen = []
    monkeypatch.setattr(command, "compile_model", lambda model, config, *rest, **more: seen.append(config))
    command.compile_file(BuildConfig.parse({"frontend": {"checkpoint": str(path)}} | given))
    assert seen[0].dataset.task == expected


def test_an_onnx_file_as_source(tmp_path, overrides, tiny_model):
    """People who have only the file in the original formulation can compile it."""
    source = export_training_form(tiny_model, tmp_path / "circulated.onnx")
    words = [f"frontend.checkpoint={source}", "frontend.type=onnx", "backend.dtype=fp32", *overrides]
    assert main([str(VENDOR_FILE), *words]) == 0
    assert manifest_of(tmp_path)["parity"]["worst"]["relative"] < 1e-3


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["frontend.checkpoint=null"], "frontend.checkpoint is not set"),
        (["frontend.checkpoint=tiny-random", "frontend.type=onnx"], "does not go with"),
        (["frontend.checkpoint=face.onnx"], "does not go with"),
        (["backend.dtyp=int8"], "backend.dtyp"),
        (["frontend.checkpoint=/no/such/file.pth"], "does not exist"),
    ],
)
def test_what_is_wrong_is_said(words, message, capsys):
    assert main([str(VENDOR_FILE), *words]) == 1
    assert message in capsys.readouterr().err
