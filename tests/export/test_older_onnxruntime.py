"""Every kind of file that we write, opened by the oldest ONNX Runtime that the README names."""

import copy
import os
import subprocess
import sys

import numpy as np
import onnx
import pytest

from gpenlib.compile.calibrate import calibrate
from gpenlib.compile.rounding import quantisable_layers, round_layers, split_halves
from gpenlib.compile.write import to_half, write_qdq, write_qoperator
from gpenlib.export.graphs import IR_VERSION, OPSET, example_input, parity, run_onnx, save_onnx

NEW_PYTHON = sys.version_info >= (3, 13)  # for which there is none before 1.20
OLDEST = ["onnxruntime==1.20.0"] if NEW_PYTHON else ["onnxruntime==1.17.0", "numpy<2"]
RUN = """
import sys
import numpy, onnxruntime
images, target, *files = sys.argv[1:]
outputs = {}
for file in files:
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    one = session.get_inputs()[0].shape[0] == 1
    for name, image in numpy.load(images).items():
        if not (one and len(image) > 1):
            outputs[f"{file} {name}"] = session.run(None, {"input": image})[0]
numpy.savez(target, **outputs)
print(onnxruntime.__version__)
"""


@pytest.fixture(scope="module")
def older_python(tmp_path_factory):
    """Interpreter of an environment with the oldest ONNX Runtime; skips where pip cannot make one."""
    folder = tmp_path_factory.mktemp("older")
    subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    python = folder / "bin" / "python"
    # Without the caller's packages and pins; what pip needs to find its registry stays.
    environment = {
        name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PIP_CONSTRAINT")
    }
    command = [python, "-m", "pip", "install", "--quiet", "--retries", "1", *OLDEST]
    installed = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    if installed.returncode:
        lines = installed.stderr.strip().splitlines() or ["no reason given"]
        reason = f"pip cannot install {OLDEST[0]}: {lines[-1]}"
        if os.environ.get("GPEN_OLD_ONNXRUNTIME_REQUIRED") == "1":
            pytest.fail(reason)
        pytest.skip(reason)
    return python


@pytest.fixture(scope="module")
def files(tiny_model, float_graph, tiny_training_onnx, tmp_path_factory):
    """Path of a file of each kind."""
    folder = tmp_path_factory.mktemp("files")
    graph, image = split_halves(onnx.load(float_graph)), example_input(tiny_model.config).numpy()
    layers = quantisable_layers(graph)
    inputs = list(dict.fromkeys(name for layer in layers for name in layer.inputs))
    seen = calibrate(graph, inputs, [layer.output for layer in layers], [image])
    rounded = round_layers(graph, seen.thresholds("max", 100), [layer.name for layer in layers])
    qdq, qoperator = copy.deepcopy(graph), copy.deepcopy(graph)
    write_qdq(qdq, rounded)
    write_qoperator(qoperator, rounded, seen.output_ranges)
    made = {"fp16": to_half(onnx.load(float_graph))[0], "qdq": qdq, "qoperator": qoperator}
    for name, model in made.items():
        save_onnx(model, folder / f"{name}.onnx")
    return {
        "float": float_graph,
        "training": tiny_training_onnx,
        **{name: folder / f"{name}.onnx" for name in made},
    }


def test_what_a_file_may_consist_of(files):
    """Old readers know neither later versions, nor every operator on every type, nor unsorted nodes."""
    for name, path in files.items():
        model = onnx.load(path)
        assert model.ir_version <= IR_VERSION == 9, name
        assert [(entry.domain, entry.version) for entry in model.opset_import] == [("", OPSET)], name
        onnx.checker.check_model(model, full_check=True)  # sorted nodes are one of its rules
        constants = {tensor.name: tensor for tensor in model.graph.initializer}
        operators = {node.op_type for node in model.graph.node}
        assert "DepthToSpace" not in operators, "none in 8 bits before ONNX Runtime 1.21"
        axes = [constants[node.input[1]].dims for node in model.graph.node if node.op_type == "Unsqueeze"]
        assert axes and all(list(dims) == [1] for dims in axes), name
        assert not any(
            word in path.read_bytes() for word in (b"site-packages", b"stack_trace", b"pkg.torch")
        ), name
    assert "QLinearConv" in {node.op_type for node in onnx.load(files["qoperator"]).graph.node}


def test_an_old_onnxruntime_returns_what_the_current_one_does(files, older_python, tiny_model, tmp_path):
    images = {f"batch {size}": example_input(tiny_model.config, size).numpy() for size in (1, 2)}
    np.savez(tmp_path / "images.npz", **images)
    command = [older_python, "-c", RUN, tmp_path / "images.npz", tmp_path / "outputs.npz", *files.values()]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.strip() == OLDEST[0].partition("==")[2]
    outputs = np.load(tmp_path / "outputs.npz")
    assert len(outputs) == 2 * len(files) - 1, "the training form is fixed at batch 1"
    for kind, path in files.items():
        for name, image in images.items():
            if (key := f"{path} {name}") in outputs:
                psnr = parity(run_onnx(path, image), outputs[key]).psnr
                assert psnr > (50 if kind in ("qdq", "qoperator", "fp16") else 90), (kind, name)
