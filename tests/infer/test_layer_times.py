"""Layer times from the profilers of OpenVINO and ONNX Runtime."""

import numpy as np
import onnx
import pytest

from gpenlib.infer.performance import KINDS, kind_of, layer_times
from gpenlib.infer.runtime import MODEL_FILE


@pytest.fixture(scope="module")
def times(artefact):
    folders = {backend: artefact(backend, "int8") for backend in ("openvino", "onnxruntime")}
    return folders, layer_times(folders, repeats=2)


@pytest.mark.parametrize("backend", ["openvino", "onnxruntime"])
def test_every_convolution_is_there_by_its_path(times, backend):
    folders, found = times
    graph = onnx.load(folders[backend] / MODEL_FILE).graph
    wanted = {n.name for n in graph.node if n.op_type in ("Conv", "ConvTranspose", "QLinearConv")}
    convolutions = {row["name"] for row in found[backend] if "conv" in row["kind"] or "filter" in row["kind"]}
    assert len(wanted) > 20 and wanted <= convolutions | {"generator.to_rgbs.0.upsample"}


@pytest.mark.parametrize("backend", ["openvino", "onnxruntime"])
def test_rows(times, backend):
    rows = times[1][backend]
    assert [row["ms"] for row in rows] == sorted((row["ms"] for row in rows), reverse=True)
    assert all(np.isfinite(row["ms"]) and row["ms"] >= 0 and row["kind"] in KINDS for row in rows)
    precisions = {row["precision"] for row in rows if row["kind"] == "convolution"}
    assert "int8" in precisions and "f32" in precisions  # the layers at the ends stay in float
    assert sum(row["precision"] == "int8" for row in rows) > 10


@pytest.mark.parametrize(
    ("name", "operator", "kind"),
    [
        ("generator.convs.0.conv", "ConvTranspose", "transposed convolution"),
        ("generator.convs.0.blur.conv", "Conv", "depthwise filter"),
        ("x_bf16_generator.convs.0.blur.conv", "Reorder", "rounding and layout"),
        ("something", "TopK", "other"),
    ],
)
def test_kinds(name, operator, kind):
    assert kind_of(name, operator) == kind
