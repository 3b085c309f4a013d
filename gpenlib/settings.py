"""What a user can set: notebooks' parameters and build files (training: :mod:`gpenlib.train.config`).

One frozen model per configuration; unknown keys and wrong values are refused in plain words. Each set of
names (dtypes, devices, backends, calibration modes) stands here once.
"""

from __future__ import annotations

import ast
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePath
from typing import Annotated, Any, Literal, Self, get_args

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StrictInt,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

from gpenlib.architecture import GpenConfig
from gpenlib.architecture.checkpoints import trained_task
from gpenlib.data.faces import made_here
from gpenlib.data.pairs import ProcessOp, parse_process_ops
from gpenlib.data.tasks import TaskName, known_task
from gpenlib.files import cut, did_you_mean, load_yaml, read_text, resolve_path, shown
from gpenlib.images import MOST_CHROMA, MOST_MP

OUTPUTS_VARIABLE = "GPEN_OUTPUTS"

Dtype = Literal["fp32", "bf16", "fp16", "int8", "int8_bf16"]
Backend = Literal["openvino", "onnxruntime", "torch", "torchscript"]
Device = Literal["cpu", "cuda", "tensorrt"]  # tensorrt: ONNX Runtime's way to the same GPU
CalibrateMode = Literal["max", "percentile", "kl_divergence", "mse"]
Engine = Literal["local", "ray"]  # ray: the processes of a cluster; the same bytes
DTYPES: tuple[str, ...] = get_args(Dtype)
BACKENDS: tuple[str, ...] = get_args(Backend)
DEVICES: tuple[str, ...] = get_args(Device)
ENGINES: tuple[str, ...] = get_args(Engine)
MODES: tuple[str, ...] = get_args(CalibrateMode)
QUANTISED = ("int8", "int8_bf16")  # int8 convolutions; the rest in float32 or bfloat16
INCEPTION = "inception:"  # before a features_file: it is the standard Inception network
REFERENCE = "fp32"  # what every other dtype is compared with
MOST_THREADS = 4 * (os.cpu_count() or 1)  # more are a slip of the pen
MOST_YAML = 1 << 20  # bytes of a file
MOST_SAID = 5  # problems that a message names

DEFAULT_OPS: tuple[dict[str, Any], ...] = (
    {"type": "DecodeImage"},
    {"type": "Resize"},
    {"type": "Normalize", "mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5]},
    {"type": "ToTensor"},
)


class SettingsError(ValueError):
    """Settings that cannot be used; the message names each key, its value and what is allowed."""


class Settings(BaseModel):
    """Base of every configuration: frozen, no unknown keys, errors in plain words."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", protected_namespaces=(), coerce_numbers_to_str=True, allow_inf_nan=False
    )

    @classmethod
    def parse(cls, values: Mapping[str, Any], source: str = "settings") -> Self:
        """Build the settings from a mapping; numbers may be text (YAML's ``1e-3``, papermill's ``-r``).

        Raises SettingsError naming every key that is unknown (with the nearest known) or has a wrong value.
        """
        try:
            return cls.model_validate(dict(values))
        except ValidationError as error:
            raise SettingsError(f"{source}: {_explain(error, cls)}") from None
        except RecursionError:
            raise SettingsError(f"{source}: nested too deep for settings; write plain values") from None

    @classmethod
    def from_yaml(cls, path: str | Path, overrides: Mapping[str, Any] | None = None) -> Self:
        """Build the settings from a YAML file, with overrides such as ``{"backend.dtype": "int8"}``."""
        path = resolve_path(path)
        values = read_yaml(path)
        for dotted, value in (overrides or {}).items():
            set_dotted(values, dotted, value)
        return cls.parse(values, source=str(path))

    @classmethod
    def of(cls, namespace: Mapping[str, Any]) -> Self:
        """Build the settings from a notebook's ``globals()``: the variables that are named like settings.

        papermill puts the values that it is given into a cell behind the parameters and only warns of unknown
        names; a misspelt one is refused here.
        """
        for cell in namespace.get("In", ()):
            if cell.startswith("# Parameters"):
                targets = [target for line in ast.parse(cell).body for target in getattr(line, "targets", ())]
                for name in (target.id for target in targets if isinstance(target, ast.Name)):
                    if name not in cls.model_fields:
                        hint = did_you_mean(name, cls.model_fields)
                        raise SettingsError(f"parameters: unknown parameter {shown(name)}{hint}")
        values = {name: namespace[name] for name in cls.model_fields if name in namespace}
        if hasattr(values.get("run"), "settings"):  # the cell is run again: the name now holds the run itself
            values["run"] = values["run"].settings.run
        return cls.parse(values, "parameters")

    def with_(self, **changes: Any) -> Self:
        """Return a copy with other values, validated."""
        return type(self).parse(self.model_dump(exclude_unset=True) | changes)

    @field_validator("*", mode="before")
    @classmethod
    def _no_booleans_for_numbers(cls, value: Any, info: ValidationInfo) -> Any:
        kinds = _kinds(cls.model_fields[str(info.field_name)].annotation)
        if not any(kind in (bool, Any) or hasattr(kind, "parse") for kind in kinds) and _holds_boolean(value):
            raise ValueError("true and false are no value here")
        return value


def _kinds(annotation: Any) -> list[Any]:
    """Return the types that an annotation is made of."""
    return [kind for part in get_args(annotation) for kind in _kinds(part)] or [annotation]


def _holds_boolean(value: Any) -> bool:
    inner = value.values() if isinstance(value, Mapping) else value if isinstance(value, list | tuple) else ()
    return type(value).__name__.startswith("bool") or any(map(_holds_boolean, inner))  # numpy's, too


def read_yaml(path: Path) -> dict[str, Any]:
    """Read a YAML file whose top level is a mapping; SettingsError says what is wrong with it."""
    try:
        content = load_yaml(read_text(path, MOST_YAML), str(path))
    except (OSError, ValueError) as error:
        raise SettingsError(str(error)) from None
    if not isinstance(content, dict):
        raise SettingsError(f"{path}: expected a mapping of keys to values")
    return content


def set_dotted(values: dict[str, Any], dotted: str, value: object) -> None:
    """Set ``values["a"]["b"]`` for the key ``"a.b"``, creating mappings on the way."""
    *parents, last = dotted.split(".")
    for name in parents:
        inner = values.setdefault(name, {})
        if not isinstance(inner, dict):
            raise SettingsError(f"{dotted:.80}: {name:.80} is not a mapping")
        values = inner
    values[last] = value


def parse_overrides(words: Sequence[str]) -> dict[str, Any]:
    """Turn command-line words ``key=value`` into overrides; values are read as YAML."""
    overrides = {}
    for word in words:
        key, equals, text = word.partition("=")
        if not equals or not key:
            raise SettingsError(f"{shown(word)}: expected key=value")
        overrides[key] = load_yaml(text, shown(word), SettingsError)
    return overrides


def _explain(error: ValidationError, model: type[BaseModel]) -> str:
    """Return the problems, each with its key, value and what is allowed."""
    lines: list[str] = []
    problems = error.errors(include_url=False)
    for problem in problems[:MOST_SAID]:
        where = cut(".".join(str(part) for part in problem["loc"]), 80)
        message = problem["msg"].removeprefix("Value error, ").removeprefix("Input should be ")
        if problem["type"] == "extra_forbidden":
            known = _known_keys(model, problem["loc"][:-1])
            hint = did_you_mean(problem["loc"][-1], known)
            allowed = f"; allowed: {cut(', '.join(known), 300)}"  # once is enough
            lines.append(f"unknown key {where!r}{hint}{'' if allowed in ''.join(lines) else allowed}")
        elif problem["type"] == "missing":
            lines.append(f"missing key {where!r}")
        elif problem["type"] == "value_error" and not where:
            lines.append(message)
        else:
            if problem["type"] == "literal_error":
                message += did_you_mean(
                    problem["input"], re.findall(r"'([^']*)'", problem["ctx"]["expected"])
                )
            prefix = "" if problem["type"] == "value_error" else "should be "
            lines.append(f"{where}={shown(problem['input'])}: {prefix}{message}")
    if len(problems) > MOST_SAID:
        lines.append(f"and {len(problems) - MOST_SAID} more")
    return cut("; ".join(lines), 800)


def _known_keys(model: type[BaseModel], location: Sequence[str | int]) -> list[str]:
    """Return the keys allowed at a location inside nested models."""
    current: Any = model
    for part in location:
        if isinstance(current, type) and issubclass(current, BaseModel) and part in current.model_fields:
            annotation = current.model_fields[str(part)].annotation
            kinds = [annotation, *get_args(annotation)]
            nested = [kind for kind in kinds if isinstance(kind, type) and issubclass(kind, BaseModel)]
            current = nested[0] if nested else None
    if isinstance(current, type) and issubclass(current, BaseModel):
        return list(current.model_fields)
    return []


# What the parameters of the notebooks mean


def _listed(value: Any) -> Any:
    """Return a list, comma-separated text (as ``-p`` passes it) or a single value as a tuple."""
    if isinstance(value, str):
        return tuple(word.strip() for word in value.split(",") if word.strip())
    return tuple(value) if isinstance(value, list | tuple) else (value,)


def plain_name(value: str) -> str:
    """Return the value if it can name a folder, else raise ValueError."""
    if not re.fullmatch(r"\w[\w.-]{0,99}", value) or len(value.encode()) > 200:
        raise ValueError("must be a plain folder name (letters, digits, '_', '-', '.'; at most 100)")
    return value


def as_plain_name(text: str) -> str:
    """Return a name of a file or folder for text such as the path of weights."""
    return re.sub(r"[^\w.-]", "_", text).lstrip(".-")[-50:] or "_"


PlainName = Annotated[str, AfterValidator(plain_name)]
Words = Annotated[tuple[str, ...], BeforeValidator(_listed)]
PlainNames = Annotated[tuple[PlainName, ...], BeforeValidator(_listed)]
Count = Annotated[int, Field(ge=1, le=1_000_000)]
Threads = Annotated[int, Field(ge=1, le=MOST_THREADS)]
NetworkSide = Annotated[int, AfterValidator(lambda side: GpenConfig(side, side).out_size)]
Seed = Annotated[int, Field(ge=0, lt=2**32)]
Counts = Annotated[tuple[Count, ...], BeforeValidator(_listed), Field(min_length=1)]
ThreadCounts = Annotated[tuple[Threads, ...], BeforeValidator(_listed), Field(min_length=1)]


class RunFolder(Settings):
    """What names the folder of a run."""

    run: PlainName = "demo"
    weights: str = "demo-color"
    key: str = Field("", description="entry of a training checkpoint that holds them; empty: found by itself")

    @property
    def folder(self) -> Path:
        """Folder of the run; the variable GPEN_OUTPUTS replaces ``outputs/``."""
        return resolve_path(os.environ.get(OUTPUTS_VARIABLE) or "outputs") / self.run


class RunSettings(RunFolder):
    """The parameters of notebooks 00 to 05; those of 04 are a contract with other programs."""

    task: str = Field("", description="empty: what the weights were trained for; with input_dir: any")
    data_dir: str | None = None
    input_dir: str | None = Field(None, description="the network's inputs, truths of which data_dir holds")
    dataset_size: int = Field(16, ge=1)
    calib_dir: str | None = None
    calib_size: int = Field(32, ge=1)
    seed: Seed = Field(0, description="of the draw of calibration images, and of degradations")
    save_packs: bool = Field(False, description="02: the pairs as the vendor's npz packs, too")
    most_megapixels: float = Field(MOST_MP, gt=0, description="larger picture files are refused")
    # 00_architecture
    image: str | None = Field(None, description="picture of one face")
    size: NetworkSide = Field(512, description="side of the network whose cost is shown")
    # 03_compile and later
    dtype: Dtype = "fp32"
    backend: Literal["auto", Backend] = "auto"
    device: Device = "cpu"
    calibrate_mode: CalibrateMode | None = Field(None, description="None: the build configuration's")
    build: str | None = Field(
        None, description="YAML build configuration; dtype, backend and data are set by us"
    )
    healed: int = Field(8, ge=0, le=1000, description="layers left in float to see what it heals")
    choice_faces: Count = Field(16, description="faces on which dtypes and modes are compared")
    perf_batch: Counts = (1,)
    perf_instances: ThreadCounts = (1, 2)
    perf_threads: ThreadCounts = (1, 2)
    perf_repeats: Count = 10
    # 04_infer
    batch_size: Count = 1
    save_images: bool = True
    save_npz: bool = False
    chroma: float = Field(1.0, gt=0, le=MOST_CHROMA, description="04, 07: colour strength of the answers")
    engine: Engine = Field("local", description="04, 07: this process, or the workers of a Ray cluster")
    # 05_errors
    dtypes: Annotated[tuple[Dtype, ...], BeforeValidator(_listed)] = get_args(Dtype)
    lpips_weights: str | None = Field(None, description="torchvision's file of LPIPS's backbone")
    features_file: str | None = Field(None, description="TorchScript feature extractor for FID and KID")
    features_are_inception: bool = False
    worst: Count = Field(4, description="how many of the faces with the largest loss are shown")
    runs: PlainNames = Field((), description="runs whose results are compared, too")
    max_drop_db: float = Field(0.1, ge=0, description="largest acceptable loss of PSNR against fp32")
    repeats: Count = Field(20, description="timed calls of every dtype, taken in turns")
    layer_faces: Count = Field(4, description="faces on which the layers of int8 are compared with float")

    @model_validator(mode="before")
    @classmethod
    def _what_one_value_says_of_another(cls, values: dict[str, Any]) -> dict[str, Any]:
        if str(values.get("features_file") or "").startswith(INCEPTION):
            file = values["features_file"].removeprefix(INCEPTION)
            values = values | {"features_file": file, "features_are_inception": True}
        name = values.get("weights", cls.model_fields["weights"].default)
        known = isinstance(name, str) and not values.get("input_dir")
        task = values.get("task") or ""
        if known and not task:
            task = trained_task(name)
            try:
                known_task(task)
            except ValueError as error:
                what = f"weights={shown(name)}: its header names the task {shown(task)}"
                raise ValueError(f"{what}, which is not known here; say with task: {error}") from None
        return values | {"task": task}

    @field_validator(
        "data_dir", "input_dir", "calib_dir", "image", "build", "calibrate_mode", "lpips_weights",
        "features_file", "upscaler", "detector", mode="before", check_fields=False,
    )  # fmt: skip
    @classmethod
    def _empty_is_none(cls, value: Any) -> Any:
        return value or None

    @field_validator("task")
    @classmethod
    def _known_or_any(cls, value: str) -> str:
        return value and known_task(value)

    @model_validator(mode="after")
    def _inputs_have_truths(self) -> Self:
        if self.input_dir:
            folder, what = resolve_path(self.input_dir), f"input_dir={self.input_dir!r}"
            if not folder.is_dir():
                raise ValueError(f"{what}: no such folder")
            if made_here(self.data_dir):
                need = "name the folder with the truths of these inputs as data_dir"
                raise ValueError(f"{what} with data_dir={self.data_dir or ''!r}: {need}")
            if folder.resolve() == resolve_path(str(self.data_dir)).resolve():
                raise ValueError(f"{what} is data_dir too: inputs and truths lie in two folders")
        return self

    @property
    def degradation(self) -> str:
        """The task that degrades faces without an input of their own, such as those of ``calib_dir``."""
        return self.task or trained_task(self.weights)

    @field_validator("runs")
    @classmethod
    def _several(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if value and len(set(value)) < max(2, len(value)):
            raise ValueError("name two or more different runs, separated by commas, or none")
        return value

    @field_validator("lpips_weights", "features_file")
    @classmethod
    def _file_exists(cls, value: str | None) -> str | None:
        if value and not resolve_path(value).is_file():
            raise ValueError("no such file")
        return str(resolve_path(value)) if value else None

    @field_validator("dtypes")
    @classmethod
    def _reference_first(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if not value:
            raise ValueError(f"name one or more of {', '.join(DTYPES)}, separated by commas")
        return tuple(name for name in DTYPES if name in {REFERENCE, *value})


class PhotoSettings(RunSettings):
    """The parameters of notebook 07; ``weights`` and ``dtype`` may name several, with commas."""

    photos: Words = Field((), description="picture files and folders; empty: two public-domain photographs")
    networks: tuple[str, ...] = Field((), description="all that weights named; each photograph gets one")
    photo_dtypes: tuple[Dtype, ...] = Field((), description="all that dtype named; each makes a picture")
    asked_task: str | None = Field(None, description="task, where it was given")
    strength: float = Field(1.0, ge=0, le=1, description="0: the photograph, 1: the network's answer")
    faces: str = Field("all", pattern=r"^\s*(all|largest|\d+\s*(px)?)\s*$")
    upscale: int = Field(1, description="1, 2, 4")
    upscaler: str | None = Field(None, description="ONNX file of a super-resolution network")
    reach: float = Field(2.4, ge=1, le=2.4, description="sides of a face's square that are coloured")
    aligned: bool = Field(False, description="every picture is the square of one face")
    frames: bool = Field(False, description="the pictures are the frames of a film, in order")
    detector: str | None = Field(None, description="ONNX file of OpenCV's YuNet in place of CenterFace")

    @model_validator(mode="before")
    @classmethod
    def _one_or_several(cls, values: dict[str, Any]) -> dict[str, Any]:
        values = dict(values)
        if isinstance(photos := values.get("photos"), str) and photos and resolve_path(photos).exists():
            values["photos"] = (photos,)  # a name with a comma
        for one, all_of_them in (("weights", "networks"), ("dtype", "photo_dtypes")):
            names = _listed(values.get(one, cls.model_fields[one].default))
            if not names or not all(isinstance(name, str | int | float) for name in names):
                raise ValueError(f"{one}={shown(values.get(one))}: name one, or several with commas")
            names = tuple(dict.fromkeys(names))
            values = {all_of_them: names} | values | {one: names[0]}
        values.setdefault("asked_task", values.get("task") or None)
        return values

    @field_validator("upscale")
    @classmethod
    def _factor(cls, value: int) -> int:
        if value not in (1, 2, 4):
            raise ValueError("allowed are 1, 2, 4")
        return value

    @model_validator(mode="after")
    def _frames_follow_one_another(self) -> Self:
        if self.frames and self.engine != "local":
            raise ValueError(f"engine={self.engine!r}: frames depend on those before; take engine=local")
        return self

    @model_validator(mode="after")
    def _an_upscaler_enlarges(self) -> Self:
        if self.upscaler and self.upscale == 1:
            raise ValueError(f"upscaler={self.upscaler!r}: it needs upscale=2 or 4")
        return self


# The build configuration: the vendor's YAML schema, strict, with our backends


class FrontendConfig(Settings):
    """Where the network comes from.

    ``python -m gpenlib.compile`` loads ``checkpoint`` (as :func:`gpenlib.load_weights`). With a model given
    to ``compile_model`` only ``shape`` is checked.
    """

    shape: dict[str, list[Count]] | None = Field(None, description="input name -> [N, 3, S, S]")
    type: Literal["pytorch", "onnx"] = Field("pytorch", description="onnx: recover the weights of a file")
    checkpoint: str | None = Field(None, description="name of weights, checkpoint, or ONNX file")
    key: str = Field("", description="entry of the checkpoint that holds the weights; empty: found by itself")
    dtype: Literal["fp32"] = Field("fp32", description="of the weights that are read")


class VendorCompileOptions(Settings):
    """Keys that only the vendor's compiler understands; kept, and listed as not used by our backends."""

    data_transport_mode: int | None = None
    output_ddr: list[int] | None = None
    switch_lhs_rhs: bool | None = None
    opt_level: int | None = None
    data_type: int | None = None


class QuantizeConfig(Settings):
    """How int8 is made; ignored for other dtypes."""

    calibrate_mode: CalibrateMode = Field("max", description="how the range of an activation is chosen")
    percentile: float = Field(99.99, gt=0, le=100, description="share kept by calibrate_mode percentile")
    quantize_per_channel: bool = Field(True, description="one weight scale per output channel, not per layer")
    weight_scale: Literal["max", "power2"] = Field(
        "max", description="power2 rounds scales up to powers of two"
    )
    output_ddr: list[int] | None = Field(None, description="the vendor's compiler alone")
    exclude_layers: list[StrictInt | str] | Literal["auto"] = Field(  # true is no index
        default_factory=list, description="module paths, patterns, or indices from 0; or auto"
    )
    quantize_mode: Literal["manual", "auto"] = Field("manual", description="auto: exclude_layers auto")
    max_drop_db: float = Field(0.05, gt=0, description="exclude_layers auto: largest loss of PSNR, dB")
    sensitivity_images: Count = Field(8, description="calibration images that auto measures on")
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


def _off_is_a_word(value: Any) -> Any:
    return "off" if value is False else value  # as YAML reads it


class BackendConfig(Settings):
    """What to build for."""

    type: Literal["auto", Backend, "tvm_vacc"] = Field(
        "auto", description="auto: the fastest, measured on the finished artefact"
    )
    also: list[Backend] = Field(
        default_factory=list, description="further backends whose files the artefact shall hold"
    )
    dtype: Dtype = Field("fp32", description="int8_bf16: int8 convolutions, all else in bfloat16")
    device: Device = Field("cpu", description="where the artefact is measured and verified")
    tune: Annotated[Literal["off", "auto"], BeforeValidator(_off_is_a_word)] = Field(
        "auto", description="int8: keep the fastest of each large layer's forms here; ONNX Runtime: use AMX"
    )
    compile: VendorCompileOptions = Field(default_factory=VendorCompileOptions)
    quantize: QuantizeConfig = Field(default_factory=QuantizeConfig)


class SamplerConfig(Settings):
    """Which calibration images to take: the first ``get_data_num`` in natural order."""

    suffix: str | None = Field(None, description="only files of this kind, such as jpg; unset: all")
    get_data_num: int | None = Field(None, ge=1, description="unset: up to 32")


class DatasetConfig(Settings):
    """Calibration images: a folder of pictures, or a pack (a folder with ``datalist.txt``).

    Without ``path`` the embedded faces serve. ``task`` degrades pictures into network input;
    a pack holds such inputs already.
    """

    type: Literal["tvm", "folder"] = Field("folder", description="tvm is the vendor's word for the same")
    path: str | None = Field(None, description="unset: the embedded faces")
    task: TaskName = Field("color", description="how pictures become input; unset, the checkpoint's")
    sampler: SamplerConfig = Field(default_factory=SamplerConfig)
    process_ops: list[dict[str, Any]] = Field(
        default_factory=lambda: [dict(op) for op in DEFAULT_OPS],
        description="what makes network input of a picture, in order",
    )

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

    path: str = Field("./deploy_weights/", description="results go to a folder in it, called as the build")

    @property
    def inside(self) -> bool:
        """Whether the path stays in the folder that it is relative to."""
        path = PurePath(self.path)
        return not path.is_absolute() and ".." not in path.parts


class BuildConfig(Settings):
    """A build: frontend -> backend, calibrated on a data set. Every key has a default."""

    name: PlainName = Field("gpen", description="of the build: a plain folder name")
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
    """Return a validated configuration from a BuildConfig, a YAML path, or a (partial) mapping."""
    if isinstance(build, BuildConfig):
        return build
    if isinstance(build, Mapping):
        return BuildConfig.parse(build, "build configuration")
    return BuildConfig.from_yaml(build)
