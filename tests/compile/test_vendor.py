"""The vendor's build file against a fake ``vamc`` on PATH that records what it is given."""

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml

from gpenlib.compile import compile_model, vendor
from gpenlib.compile.vendor import VendorCompilerError
from gpenlib.data import DataError
from gpenlib.export import ParityError, export_torchscript
from gpenlib.files import sha256
from gpenlib.images import read_image
from gpenlib.infer import RuntimeUnavailable, open_runtime
from gpenlib.settings import BuildConfig, SettingsError

VENDOR_FILE = Path(__file__).parents[1] / "data_files" / "vendor_build.yaml"
OPERATORS = [
    {"type": "DecodeImage"},
    {"type": "Resize", "size": [64, 64]},
    {"type": "Normalize", "mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5]},
    {"type": "ToTensor"},
]
TOO_LARGE = [{**entry, "size": [512, 512]} if "size" in entry else entry for entry in OPERATORS]
FAKE = """\
import json, os, pathlib, shutil, sys
records = pathlib.Path({records!r})
if sys.argv[1:] == ["--version"]:
    print("vamc 9.8.7 (fake)")
    sys.exit(0)
(records / "call.json").write_text(json.dumps({{"argv": sys.argv[1:], "cwd": os.getcwd()}}))
shutil.copy(sys.argv[2], records / "given.yaml")
mode = {mode!r}
print("reading", sys.argv[2])
if mode == "fails":
    print("\\n".join(f"line {{i}}" for i in range(100)))
    print("unsupported operator: einsum", file=sys.stderr)
    sys.exit(3)
if mode == "works":
    target = pathlib.Path("deploy_weights/official_gpen_int8_run_stream_int8")
    target.mkdir(parents=True, exist_ok=True)
    (target / "mod.params").write_bytes(b"compiled")
"""


def configuration(folder: Path, count: int = 3, **more) -> BuildConfig:
    """Return the vendor's file, for a network of 64 px."""
    overrides = {
        "frontend.shape": {"input": [1, 3, 64, 64]},
        "dataset.path": str(folder),
        "dataset.sampler": {"suffix": "png", "get_data_num": count},
        "dataset.process_ops": OPERATORS,
    }
    return BuildConfig.from_yaml(VENDOR_FILE, overrides | more)


@pytest.fixture(scope="module")
def checkpoint(tiny_model, tmp_path_factory) -> Path:
    """Export the tiny network once."""
    return export_torchscript(tiny_model, tmp_path_factory.mktemp("script") / "deploy.pt")


@pytest.fixture(autouse=True)
def _exported_once(checkpoint, monkeypatch) -> None:
    """Copy that file instead of exporting it again, which takes seconds."""
    monkeypatch.setattr(vendor, "export_torchscript", lambda _, path: Path(shutil.copy(checkpoint, path)))


@pytest.fixture
def vamc(tmp_path, monkeypatch):
    """Function that puts a fake ``vamc`` on PATH, where none is before; return the folder of its records."""

    def install(mode: str) -> Path:
        (records / "vamc").write_text(
            f"#!{sys.executable}\n{FAKE.format(records=str(records), mode=mode)}", encoding="utf-8"
        )
        (records / "vamc").chmod(0o755)
        return records

    records = tmp_path / "bin"
    records.mkdir()
    monkeypatch.setenv("PATH", str(records))
    return install


def check_inputs(artefact: Path, build: dict, count: int) -> None:
    """Check that the build file points at a complete set of inputs, all of them beside it."""
    assert (artefact / build["frontend"]["checkpoint"]).is_file()
    pictures = sorted((artefact / build["dataset"]["path"]).iterdir())
    assert len(pictures) == count == build["dataset"]["sampler"]["get_data_num"]
    for path in pictures:
        assert path.suffix == f".{build['dataset']['sampler']['suffix']}"
        picture = read_image(path)
        assert picture.shape == (64, 64, 3)
        assert not np.ptp(picture, axis=2).any(), "grey"


def test_vamc_gets_what_the_vendors_file_says(tiny_model, tmp_path, vamc, picture_folder):
    records, artefact = vamc("works"), tmp_path / "artefact"
    assert compile_model(tiny_model, configuration(picture_folder(5)), artefact) == artefact

    call = json.loads((records / "call.json").read_text(encoding="utf-8"))
    assert call == {"argv": ["compile", "build.yaml"], "cwd": str(artefact.resolve())}

    given = yaml.safe_load((records / "given.yaml").read_text(encoding="utf-8"))
    expected = yaml.safe_load(VENDOR_FILE.read_text(encoding="utf-8"))
    expected["frontend"] |= {"shape": {"input": [1, 3, 64, 64]}, "checkpoint": "gpen-3_64_64.torchscript.pt"}
    expected["dataset"] |= {
        "path": "calibration",
        "sampler": {"suffix": "png", "get_data_num": 3},
        "process_ops": OPERATORS,
    }
    assert given == expected, "the vendor's keys, all of them and no other"
    assert BuildConfig.from_yaml(records / "given.yaml").backend.type == "tvm_vacc"
    check_inputs(artefact, given, 3)

    manifest = json.loads((artefact / "manifest.json").read_text(encoding="utf-8"))
    assert (manifest["kind"], manifest["dtype"], manifest["unused_keys"]) == ("vendor-build", "int8", [])
    assert manifest["command"] == [str(records / "vamc"), "compile", "build.yaml"]
    assert manifest["compiler_version"] == "vamc 9.8.7 (fake)"
    assert manifest["inputs"]["build.yaml"] == sha256(artefact / "build.yaml")
    assert list(manifest["outputs"]) == ["official_gpen_int8_run_stream_int8/mod.params"]
    assert manifest["vendor_build"] == given and manifest["calibration_images"] == 3


def test_without_vamc_the_inputs_lie_ready(tiny_model, tmp_path, vamc, picture_folder):
    artefact = tmp_path / "an artefact"
    artefact.mkdir()
    (artefact / "model.onnx").write_bytes(b"old")
    (artefact / "manifest.json").write_text('{"kind": "gpen-artefact"}')
    for count in (4, 3):  # the second time in place of the first
        with pytest.raises(RuntimeUnavailable) as caught:
            compile_model(tiny_model, configuration(picture_folder(4), count), artefact)
        build = yaml.safe_load((artefact / "build.yaml").read_text(encoding="utf-8"))
        check_inputs(artefact, build, count)
    message = str(caught.value)
    assert "vamc is not on PATH" in message and f"lie ready in {artefact}" in message
    assert f"cd '{artefact}' && vamc compile build.yaml" in message
    assert {path.name for path in artefact.iterdir()} == {
        "build.yaml",
        "calibration",
        "calibration.json",
        "gpen-3_64_64.torchscript.pt",
    }
    with pytest.raises(FileNotFoundError, match="not an artefact folder"):
        open_runtime(artefact)
    moved = artefact.rename(tmp_path / "elsewhere")
    check_inputs(moved, build, 3)


@pytest.mark.parametrize("built_before", [False, True])
def test_pictures_of_the_user_are_not_wiped(tiny_model, tmp_path, vamc, picture_folder, built_before):
    """A folder called calibration may hold the very pictures that one calibrates on."""
    artefact, mine = tmp_path / "artefact", tmp_path / "artefact" / "calibration" / "face.png"
    if built_before:
        with pytest.raises(RuntimeUnavailable):
            compile_model(tiny_model, configuration(picture_folder(3)), artefact)
    mine.parent.mkdir(parents=True, exist_ok=True)
    mine.write_bytes(b"mine")
    before = sorted(artefact.rglob("*"))
    with pytest.raises(SettingsError, match=r"calibration holds .*face\.png, 1 in all"):
        compile_model(tiny_model, configuration(picture_folder(3)), artefact)
    assert sorted(artefact.rglob("*")) == before and mine.read_bytes() == b"mine"


def test_a_vamc_that_fails_or_writes_nothing(tiny_model, tmp_path, vamc, picture_folder):
    vamc("works")
    config, artefact = configuration(picture_folder(3)), tmp_path / "artefact"
    compile_model(tiny_model, config, artefact)
    with pytest.raises(RuntimeUnavailable, match="built for the vendor's chip"):
        open_runtime(artefact)
    vamc("idle")  # what the first one wrote does not count
    with pytest.raises(VendorCompilerError, match=r"wrote nothing to workspace.path .*deploy_weights"):
        compile_model(tiny_model, config, artefact)
    assert not (artefact / "manifest.json").exists()
    vamc("fails")
    with pytest.raises(VendorCompilerError, match="failed with exit code 3") as caught:
        compile_model(tiny_model, config, artefact)
    assert "unsupported operator: einsum" in str(caught.value) and "line 50" not in str(caught.value)
    assert "line 50" in (artefact / "vamc.log").read_text(encoding="utf-8"), "the message has the end only"


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"backend.dtype": "bf16"}, RuntimeUnavailable, "builds fp16 and int8, not bf16"),
        ({"backend.quantize.exclude_layers": ["a.*"]}, SettingsError, "exclude_layers=.*indices only"),
        ({"dataset.sampler": {"get_data_num": 9}}, DataError, "get_data_num asks for 9"),
        ({"dataset.path": "/no/such/folder"}, DataError, "no such folder"),
        ({"dataset.process_ops": TOO_LARGE}, SettingsError, r"override dataset\.process_ops="),
        ({"frontend.shape": {"input": [1, 3, 512, 512]}}, ParityError, r"input=\[N, 3, 64, 64\]"),
    ],
)
def test_refused_before_any_work(tiny_model, tmp_path, vamc, picture_folder, change, error, message):
    vamc("works")
    with pytest.raises(error, match=message):
        compile_model(tiny_model, configuration(picture_folder(3), **change), tmp_path / "artefact")
    assert not (tmp_path / "artefact").exists()
