"""Pictures of any number as units of work: folders, Parquet and WebDataset shards, at any fsspec address."""

from __future__ import annotations

import hashlib
import os
import sqlite3
import tarfile
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from itertools import count, groupby, islice
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory
from typing import Any

import fsspec

from gpenlib.data.faces import DataError, few, natural_key
from gpenlib.data.pairs import distinct_stems, plain_stem
from gpenlib.files import fingerprint, resolve_path, write_atomically
from gpenlib.images import SUFFIXES, in_short

PARQUET, TAR = ".parquet", ".tar"
# Columns of Parquet files, the first that is there: the picture's bytes, or its address; what it is called
BYTES = ("image", "bytes", "data", "jpg", "jpeg", "png", "webp", "content")
PATHS = ("path", "file", "address", "url")
NAMES = ("name", "__key__", "key", "id", "filename")
LISTED = """
PRAGMA journal_mode = OFF;
PRAGMA synchronous = OFF;
CREATE TABLE listed (folder INTEGER, key BLOB, name TEXT, base TEXT, path TEXT, stamp TEXT);
"""
ORDERED = """
CREATE TABLE files AS SELECT name, base, path, stamp, stem_of(name) AS stem, folded_of(name) AS folded
FROM listed ORDER BY folder, key, name;
DROP TABLE listed;
CREATE INDEX by_stem ON files (folded);
CREATE TABLE renamed (place INTEGER PRIMARY KEY, stem TEXT);
"""
TWICE = """
SELECT rowid, stem, folded FROM files WHERE folded IN
(SELECT folded FROM files GROUP BY folded HAVING COUNT(*) > 1) ORDER BY folded, rowid
"""
SOME = """
SELECT files.rowid - 1, name, base, path, stamp, COALESCE(renamed.stem, files.stem) FROM files
LEFT JOIN renamed ON renamed.place = files.rowid
WHERE files.rowid > ? AND files.rowid <= ? ORDER BY files.rowid
"""


@lru_cache(maxsize=64)
def file_system(base: str) -> Any:
    """Return the file system of an fsspec address; of "" that of this machine."""
    try:
        return fsspec.core.url_to_fs(base or "/")[0]
    except (ImportError, ValueError, OSError) as error:
        raise DataError(f"{base}: cannot be opened ({in_short(error)})") from error


@dataclass(frozen=True)
class Item:
    """One picture: where it is, what it is called, and where it stands in its data set."""

    name: str  # as its source has it
    stem: str  # of the files that are made of it, unlike any other in the same folder of results
    place: int  # in natural order in a folder, else a number made of shard and name; seeds degradations
    base: str = ""  # address of its file system, empty for this machine
    path: str = ""
    data: bytes | None = None  # where it lies inside a shard
    folder: str = ""  # in which its results lie: that of its shard

    def inside(self, path: str) -> str:
        """Return the path of a result, such as ``images/a.png``, in the folder of its shard."""
        kind, _, name = path.rpartition("/")
        return "/".join(filter(None, (kind, self.folder, name)))

    def row(self, failure: str | None = None) -> dict[str, Any]:
        """Return the columns that every row of results has; ``failure`` says why there is no result."""
        return {"name": self.name, "source": self.path, "failure": failure, "place": self.place}

    def file(self, scratch: Path) -> Path:
        """Return a file of this machine that holds it; one is made in ``scratch`` if there is none."""
        if self.data is None and not self.base:
            return Path(self.path)
        data = file_system(self.base).cat_file(self.path) if self.data is None else self.data
        path = scratch / f"{self.stem}{PurePosixPath(self.name).suffix}"
        path.write_bytes(data)
        return path


@dataclass(frozen=True)
class Unit:
    """Pictures that are worked on together; its results are one part."""

    number: int
    digest: str  # of which pictures these are
    folder: str = ""  # in which its results lie: that of its shard
    items: tuple[Item, ...] = ()
    base: str = ""
    shard: str = ""
    rows: tuple[int, int, int] | None = None  # of a Parquet file: row group, first and last + 1

    def lists(self, size: int) -> Iterator[list[Item]]:
        """Yield its pictures, at most ``size`` at a time; a shard is read from front to back."""
        items = _rows_of(self) if self.rows else _samples_of(self) if self.shard else iter(self.items)
        while some := list(islice(items, size)):
            yield some


class Source:
    """The pictures at some addresses, as a list of units; names stand on disk, never all in memory.

    Addresses are picture files, Parquet files, WebDataset shards (``.tar``, each a unit), or folders of them:
    paths (relative ones from the root of the repository) or fsspec addresses, in which ``*`` stands for any
    names. ``size`` pictures are a unit, the first ``limit`` of folders are taken.
    """

    def __init__(self, addresses: Sequence[str], size: int = 64, limit: int | None = None) -> None:
        self.size, self._shards = size, list[tuple[str, str, str]]()
        self._folder = TemporaryDirectory(prefix="gpen-names-")  # goes with this object
        self._names = sqlite3.connect(Path(self._folder.name) / "names.sqlite")
        for name, function in (("stem_of", plain_stem), ("folded_of", lambda n: plain_stem(n).casefold())):
            self._names.create_function(name, 1, function, deterministic=True)
        self._names.executescript(LISTED)
        for number, address in enumerate(addresses):
            self._names.executemany(
                "INSERT INTO listed VALUES (?, ?, ?, ?, ?, ?)", self._list(number, address)
            )
        self._names.executescript(ORDERED)
        self._rename()
        (self.files,) = self._names.execute("SELECT COUNT(*) FROM files").fetchone()
        self.files = min(self.files, limit or self.files)
        self._shards.sort(key=lambda shard: natural_key(shard[1]))
        stems = distinct_stems(PurePosixPath(path).name for _, path, _ in self._shards)
        self._parts = [
            part
            for shard, stem in zip(self._shards, stems, strict=True)
            for part in self._split(*shard, stem)
        ]
        if not len(self):
            kinds = f"{', '.join(SUFFIXES)}, {PARQUET}, {TAR}"
            raise DataError(f"{few(list(addresses))}: holds no picture and no shard; read are {kinds}")

    def _list(self, number: int, address: str) -> Iterator[tuple[Any, ...]]:
        """Yield a row for every picture file at an address; shards are noted aside."""
        for base, path, name, stamp in _entries(address):
            suffix = name[name.rfind(".") :].lower() if "." in name[1:] else ""
            if name.startswith("."):
                continue
            if suffix in (PARQUET, TAR):
                self._shards.append((base, path, stamp))
            elif suffix in SUFFIXES:
                yield number, _sort_key(name), name, base, path, stamp

    def _rename(self) -> None:
        """Give files of one stem names that differ, as :func:`gpenlib.data.pairs.distinct_stems` does."""
        taken = "SELECT 1 FROM files WHERE folded = ?"
        for _, group in groupby(self._names.execute(TWICE), key=lambda row: row[2]):
            numbers = count(2)
            for place, stem, _ in islice(group, 1, None):
                names = (f"{stem}_{number}" for number in numbers)
                free = next(n for n in names if not self._names.execute(taken, (n.casefold(),)).fetchone())
                self._names.execute("INSERT INTO renamed VALUES (?, ?)", (place, free))

    def _split(self, base: str, path: str, stamp: str, stem: str) -> Iterator[tuple[Any, ...]]:
        """Yield the units of a shard: all of a tar, the rows of a Parquet file some at a time."""
        if path.endswith(TAR):
            yield base, path, stamp, stem, None
            return
        with open_parquet(base, path) as file:
            for group in range(file.num_row_groups):
                rows = file.metadata.row_group(group).num_rows
                for start in range(0, rows, self.size):
                    yield base, path, stamp, stem, (group, start, min(start + self.size, rows))

    def __len__(self) -> int:
        return len(self._parts) + -(-self.files // self.size)

    def __getitem__(self, number: int) -> Unit:
        """Return a unit: first those of shards, then those of files in natural order."""
        if number < len(self._parts):
            base, path, stamp, stem, rows = self._parts[number]
            return Unit(number, fingerprint([base, path, stamp, rows]), stem, (), base, path, rows)
        start = (number - len(self._parts)) * self.size
        found = self._names.execute(SOME, (start, min(start + self.size, self.files))).fetchall()
        items = tuple(Item(name, stem, place, base, path) for place, name, base, path, _, stem in found)
        return Unit(number, fingerprint(found), "", items)


def _sort_key(name: str) -> bytes:
    """Return bytes that sort as :func:`gpenlib.data.faces.natural_key` does."""
    parts = natural_key(name)[0]  # text and numbers in turns; no name holds a zero character
    return b"".join(
        text.encode() + b"\0" if not place % 2 else f"{len(str(value)):04d}{value}".encode()
        for place, (_, value, text) in enumerate(parts)
    )


def _entries(address: str) -> Iterator[tuple[str, str, str, str]]:
    """Yield base, path, name and stamp of the files that an address names."""
    if "://" not in address:
        path = resolve_path(address)
        if not path.exists():
            hint = "paths that are not absolute count from the root of the repository"
            raise DataError(f"{path}: no such file or folder ({hint})")
        if not path.is_dir():
            yield "", str(path), path.name, _stamp(path.stat())
            return
        with os.scandir(path) as entries:  # of millions of files, too, one at a time
            for entry in entries:
                if not entry.is_dir():
                    mark = ""  # of a link to nothing, which is said when it is read
                    with suppress(OSError):
                        mark = _stamp(entry.stat())
                    yield "", entry.path, entry.name, mark
        return
    system = file_system(address)
    try:
        path = fsspec.core.url_to_fs(address)[1]
        found = system.glob(path, detail=True).values() if "*" in path else system.ls(path, detail=True)
    except OSError as error:
        raise DataError(f"{address}: cannot be listed ({in_short(error)})") from error
    for info in found:
        if info["type"] == "file":
            stamp = [str(info.get(name)) for name in ("size", "mtime", "LastModified", "ETag", "etag")]
            yield address, info["name"], PurePosixPath(info["name"]).name, ":".join(stamp)


def _stamp(stat: os.stat_result) -> str:
    return f"{stat.st_size}:{stat.st_mtime_ns}"


def open_parquet(base: str, path: str) -> Any:
    """Open a Parquet file; DataError if it is none."""
    from pyarrow import parquet

    try:
        return parquet.ParquetFile(file_system(base).open(path, "rb"))
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: no Parquet file that can be read ({in_short(error)})") from error


def _rows_of(unit: Unit) -> Iterator[Item]:
    """Yield the pictures of some rows of a Parquet file."""
    assert unit.rows
    group, start, stop = unit.rows
    with open_parquet(unit.base, unit.shard) as file:
        present = file.schema_arrow.names
        named = [next((n for n in kind if n in present), None) for kind in (BYTES, PATHS, NAMES)]
        if named[0] is None and named[1] is None:
            told = f"{unit.shard}: has columns {', '.join(present):.200}"
            raise DataError(f"{told}; a picture's bytes are in one of {BYTES}, its path in one of {PATHS}")
        table = file.read_row_group(group, columns=[name for name in named if name]).slice(
            start, stop - start
        )
        before = sum(file.metadata.row_group(index).num_rows for index in range(group))
    rows: list[dict[str, Any]] = table.to_pylist()
    for row, values in enumerate(rows, before + start):
        data, path, name = (values.get(column or "") for column in named)
        if isinstance(data, dict):  # as Hugging Face writes pictures
            data, path = data["bytes"], path or data["path"]
        elif isinstance(data, str):  # the address of a picture
            data, path = None, path or data
        name = str(name if name is not None else PurePosixPath(path or "").name or row)
        yield _in_shard(unit, name, f"{row:08d}_{plain_stem(name)}", data, path)


def _in_shard(unit: Unit, name: str, stem: str, data: bytes | None, path: str | None = None) -> Item:
    digest = hashlib.sha256(f"{unit.folder}/{stem}".encode()).digest()
    base = unit.base
    if path and "://" in path:
        base, path = path, fsspec.core.url_to_fs(path)[1]
    elif path and not path.startswith("/"):
        path = str(PurePosixPath(unit.shard).parent / path)
    place = int.from_bytes(digest[:8], "big") >> 1
    data = data if data is not None or path else b""  # no picture, which is said when it is read
    return Item(name, stem, place, base, path or unit.shard, data, unit.folder)


def _samples_of(unit: Unit) -> Iterator[Item]:
    """Yield the pictures of a WebDataset shard, the first of every sample, as the tar has them."""
    seen: set[str] = set()
    done = ""
    try:
        with (
            file_system(unit.base).open(unit.shard, "rb") as shard,
            tarfile.open(fileobj=shard, mode="r|*") as tar,
        ):
            for member in tar:
                folder, _, file_name = member.name.rpartition("/")
                stem_of_file, _, suffix = file_name.partition(".")  # a.input.png belongs to sample a
                key = f"{folder}/{stem_of_file}".lstrip("/")
                is_picture = f".{suffix.rpartition('.')[2].lower()}" in SUFFIXES
                if not member.isfile() or not stem_of_file or not is_picture or key == done:
                    continue
                data, done = tar.extractfile(member), key
                stem = plain_stem(key.replace("/", "_") + ".")
                while stem.casefold() in seen:
                    stem += "_2"
                seen.add(stem.casefold())
                yield _in_shard(unit, key, stem, data.read() if data else b"")
    except (tarfile.TarError, EOFError, OSError) as error:
        raise DataError(f"{unit.shard}: no shard that can be read ({in_short(error)})") from error


class Store:
    """Where results go, a folder or an fsspec address; files appear whole or not at all."""

    def __init__(self, address: str) -> None:
        self.local = "://" not in address
        self.system = file_system("" if self.local else address)
        root = resolve_path(address) if self.local else fsspec.core.url_to_fs(address)[1].rstrip("/")
        self.root = str(root)

    def path(self, name: str) -> str:
        """Return the path of a file or folder of the results."""
        return f"{self.root}/{name}"

    def write(self, name: str, data: bytes) -> str:
        """Write a file; return its path."""
        if self.local:
            with write_atomically(Path(self.path(name))) as temporary:
                temporary.write_bytes(data)
        else:
            self.system.makedirs(self.path(name).rpartition("/")[0], exist_ok=True)
            self.system.pipe_file(self.path(name), data)
        return self.path(name)

    def read(self, name: str) -> bytes | None:
        """Return what a file holds; None if there is none."""
        try:
            return bytes(self.system.cat_file(self.path(name)))
        except FileNotFoundError:
            return None

    def names(self, folder: str) -> Iterator[str]:
        """Yield the names of the files in a folder, if there is one."""
        if self.system.isdir(self.path(folder)):
            listed = self.system.ls(self.path(folder), detail=True)
            yield from (PurePosixPath(i["name"]).name for i in listed if i["type"] != "directory")

    def remove(self, name: str) -> None:
        """Remove a file."""
        self.system.rm_file(self.path(name))
