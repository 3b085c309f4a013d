"""The build configuration: the vendor's schema, strict, with every error naming what is wrong."""

from pathlib import Path
from typing import get_args

import pytest
import yaml

from gpenlib.compile import compile_model
from gpenlib.files import repository_root
from gpenlib.infer import BACKENDS, DEVICES, DTYPES, RuntimeUnavailable
from gpenlib.settings import BackendType, BuildConfig, Device, RunnableBackend, SettingsError, as_build_config

VENDOR_FILE = Path(__file__).parents[1] / "data_files" / "vendor_build.yaml"
SHIPPED = sorted((repository_root() / "params" / "build").glob("*.yaml"))


@pytest.mark.parametrize(
    ("build", "messages"),
    [
        ({"backnd": {}}, ["unknown key 'backnd'", "did you mean 'backend'?"]),
        ({"backend": {"quantise": {}}}, ["'backend.quantise'", "'quantize'?"]),
        (
            {"backend": {"quantize": {"calibration_mode": "mse"}}},
            ["'backend.quantize.calibration_mode'", "'calibrate_mode'?"],
        ),
        ({"backend": {"compile": {"opt_lvl": 2}}}, ["'backend.compile.opt_lvl'", "'opt_level'?"]),
        (
            {"dataset": {"sampler": {"get_num": 4}}},
            ["'dataset.sampler.get_num'", "allowed: suffix, get_data_num"],
        ),
        (
            {"backend": {"dtype": "int3"}},
            ["backend.dtype='int3'", "'fp32', 'bf16', 'fp16', 'int8' or 'int8_bf16'"],
        ),
        ({"backend": {"type": "openvno"}}, ["backend.type='openvno'", "'openvino'"]),
        (
            {"backend": {"quantize": {"calibrate_mode": "minmax"}}},
            ["calibrate_mode='minmax'", "'kl_divergence'"],
        ),
        ({"backend": {"quantize": {"weight_scale": "power3"}}}, ["weight_scale='power3'", "'power2'"]),
        ({"dataset": {"sampler": {"get_data_num": 0}}}, ["get_data_num=0", "greater than or equal to 1"]),
        ({"dataset": {"process_ops": [{"type": "Resise"}]}}, ["dataset.process_ops", "Resise", "Resize"]),
        ({"backend": "openvino"}, ["backend='openvino'"]),
        ({"backend": {"dtype": "int3"}, "nme": "x"}, ["backend.dtype='int3'", "unknown key 'nme'"]),
    ],
)
def test_refuses(build, messages):
    with pytest.raises(SettingsError) as caught:
        as_build_config(build)
    for message in messages:
        assert message in str(caught.value)


def test_a_partial_mapping_takes_defaults():
    config = as_build_config({"backend": {"dtype": "int8"}, "dataset": {"sampler": {"get_data_num": 4}}})
    assert config.backend.dtype == "int8" and config.dataset.sampler.get_data_num == 4
    assert config.backend.type == "auto" and config.backend.quantize.calibrate_mode == "max"
    assert config.unused_keys() == []
    assert as_build_config(config) is config
    assert BuildConfig.parse(config.model_dump()) == config


def test_backends_and_devices():
    config = as_build_config({"backend": {"type": "torchscript", "also": ["torch"], "device": "cuda"}})
    assert (config.backend.type, config.backend.also, config.backend.device) == (
        "torchscript", ["torch"], "cuda",
    )  # fmt: skip
    assert as_build_config({}).backend.also == [] and as_build_config({}).backend.device == "cpu"
    assert set(get_args(RunnableBackend)) == set(BACKENDS) and set(get_args(Device)) == set(DEVICES)
    assert set(get_args(BackendType)) == {"auto", *BACKENDS, "tvm_vacc"}
    with pytest.raises(SettingsError, match=r"backend\.also\.0='tvm_vacc'"):
        as_build_config({"backend": {"also": ["tvm_vacc"]}})


def test_is_frozen():
    with pytest.raises(ValueError, match="frozen"):
        BuildConfig().backend.dtype = "int8"


def test_the_vendors_file_loads_unchanged():
    config = as_build_config(VENDOR_FILE)
    given = yaml.safe_load(VENDOR_FILE.read_text(encoding="utf-8"))

    def kept(part, whole):
        return all(kept(v, whole[k]) if isinstance(v, dict) else whole[k] == v for k, v in part.items())

    assert kept(given, config.model_dump())
    assert set(config.unused_keys()) == {
        *(f"backend.compile.{name}" for name in given["backend"]["compile"]),
        "backend.quantize.output_ddr",
    }
    assert [operator.type for operator in config.dataset.operators()] == [
        "DecodeImage", "Resize", "Normalize", "ToTensor",
    ]  # fmt: skip


def test_the_vendors_file_is_the_one_in_shared(shared):
    official = yaml.safe_load((shared / "seed" / "official_gpen.yaml").read_text(encoding="utf-8"))
    assert official == yaml.safe_load(VENDOR_FILE.read_text(encoding="utf-8"))


def test_the_vendors_file_with_paths_overridden():
    config = BuildConfig.from_yaml(VENDOR_FILE, {"backend.type": "openvino", "dataset.path": "faces"})
    assert (config.backend.type, config.dataset.path) == ("openvino", "faces")


def test_the_vendors_compiler_is_refused(tiny_model, tmp_path):
    with pytest.raises(RuntimeUnavailable, match=r"tvm_vacc.*vamc.*auto, openvino, onnxruntime"):
        compile_model(tiny_model, {"backend": {"type": "tvm_vacc"}}, tmp_path / "artefact")
    assert not (tmp_path / "artefact").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [(None, "no such file"), ("- a\n- b", "expected a mapping"), ("a: [1", "not YAML")],
)
def test_a_bad_file(tmp_path, content, message):
    path = tmp_path / "build.yaml"
    if content is not None:
        path.write_text(content, encoding="utf-8")
    with pytest.raises(SettingsError, match=message):
        as_build_config(path)


def test_every_dtype_has_a_shipped_file():
    assert {path.stem for path in SHIPPED} >= set(DTYPES)


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_shipped_files_load(path):
    config = as_build_config(path)
    assert config.name == f"gpen_{path.stem}"
    assert path.stem not in DTYPES or config.backend.dtype == path.stem
    assert config.unused_keys() == []
    assert config.dataset.path is None, "a shipped file must work on every machine"
    assert as_build_config(f"params/build/{path.name}") == config, "paths start at the repository"
