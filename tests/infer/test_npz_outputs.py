"""Outputs in npz files: what is written can be read, and anything else is refused by name."""

import numpy as np
import pytest

from gpenlib.data.faces import DataError
from gpenlib.infer.scoring import output_paths, read_output_npz, write_output_npz, write_outputs_npz


@pytest.fixture
def outputs():
    random = np.random.default_rng(0)
    return [random.normal(size=(3, 64, 64)).astype(np.float32) for _ in range(5)]


@pytest.fixture
def folder(tmp_path, pack, outputs):
    write_outputs_npz(tmp_path / "npz", pack, outputs)
    return tmp_path / "npz"


def test_what_is_written_is_read_bit_for_bit(folder, pack, outputs):
    paths = output_paths(folder, pack)
    assert [path.name for path in paths] == [f"{i:06d}_{name}.npz" for i, name in enumerate(pack.names)]
    for path, name, output in zip(paths, pack.names, outputs, strict=True):
        np.testing.assert_array_equal(read_output_npz(path, name, 64), output)
        with np.load(path) as archive:
            assert set(archive.files) == {"output_0", "name"}


def test_a_missing_file_is_named(folder, pack):
    missing = folder / f"000002_{pack.names[2]}.npz"
    missing.unlink()
    with pytest.raises(DataError, match=f"{missing.name}: the output of image 2 .* is missing"):
        output_paths(folder, pack)


def test_files_of_another_order_are_named(folder, pack):
    first, second = (folder / f"{i:06d}_{pack.names[i]}.npz" for i in (0, 1))
    first.rename(folder / f"000001_{pack.names[0]}.npz")
    second.rename(folder / f"000000_{pack.names[1]}.npz")
    with pytest.raises(DataError, match=f"{first.name}: .*is missing; in its place.*another order"):
        output_paths(folder, pack)


def test_exchanged_contents_are_noticed(folder, pack):
    first, second = output_paths(folder, pack)[:2]
    content = first.read_bytes()
    first.write_bytes(second.read_bytes())
    second.write_bytes(content)
    with pytest.raises(DataError, match=f"{first.name}: holds the output of '{pack.names[1]}'"):
        read_output_npz(first, pack.names[0], 64)


def test_a_file_too_many_is_named(folder, pack, outputs):
    write_output_npz(folder, 5, "stranger", outputs[0])
    with pytest.raises(DataError, match="000005_stranger.npz: belongs to no image"):
        output_paths(folder, pack)


def test_an_empty_folder_is_named(tmp_path, pack):
    with pytest.raises(DataError, match="no npz file"):
        output_paths(tmp_path, pack)


@pytest.mark.parametrize(
    ("array", "said"),
    [
        (np.zeros((3, 64, 64)), "float64"),
        (np.zeros((3, 64, 64), np.float16), "float16"),
        (np.zeros((3, 32, 32), np.float32), r"\(3, 32, 32\), expected float32 \[3, 64, 64\]"),
        (np.zeros((64, 64, 3), np.float32), r"\(64, 64, 3\)"),
        (np.full((3, 64, 64), np.nan, np.float32), "NaN or infinity"),
        (np.full((3, 64, 64), -np.inf, np.float32), "NaN or infinity"),
    ],
)
def test_other_arrays_are_refused(tmp_path, array, said):
    path = tmp_path / "000000_a.npz"
    np.savez(path, output_0=array, name=np.array("a"))
    with pytest.raises(DataError, match=f"000000_a.npz: output_0 .*{said}"):
        read_output_npz(path, "a", 64)
    if array.shape != (3, 32, 32):
        with pytest.raises(DataError, match="output_0"):
            write_output_npz(tmp_path, 0, "a", array)


def test_files_without_the_keys_or_damaged_are_refused(tmp_path):
    path = tmp_path / "a.npz"
    np.savez(path, output_0=np.zeros((3, 64, 64), np.float32))
    with pytest.raises(DataError, match="a.npz: holds output_0, expected also name"):
        read_output_npz(path, "a", 64)
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(DataError, match="a.npz: not a readable npz file"):
        read_output_npz(path, "a", 64)


def test_files_of_the_vendors_tool_go_by_their_order(tmp_path, pack, outputs):
    for index, output in enumerate(outputs):
        np.savez(tmp_path / f"output_{index:06d}.npz", output_0=output[None])
    paths = output_paths(tmp_path, pack, named=False)
    np.testing.assert_array_equal(read_output_npz(paths[3], None, 64), outputs[3])
    paths[4].unlink()
    with pytest.raises(DataError, match="4 npz files for 5 images"):
        output_paths(tmp_path, pack, named=False)


def test_too_few_outputs_are_refused(tmp_path, pack, outputs):
    with pytest.raises(ValueError, match="shorter"):
        write_outputs_npz(tmp_path, pack, outputs[:4])
