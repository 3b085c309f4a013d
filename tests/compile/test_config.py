"""The build configuration: the vendor's schema, strict, with every error naming what is wrong."""

from pathlib import Path

import pytest
import yaml

from gpenlib.files import repository_root
from gpenlib.settings import DTYPES, BuildConfig, SettingsError, as_build_config

VENDOR_FILE = Path(__file__).parents[1] / "data_files" / "vendor_build.yaml"
SHIPPED = sorted((repository_root() / "params" / "build").glob("*.yaml"))


def backend(**values):
    return {"backend": values}


def quantize(**values):
    return {"backend": {"quantize": values}}


@pytest.mark.parametrize(
    ("build", "words"),
    [
        ({"backnd": {}}, ["'backnd'", "did you mean 'backend'?"]),
        (quantize(calibration_mode="mse"), ["'backend.quantize.calibration_mode'", "'calibrate_mode'?"]),
        (backend(dtype="int3"), ["backend.dtype='int3'", "'int8' or 'int8_bf16'"]),
        (quantize(exclude_layers=[True]), ["exclude_layers", "True"]),
        ({"dataset": {"sampler": {"get_data_num": 0}}}, ["get_data_num=0"]),
        ({"dataset": {"process_ops": [{"type": "Resise"}]}}, ["dataset.process_ops", "Resise", "Resize"]),
        ({"backend": {"dtype": "int3"}, "nme": "x"}, ["backend.dtype='int3'", "'nme'"]),
    ],
)
def test_refuses(build, words):
    with pytest.raises(SettingsError) as caught:
        as_build_config(build)
    for word in words:
        assert word in str(caught.value)


def test_indices_patterns_and_names_stay_what_they_are():
    mixed = [1, "a.*", "1"]
    assert as_build_config(quantize(exclude_layers=mixed)).backend.quantize.exclude_layers == mixed


def test_the_vendors_file_loads_unchanged(shared):
    config = as_build_config(VENDOR_FILE)
    given = yaml.safe_load(VENDOR_FILE.read_text(encoding="utf-8"))

    def kept(part, whole):
        return all(kept(v, whole[k]) if isinstance(v, dict) else whole[k] == v for k, v in part.items())

    assert kept(given, config.model_dump())
    assert set(config.unused_keys()) == {
        *(f"backend.compile.{name}" for name in given["backend"]["compile"]),
        "backend.quantize.output_ddr",
    }
    operators = [operator.type for operator in config.dataset.operators()]
    assert operators == ["DecodeImage", "Resize", "Normalize", "ToTensor"]
    config = BuildConfig.from_yaml(VENDOR_FILE, {"backend.type": "openvino", "dataset.path": "faces"})
    assert (config.backend.type, config.dataset.path) == ("openvino", "faces")
    official = yaml.safe_load((shared / "seed" / "official_gpen.yaml").read_text(encoding="utf-8"))
    assert official == given, "it is the one in shared"


def test_shipped_files_load():
    assert {path.stem for path in SHIPPED} >= set(DTYPES)
    for path in SHIPPED:
        config = as_build_config(path)
        assert config.name == f"gpen_{path.stem}"
        assert path.stem not in DTYPES or config.backend.dtype == path.stem
        assert config.unused_keys() == []
        assert config.dataset.path is None, "a shipped file must work on every machine"
        assert as_build_config(f"params/build/{path.name}") == config, "paths start at the repository"
