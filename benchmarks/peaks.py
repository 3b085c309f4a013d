"""The highest speed that this machine reaches in each arithmetic: the best of several honest candidates.

``python benchmarks/peaks.py [--rounds 10] [--threads 2]``

A share of "the peak" says nothing if the peak is that of one slow kernel. Candidates are the product of two
large matrices in PyTorch, and chains of plain 3x3 convolutions of 256 and 512 channels in PyTorch, OpenVINO
and ONNX Runtime, each in every arithmetic that it has. int8 chains stay in int8 between their convolutions.
Prints a table and writes it to ``outputs/benchmarks/peaks.json``; other benchmarks time the same candidates
in their own runs.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from functools import partial

import numpy as np
import onnx
import onnxruntime
import openvino
import pandas as pd
import torch
from onnx import TensorProto, helper, numpy_helper

from gpenlib.files import package_versions, repository_root, write_json
from gpenlib.infer.runtime import OPENVINO_OPTIONS, has_bf16, interleaved_times

MATRIX = 2048  # side of the matrices that are multiplied
WIDTHS = (256, 512)  # channels of the convolutions: those that hold most of GPEN's products
SIDE, DEPTH = 64, 4  # pixels; convolutions in a row, so that conversions at the ends count little
ARITHMETICS = ("fp32", "bf16", "int8")
Candidates = dict[str, tuple[str, float, Callable[[], object]]]  # arithmetic, operations of a call, the call


def convolution_chain(channels: int, form: str, weight_zero: int = 0) -> onnx.ModelProto:
    """Return a graph of plain 3x3 convolutions: ``"float"``, or int8 as ``"qdq"`` or ``"qoperator"``."""
    rng, shape = np.random.default_rng(0), [1, channels, SIDE, SIDE]
    scale = 0.01  # any: the time of an integer kernel does not depend on it
    constants = {
        "step": np.array(scale, np.float32),
        "zero": np.array(128 if form == "qoperator" else 0, np.uint8 if form == "qoperator" else np.int8),
        "weight_zero": np.array(weight_zero, np.int8),
    }
    nodes, data = [], "input"
    if form == "qoperator":
        nodes.append(helper.make_node("QuantizeLinear", [data, "step", "zero"], ["rounded"]))
        data = "rounded"
    for place in range(DEPTH):
        weight, result = f"weight{place}", f"data{place}"
        values = rng.standard_normal((channels, channels, 3, 3))
        constants[weight] = np.rint(30 * values).clip(-127, 127).astype(np.int8)
        if form == "float":
            constants[weight] = (values / np.sqrt(9 * channels)).astype(np.float32)
            nodes.append(helper.make_node("Conv", [data, weight], [result], pads=[1, 1, 1, 1]))
        elif form == "qdq":
            steps = ["step", "zero"]
            nodes += [
                helper.make_node("QuantizeLinear", [data, *steps], [f"q{place}"]),
                helper.make_node("DequantizeLinear", [f"q{place}", *steps], [f"dq{place}"]),
                helper.make_node("DequantizeLinear", [weight, "step", "weight_zero"], [f"w{place}"]),
                helper.make_node("Conv", [f"dq{place}", f"w{place}"], [result], pads=[1, 1, 1, 1]),
            ]
        else:
            inputs = [data, "step", "zero", weight, "step", "weight_zero", "step", "zero"]
            nodes.append(helper.make_node("QLinearConv", inputs, [result], pads=[1, 1, 1, 1]))
        data = result
    if form == "qoperator":
        nodes.append(helper.make_node("DequantizeLinear", [data, "step", "zero"], ["output"]))
    else:
        nodes[-1].output[0] = "output"
    read = {name for node in nodes for name in node.input}
    graph = helper.make_graph(
        nodes,
        "chain",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("output", TensorProto.FLOAT, shape)],
        [numpy_helper.from_array(array, name) for name, array in constants.items() if name in read],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)


def candidates(threads: int) -> Candidates:
    """Return every candidate by name; PyTorch computes with the threads that are set for this process."""
    torch.manual_seed(0)
    a, b = torch.randn(2, MATRIX, MATRIX)
    half_a, half_b = a.bfloat16(), b.bfloat16()
    s8_a, s8_b = torch.randint(-127, 128, (2, MATRIX, MATRIX), dtype=torch.int8)
    products = {
        "fp32": lambda: a @ b,
        "bf16": lambda: half_a @ half_b,
        "int8": lambda: torch._int_mm(s8_a, s8_b),
    }
    found: Candidates = {
        f"matrix product, PyTorch {name}": (name, 2.0 * MATRIX**3, call) for name, call in products.items()
    }
    core = openvino.Core()
    for channels in WIDTHS:
        operations = 2.0 * DEPTH * 9 * channels**2 * SIDE**2
        what = f"3x3 convolutions of {channels} channels"
        image = np.random.default_rng(1).standard_normal((1, channels, SIDE, SIDE)).astype(np.float32)
        for name, kind in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
            layers = [torch.nn.Conv2d(channels, channels, 3, padding=1, bias=False) for _ in range(DEPTH)]
            chain = torch.nn.Sequential(*layers).to(kind, memory_format=torch.channels_last)
            picture = torch.from_numpy(image).to(kind).contiguous(memory_format=torch.channels_last)
            found[f"{what}, PyTorch {name}"] = (name, operations, partial(chain, picture))
        for name, form, hint in (("fp32", "float", "f32"), ("bf16", "float", "bf16"), ("int8", "qdq", "f32")):
            if name == "bf16" and not has_bf16():  # it would compute in f32
                continue
            model = core.read_model(convolution_chain(channels, form).SerializeToString())
            options = {"INFERENCE_NUM_THREADS": threads, "INFERENCE_PRECISION_HINT": hint}
            options |= OPENVINO_OPTIONS
            compiled = core.compile_model(model, "CPU", options)
            found[f"{what}, OpenVINO {name}"] = (name, operations, partial(compiled, image))
        # ONNX Runtime computes 8-bit convolutions in one of two ways, by the weights' zero point.
        for name, form, zero in (("fp32", "float", 0), ("int8", "qoperator", 0), ("int8", "qoperator", -1)):
            chosen = onnxruntime.SessionOptions()
            chosen.intra_op_num_threads = threads
            graph = convolution_chain(channels, form, zero).SerializeToString()
            session = onnxruntime.InferenceSession(graph, chosen, providers=["CPUExecutionProvider"])
            call = partial(session.run, None, {"input": image})
            way = f"{name}, weights' zero point {zero}" if name == "int8" else name
            found[f"{what}, ONNX Runtime {way}"] = (name, operations, call)
    return found


def peaks(
    found: Candidates, times: Mapping[str, Sequence[float]]
) -> tuple[dict[str, float], list[dict[str, object]]]:
    """Return the highest GOP/s in each arithmetic, and a row per candidate, from times in ms."""
    rows = [
        {"candidate": name, "arithmetic": kind, "gop_per_s": operations / 1e6 / min(times[name])}
        for name, (kind, operations, _) in found.items()
    ]
    frame = pd.DataFrame(rows)
    return frame.groupby("arithmetic")["gop_per_s"].max().to_dict(), rows


def main() -> None:
    """Measure, print the table and write it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=10, help="timed calls each (default: 10)")
    parser.add_argument("--threads", type=int, default=2, help="worker threads (default: 2)")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    with torch.inference_mode():
        found = candidates(options.threads)
        times = interleaved_times({name: call for name, (_, _, call) in found.items()}, options.rounds)
    best, rows = peaks(found, times)
    print(pd.DataFrame(rows).round(0).to_string(index=False))
    print("peaks:", ", ".join(f"{name} {best[name]:.0f} GOP/s" for name in ARITHMETICS if name in best))
    target = repository_root() / "outputs" / "benchmarks" / "peaks.json"
    write_json(target, {"peaks": best, "rows": rows, "packages": package_versions()})
    print(f"rows: {target}")


if __name__ == "__main__":
    main()
