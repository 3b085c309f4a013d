"""The server of docs/how-to/serve.md: the page shows it, and it answers as the runtime does."""

import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPConnection

import cv2
import numpy as np
import pytest

from gpenlib import open_runtime
from gpenlib.architecture.checkpoints import TINY, random_network
from gpenlib.compile import compile_model
from gpenlib.data.faces import embedded_faces
from gpenlib.images import from_tensor, to_tensor
from tests.conftest import SLOW
from tests.test_docs import ROOT, blocks, load

PAGE = ROOT / "docs/how-to/serve.md"
FACES = 24


def test_the_page_shows_the_server():
    assert blocks(PAGE, "python") == [(ROOT / "docs/how-to/serve_artefact.py").read_text(encoding="utf-8")]


@pytest.fixture(scope="module")
def benchmark():
    pytest.importorskip("ray.serve", reason="Ray Serve is not installed")
    return load(ROOT / "benchmarks/serve.py")


@pytest.fixture(scope="module")
def artefact(float_graph, tmp_path_factory):
    config = {"backend": {"dtype": "fp32", "type": "openvino"}}
    folder = tmp_path_factory.mktemp("served")
    return compile_model(random_network(TINY), config, folder / "tiny", float_graph)


@pytest.fixture(scope="module")
def port(benchmark, artefact):
    with benchmark.serving(artefact) as port:
        yield port


@pytest.fixture(scope="module")
def faces():
    drawn = embedded_faces(FACES, 64)
    return [drawn.read(index) for index in range(FACES)]


def encoded(picture, suffix=".png"):
    return cv2.imencode(suffix, picture[..., ::-1])[1].tobytes()


def decoded(body):
    return cv2.imdecode(np.frombuffer(body, np.uint8), cv2.IMREAD_COLOR)[..., ::-1]


@SLOW
def test_an_answer_is_the_runtimes_own(benchmark, port, artefact, faces):
    connection, runtime = HTTPConnection("127.0.0.1", port), open_runtime(artefact, threads=1)
    for face in faces[:3]:
        answer = benchmark.ask(connection, encoded(face))
        assert (answer.status, answer.batch) == (200, 1)
        np.testing.assert_array_equal(decoded(answer.body), from_tensor(runtime(to_tensor(face)))[0])
    tall = encoded(embedded_faces(1, 256).read(0)[:, 40:240], ".jpg")
    assert decoded(benchmark.ask(connection, tall).body).shape == (64, 64, 3)


@SLOW
def test_requests_at_the_same_time_are_batched(benchmark, port, artefact, faces):
    answers = benchmark.load(port, [encoded(face) for face in faces], FACES, 12)
    assert {answer.status for answer in answers} == {200}
    assert max(answer.batch for answer in answers) > 1
    runtime = open_runtime(artefact, threads=1)
    for face, answer in zip(faces, answers, strict=True):  # each gets its own; batches have other last bits
        expected = from_tensor(runtime(to_tensor(face)))[0]
        assert np.abs(decoded(answer.body).astype(int) - expected).max() <= 1


@SLOW
@pytest.mark.parametrize(
    ("body", "status", "told"),
    [
        (lambda face: encoded(face)[:500], 400, "picture: damaged"),
        (lambda face: b"words", 400, "picture is"),
        (lambda face: encoded(face[:4]), 400, "a face has"),
        (
            lambda face: encoded(np.zeros((6000, 5000, 3), np.uint8)),
            400,
            "30 megapixels, at most 25 are read",
        ),
        (lambda face: bytes(20_000_001), 413, "longer than 20,000,000 bytes"),
    ],
    ids=["damaged", "words", "narrow", "large", "long"],
)
def test_a_bad_picture_is_refused_in_a_sentence(benchmark, port, faces, body, status, told):
    answer = benchmark.ask(HTTPConnection("127.0.0.1", port), body(faces[0]))
    text = answer.body.decode()
    assert answer.status == status and told in text
    assert "\n" not in text and "/tmp" not in text


@SLOW
def test_it_listens_on_this_machine_alone(port):
    if not shutil.which("ss"):
        pytest.skip("no ss")
    lines = subprocess.run(["ss", "-Hltn"], capture_output=True, text=True, check=True).stdout
    assert {line.split()[3] for line in lines.splitlines() if f":{port} " in line} == {f"127.0.0.1:{port}"}


@SLOW
def test_many_at_once_are_answered_or_turned_away(benchmark, port, faces):
    body = encoded(faces[0])

    def status(_):
        return benchmark.ask(HTTPConnection("127.0.0.1", port, timeout=60), body).status

    with ThreadPoolExecutor(300) as pool:
        statuses = set(pool.map(status, range(300)))
    assert statuses <= {200, 503} and 200 in statuses
