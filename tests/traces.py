"""Graphs that a test session has traced: tracing one again would take longer than most tests do."""

import functools
import hashlib
import os
from pathlib import Path

import onnx
from filelock import FileLock

from gpenlib.export import graphs
from gpenlib.files import write_atomically

VARIABLE = "GPEN_TEST_TRACES"  # folder of all processes of the session


def keep_traces() -> None:
    """Let this process, and those that are forked from it, read what an earlier one has traced."""
    if hasattr(graphs._trace, "__wrapped__"):
        return
    trace, folder = graphs._trace, Path(os.environ[VARIABLE])

    @functools.wraps(trace)
    def traced(network, path, exporter, dynamic_batch):
        stored = folder / f"{_digest(network, exporter, dynamic_batch)}.onnx"
        with FileLock(f"{stored}.lock"):
            if not stored.exists():
                graph = trace(network, path, exporter, dynamic_batch)
                with write_atomically(stored) as temporary:
                    onnx.save(graph, temporary)
                return graph
        return onnx.load(stored)

    graphs._trace = traced


def _digest(network, *options):
    """Return what decides a graph: the network's form, and every value in it."""
    forms = [getattr(module, "modulation_impl", None) for module in network.modules()]
    digest = hashlib.sha256(repr((network, network.config, forms, options)).encode())
    for name, tensor in network.state_dict().items():
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().numpy().tobytes())
    return digest.hexdigest()
