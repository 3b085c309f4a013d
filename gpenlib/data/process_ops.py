"""The vendor zoo's preprocessing operators, read from a build configuration's ``process_ops``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np

from gpenlib.images import FloatArray, Image, check_image, resize, to_grey
from gpenlib.run import choice_error

PARAMETERS: dict[str, tuple[str, ...]] = {
    "DecodeImage": (),
    "Resize": ("size",),
    "CenterCrop": ("size",),
    "Pad": ("size", "value"),
    "CvtColor": ("code",),
    "Normalize": ("mean", "std"),
    "ToTensor": (),
}
COLOUR_CODES = ("COLOR_BGR2RGB", "COLOR_RGB2BGR", "COLOR_RGB2GRAY", "COLOR_BGR2GRAY")


@dataclass(frozen=True)
class ProcessOp:
    """One operator and its parameters."""

    type: str
    parameters: Mapping[str, Any]


def parse_process_ops(entries: Sequence[Mapping[str, Any]]) -> list[ProcessOp]:
    """Validate a ``process_ops`` list.

    Raises
    ------
    ValueError
        If an operator or parameter is unknown.
    """
    operators = []
    for entry in entries:
        kind = entry.get("type")
        if kind not in PARAMETERS:
            raise ValueError(choice_error("process_ops type", kind, tuple(PARAMETERS)))
        given = {name: value for name, value in entry.items() if name != "type"}
        for name in given:
            if name not in PARAMETERS[kind]:
                raise ValueError(choice_error(f"parameter of {kind}", name, PARAMETERS[kind] or ("(none)",)))
        if kind == "CvtColor" and given.get("code") not in COLOUR_CODES:
            raise ValueError(choice_error("CvtColor code", given.get("code"), COLOUR_CODES))
        operators.append(ProcessOp(kind, given))
    return operators


def preprocess(image: Image, operators: Sequence[ProcessOp], size: int) -> FloatArray:
    """Apply operators to one decoded image.

    Parameters
    ----------
    image : uint8 RGB [H, W, 3]
    operators : sequence of ProcessOp
        ``Normalize`` divides by 255, subtracts ``mean`` and divides by ``std``. Without it pixels are scaled
        to [0, 1] by ``ToTensor``.
    size : int
        Side that ``Resize`` takes when it names none, and that the result must have.

    Returns
    -------
    float32 [1, 3, size, size]

    Raises
    ------
    ValueError
        If the result has another size.
    """
    check_image(image)
    value: Any = image
    for operator in operators:
        value = _apply(value, operator, size)
    array = np.asarray(value, dtype=np.float32)
    if np.asarray(value).dtype == np.uint8:
        array = array / 255.0
    array = array.transpose(2, 0, 1)[None]
    if array.shape != (1, 3, size, size):
        raise ValueError(f"process_ops give {array.shape[1:]}, the network takes {(3, size, size)}")
    return np.ascontiguousarray(array)


def _apply(value: Any, operator: ProcessOp, size: int) -> Any:
    """Apply one operator to an HWC array."""
    given = operator.parameters
    if operator.type == "Resize":
        height, width = _sides(given.get("size", size))
        return resize(value, (width, height))
    if operator.type == "CenterCrop":
        height, width = _sides(given.get("size", size))
        top, left = (value.shape[0] - height) // 2, (value.shape[1] - width) // 2
        return value[max(top, 0) : max(top, 0) + height, max(left, 0) : max(left, 0) + width]
    if operator.type == "Pad":
        height, width = _sides(given.get("size", size))
        bottom, right = max(height - value.shape[0], 0), max(width - value.shape[1], 0)
        fill = given.get("value", 0)
        return cv2.copyMakeBorder(value, 0, bottom, 0, right, cv2.BORDER_CONSTANT, value=[fill] * 3)
    if operator.type == "CvtColor":
        # Images are RGB from decoding on; a swap is a swap under either name.
        return to_grey(value) if given["code"].endswith("GRAY") else value[:, :, ::-1]
    if operator.type == "Normalize":
        mean = np.asarray(given.get("mean", (0.0, 0.0, 0.0)), dtype=np.float32)
        std = np.asarray(given.get("std", (1.0, 1.0, 1.0)), dtype=np.float32)
        return (value.astype(np.float32) / 255.0 - mean) / std
    return value  # DecodeImage was done on reading; ToTensor is the change of layout at the end


def _sides(size: Any) -> tuple[int, int]:
    """Return (height, width) from a number or a pair."""
    if isinstance(size, int):
        return size, size
    height, width = size
    return int(height), int(width)
