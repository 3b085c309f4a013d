"""The build configuration: the vendor's YAML schema, strict, with our backends."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, field_validator

from gpenlib.data.process_ops import ProcessOp, parse_process_ops
from gpenlib.data.tasks import TaskName
from gpenlib.settings import Settings

Dtype = Literal["fp32", "bf16", "fp16", "int8", "int8_bf16"]
RunnableBackend = Literal["openvino", "onnxruntime", "torch", "torchscript"]
BackendType = Literal["auto", RunnableBackend, "tvm_vacc"]
Device = Literal["cpu", "cuda", "tensorrt"]
CalibrateMode = Literal["max", "percentile", "kl_divergence", "mse"]
DEFAULT_OPS: tuple[dict[str, Any], ...] = (
    {"type": "DecodeImage"},
    {"type": "Resize"},
    {"type": "Normalize", "mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5]},
    {"type": "ToTensor"},
)


class FrontendConfig(Settings):
    """Where the network comes from.

    ``python -m gpenlib.compile`` loads ``checkpoint`` (as :func:`gpenlib.load_weights`). With a model given
    to ``compile_model`` only ``shape`` is checked.
    """

    shape: dict[str, list[int]] | None = Field(None, description="input name -> [N, 3, S, S]")
    type: Literal["pytorch", "onnx"] = Field("pytorch", description="onnx: recover the weights of a file")
    checkpoint: str | None = Field(None, description="name of weights, checkpoint, or ONNX file")
    dtype: Literal["fp32"] = "fp32"


class VendorCompileOptions(Settings):
    """Keys that only the vendor's compiler understands; kept, and listed as not used by our backends."""

    data_transport_mode: int | None = None
    output_ddr: list[int] | None = None
    switch_lhs_rhs: bool | None = None
    opt_level: int | None = None
    data_type: int | None = None


class QuantizeConfig(Settings):
    """How int8 is made; ignored for other dtypes."""

    calibrate_mode: CalibrateMode = "max"
    percentile: float = Field(99.99, gt=0, le=100, description="share kept by calibrate_mode percentile")
    quantize_per_channel: bool = True
    weight_scale: Literal["max", "power2"] = Field(
        "max", description="power2 rounds scales up to powers of two"
    )
    output_ddr: list[int] | None = None
    exclude_layers: list[int | str] | Literal["auto"] = Field(
        default_factory=list, description="module paths, patterns, or indices from 0; or auto"
    )
    quantize_mode: Literal["manual", "auto"] = Field("manual", description="auto: exclude_layers auto")
    max_drop_db: float = Field(0.05, gt=0, description="exclude_layers auto: largest loss of PSNR, dB")
    sensitivity_images: int = Field(8, ge=1, description="calibration images that auto measures on")
    bias_correction: bool = Field(
        True, description="take the mean error of rounded weights, and of the picture, out of the biases"
    )
    format: Literal["auto", "qdq", "qoperator"] = Field(
        "auto", description="form of the int8 file: auto is qoperator for onnxruntime, qdq otherwise"
    )

    @property
    def exclude_automatically(self) -> bool:
        """Whether the layers that stay in float are chosen by measuring."""
        return self.exclude_layers == "auto" or self.quantize_mode == "auto"


class BackendConfig(Settings):
    """What to build for."""

    type: BackendType = Field("auto", description="auto: the fastest, measured on the finished artefact")
    also: list[RunnableBackend] = Field(
        default_factory=list, description="further backends whose files the artefact shall hold"
    )
    dtype: Dtype = "fp32"
    device: Device = Field("cpu", description="where the artefact is measured and verified")
    compile: VendorCompileOptions = Field(default_factory=VendorCompileOptions)
    quantize: QuantizeConfig = Field(default_factory=QuantizeConfig)


class SamplerConfig(Settings):
    """Which calibration images to take: the first ``get_data_num`` in natural order."""

    suffix: str | None = None
    get_data_num: int | None = Field(None, ge=1, description="unset: up to 32")


class DatasetConfig(Settings):
    """Calibration images: a folder of pictures, or a pack (a folder with ``datalist.txt``).

    Without ``path`` the embedded faces serve. ``task`` degrades pictures into network input;
    a pack holds such inputs already.
    """

    type: Literal["tvm", "folder"] = "folder"
    path: str | None = None
    task: TaskName = "color"
    sampler: SamplerConfig = Field(default_factory=SamplerConfig)
    process_ops: list[dict[str, Any]] = Field(default_factory=lambda: [dict(op) for op in DEFAULT_OPS])

    @field_validator("process_ops")
    @classmethod
    def _known_operators(cls, value: list[dict[str, Any]]) -> list[dict[str, Any]]:
        parse_process_ops(value)
        return value

    def operators(self) -> list[ProcessOp]:
        """Return the preprocessing operators in order."""
        return parse_process_ops(self.process_ops)


class WorkspaceConfig(Settings):
    """Where the vendor's compiler writes; ``compile_model`` takes its folder as an argument instead."""

    path: str = "./deploy_weights/"


class BuildConfig(Settings):
    """A build: frontend -> backend, calibrated on a data set. Every key has a default."""

    name: str = "gpen"
    frontend: FrontendConfig = Field(default_factory=FrontendConfig)
    backend: BackendConfig = Field(default_factory=BackendConfig)
    dataset: DatasetConfig = Field(default_factory=DatasetConfig)
    workspace: WorkspaceConfig = Field(default_factory=WorkspaceConfig)

    def unused_keys(self) -> list[str]:
        """Return the keys that are set but that our backends do not use."""
        given = self.backend.compile.model_dump(exclude_none=True)
        unused = [f"backend.compile.{name}" for name in given]
        if self.backend.quantize.output_ddr is not None:
            unused.append("backend.quantize.output_ddr")
        return unused


def as_build_config(build: BuildConfig | str | Path | Mapping[str, Any]) -> BuildConfig:
    """Return a validated configuration from a BuildConfig, a YAML path, or a (partial) mapping.

    Raises
    ------
    SettingsError
        Naming the keys that are unknown or wrong.
    """
    if isinstance(build, BuildConfig):
        return build
    if isinstance(build, Mapping):
        return BuildConfig.parse(build, "build configuration")
    return BuildConfig.from_yaml(build)
