"""Work on units of pictures: in this process, or on the workers of a Ray cluster, each with one runtime.

The work of a unit is the same function either way, which is what makes the results equal. What a worker
needs travels with its job; a unit whose worker died is worked on again, in smaller batches, and a picture
over which several died is named as a failure.
"""

from __future__ import annotations

import argparse
import io
import json
import logging
import os
import pickle
import tarfile
import tempfile
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any, ClassVar, TypeVar

import cv2
import torch

from gpenlib.cluster.sources import Item, Source, Store, Unit
from gpenlib.data.faces import DataError
from gpenlib.files import StorageError, fingerprint, resolve_path, sha256
from gpenlib.images import MOST_MP, in_short
from gpenlib.infer.artefact import MANIFEST_FILE, Artefact, read_artefact
from gpenlib.infer.runtime import Runtime, open_runtime
from gpenlib.infer.scoring import workers
from gpenlib.jobs import Journal, ahead, processors, progress, silent
from gpenlib.settings import DEVICES, ENGINES

log = logging.getLogger("gpenlib.cluster")
NO_CLUSTER = "RAY_ADDRESS={!r}: no cluster answers; start one there (ray start), or take engine='local':"
RAY_MISSING = "engine='ray' needs Ray: pip install 'ray[data]', on every machine of the cluster"
OBJECT_STORE = 512 << 20  # bytes of memory for what lies between processes of a cluster that is started here
BLOCKS = 1000  # into which units are handed out; each is worked on by one worker
DEATHS = 2  # workers that a picture may take with it
IN_FLIGHT = 2  # blocks that a worker is given ahead
JOB, PARTS = "job.json", "parts"
FORMS = ("files", "parquet", "shards")
DIED = "several workers died over it, perhaps for want of memory"
Files = dict[str, bytes]  # by path below the results
Made = Iterable[tuple[Any, Files]]  # what became of every item, and the files that were made of it
Make = Callable[[list[Any], int], Made]  # of some items, in batches of a size
T = TypeVar("T")
R = TypeVar("R")


class ClusterError(RuntimeError):
    """Work that could not be done on a cluster; the message says what to do."""


@dataclass(frozen=True)
class Attempt:
    """How often a unit was begun before, and where its workers died."""

    number: int = 0
    blamed: frozenset[int] = frozenset()
    tell: Callable[[int], object] = lambda item: None  # on what a worker is; known when it dies

    def work(
        self,
        items: Mapping[int, T],
        known: Mapping[int, R],
        batch_size: int,
        make: Callable[[list[T], int], Iterable[R]],
    ) -> Iterator[R]:
        """Yield what is made of items, by number, in their order; of some it is ``known``."""
        numbers, doubtful = [*items], self.number >= DEATHS  # one may be a machine's
        if doubtful:  # batches decide last bits: smaller ones are the last resort
            batch_size = max(1, batch_size >> (self.number - DEATHS + 1))
        size = batch_size if doubtful else max(1, len(numbers))
        for start in range(0, len(numbers), size):
            some = numbers[start : start + size]
            if doubtful:
                self.tell(some[0] if len(some) == 1 else -1)
            left = [items[number] for number in some if number not in known]
            made = iter(make(left, batch_size) if left else ())
            for number in some:
                yield known[number] if number in known else next(made)


Open = Callable[[int | None], Callable[[Any, Attempt], Any]]  # by threads: what works on a unit


@dataclass(frozen=True)
class Cluster:
    """Where work is done, and by how many."""

    engine: str = "ray"
    workers: int | None = None  # default: as many as the processors take
    threads: int | None = None  # of each worker's runtime; default: 1 on a cluster
    gpus: float | None = None  # of each worker; default: 1 where the device is not the CPU


class Steward:
    """Knows the units, and which of them were begun; outlives the workers."""

    def __init__(self) -> None:
        self._begun: Counter[int] = Counter()
        self._last: dict[int, int] = {}
        self._deaths: Counter[tuple[int, int]] = Counter()

    def open(self, make: Callable[[], Any], job: Open | None = None) -> int:
        """Find out what is to be done, keep the job for the workers; return how many units that are."""
        self._units, self._job = make(), job
        return len(self._units)

    def job(self) -> Open | None:
        """Return what is to be done with every unit."""
        return self._job

    def begin(self, number: int) -> tuple[Any, int, frozenset[int]]:
        """Return a unit, how often it was begun before, and the items over which workers died."""
        before = self._begun[number]
        self._begun[number] += 1
        item = self._last.pop(number, -1)
        if item >= 0:
            self._deaths[number, item] += 1
        blamed = {i for (n, i), deaths in self._deaths.items() if n == number and deaths >= DEATHS}
        return self._units[number], before, frozenset(blamed)

    def tell(self, number: int, item: int) -> None:
        """Note on which item the worker of a unit is, or on several (-1)."""
        self._last[number] = item

    def end(self, number: int) -> None:
        """Forget what was noted of a unit that is done."""
        self._last.pop(number, None)
        del self._begun[number]


class Worker:
    """An actor of Ray Data: opens a job once, and works on the units that it is given by number."""

    def __init__(self, threads: int, steward: Any) -> None:
        self._threads, self._steward = threads, steward
        self._work: Callable[[Any, Attempt], Any] | None = None

    def __call__(self, batch: Mapping[str, Any]) -> dict[str, list[bytes]]:
        """Return what became of units, pickled: their results, or the error that stops everything."""
        return {"done": [pickle.dumps(self._one(int(number))) for number in batch["number"]]}

    def _one(self, number: int) -> tuple[Any, Exception | None]:
        import ray

        try:
            if self._work is None:
                cv2.setNumThreads(self._threads)
                torch.set_num_threads(self._threads)
                self._work = ray.get(self._steward.job.remote())(self._threads)
            unit, before, blamed = ray.get(self._steward.begin.remote(number))
            tell = self._steward.tell
            attempt = Attempt(before, blamed, lambda item: ray.get(tell.remote(number, item)))
            with silent():
                result = self._work(unit, attempt)
            self._steward.end.remote(number)
        except Exception as error:  # told as it is: what a cluster makes of it is hard to read
            return None, sendable(error)
        return result, None


def sendable(error: Exception) -> Exception:
    """Return an error that another process can read."""
    with suppress(Exception):
        pickle.loads(pickle.dumps(error))
        return error
    return ClusterError(f"{type(error).__name__}: {in_short(error)}")


def spread(job: Open, make: Callable[[], Any], cluster: Cluster, ordered: bool = False) -> Iterator[Any]:
    """Yield how many units ``make`` lists, then the result of each: as they are done, or in order.

    ``job`` is pickled, and opened once in every worker.
    """
    if cluster.engine == "local":
        work, units = job(cluster.threads), make()
        yield len(units)
        for number in range(len(units)):
            with silent():
                result = work(units[number], Attempt())
            yield result
        return
    yield from _spread_on_ray(job, make, cluster, ordered)


def _spread_on_ray(job: Open, make: Callable[[], Any], cluster: Cluster, ordered: bool) -> Iterator[Any]:
    ray = connect()
    import pyarrow as pa
    from ray.data import ActorPoolStrategy, DataContext, from_arrow

    steward: Any = ray.remote(num_cpus=0)(Steward).remote()
    try:
        try:
            count = ray.get(steward.open.remote(make, job))
        except ray.exceptions.RayTaskError as error:
            raise error.cause from None
        yield count
        if not count:
            return
        threads, actors = shares(ray.cluster_resources(), cluster, count)
        size = -(-count // BLOCKS)
        blocks = [pa.table({"number": range(k, min(k + size, count))}) for k in range(0, count, size)]
        context = DataContext.get_current().copy()
        context.enable_progress_bars = False  # ours counts pictures
        context.execution_options.preserve_order = ordered
        with DataContext.current(context):
            done = from_arrow(blocks).map_batches(
                Worker,
                fn_constructor_args=(threads, steward),
                batch_size=1,
                num_cpus=threads,
                num_gpus=cluster.gpus,
                compute=ActorPoolStrategy(size=actors, max_tasks_in_flight_per_actor=IN_FLIGHT),
            )
            for row in done.iter_rows():
                result, fault = pickle.loads(row["done"])
                if fault is not None:
                    raise fault
                yield result
    finally:
        ray.kill(steward)


def connect(cores: int = 0) -> Any:
    """Connect to the cluster of RAY_ADDRESS, or start one of all processors or ``cores`` here; return Ray."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # what is run here is nobody else's business
    try:
        import ray
        import ray.data
    except ImportError as error:
        raise ClusterError(RAY_MISSING) from error
    logging.getLogger("ray.data").setLevel(logging.WARNING)
    os.environ.setdefault("RAY_worker_niceness", "0")  # Ray's 15 would let whatever else runs here go first
    if not ray.is_initialized():
        address = os.environ.get("RAY_ADDRESS") or "local"
        options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
        if address == "local":
            options |= {"num_cpus": cores or processors(), "object_store_memory": OBJECT_STORE}
            options["include_dashboard"] = False
        attempts = 2 if address == "local" else 1  # Ray gives its own start 30 s, also on a busy machine
        for left in reversed(range(attempts)):
            try:
                ray.init(address, **options)
                break
            except Exception as error:  # Ray raises this very type
                ray.shutdown()
                if not left:
                    raise ClusterError(f"{NO_CLUSTER.format(address)} {in_short(error)}") from error
    return ray


def shares(resources: Mapping[str, float], cluster: Cluster, count: int) -> tuple[int, int]:
    """Return threads for each worker, and how many workers: one per processor, unless it is said."""
    cores, threads = int(resources.get("CPU", 1)), cluster.threads or 1
    most = cores // threads
    if cluster.gpus:
        most = min(most, int(resources.get("GPU", 0) / cluster.gpus))
        if not most:
            told = f"the cluster has {resources.get('GPU', 0):g} GPUs and {cores} processors"
            raise ClusterError(f"gpus={cluster.gpus:g} for each worker: {told}; take fewer, or device cpu")
    if (cluster.workers or 1) > most:
        told = f"the cluster has {cores} processors, {most} workers fit"
        raise ClusterError(f"{cluster.workers or 1} workers of {threads} threads: {told}; ask for fewer")
    return threads, max(1, min(cluster.workers or most, count))


def gather(
    start: Callable[[int | None], Make],
    names: Sequence[str],
    span: int,
    batch_size: int,
    finished: Journal,
    device: str,
    died: Callable[[int], tuple[Any, Files]],
) -> Iterator[tuple[str, Any, list[Path]]]:
    """Work on the items of a notebook on a Ray cluster: the results come back to this process, in order.

    ``start`` and ``died`` work on items by their place among the ``names``, ``span`` at a time. Yields name,
    result and written files of each that the journal lacks; the files go to its folder.
    """
    spans = [range(first, min(first + span, len(names))) for first in range(0, len(names), span)]
    left = [places for places in spans if any(names[place] not in finished.finished for place in places)]

    def job(threads: int | None) -> Callable[[range, Attempt], list[tuple[Any, Files]]]:
        make = start(threads)

        def work(places: range, attempt: Attempt) -> list[tuple[Any, Files]]:
            known = {place: died(place) for place in attempt.blamed}
            return [*attempt.work({place: place for place in places}, known, batch_size, make)]

        return work

    store, cluster = Store(str(finished.folder)), Cluster(gpus=None if device == "cpu" else 1.0)
    results = spread(job, lambda: left, cluster, ordered=True)
    next(results)
    for places, made in zip(left, results, strict=True):
        for place, (result, files) in zip(places, made, strict=True):
            if names[place] not in finished.finished:
                written = [Path(store.write(path, data)) for path, data in files.items()]
                yield names[place], result, written


# What travels


@dataclass(frozen=True)
class Packed:
    """An artefact folder that any machine can open: the folder itself where it is, else a copy."""

    path: Path
    about: Artefact
    digest: str
    files: Files
    chroma: float = 1.0

    @classmethod
    def of(cls, folder: Path, chroma: float = 1.0) -> Packed:
        """Read an artefact folder; its runtime is to have this colour strength."""
        about, digest = read_artefact(folder), sha256(folder / MANIFEST_FILE)
        return cls(folder.resolve(), about, digest, read_files(folder), chroma)

    def open(self, threads: int | None, device: str) -> Runtime:
        """Open its runtime."""
        manifest = self.path / MANIFEST_FILE
        if manifest.is_file() and sha256(manifest) == self.digest:
            return open_runtime(self.path, threads, device, chroma=self.chroma)
        # Workers may be killed: the copy goes as soon as it is open, since what is mapped needs no name
        with tempfile.TemporaryDirectory(prefix="gpen-artefact-") as name:
            for path, data in self.files.items():
                Store(name).write(path, data)
            return open_runtime(name, threads, device, chroma=self.chroma)


def read_files(folder: Path) -> dict[str, bytes]:
    """Return the files in a folder by their paths below it."""
    found = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in found}


def in_batches(work: Callable[[int], Any], batch_size: int) -> Any:
    """Call a function of a batch size; with half of it where memory is short, and so on down to one."""
    while True:
        try:
            return work(batch_size)
        except StorageError:
            raise
        except Exception as error:
            words = map(str(error).lower().count, ("memory", "alloc"))
            if batch_size == 1 or not (isinstance(error, MemoryError) or any(words)):
                raise
            batch_size //= 2
            log.warning("memory was short: going on with batches of %d (%s)", batch_size, in_short(error))


# Results as parts: a Parquet file per unit, named by what it was made of, written last


@dataclass(frozen=True)
class PartJob(ABC):
    """Makes a part of every unit of a source, unless it is there."""

    out: str  # folder or fsspec address
    size: int  # pictures that are worked on together
    form: str  # of the pictures that are made: files, or in Parquet parts, or in WebDataset shards
    key: str  # digest of all that decides the results beside the pictures
    batch_size: int
    columns: ClassVar[dict[str, str]]  # of rows, with pyarrow's names of their types

    @abstractmethod
    def start(self, threads: int | None) -> Make:
        """Return the function that makes rows and files of some items, each with what was read of it."""

    def read(self, path: Path) -> Any:
        """Return what is read of a file before the work begins; text says why it is not worked on."""
        return path

    def _read(self, item: Item, scratch: Path) -> Any:
        path = Path(item.path)
        try:
            path = item.file(scratch)
            return self.read(path)
        except StorageError:
            raise
        except (OSError, ValueError, MemoryError) as error:
            return in_short(error).replace(f"{path}: ", "").replace(str(path), item.name)

    def _made(self, items: Sequence[Item], attempt: Attempt, make: Make) -> Made:
        """Yield the row and the files of every picture, in order."""
        with tempfile.TemporaryDirectory() as scratch:
            read = ahead(items, partial(self._read, scratch=Path(scratch)), workers=workers())
            given = {item.place: (item, value) for item, value in zip(items, read, strict=True)}
            told = {place: value for place, (_, value) in given.items() if isinstance(value, str)}
            told |= dict.fromkeys(attempt.blamed & given.keys(), DIED)
            known = {place: (given[place][0].row(why), Files()) for place, why in told.items()}
            yield from attempt.work(given, known, self.batch_size, make)

    def __call__(self, threads: int | None) -> Callable[[Unit, Attempt], dict[str, int]]:
        """Return the function that makes a part."""
        store, make = Store(self.out), self.start(threads)

        def work(unit: Unit, attempt: Attempt) -> dict[str, int]:
            name = f"{PARTS}/{self.part_of(unit)}"
            counts = part_counts(store, name)
            if counts is not None:
                return {**counts, "new": 0}
            rows, made = [], list[Files]()
            try:
                for items in unit.lists(self.size):
                    for row, files in self._made(items, attempt, make):
                        if self.form == "files":
                            for path, data in files.items():
                                store.write(path, data)
                        rows.append(row)
                        made.append({} if self.form == "files" else files)
            except DataError as error:  # of a shard that is damaged, or none
                told = {"source": unit.shard, "failure": in_short(error)}
                rows.append({"name": PurePosixPath(unit.shard).name, **told})
                made.append({})
            if self.form == "shards":
                store.write(f"shards/{Path(name).stem}.tar", as_shard(rows, made))
            counts = {"pictures": len(rows), "failures": sum(bool(row["failure"]) for row in rows)}
            store.write(name, self._part(rows, made, counts))
            return {**counts, "new": len(rows)}

        return work

    def part_of(self, unit: Unit) -> str:
        """Return the name of a unit's part."""
        return f"{unit.number:08d}-{fingerprint([self.key, unit.digest])}.parquet"

    def _part(self, rows: list[dict[str, Any]], made: list[Files], counts: Mapping[str, int]) -> bytes:
        import pyarrow as pa
        from pyarrow import parquet

        schema = pa.schema(self.columns)
        if self.form == "parquet":
            file = pa.struct({"path": pa.string(), "data": pa.binary()})
            schema = schema.append(pa.field("files", pa.list_(file)))
            files = [[{"path": path, "data": data} for path, data in each.items()] for each in made]
            rows = [row | {"files": each} for row, each in zip(rows, files, strict=True)]
        table = pa.Table.from_pylist(rows, schema).replace_schema_metadata({"gpen": json.dumps(counts)})
        parquet.write_table(table, sink := io.BytesIO())
        return sink.getvalue()


def part_counts(store: Store, name: str) -> dict[str, int] | None:
    """Return what a part says that it holds; None if it is not there, or not whole."""
    from pyarrow import parquet

    try:
        with store.system.open(store.path(name), "rb") as file:
            return dict(json.loads(parquet.read_metadata(file).metadata[b"gpen"]))
    except (OSError, ValueError, LookupError, TypeError):
        return None


def as_shard(rows: Sequence[Mapping[str, Any]], made: Sequence[Files]) -> bytes:
    """Return a WebDataset shard: the files of every picture, and its row as JSON."""
    with tarfile.open(fileobj=(sink := io.BytesIO()), mode="w") as tar:
        for row, files in zip(rows, made, strict=True):
            members = {}
            for path, data in files.items():
                part = PurePosixPath(path)
                kind = "" if part.parts[0] == "images" else f".{part.parts[0]}"
                members[f"{part.stem.replace('.', '%2E')}{kind}{part.suffix}"] = data
            key = next(iter(members), row["name"].replace(".", "%2E").replace("/", "_")).partition(".")[0]
            members[f"{key}.json"] = json.dumps(row, ensure_ascii=False).encode()
            for name, data in members.items():
                info = tarfile.TarInfo(name)
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    return sink.getvalue()


def run_parts(
    job: PartJob,
    addresses: Sequence[str],
    cluster: Cluster,
    what: Mapping[str, Any],
    limit: int | None = None,
) -> list[str]:
    """Make all parts that are missing; return the paths of all, in order.

    ``what`` describes the job; a folder with the results of another one is refused.
    """
    store = Store(job.out)
    description = json.dumps(dict(what), indent=1, sort_keys=True, default=str).encode()
    earlier = store.read(JOB)
    if earlier is not None and earlier != description:
        told = f"{store.path(JOB)} tells of another job, with other sources or settings"
        raise ClusterError(f"{told}: choose another --out, or remove the folder")
    make = partial(Source, [absolute(address) for address in addresses], job.size, limit)
    results, counts = spread(job, make, cluster), Counter[str]()
    total = next(results) * job.size
    store.write(JOB, description)  # of sources that there are
    with progress(total=total, desc="pictures", unit="picture") as bar:
        for result in results:
            counts.update(result)
            bar.update(result["pictures"])
            bar.set_postfix(failures=counts["failures"], refresh=False)
    print(f"{counts['pictures']} pictures, {counts['new']} of them made now; {counts['failures']} failures")
    source = make()
    parts = [job.part_of(source[number]) for number in range(len(source))]
    stems = {Path(part).stem for part in parts}
    for folder in (PARTS, "shards"):  # of pictures that are no longer there, or were others
        for name in store.names(folder):
            if Path(name).stem not in stems:
                store.remove(f"{folder}/{name}")
    return [store.path(f"{PARTS}/{part}") for part in parts]


def absolute(address: str) -> str:
    """Return a path from the root, for workers that are in another place; fsspec addresses as they are."""
    return address if "://" in address else str(resolve_path(address))


def add_arguments(parser: argparse.ArgumentParser, unit: int) -> None:
    """Add what all commands over parts have in common."""
    whole: Any = {"type": int, "metavar": "N"}
    add = parser.add_argument
    add("--engine", choices=ENGINES, default="local", help="this process, or a Ray cluster (RAY_ADDRESS)")
    add("--workers", **whole, help="of the cluster (default: as many as its processors take)")
    add("--threads", **whole, help="of each worker's runtime (default: 1 on a cluster)")
    add("--gpus", type=float, metavar="SHARE", help="of each worker (default: 1 with --device cuda)")
    add("--device", choices=DEVICES, default="cpu", help="where networks run (default: cpu)")
    add("--write", choices=FORMS, default="files", help="pictures as files, in Parquet, or in shards")
    add("--unit", **whole, default=unit, help=f"pictures to a part (default: {unit})")
    add("--limit", **whole, help="the first so many pictures of folders")
    add("--most-megapixels", type=float, default=MOST_MP, help="larger pictures are failures")


def cluster_of(options: argparse.Namespace) -> Cluster:
    """Return where the work is to be done; counts below one are refused."""
    for name in ("workers", "threads", "unit", "limit", "batch_size", "calib_size"):
        value = getattr(options, name, None)
        if value is not None and value < 1:
            raise ClusterError(f"--{name.replace('_', '-')} {value}: must be at least 1")
    gpus = options.gpus if options.gpus is not None or options.device == "cpu" else 1.0
    return Cluster(options.engine, options.workers, options.threads, gpus)
