"""Runtimes in PyTorch: the deploy form as a module (``torch``) or traced (``torchscript``)."""

from __future__ import annotations

import warnings
from abc import abstractmethod
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from gpenlib.architecture import GpenConfig
from gpenlib.export import read_mixed_precision
from gpenlib.images import FloatArray
from gpenlib.infer.runtime import Runtime, RuntimeUnavailable

Call = Callable[[Tensor], Tensor]
GRAPH_WARM_UPS = 3
TYPE_NAMES = {torch.float32: "f32", torch.bfloat16: "bf16", torch.float16: "f16"}


class TorchBase(Runtime):
    """What both have in common: one prepared call per batch size, on CUDA a recorded graph."""

    warm_ups = 0  # calls on the CPU until it runs at full speed for a new batch size

    def __init__(self, folder: Path, manifest: dict[str, Any], threads: int | None, device: str) -> None:
        super().__init__(folder, manifest, threads, device)
        self._module = self._load(self.path, manifest)
        self._calls: dict[int, Call] = {}
        self.executed_precision = self._precision()

    @classmethod
    def check_device(cls, device: str) -> None:
        """Raise RuntimeUnavailable if this PyTorch sees no GPU."""
        if device == "cuda" and not torch.cuda.is_available():
            raise RuntimeUnavailable(
                f"PyTorch {torch.__version__} sees no CUDA device here; install its CUDA build on a machine "
                "with a GPU, or use device='cpu'"
            )

    @abstractmethod
    def _load(self, path: Path, manifest: dict[str, Any]) -> nn.Module:
        """Return the module on the device."""

    @abstractmethod
    def _weight_types(self) -> list[torch.dtype]:
        """Return the type of every convolution's weight."""

    def _run(self, batch: FloatArray) -> FloatArray:
        with torch.inference_mode(), number_of_threads(self.threads):
            output = self._for_batch(len(batch))(torch.tensor(batch))
        return output.numpy()

    def _for_batch(self, size: int) -> Call:
        """Return the call for a batch size, prepared when it is first needed."""
        if size not in self._calls:
            example = torch.zeros(size, 3, self.in_size, self.in_size, device=self.device)
            if self.device == "cuda":
                self._calls[size] = record_cuda_graph(self._module, example)
            else:
                warm_up(self._module, example, self.warm_ups)
                self._calls[size] = self._module
        return self._calls[size]

    def executed_types(self) -> dict[str, int]:
        """Count by the type of the weights, which is what a convolution's kernel reads."""
        return dict(Counter(TYPE_NAMES[found] for found in self._weight_types()))

    def _precision(self) -> str:
        """Return the type of the convolutions, and what a processor without bf16 makes of it."""
        name = "+".join(sorted(self.executed_types()))
        capabilities: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()  # not in older PyTorch
        x86 = capabilities.get("architecture") == "x86_64"
        if name == "bf16" and self.device == "cpu" and x86 and not capabilities.get("avx512_bf16"):
            return "bf16 storage, computed in f32"
        return name


class TorchRuntime(TorchBase):
    """The deploy form as a PyTorch module, with weights from ``model.safetensors``."""

    backend = "torch"

    def _load(self, path: Path, manifest: dict[str, Any]) -> nn.Module:
        config = GpenConfig(**manifest["network"])
        return read_mixed_precision(path, config, self.dtype).to(self.device)

    def _weight_types(self) -> list[torch.dtype]:
        convolutions = (nn.Conv2d, nn.ConvTranspose2d)
        return [part.weight.dtype for part in self._module.modules() if isinstance(part, convolutions)]


class TorchScriptRuntime(TorchBase):
    """The frozen trace ``model.pt``; it needs PyTorch alone, not this package."""

    backend = "torchscript"
    warm_ups = 2  # it profiles the first call of a shape and optimises in the second

    def _load(self, path: Path, manifest: dict[str, Any]) -> nn.Module:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch marks TorchScript as superseded by torch.export
            module: nn.Module = torch.jit.load(str(path), map_location=self.device)
        return module

    def _weight_types(self) -> list[torch.dtype]:
        graph: Any = self._module.graph
        nodes = graph.findAllNodes("aten::_convolution", recurse=True)
        return [list(node.inputs())[1].node().t("value").dtype for node in nodes]


def warm_up(module: nn.Module, example: Tensor, calls: int) -> None:
    """Call ``module`` so many times for what it sets up on the way."""
    for _ in range(calls):
        module(example)


def record_cuda_graph(module: nn.Module, example: Tensor) -> Call:
    """Record ``module`` as a CUDA graph for the example's shape; return a call from CPU batch to CPU output.

    A graph replays all kernels with one launch, which matters because small feature maps leave the GPU
    waiting for Python. It reads and writes fixed memory: batches are copied in, the output is copied out.

    Parameters
    ----------
    module : Module
        On the GPU, in eval mode.
    example : Tensor
        On the GPU; becomes the graph's input buffer.
    """
    # Float32 means float32, as on the CPU: cuDNN's default is TF32 with 10 bits of mantissa.
    with torch.backends.cudnn.flags(enabled=True, benchmark=True, allow_tf32=False):
        # torch.cuda.graph asks for warm-up on a stream of its own: libraries set themselves up and cuDNN
        # picks its algorithms, neither of which may happen during recording.
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            warm_up(module, example, GRAPH_WARM_UPS)
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            output = module(example)

    def replay(batch: Tensor) -> Tensor:
        example.copy_(batch)
        graph.replay()
        return output.cpu()  # waits for the graph

    return replay


@contextmanager
def number_of_threads(count: int | None) -> Iterator[None]:
    """Let PyTorch use ``count`` threads (None: leave it); the setting is the process's, so it is put back."""
    before = torch.get_num_threads()
    if count:
        torch.set_num_threads(count)
    try:
        yield
    finally:
        if count:
            torch.set_num_threads(before)
