"""Artefacts of the tiny network, one per backend and dtype, built once for all tests of this folder."""

import pytest

from gpenlib.compile import compile_model
from gpenlib.data.faces import embedded_faces
from gpenlib.data.pairs import Pairs, read_pack, write_pack
from gpenlib.images import to_tensor
from gpenlib.infer import open_runtime


@pytest.fixture(scope="session")
def artefact(tiny_model, float_graph, tmp_path_factory):
    """Function (backend, dtype) -> artefact folder."""
    root = tmp_path_factory.mktemp("artefacts")

    def build(backend, dtype):
        folder = root / f"{backend}_{dtype}"
        if not folder.exists():
            dataset = {"sampler": {"get_data_num": 4}}
            settings = {"backend": {"type": backend, "dtype": dtype}, "dataset": dataset}
            compile_model(tiny_model, settings, folder, float_graph)
        return folder

    return build


@pytest.fixture(scope="session")
def fp32(artefact):
    """Open runtime of the tiny network: OpenVINO, fp32."""
    return open_runtime(artefact("openvino", "fp32"))


@pytest.fixture(scope="session")
def pack(tmp_path_factory):
    """Five pairs of 64 px."""
    folder = tmp_path_factory.mktemp("pack")
    write_pack(folder, Pairs(embedded_faces(5, 64), "color", 64))
    return read_pack(folder)


@pytest.fixture(scope="session")
def faces(pack):
    """The pack's inputs as float32 [5, 3, 64, 64]."""
    return to_tensor([pack.inputs(index) for index in range(len(pack))])
