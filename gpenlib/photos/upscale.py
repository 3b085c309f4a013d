"""Super-resolution of whole photographs with an ONNX file that the user brings, tile by tile."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from gpenlib.export.recover import OF_INT8, check_graph, read_onnx
from gpenlib.files import describe, first_bytes
from gpenlib.images import FloatArray, ImageError

TILE = 256  # pixels of the photograph that a tile is wide, its overlap left out
OVERLAP = 24  # pixels on every side that neighbours see as well
CONTEXT = 16  # outermost pixels of a tile, which the network's own padding spoils: they never count


LOOKED_AT = 64  # pixels a side where a network leaves them open
MOST_WORK = 1 << 45  # products for one tile; Real-ESRGAN takes 2^41
OF_UPSCALERS = (
    *OF_INT8, "AveragePool", "BatchNormalization", "Dropout", "Elu", "Erf", "Gelu", "GlobalAveragePool",
    "HardSigmoid", "HardSwish", "InstanceNormalization", "LayerNormalization", "MaxPool", "Resize",
    "Sigmoid", "Softmax", "SpaceToDepth", "Tanh", "Upsample",
)  # fmt: skip


def check_upscaler(path: Path) -> None:
    """Raise ValueError for a graph of odd operators or sizes, or one whose data are in other files."""
    model, others = read_onnx(path)
    if others:
        raise ValueError(f"its data are in {', '.join(others)}: save them in the file itself")
    graph = model.graph
    shapes = [given.type.tensor_type.shape.dim for given in graph.input]
    if len(shapes) != 1 or len(shapes[0]) != 4:
        taken = str([[dim.dim_value or dim.dim_param for dim in dims] for dims in shapes])
        raise ImageError(f"{path}: takes {taken:.200}, expected one [1, 3, H, W]")
    for dim, size in zip(shapes[0], (1, 3, LOOKED_AT, LOOKED_AT), strict=True):
        dim.dim_value = dim.dim_value or size
    del graph.output[:], graph.value_info[:]  # of open sizes
    check_graph(model, OF_UPSCALERS, MOST_WORK)


class TiledUpscaler:
    """A super-resolution network, such as Real-ESRGAN: RGB in [0, 1], [1, 3, H, W] -> [1, 3, kH, kW].

    Call it with a photograph, uint8 or uint16 [H, W, 3], and a factor; what the network enlarges by is found
    from its first tile, and the rest is resized. ``tile`` is the original code's ``--tile_size``.
    """

    def __init__(self, path: str | Path, tile: int = TILE, threads: int | None = None) -> None:
        import onnxruntime

        if tile < 2 * OVERLAP:
            raise ValueError(f"tile={tile}: must be at least {2 * OVERLAP}")
        start = first_bytes(path, "super-resolution network (an ONNX file)", ImageError)
        options = onnxruntime.SessionOptions()
        options.log_severity_level, options.intra_op_num_threads = 3, threads or 0
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        try:
            check_upscaler(Path(path))
            self._session = onnxruntime.InferenceSession(
                str(path), options, providers=["CPUExecutionProvider"]
            )
        except ImageError:
            raise
        except Exception as error:  # onnxruntime's errors have no common type
            what = describe(start, "ONNX file", ("ONNX networks",))
            raise ImageError(f"{path} {what} ({error!s:.200})") from error
        self._arguments = (path, tile, threads)
        self.path, inputs = Path(path), self._session.get_inputs()
        self._input = entry = inputs[0]
        fixed = [side for side in entry.shape[2:] if isinstance(side, int)]
        self._whole = fixed[0] if fixed else tile + 2 * OVERLAP  # what the network is given, overlap included
        if len(set(fixed)) > 1 or self._whole <= 2 * OVERLAP:
            raise ImageError(
                f"{path}: takes tiles of {entry.shape[2:]}, expected a square above {2 * OVERLAP}"
            )

    def __reduce__(self) -> Any:
        return type(self), self._arguments  # a session belongs to its process

    def __call__(self, photo: NDArray[Any], factor: int) -> NDArray[Any]:
        """Return the photograph ``factor`` times as high and wide, of the same type."""
        most, (height, width) = np.iinfo(photo.dtype).max, photo.shape[:2]
        step = self._whole - 2 * OVERLAP  # tiles begin every `step` pixels, the first at -OVERLAP
        down, across = -(-height // step), -(-width // step)
        border = (
            (OVERLAP, down * step - height + OVERLAP),
            (OVERLAP, across * step - width + OVERLAP),
            (0, 0),
        )
        padded = np.pad(photo, border, mode="symmetric")
        # From 0 to 1 between the outermost pixels of this tile and those of its neighbour
        place = (np.arange(2 * OVERLAP * factor, dtype=np.float32) + 0.5) / factor
        rise = np.clip((place - CONTEXT) / (2 * (OVERLAP - CONTEXT)), 0, 1)
        ramp = np.ones(self._whole * factor, np.float32)
        ramp[: len(rise)], ramp[-len(rise) :] = rise, rise[::-1]  # those of neighbours add up to 1
        weight = (ramp[:, None] * ramp[None])[:, :, None]
        result = np.empty((factor * height, factor * width, 3), photo.dtype)
        # Rows of tiles are added up in a window that moves down: memory does not grow with the photograph
        window = np.zeros((len(ramp), padded.shape[1] * factor, 3), np.float32)
        sums = np.zeros((padded.shape[0] * factor, 1), np.float32)
        for row in range(down):
            sums[row * step * factor :][: len(ramp), 0] += ramp
        columns = np.zeros(padded.shape[1] * factor, np.float32)
        for column in range(across):
            columns[column * step * factor :][: len(ramp)] += ramp
        for row in range(down):
            for column in range(across):
                tile = padded[row * step :, column * step :][: self._whole, : self._whole]
                made = self._run(np.asarray(tile / most, np.float32), factor)
                window[:, column * step * factor :][:, : len(ramp)] += weight * made
            ready = len(ramp) if row == down - 1 else step * factor
            first = row * step * factor
            blended = window[:ready] / np.maximum(sums[first : first + ready] * columns, 1e-6)[:, :, None]
            low, high = first - OVERLAP * factor, first - OVERLAP * factor + ready
            inside = slice(max(low, 0), min(high, len(result)))
            part = blended[inside.start - low : inside.stop - low, OVERLAP * factor :][:, : result.shape[1]]
            result[inside] = np.clip(np.rint(part * most), 0, most)
            window[: len(ramp) - step * factor] = window[step * factor :].copy()
            window[len(ramp) - step * factor :] = 0
        return result

    def _run(self, tile: FloatArray, factor: int) -> FloatArray:
        """Enlarge one tile, float32 [T, T, 3] in [0, 1]."""
        kind = np.float16 if self._input.type == "tensor(float16)" else np.float32
        batch = np.ascontiguousarray(tile.transpose(2, 0, 1)[None], kind)
        try:
            output = np.asarray(self._session.run(None, {self._input.name: batch})[0], np.float32)
        except Exception as error:  # onnxruntime's errors have no common type
            raise ImageError(f"{self.path}: cannot enlarge a tile {batch.shape} ({error!s:.200})") from error
        if output.ndim != 4 or output.shape[1] != 3 or not len(tile) <= output.shape[2] == output.shape[3]:
            raise ImageError(f"{self.path}: gives {output.shape} for {batch.shape}, expected [1, 3, kH, kW]")
        if not np.isfinite(output).all():
            raise ImageError(
                f"{self.path}: gives NaN or infinity; take another network, or upscale=1 without"
            )
        made, side = output[0].transpose(1, 2, 0), factor * len(tile)
        how = cv2.INTER_AREA if side < len(made) else cv2.INTER_LANCZOS4
        return made if side == len(made) else np.asarray(cv2.resize(made, (side, side), interpolation=how))
