"""Bad packs and outputs: npz files that grow or hold no picture, lists that lead astray."""

import contextlib
import io
import os
import pickle
import struct
import zipfile

import numpy as np
import pytest

from gpenlib.architecture.checkpoints import TINY
from gpenlib.cluster.score import main as score
from gpenlib.compile.calibrate import open_calibration_data
from gpenlib.data.pairs import read_pack
from gpenlib.infer.scoring import read_output_npz
from gpenlib.settings import DatasetConfig
from tests.bad_inputs.harness import Case, check

PICTURE = np.zeros((3, 8, 8), np.uint8)
HEADER = "{{'descr': '{}', 'fortran_order': False, 'shape': {}, }}"


def npy(shape, kind="|u1", data=b"", header=None):
    """Return the bytes of an npy file whose header says what it likes."""
    text = (header or HEADER.format(kind, shape)).encode() + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text + data


def archive(path, members, method=zipfile.ZIP_STORED):
    with zipfile.ZipFile(path, "w", method) as file:
        for name, content in members.items():
            file.writestr(name, content)
    return path


def bomb(path, key):
    """Write an npz file that unpacks to a thousand times its size."""
    content = npy((3, 10_000, 10_000)) + bytes(300_000_000)
    return archive(path, {f"{key}.npy": content}, zipfile.ZIP_DEFLATED)


def pack_of(write):
    """Return what makes a pack of one picture, whose file ``write`` replaces."""

    def make(folder):
        (folder / "input").mkdir()
        np.savez(folder / "input/a.npz", input_0=PICTURE)
        (folder / "datalist.txt").write_text("input/a.npz\n")
        write(folder / "input/a.npz")
        return folder

    return make


def read(folder, out):
    return read_pack(folder).inputs(0)


def picture(name, write, *says):
    return Case(name, pack_of(write), read, ("a.npz", "input_0", *says), "DataError")


def listing(name, lines, *says, call=read):
    def make(folder):
        inner = folder / "pack"
        inner.mkdir()
        pack_of(lambda path: None)(inner)
        np.savez(folder / "outside.npz", input_0=PICTURE)
        (inner / "link.npz").symlink_to(folder / "outside.npz")
        (inner / "loop.npz").symlink_to("loop.npz")
        content = lines(folder) if callable(lines) else lines
        (inner / "datalist.txt").write_bytes(content if isinstance(content, bytes) else content.encode())
        return inner

    return Case(name, make, call, ("datalist.txt", *says))


def output(name, write, *says):
    def make(folder):
        write(folder / "out.npz")
        return folder / "out.npz"

    return Case(name, make, lambda path, out: read_output_npz(path, "a", 8), ("out.npz", *says), "DataError")


def scored(folder, out):
    told = io.StringIO()
    with contextlib.redirect_stderr(told):
        assert score([str(folder), str(folder), "--out", str(out)]) == 1
    raise ValueError(told.getvalue().strip())


def calibrated(folder, out):
    return open_calibration_data(DatasetConfig(path=str(folder)), TINY)


def replaced_by_pipe(path):
    path.unlink()
    os.mkfifo(path)


def encrypted(path):
    content = bytearray(path.read_bytes())
    for mark, place in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        content[content.index(mark) + place] |= 1
    path.write_bytes(content)


ANSWER = np.zeros((3, 8, 8), np.float32)
OUTSIDE = "lies outside of the pack"
CASES = [
    # Files
    picture("bomb", lambda path: bomb(path, "input_0"), "MiB of arrays", "write it again"),
    picture("header of a terabyte", lambda path: archive(path, {"input_0.npy": npy((3, 10**6, 10**6))})),
    picture("header beyond all", lambda path: archive(path, {"input_0.npy": npy((3, 10**18, 10**18))})),
    picture("header below zero", lambda path: archive(path, {"input_0.npy": npy((3, -8, -8))})),
    picture("header of code", lambda path: archive(path, {"input_0.npy": npy(0, header="__import__('os')")})),
    picture("deep header", lambda path: archive(path, {"input_0.npy": npy(0, header="(" * 9000)})),
    picture("pickle", lambda path: path.write_bytes(pickle.dumps([1])), "write it again"),
    picture("objects", lambda path: np.savez(path, input_0=np.array([{}], object)), "write it again"),
    picture("other key", lambda path: np.savez(path, output=PICTURE), "holds output"),
    picture("many keys", lambda path: np.savez(path, **{f"k{n}": PICTURE for n in range(999)}), "holds k0"),
    picture("cut off", lambda path: path.write_bytes(path.read_bytes()[:-30]), "write it again"),
    picture("text", lambda path: path.write_text("no zip"), "write it again"),
    picture("empty", lambda path: path.write_bytes(b""), "write it again"),
    picture("encrypted", encrypted, "write it again"),
    picture("floats", lambda path: np.savez(path, input_0=ANSWER), "float32", "expected uint8"),
    picture("no pixels", lambda path: np.savez(path, input_0=PICTURE[:, :0]), "expected uint8"),
    Case("large file", pack_of(lambda path: os.truncate(path, 1 << 40)), read, ("a.npz", "write it again")),
    # Lists
    Case("pipe for a picture", pack_of(replaced_by_pipe), read, ("a.npz", "is not there")),
    listing("absolute", lambda folder: f"{folder}/outside.npz\n", "outside.npz", OUTSIDE, "outside=True"),
    listing("parent", "../outside.npz\n", "outside.npz", OUTSIDE, "--outside"),
    listing("link", "link.npz\n", "link.npz", OUTSIDE),
    listing("parent, to calibrate", "../outside.npz\n", OUTSIDE, call=calibrated),
    listing("parent, to score", "../outside.npz\n", OUTSIDE, "--outside", call=scored),
    listing("loop of links", "loop.npz\n", "loop.npz", "is not there"),
    listing("NUL", "input/a\0.npz\n", "is not there"),
    listing("long name", "x" * 100_000 + "\n", "xxx", "is not there"),
    listing("device", "/dev/zero\n", "/dev/zero", "is not there"),
    listing("not UTF-8", b"\xff\xfe\n", "UTF-8", "write the pack again"),
    listing("large list", "input/a.npz\n" * 6_000_000, "64 MiB"),
    # Outputs
    output("bomb of an output", lambda path: bomb(path, "output_0"), "MiB of arrays"),
    output("NaN", lambda path: np.savez(path, output_0=ANSWER + np.nan, name="a"), "NaN"),
    output("another's name", lambda path: np.savez(path, output_0=ANSWER, name="b" * 10_000), "'bbb", "'a'"),
    output("another size", lambda path: np.savez(path, output_0=ANSWER[:, :4], name="a"), "expected float32"),
    output("object as name", lambda path: np.savez(path, output_0=ANSWER, name=np.array({}, object)), "name"),
]  # fmt: skip


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_bad_input_ends_in_one_clear_error(case, tmp_path):
    check(case, __file__, tmp_path)
