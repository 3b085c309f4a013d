"""Units of work on a cluster: the same bytes as one process, whatever stops; sums of any number of scores."""

import io
import json
import os
import pickle
import random
import shutil
import signal
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
import tracemalloc
import zipfile
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import Mock

import numpy as np
import pytest

from gpenlib.architecture.checkpoints import TINY, random_network
from gpenlib.cluster import engine, sources
from gpenlib.cluster.engine import Attempt, Cluster, ClusterError, Packed, Steward, Worker, run_parts, shares
from gpenlib.cluster.photos import main as photos_main
from gpenlib.cluster.score import ScoreJob, even_colour
from gpenlib.cluster.score import main as score_main
from gpenlib.cluster.sources import Source, Store
from gpenlib.cluster.sums import Blocks, Moments, merge_parts, tables_of_parts
from gpenlib.compile import compile_model
from gpenlib.data.faces import embedded_faces, natural_key, whole_photographs
from gpenlib.data.pairs import distinct_stems
from gpenlib.errors.compare import mean_loss
from gpenlib.files import fingerprint
from gpenlib.images import write_image
from gpenlib.infer import open_runtime
from gpenlib.infer.runtime import random_batch
from gpenlib.infer.scoring import MEANS, summarise
from gpenlib.run import Run
from gpenlib.settings import BACKENDS, PhotoSettings, SettingsError
from tests.conftest import SLOW

FACES, UNIT, BATCH = 22, 4, 2
DAMAGED, GREY = "face_20.png", "face_21.png"


@pytest.fixture(scope="module")
def ray():
    """A cluster of this machine with two workers; without Ray a test is skipped, or fails where CI asks."""
    required = os.environ.get("GPEN_RAY_REQUIRED") == "1"
    ray = __import__("ray") if required else pytest.importorskip("ray", reason="Ray is not installed")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engine, "OBJECT_STORE", 256 << 20)
        patch.delenv("RAY_ADDRESS", raising=False)
        engine.connect(2)
        yield ray
        ray.shutdown()


@pytest.fixture(scope="module")
def artefact(float_graph, tmp_path_factory):
    out = tmp_path_factory.mktemp("artefact") / "tiny"
    config = {"backend": {"dtype": "fp32", "type": "openvino"}}
    return compile_model(random_network(TINY), config, out, float_graph)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A folder of faces, all of them sound."""
    folder, faces = tmp_path_factory.mktemp("whole"), embedded_faces(FACES - 2, 64)
    for index in range(len(faces)):
        write_image(folder / f"face_{index}.png", faces.read(index))
    return folder


@pytest.fixture(scope="module")
def faces(whole, tmp_path_factory):
    """The same, and one that is damaged, and one without colour."""
    folder = Path(shutil.copytree(whole, tmp_path_factory.mktemp("faces") / "faces"))
    (folder / DAMAGED).write_bytes((whole / "face_0.png").read_bytes()[:500])
    write_image(folder / GREY, np.full((64, 64, 3), 99, np.uint8))
    return folder


def arguments(source, artefact, out, *more):
    words = [str(source), "--artefact", str(artefact), "--out", str(out), "--unit", str(UNIT)]
    return [*words, "--task", "color", "--batch-size", str(BATCH), *more]


@pytest.fixture(scope="module")
def local(faces, artefact, tmp_path_factory):
    """What one process makes of the faces."""
    out = tmp_path_factory.mktemp("local") / "out"
    assert score_main(arguments(faces, artefact, out)) == 0
    return out


def content(folder):
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()
    }


def rows_in(out):
    parts = sorted(str(path) for path in Path(out).glob("parts/*.parquet"))
    return {
        row["name"]: row
        for table in tables_of_parts(Store(str(out)), parts, ["name", "failure", "place", *MEANS])
        for row in table.to_pylist()
    }


# One process


def test_parts_hold_what_notebook_04_makes(local, whole, outputs_root):
    values = {"weights": "tiny-random", "task": "color", "data_dir": str(whole), "dataset_size": FACES - 2}
    run = Run.of({**values, "batch_size": BATCH, "backend": "openvino", "run": "one"})
    results, rows = run.infer("fp32")["metrics"], rows_in(local)
    for row in results["rows"]:
        assert {name: row[name] for name in MEANS} == {
            name: rows[f"{row['name']}.png"][name] for name in MEANS
        }
    images = Path(run.infer("fp32")["folder"]) / "images"
    assert content(images) == content(local / "images")
    summary = json.loads((local / "summary.json").read_text())
    assert summary["images"] == FACES - 2
    assert {f"{n}_mean": f["mean"] for n, f in summary["figures"].items()}.items() <= summarise(
        results["rows"]
    ).items()


def test_pictures_that_fail_are_rows_with_a_reason(local):
    failures = [json.loads(line) for line in (local / "failures.jsonl").read_text().splitlines()]
    assert [row["name"] for row in failures] == [DAMAGED, GREY]
    assert "damaged" in failures[0]["failure"] and "grey" in failures[1]["failure"]
    assert json.loads((local / "summary.json").read_text())["failures"] == 2


def test_a_job_goes_on_and_does_only_what_is_missing(local, faces, artefact, tmp_path, capsys):
    out = Path(shutil.copytree(local, tmp_path / "out"))
    first, second, *_ = sorted((out / "parts").iterdir())
    first.unlink()
    second.write_bytes(second.read_bytes()[:-9])  # cut off
    (out / "parts" / f"{0:08d}-of-others.parquet").write_bytes(b"")
    assert score_main(arguments(faces, artefact, out)) == 0
    assert f"{FACES} pictures, {2 * UNIT} of them made now; 2 failures" in capsys.readouterr().out
    assert content(out) == content(local)


def test_results_of_another_job_are_refused(local, faces, artefact, tmp_path, capsys):
    assert score_main(arguments(faces, artefact, local, "--seed", "1")) == 1
    assert "job.json tells of another job" in capsys.readouterr().err


def test_changed_pictures_are_done_anew(local, faces, artefact, tmp_path):
    source, out = Path(shutil.copytree(faces, tmp_path / "faces")), tmp_path / "out"
    assert score_main(arguments(source, artefact, out)) == 0
    before = {path.name for path in (out / "parts").iterdir()}
    write_image(source / "face_0.png", embedded_faces(9, 64).read(8))
    assert score_main(arguments(source, artefact, out)) == 0
    after = {path.name for path in (out / "parts").iterdir()}
    assert len(before - after) == len(after - before) == 1 and len(after) == len(before)


def test_memory_that_is_short_makes_batches_smaller():
    sizes = []

    def work(size):
        sizes.append(size)
        if size > 2:
            raise RuntimeError("bad allocation: out of memory")
        return size

    assert engine.in_batches(work, 8) == 2 and sizes == [8, 4, 2]
    with pytest.raises(MemoryError):
        engine.in_batches(lambda size: (_ for _ in ()).throw(MemoryError()), 4)
    with pytest.raises(ValueError, match="else"):
        engine.in_batches(lambda size: (_ for _ in ()).throw(ValueError("else")), 4)


def test_a_picture_over_which_workers_die_is_found():
    steward, told = Steward(), []
    assert steward.open(lambda: [range(3, 7)]) == 1

    def work(items, batch):
        told.append((before, batch))
        if 5 in items:
            raise InterruptedError
        return items

    for _ in range(8):  # workers that die over picture 5
        unit, before, blamed = steward.begin(0)
        attempt = Attempt(before, blamed, lambda item: steward.tell(0, item))
        with suppress(InterruptedError):
            made = [*attempt.work({n: n for n in unit}, dict.fromkeys(blamed, "dead"), 4, work)]
            break
    assert blamed == {5} and made == [3, 4, "dead", 6]
    assert told[:4] == [(0, 4), (1, 4), (2, 2), (2, 2)]
    assert told[4:] == [*[(n, 1) for n in (3, 4) for _ in range(3)], *[(5, 1)] * 3]


@pytest.mark.parametrize("backend", BACKENDS)
def test_an_artefact_that_travelled_leaves_no_copy_behind(backend, float_graph, tmp_path, monkeypatch):
    config = {"backend": {"dtype": "fp32", "type": backend}}
    folder = compile_model(random_network(TINY), config, tmp_path / "tiny", float_graph)
    batch = random_batch(3, 64)
    packed, expected = Packed.of(folder), open_runtime(folder, 1)(batch)
    shutil.rmtree(folder)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    assert (pickle.loads(pickle.dumps(packed)).open(1, "cpu")(batch) == expected).all()
    assert [*tmp_path.glob("gpen-artefact-*")] == []


def test_workers_are_as_many_as_fit():
    assert shares({"CPU": 8}, Cluster(), 100) == (1, 8)
    assert shares({"CPU": 8}, Cluster(threads=3), 100) == (3, 2)
    assert shares({"CPU": 8}, Cluster(), 3) == (1, 3)
    assert shares({"CPU": 8, "GPU": 2}, Cluster(gpus=0.5), 100) == (1, 4)
    for wrong in (Cluster(workers=9), Cluster(threads=9), Cluster(gpus=1.0)):
        with pytest.raises(engine.ClusterError, match="8 processors"):
            shares({"CPU": 8}, wrong, 100)


# Sources and forms


def source_of(*addresses, size=UNIT, limit=None):
    return Source([str(address) for address in addresses], size, limit)


def items_of(source):
    return [item for n in range(len(source)) for some in source[n].lists(3) for item in some]


def test_names_have_the_order_and_stems_of_one_process(tmp_path):
    draw = random.Random(0)
    words = ["a", "A", "b", "1", "2", "10", "010", "a_2", "é", "x.y", "_", "٣"]
    names = {
        "".join(draw.choices(words, k=draw.randint(1, 4))) + draw.choice([".png", ".jpg"]) for _ in range(300)
    }
    for name in names:
        (tmp_path / name).touch()
    (tmp_path / "notes.txt").touch()
    (tmp_path / ".hidden.png").touch()
    items, ordered = items_of(source_of(tmp_path)), sorted(names, key=natural_key)
    assert [item.name for item in items] == ordered
    assert [item.stem for item in items] == distinct_stems(ordered)
    assert [item.place for item in items] == list(range(len(names)))
    assert [item.name for item in items_of(source_of(tmp_path, limit=7))] == ordered[:7]


def test_the_names_of_a_large_folder_never_stand_in_memory(tmp_path, monkeypatch):
    count, stat = 50_000, tmp_path.stat()

    class Listing:
        def __enter__(self):
            return self

        def __exit__(self, *_):
            pass

        def __iter__(self):
            for number in range(count):
                name = f"a_face_of_many_with_a_long_name_{number}.png"
                entry = SimpleNamespace(name=name, path=f"/none/{name}", is_dir=lambda: False)
                entry.stat = lambda: stat
                yield entry

    monkeypatch.setattr(sources.os, "scandir", lambda path: Listing())
    tracemalloc.start()
    source = Source([str(tmp_path)], 64)
    last = source[len(source) - 1]
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    monkeypatch.undo()
    assert source.files == count and last.items[-1].place == count - 1
    assert peak < 6 << 20  # names, stems and paths of all would take three times as much


def as_parquet(folder, path, kind):
    import pyarrow as pa
    from pyarrow import parquet

    files = sorted(folder.iterdir(), key=lambda file: natural_key(file.name))
    columns = {
        "bytes": {"name": [f.name for f in files], "image": [f.read_bytes() for f in files]},
        "paths": {"path": [str(f) for f in files]},
        "addresses": {"image": [f"file://{f}" for f in files]},
        "hugging": {"image": [{"bytes": f.read_bytes(), "path": f.name} for f in files]},
    }
    parquet.write_table(pa.table(columns[kind]), path, row_group_size=9)


def as_tar(folder, path):
    with tarfile.open(path, "w") as tar:
        for file in sorted(folder.iterdir()):
            tar.add(file, file.name)
            note = tarfile.TarInfo(f"{file.stem}.json")
            note.size = 2
            tar.addfile(note, io.BytesIO(b"{}"))


@pytest.mark.parametrize("kind", ["bytes", "paths", "addresses", "hugging", "tar", "address", "zip"])
def test_faces_of_any_source_have_the_same_scores(kind, local, faces, artefact, tmp_path):
    pytest.importorskip("pyarrow")
    if kind == "tar":
        as_tar(faces, address := tmp_path / "shard.tar")
    elif kind == "address":
        address = f"file://{faces}"
    elif kind == "zip":
        with zipfile.ZipFile(tmp_path / "faces.zip", "w") as archive:
            for file in faces.iterdir():
                archive.write(file, f"inside/{file.name}")
        address = f"zip://inside::file://{tmp_path}/faces.zip"
    else:
        as_parquet(faces, address := tmp_path / "faces.parquet", kind)
    assert score_main(arguments(address, artefact, tmp_path / "out")) == 0
    rows, expected = rows_in(tmp_path / "out"), rows_in(local)
    suffix = ".png" if kind == "tar" else ""
    rows = {f"{name}{suffix}": row for name, row in rows.items()}
    assert rows.keys() == expected.keys()
    for name, row in rows.items():
        assert (row["failure"] is None) == (expected[name]["failure"] is None)
        assert [row[figure] for figure in MEANS] == [expected[name][figure] for figure in MEANS], name
    made = sorted(data for path, data in content(tmp_path / "out").items() if path.endswith(".png"))
    assert made == sorted(content(local / "images").values())


def test_results_go_into_parquet_or_shards(local, faces, artefact, tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet")
    images = {path.removesuffix(".png"): data for path, data in content(local / "images").items()}
    for form in ("parquet", "shards"):
        assert score_main(arguments(faces, artefact, f"file://{tmp_path}/{form}", "--write", form)) == 0
        assert not (tmp_path / form / "images").exists()
        assert rows_in(tmp_path / form) == rows_in(local)
    tables = [parquet.read_table(path).to_pylist() for path in (tmp_path / "parquet/parts").iterdir()]
    files = [file for table in tables for row in table for file in row["files"]]
    assert {Path(file["path"]).stem: file["data"] for file in files} == images
    found = {}
    for path in (tmp_path / "shards/shards").iterdir():
        with tarfile.open(path) as tar:
            found |= {member.name: tar.extractfile(member).read() for member in tar}
    assert {
        name.removesuffix(".png"): data for name, data in found.items() if name.endswith(".png")
    } == images
    assert json.loads(found["face_3.json"])["name"] == "face_3.png"
    items = items_of(source_of(tmp_path / "shards/shards"))  # what was written can be read
    assert {item.name: item.data for item in items} == images


def test_what_is_no_source_is_told(tmp_path, artefact, capsys):
    (tmp_path / "notes.txt").touch()
    (tmp_path / "other.parquet").write_bytes(b"none")
    cases = {
        tmp_path / "none": "no such file or folder",
        tmp_path / "notes.txt": "holds no picture and no shard",
        tmp_path / "other.parquet": "no Parquet file",
        "nowhere://x": "nowhere://x: cannot be opened",
    }
    for address, told in cases.items():
        assert score_main(arguments(address, artefact, tmp_path / "out")) == 1
        assert told in capsys.readouterr().err
    (tmp_path / "cut.tar").write_bytes(b"none")
    assert score_main(arguments(tmp_path / "cut.tar", artefact, tmp_path / "shard")) == 0
    assert "no shard" in (tmp_path / "shard/failures.jsonl").read_text()
    (tmp_path / "links").mkdir()
    (tmp_path / "links/gone.png").symlink_to(tmp_path / "none.png")
    assert score_main(arguments(tmp_path / "links", artefact, tmp_path / "link")) == 0
    assert "gone.png" in (tmp_path / "link/failures.jsonl").read_text()


@pytest.mark.parametrize("words", ["--batch-size 0", "--calib-size 0", "--unit 0"])
def test_counts_below_one_are_refused(words, faces, artefact, tmp_path, capsys):
    assert score_main(arguments(faces, artefact, tmp_path / "out", *words.split())) == 1
    assert f"error: {words}: must be at least 1" in capsys.readouterr().err


@pytest.mark.parametrize(
    "words", ["--strength 2", "--reach 5", "--faces some", "--task sepia", "--upscaler larger.onnx"]
)
def test_photographs_are_not_begun_with_options_that_cannot_be(words, faces, artefact, tmp_path, capsys):
    out = tmp_path / "out"
    assert photos_main([str(faces), "--artefact", str(artefact), "--out", str(out), *words.split()]) == 1
    assert words.split()[0].strip("-") in capsys.readouterr().err and not out.exists()


# Sums


def test_sums_of_parts_are_those_of_the_whole():
    values = np.random.default_rng(0).normal(25, 4, 3001)
    values[:4] = 0.0, -1e-12, 1e9, 0.1
    moments, blocks, order = Moments(), Blocks(len(values), 1), np.split(values, [7, 7, 1200, 2999])
    for part in order:
        moments.add(part)
        blocks.add(part[None]) if len(part) else None
    assert moments.mean == statistics.fmean(values)
    assert moments.deviation == pytest.approx(values.std(ddof=1), rel=1e-12)
    assert (moments.count, moments.least, moments.most) == (3001, values.min(), values.max())
    assert blocks.sums.sum() == pytest.approx(values.sum()) and blocks.counts.sum() == 3001
    backwards = Moments()
    for part in order[::-1]:
        backwards.add(part)
    assert backwards.mean == moments.mean


def test_intervals_from_blocks_are_those_of_the_faces():
    values = np.random.default_rng(1).gamma(2, 3, 5000)
    blocks = Blocks(len(values), 1)
    for part in np.split(values, 10):
        blocks.add(part[None])
    estimate, (low, high) = mean_loss(values), blocks.intervals()[0]
    width = estimate.high - estimate.low
    assert abs(low - estimate.low) < 0.05 * width and abs(high - estimate.high) < 0.05 * width


MILLION = """
import sys
from pathlib import Path
import numpy as np, pyarrow as pa
from pyarrow import parquet
from gpenlib.cluster.sources import Store
from gpenlib.cluster.sums import merge_parts
from gpenlib.infer.performance import memory_mib
from gpenlib.infer.scoring import MEANS
out, count = Path(sys.argv[1]), 50_000
(out / "parts").mkdir(parents=True)
rng = np.random.default_rng(0)
for number in range(20):
    table = {name: pa.array(["a"] * count, pa.string()) for name in ("name", "source")}
    table |= {"failure": pa.nulls(count, pa.string())} | {name: rng.normal(20, 3, count) for name in MEANS}
    path = out / f"parts/{number}.parquet"
    parquet.write_table(pa.table(table), path, compression="none", use_dictionary=False)
parts = [str(path) for path in sorted((out / "parts").iterdir())]
summary = merge_parts(Store(str(out)), parts, {"sources": "a million"})
peak = memory_mib("VmHWM")  # ru_maxrss begins with that of the process which started this one
print(summary["images"], summary["figures"]["psnr"]["mean"], peak)
"""


def test_a_million_rows_open_within_two_gibibytes(tmp_path):
    pytest.importorskip("pyarrow")
    done = subprocess.run(
        [sys.executable, "-c", MILLION, str(tmp_path)], capture_output=True, text=True, check=True
    )
    images, mean, mebibytes = map(float, done.stdout.split())
    assert images == 1_000_000 and mean == pytest.approx(20, abs=0.02) and mebibytes < 2048
    page = (tmp_path / "report.html").read_text()
    assert "Scores of 1000000 faces" in page and "data:image/png;base64" in page


# Without Ray


def test_a_cluster_that_is_slow_to_start_gets_a_second_chance(monkeypatch):
    ray = pytest.importorskip("ray", reason="Ray is not installed")
    started, faults = [], [Exception("The current node timed out during startup.")]

    def init(address, **options):
        started.append(address)
        if faults:
            raise faults.pop()

    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "shutdown", lambda: None)
    monkeypatch.setattr(ray, "init", init)
    engine.connect()
    assert started == ["local"] * 2
    faults += [Exception("timed out")] * 2
    with pytest.raises(ClusterError, match=r"'local'.*timed out"):
        engine.connect()
    monkeypatch.setenv("RAY_ADDRESS", "auto")
    faults.append(ConnectionError("nobody there"))
    with pytest.raises(ClusterError, match=r"RAY_ADDRESS='auto'.*nobody there"):
        engine.connect()
    assert started[2:] == ["local", "local", "auto"]


def test_without_ray_one_sentence_says_what_to_install(faces, artefact, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "ray", None)
    assert score_main(arguments(faces, artefact, tmp_path / "out", "--engine", "ray")) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "pip install 'ray[data]'" in error


def test_what_takes_seconds_to_import_is_imported_where_it_is_asked_for():
    names = {"ray", "lightning_fabric", "onnxscript", "sympy", "torch._dynamo", "openvino"}
    code = f"import gpenlib.run, gpenlib.cluster.photos, sys; print({names} & sys.modules.keys())"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.strip() == "set()"


def test_frames_of_a_film_stay_in_one_process():
    with pytest.raises(SettingsError, match="frames depend on those before"):
        PhotoSettings.parse({"engine": "ray", "frames": True})


# On a cluster of two workers


@dataclass(frozen=True)
class Dying(ScoreJob):
    """Workers die: once over the second unit, and over the third one as long as batches are larger than 1."""

    def __call__(self, threads):
        work = super().__call__(threads)

        def dying(unit, attempt):
            if (unit.number == 1 and not attempt.number) or (unit.number == 2 and attempt.number < 2):
                os.kill(os.getpid(), signal.SIGKILL)
            return work(unit, attempt)

        return dying


def test_the_cluster_makes_the_same_bytes_though_workers_die(ray, local, faces, artefact, tmp_path):
    import ray.cloudpickle

    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    settings = json.loads((local / "job.json").read_text())
    colour = even_colour("", 32, 0, "color", (64, 64))
    packed = Packed.of(artefact)
    given = {
        "device": "cpu",
        "batch_size": BATCH,
        "seed": 0,
        "most_megapixels": 200.0,
        "limit": None,
        "write": "files",
    }
    given |= {
        "sources": [str(faces)],
        "artefact": packed.digest,
        "task": "color",
        "colour": colour,
        "unit": UNIT,
    }
    assert json.loads(json.dumps(given)) == settings
    out = tmp_path / "out"
    job = Dying(str(out), UNIT, "files", fingerprint(given), BATCH, packed, "cpu", "color", 0, colour, 200.0)
    parts = run_parts(job, [str(faces)], Cluster(), given)
    merge_parts(Store(str(out)), parts, {})
    made, expected = content(out), content(local)
    third = next(name for name in expected if name.startswith(f"parts/{2:08d}"))
    smaller = {third, "summary.json", "report.html"}  # other batches have other last bits
    assert made.keys() == expected.keys()
    assert [name for name in made if made[name] != expected[name] and name not in smaller] == []
    rows, others = rows_in(out), rows_in(local)
    assert all(
        rows[name]["psnr"] == pytest.approx(others[name]["psnr"], abs=1e-3)
        for name in rows
        if name not in (DAMAGED, GREY)
    )


@SLOW
def test_a_job_whose_driver_was_killed_goes_on(ray, local, faces, artefact, tmp_path):
    out, address = tmp_path / "out", ray.get_runtime_context().gcs_address
    words = ["-m", "gpenlib", "score", *arguments(faces, artefact, out, "--engine", "ray", "--workers", "1")]
    driver = subprocess.Popen([sys.executable, *words], env={**os.environ, "RAY_ADDRESS": address})
    deadline = time.monotonic() + 300
    while not [*out.glob("parts/*.parquet")] and time.monotonic() < deadline:
        time.sleep(0.02)
    driver.kill()
    driver.wait()
    earlier = {path: path.stat().st_mtime_ns for path in out.glob("parts/*.parquet")}
    assert len(earlier) > 0
    assert not (out / "summary.json").exists()
    assert score_main(arguments(faces, artefact, out, "--engine", "ray")) == 0
    assert {path: path.stat().st_mtime_ns for path in earlier} == earlier
    assert content(out) == content(local)


def without_times(value):
    if isinstance(value, dict):
        kept = {k: v for k, v in value.items() if k not in ("ms", "ms_per_image") and not k.endswith("_s")}
        return {key: without_times(entry) for key, entry in kept.items()}
    return [without_times(entry) for entry in value] if isinstance(value, list) else value


@SLOW
def test_notebook_04_has_the_same_results(ray, whole, outputs_root):
    values = {"weights": "tiny-random", "task": "restore", "data_dir": str(whole), "dataset_size": 20}
    values |= {"batch_size": 2, "save_npz": True, "backend": "openvino", "calib_size": 2}
    made = [Run.of({**values, "run": engine, "engine": engine}).infer("fp32") for engine in ("local", "ray")]
    one, other = (without_times(manifest["metrics"]) for manifest in made)
    assert one == other
    folders = [Path(manifest["folder"]) for manifest in made]
    assert content(folders[0] / "images") == content(folders[1] / "images")
    assert content(folders[0] / "npz") == content(folders[1] / "npz")
    assert made[0]["settings"] == made[1]["settings"]  # the engine decides nothing


@SLOW
def test_photographs_are_the_same(ray, artefact, tmp_path, outputs_root):
    folder = tmp_path / "photos"
    for number, (name, photograph) in enumerate(whole_photographs().items()):
        write_image(folder / f"{name}.jpg", photograph[:400, 50:400])
        write_image(folder / f"{name}.png", photograph[: 300 + number, 50:350])
    (folder / "none.jpg").write_bytes(b"no picture")
    values = {
        "weights": "tiny-random",
        "photos": str(folder),
        "task": "restore",
        "backend": "openvino",
        "dtype": "fp32",
    }
    made = [
        Run.of({**values, "run": engine, "engine": engine}, PhotoSettings).photos()
        for engine in ("local", "ray")
    ]
    assert without_times(made[0]["metrics"]) == without_times(made[1]["metrics"])
    one, other = (Path(manifest["folder"]) for manifest in made)
    assert content(one / "fp32") == content(other / "fp32") and content(one / "faces") == content(
        other / "faces"
    )
    network = Path(one).parent / "03_compile/fp32/artefact"
    words = [str(folder), "--artefact", str(network), "--task", "restore", "--unit", "2", "--out"]
    assert photos_main([*words, str(tmp_path / "local"), "--crops"]) == 0
    assert content(tmp_path / "local/fp32") == content(one / "fp32")
    assert content(tmp_path / "local/faces") == content(one / "faces")
    assert photos_main([*words, str(tmp_path / "bare")]) == 0
    assert content(tmp_path / "bare/fp32") == content(one / "fp32")
    assert not (tmp_path / "bare/faces").exists()  # unless they are asked for
    (failure,) = (tmp_path / "local/failures.jsonl").read_text().splitlines()
    assert json.loads(failure)["name"] == "none.jpg"
    assert photos_main([*words, str(tmp_path / "ray"), "--crops", "--engine", "ray"]) == 0
    assert content(tmp_path / "ray") == content(tmp_path / "local")


def test_an_error_of_a_worker_comes_to_the_driver_as_it_is(monkeypatch):
    ray, told = pytest.importorskip("ray"), ValueError("this network cannot be opened")
    monkeypatch.setattr(ray, "get", lambda value: value)
    steward = SimpleNamespace(job=SimpleNamespace(remote=lambda: Mock(side_effect=told)))
    (done,) = Worker(1, steward)({"number": [0]})["done"]
    result, fault = pickle.loads(done)
    assert result is None and isinstance(fault, ValueError) and str(fault) == str(told)
    assert isinstance(engine.sendable(RuntimeError(lambda: None)), engine.ClusterError)
