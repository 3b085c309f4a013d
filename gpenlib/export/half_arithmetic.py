"""fp16 arithmetic on processors that have none, and the first tensor in which it fails.

Processors without fp16 compute "fp16" models in float32 and remove roundings on the way, so that an
overflow does not show. Here every operator on fp16 tensors is computed in float32 and its result rounded to
fp16, as GPUs with float32 accumulation do.
"""

from __future__ import annotations

from dataclasses import dataclass
from types import TracebackType
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map
from torch.utils.module_tracker import ModuleTracker

CASTS = ("aten._to_copy", "aten.to", "aten.copy_")


@dataclass(frozen=True)
class Overflow:
    """The first result that is not finite though its inputs are.

    Attributes
    ----------
    module : str
        Path of the innermost module, such as ``Gpen.generator.convs.3.conv``.
    operator : str
        Such as ``aten.rsqrt``.
    shape : tuple of int
    """

    module: str
    operator: str
    shape: tuple[int, ...]

    def __str__(self) -> str:
        return f"{self.module}: {self.operator} {list(self.shape)}"


class HalfArithmetic(TorchDispatchMode):
    """Context in which operators on fp16 tensors give what fp16 hardware gives.

    Attributes
    ----------
    overflow : Overflow or None
        Found so far.
    """

    def __init__(self) -> None:
        super().__init__()
        self.overflow: Overflow | None = None
        self._tracker = ModuleTracker()

    def __enter__(self) -> HalfArithmetic:
        self._tracker.__enter__()
        super().__enter__()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        super().__exit__(kind, value, traceback)
        self._tracker.__exit__(kind, value, traceback)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run one operator; fp16 inputs are widened and the result is narrowed again."""
        kwargs = kwargs or {}
        inputs = [value for value in tree_flatten((args, kwargs))[0] if isinstance(value, Tensor)]
        name = str(func).rpartition(".")[0]
        if name in CASTS or not any(value.dtype == torch.float16 for value in inputs):
            result = func(*args, **kwargs)
        else:
            wide_args, wide_kwargs = tree_map(_widen, (args, kwargs))
            result = tree_map(_narrow, func(*wide_args, **wide_kwargs))
        if self.overflow is None and isinstance(result, Tensor) and result.is_floating_point():
            self._look(name, inputs, result)
        return result

    def _look(self, name: str, inputs: list[Tensor], result: Tensor) -> None:
        """Note the operator if its result is the first that is not finite."""
        if bool(torch.isfinite(result).all()):
            return
        if all(bool(torch.isfinite(value).all()) for value in inputs if value.is_floating_point()):
            module = max(self._tracker.parents - {"Global"}, key=len, default="(outside)")
            self.overflow = Overflow(module, name, tuple(result.shape))


def _widen(value: Any) -> Any:
    return value.float() if isinstance(value, Tensor) and value.dtype == torch.float16 else value


def _narrow(value: Any) -> Any:
    return value.half() if isinstance(value, Tensor) and value.dtype == torch.float32 else value
