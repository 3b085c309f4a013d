"""For every test: shared data, a tiny network, its ONNX files, executed notebooks; outputs elsewhere."""

import copy
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from filelock import FileLock

from gpenlib.architecture import Gpen
from gpenlib.architecture.checkpoints import TINY, random_network
from gpenlib.export import export_onnx, export_training_form
from gpenlib.files import repository_root
from gpenlib.settings import OUTPUTS_VARIABLE, read_yaml
from tests.traces import VARIABLE, keep_traces

SLOW = pytest.mark.skipif(os.environ.get("GPEN_SLOW_TESTS") != "1", reason="slow: set GPEN_SLOW_TESTS=1")
SMOKE = read_yaml(repository_root() / "params/smoke.yaml")
# Natural values that once stopped a notebook: text (papermill -r), a list (-y), a number for a list
NATURAL = {
    "02_data": {"dataset_size": "3", "save_packs": "True"},
    "03_compile": {
        "dtypes": ["fp32", "int8", "int8_bf16"],
        "perf_batch": 4,
        "perf_instances": 1,
        "perf_threads": 1,
    },
    "05_errors": {"dtypes": "int8,bf16,fp16"},
}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with what takes longest, the notebooks, and end with the browser, which looks at them."""
    order = {"test_notebooks": 0, "test_cluster": 1, "test_going_on": 2, "test_browser": 4}
    items.sort(key=lambda item: order.get(item.path.stem, 3))


torch.set_num_threads(2)


@pytest.fixture(scope="session")
def shared() -> Path:
    """Folder of the shared data: the variable GPEN_SHARED, relative to the repository, or ../shared.

    Without it a test is skipped; with GPEN_SHARED_REQUIRED=1 it fails instead.
    """
    folder = (repository_root() / (os.environ.get("GPEN_SHARED") or "../shared")).resolve()
    if folder.is_dir():
        return folder
    reason = f"no shared data at {folder} (set GPEN_SHARED)"
    if os.environ.get("GPEN_SHARED_REQUIRED") == "1":
        pytest.fail(f"{reason}; GPEN_SHARED_REQUIRED=1 asks for it")
    pytest.skip(reason)


@pytest.fixture(scope="session")
def everywhere(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder that all parallel workers of this session share."""
    folder = tmp_path_factory.getbasetemp()
    return folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder


@pytest.fixture(scope="session")
def tiny_model() -> Gpen:
    """Seeded network of 64 px in eval mode whose output follows its input. Copy it before changing it."""
    model = random_network(TINY)
    generator = torch.Generator().manual_seed(0)
    with torch.inference_mode():
        first, second = model(torch.rand(2, 3, 64, 64, generator=generator) * 2 - 1)
    assert torch.isfinite(first).all() and first.std() > 0.01, "the tiny network is degenerate"
    assert (first - second).abs().mean() > 1e-3, "the tiny network ignores its input"
    return model


@pytest.fixture(scope="session")
def float_graph(tiny_model: Gpen, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Float ONNX graph of the tiny network."""
    return export_onnx(tiny_model, tmp_path_factory.mktemp("float") / "model.onnx")


@pytest.fixture(scope="session")
def tiny_training_onnx(tiny_model: Gpen, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Path of the exported training form."""
    folder = tmp_path_factory.mktemp("tiny_training")
    return export_training_form(copy.deepcopy(tiny_model), folder / "training.onnx")


@pytest.fixture(scope="session", autouse=True)
def _no_runs_in_the_repository(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Send every run of the session, fixtures of wider scope included, to a temporary folder."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GPEN_OUTPUTS", str(tmp_path_factory.mktemp("outputs")))
        yield


@pytest.fixture(scope="session", autouse=True)
def _traced_once(everywhere: Path) -> Iterator[None]:
    """Trace each graph once, whichever process of the session asks first."""
    traces = everywhere / "traces"
    traces.mkdir(exist_ok=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(VARIABLE, str(traces))
        keep_traces()
        yield


@pytest.fixture(scope="session", autouse=True)
def _ctrl_c_counts() -> None:
    """Let SIGINT interrupt, here and in child processes: what a shell runs in the background ignores it."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture
def outputs_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Folder of all runs, fresh for this test."""
    monkeypatch.setenv("GPEN_OUTPUTS", str(tmp_path / "outputs"))
    return tmp_path / "outputs"


@pytest.fixture(scope="session")
def executed_notebook(everywhere: Path) -> Iterator[Callable[[str], Path]]:
    """Function stem -> executed copy in ``RUN/notebooks`` of one run with params/smoke.yaml.

    Each is executed once, whichever of the parallel workers asks first.
    """
    from gpenlib.notebooks import declared_parameters, execute, find_notebooks

    root = everywhere / "smoke"
    folder = root / SMOKE["run"] / "notebooks"
    sources = {path.stem: path for path in find_notebooks(repository_root() / "notebooks")}

    def executed(stem: str) -> Path:
        copy = folder / f"{stem}.ipynb"
        with FileLock(root / "lock"), pytest.MonkeyPatch.context() as patch:
            if not copy.exists():
                folder.mkdir(parents=True, exist_ok=True)
                patch.setenv(OUTPUTS_VARIABLE, str(root))
                declared = declared_parameters(sources[stem])
                values = {name: value for name, value in SMOKE.items() if name in declared}
                execute(sources[stem], copy, values | NATURAL.get(stem, {}))
        return copy

    root.mkdir(exist_ok=True)
    yield executed
