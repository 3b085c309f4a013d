"""The images a build calibrates on, and other ones to verify it with."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from gpenlib.compile.config import DatasetConfig
from gpenlib.data.embedded import EmbeddedSource
from gpenlib.data.packs import DATALIST, Pack, read_pack
from gpenlib.data.process_ops import ProcessOp, preprocess
from gpenlib.data.sources import DataError, ImageSource, combined_digest, open_folder
from gpenlib.data.splits import Subset
from gpenlib.data.tasks import make_pair
from gpenlib.images import FloatArray, Image, resize
from gpenlib.progress import progress
from gpenlib.run import resolve_path

DEFAULT_COUNT = 32
HELD_OUT = 4
EMBEDDED_OFFSET = 100_000  # embedded faces from here on are never calibrated on nor evaluated


@dataclass(frozen=True)
class PackInputs:
    """The inputs of a pack as an image source."""

    pack: Pack

    @property
    def label(self) -> str:
        """What it is."""
        return "pack of network inputs"

    @property
    def names(self) -> Sequence[str]:
        """Names in the order of the datalist."""
        return self.pack.names

    def read(self, index: int) -> Image:
        """Return input ``index``, uint8 [S, S, 3]."""
        return self.pack.inputs(index)

    def digest(self, index: int) -> str:
        """Hash of the pixels."""
        return hashlib.sha256(self.pack.inputs(index).tobytes()).hexdigest()


@dataclass(frozen=True)
class CalibrationData:
    """Disjoint calibration and verification images, already as network input when iterated."""

    chosen: ImageSource
    verification: ImageSource
    operators: tuple[ProcessOp, ...]
    task: str
    size: int
    pack: Pack | None = None  # holds the truths if the pictures are a pack's inputs

    @property
    def label(self) -> str:
        """Where the calibration images come from."""
        return self.chosen.label

    @property
    def digest(self) -> str:
        """Hash of the calibration images, in order."""
        return combined_digest(self.chosen, range(len(self.chosen.names)))

    def calibration(self, purpose: str = "calibrate") -> Iterator[FloatArray]:
        """Yield float32 [1, 3, S, S], one image at a time; ``purpose`` labels the progress bar."""
        bar = progress(range(len(self.chosen.names)), desc=purpose, unit="image")
        return (self._prepare(self.chosen, index) for index in bar)

    def pairs(self, count: int, out_size: int) -> Iterator[tuple[FloatArray, Image]]:
        """Yield the first ``count`` calibration images (or all, if fewer) with their truths.

        Returns
        -------
        iterator of (float32 [1, 3, S, S], uint8 [out_size, out_size, 3])

        Raises
        ------
        DataError
            If the images are a pack without truths.
        """
        for index in range(min(count, len(self.chosen.names))):
            if self.pack is not None:
                truth = self.pack.truths(index)
            else:
                truth = make_pair(self.chosen.read(index), self.task, self.size, out_size)[1]
            yield self._prepare(self.chosen, index), truth

    def network_input(self, source: ImageSource, index: int) -> Image:
        """Return one picture as network input, uint8 [size, size, 3].

        A pack's pictures are degraded already, and a second time would be too much. Others are degraded
        with their index as the seed.
        """
        if _holds_inputs(source):
            return resize(source.read(index), self.size)
        # Degrading at the picture's own size would blur less than the task does after resizing.
        return make_pair(source.read(index), self.task, self.size, seed=index)[0]

    def preprocessing(self) -> dict[str, Any]:
        """Return what happens to a picture on its way into the network, as JSON-like values."""
        operators = [{"type": operator.type, **operator.parameters} for operator in self.operators]
        return {"task": self.task, "size": self.size, "process_ops": operators}

    def held_out(self) -> Iterator[FloatArray]:
        """Yield a few images that calibration does not see."""
        return (self._prepare(self.verification, index) for index in range(len(self.verification.names)))

    def _prepare(self, source: ImageSource, index: int) -> FloatArray:
        return preprocess(self.network_input(source, index), self.operators, self.size)


def open_calibration_data(config: DatasetConfig, size: int) -> CalibrationData:
    """Resolve a build's data set.

    Raises
    ------
    DataError
        If the folder is absent, empty, or holds fewer images than ``sampler.get_data_num`` asks for.
        Unset, it takes up to 32 pictures of a folder, or a whole pack.
    """
    asked = config.sampler.get_data_num
    spare = EmbeddedSource(EMBEDDED_OFFSET + HELD_OUT)
    verification: ImageSource = Subset(spare, tuple(range(EMBEDDED_OFFSET, EMBEDDED_OFFSET + HELD_OUT)))
    source: ImageSource
    if config.path is None:
        source = EmbeddedSource(asked or DEFAULT_COUNT)
    else:
        folder = resolve_path(config.path)
        source = (
            PackInputs(read_pack(folder))
            if (folder / DATALIST).is_file()
            else open_folder(folder, config.sampler.suffix)
        )
    pack = source.pack if isinstance(source, PackInputs) else None
    wanted = asked or (len(source.names) if pack else min(DEFAULT_COUNT, len(source.names)))
    if len(source.names) < wanted:
        raise DataError(f"{source.label}: {len(source.names)} images, sampler.get_data_num asks for {wanted}")
    rest = tuple(range(wanted, min(wanted + HELD_OUT, len(source.names))))
    if rest:
        verification = Subset(source, rest)
    return CalibrationData(
        Subset(source, tuple(range(wanted))), verification, tuple(config.operators()), config.task, size, pack
    )


def _holds_inputs(source: ImageSource) -> bool:
    """Return whether a source, or what it is a part of, is a pack of network inputs."""
    return isinstance(source.source if isinstance(source, Subset) else source, PackInputs)
