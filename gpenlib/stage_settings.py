"""Settings of the stages: what a notebook's parameters mean, validated."""

from __future__ import annotations

import os
import re
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import BeforeValidator, Field, field_validator, model_validator

from gpenlib.compile.config import CalibrateMode, Device, Dtype, RunnableBackend
from gpenlib.data.tasks import TaskName
from gpenlib.run import resolve_path
from gpenlib.settings import Settings, SettingsError, read_yaml
from gpenlib.train.config import TrainConfig
from gpenlib.weights import Weights, load_weights, trained_task, weights_file

OUTPUTS_VARIABLE = "GPEN_OUTPUTS"


@lru_cache(maxsize=1)
def _load(weights: str, stamp: int) -> Weights:
    """Load weights; ``stamp`` changes when the file does."""
    return load_weights(weights)


def _words(value: Any) -> Any:
    """Split comma-separated text, as ``-p`` gives it, into its words."""
    words = value.split(",") if isinstance(value, str) else value
    return tuple(word.strip() for word in words if word.strip())


Words = Annotated[tuple[str, ...], BeforeValidator(_words)]


class RunSettings(Settings):
    """What every stage needs."""

    run: str = "demo"
    weights: str = "demo-color"

    @field_validator("run")
    @classmethod
    def _folder_name(cls, value: str) -> str:
        if not re.fullmatch(r"[\w][\w.-]*", value):
            raise ValueError("must be a plain folder name (letters, digits, '_', '-', '.')")
        return value

    @property
    def folder(self) -> Path:
        """Folder of the run; the variable GPEN_OUTPUTS replaces ``outputs/``."""
        return resolve_path(os.environ.get(OUTPUTS_VARIABLE) or "outputs") / self.run

    def load(self) -> Weights:
        """Load the network; stages that depend on one another share one copy, which none may change."""
        path = weights_file(self.weights)
        stamp = path.stat().st_mtime_ns if path.is_file() else 0
        return _load(self.weights, stamp)


class DataSettings(RunSettings):
    """Settings of 02_data."""

    task: TaskName = Field("", description="empty: what the weights were trained for")
    data_dir: str | None = None
    dataset_size: int = Field(16, ge=1)
    calib_dir: str | None = None
    calib_size: int = Field(32, ge=1)
    seed: int = Field(0, ge=0, description="of the draw of calibration images, and of degradations")

    @model_validator(mode="before")
    @classmethod
    def _task_of_the_weights(cls, values: dict[str, Any]) -> dict[str, Any]:
        name = values.get("weights", cls.model_fields["weights"].default)
        return values if values.get("task") else values | {"task": trained_task(name)}

    @field_validator("data_dir", "calib_dir")
    @classmethod
    def _empty_is_none(cls, value: str | None) -> str | None:
        return value or None


class CompileSettings(DataSettings):
    """Settings of 03_compile for one dtype."""

    dtype: Dtype = "fp32"
    backend: Literal["auto", RunnableBackend] = "auto"
    device: Device = "cpu"
    calibrate_mode: CalibrateMode | None = Field(None, description="None: the build configuration's")
    build: str | None = Field(
        None, description="YAML build configuration; dtype, backend and data are set by us"
    )

    @field_validator("build", "calibrate_mode", mode="before")
    @classmethod
    def _unset_is_none(cls, value: Any) -> Any:
        return value or None


class InferSettings(CompileSettings):
    """Settings of 04_infer; the names are a contract with other programs."""

    batch_size: int = Field(1, ge=1)
    save_images: bool = True
    save_npz: bool = False


class ErrorSettings(InferSettings):
    """Settings of 05_errors: infer for several dtypes, then compare with fp32."""

    dtypes: tuple[Dtype, ...] = ("fp32", "bf16", "fp16", "int8")
    lpips_weights: str | None = Field(None, description="torchvision's file of LPIPS's backbone")
    features_file: str | None = Field(None, description="TorchScript feature extractor for FID and KID")
    features_are_inception: bool = False
    worst: int = Field(4, ge=1, description="how many of the faces with the largest loss are shown")
    runs: Words = Field((), description="runs whose results are compared, too")
    max_drop_db: float = Field(0.1, ge=0, description="largest acceptable loss of PSNR against fp32")
    repeats: int = Field(9, ge=1, description="timed calls of every dtype, taken in turns")
    layer_faces: int = Field(4, ge=1, description="faces on which the layers of int8 are compared with float")

    @field_validator("runs")
    @classmethod
    def _several(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if value and len(set(value)) < max(2, len(value)):
            raise ValueError("name two or more different runs, separated by commas, or none")
        return tuple(cls._folder_name(name) for name in value)

    @field_validator("lpips_weights", "features_file")
    @classmethod
    def _file_exists(cls, value: str | None) -> str | None:
        if value and not resolve_path(value).is_file():
            raise ValueError("no such file")
        return str(resolve_path(value)) if value else None

    @field_validator("dtypes", mode="before")
    @classmethod
    def _comma_list(cls, value: Any) -> Any:
        return tuple(word.strip() for word in value.split(",")) if isinstance(value, str) else value

    @field_validator("dtypes")
    @classmethod
    def _with_reference(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(value)) < 2 or "fp32" not in value:
            raise ValueError("name fp32 and at least one other dtype, separated by commas")
        return tuple(name for name in get_args(Dtype) if name in value)

    def for_dtype(self, dtype: str) -> InferSettings:
        """Return the settings of one dtype's inference, with images saved for comparison."""
        values = self.model_dump(include=set(InferSettings.model_fields))
        return InferSettings.parse(values | {"dtype": dtype, "save_images": True})


class TrainSettings(RunSettings):
    """Settings of 06_train: configuration files, trained in turn, and what replaces their values."""

    train: Words = Field(("params/train/small_prior.yaml", "params/train/small_embed.yaml"), min_length=1)
    data_dir: str | None = Field(None, description="as TrainConfig's; None: the configuration's")
    task: TaskName | None = None
    steps: int | None = Field(None, ge=1)
    size: int | None = None
    batch_size: int | None = Field(None, ge=1)
    seed: int = Field(0, ge=0)
    resume: bool = True

    @field_validator("data_dir", "task", "steps", "size", "batch_size", mode="before")
    @classmethod
    def _unset_is_none(cls, value: Any) -> Any:
        return None if value in ("", "0", 0) else value

    @field_validator("train")
    @classmethod
    def _different_names(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        stems = [Path(file).stem for file in value]
        if len(set(stems)) < len(stems):
            raise ValueError("each configuration has a folder of its file's name: name different files")
        return value

    def configs(self) -> dict[str, TrainConfig]:
        """Return what is trained, by the name of its file, in order.

        Each is trained in ``06_train/<name>`` of the run. An ``init`` inside the ``run_dir`` that an earlier
        file names is looked for where that one is trained now.

        Raises
        ------
        SettingsError
            If a file is absent or not a training configuration.
        """
        replaced = self.model_dump(
            include={"data_dir", "task", "steps", "size", "batch_size", "seed"}, exclude_none=True
        )
        moved: dict[Path, Path] = {}
        found = {}
        for file in self.train:
            values = read_yaml(resolve_path(file)) | replaced
            folder = self.folder / "06_train" / Path(file).stem
            if "run_dir" not in values:
                raise SettingsError(f"{file}: missing key 'run_dir'")
            if values.get("init"):
                init = resolve_path(str(values["init"]))
                if init.parent in moved:
                    values["init"] = str(moved[init.parent] / init.name)
            moved[resolve_path(str(values["run_dir"]))] = folder
            found[Path(file).stem] = TrainConfig.parse(values | {"run_dir": str(folder)}, file)
        return found
