"""The second path: outputs in files, scored by the same figures."""

import csv
import json

import numpy as np
import pytest

from gpenlib.data.faces import DataError
from gpenlib.images import to_tensor
from gpenlib.infer.scoring import data_chroma, evaluate_npz, main, score, write_outputs_npz


@pytest.fixture
def outputs(pack):
    random = np.random.default_rng(0)
    truths = [to_tensor(pack.truths(index))[0] for index in range(len(pack))]
    return [(truth + random.normal(0, 0.1, truth.shape)).astype(np.float32) for truth in truths]


@pytest.fixture
def folder(tmp_path, pack, outputs):
    write_outputs_npz(tmp_path / "npz", pack, outputs)
    return tmp_path / "npz"


def test_figures_are_exactly_those_of_the_direct_path(folder, pack, outputs):
    chromas = data_chroma(pack).per_face
    expected = [
        {"name": name, **score(pack.inputs(i), pack.truths(i), outputs[i], chromas[i])}
        for i, name in enumerate(pack.names)
    ]
    assert evaluate_npz(folder, pack) == expected


def test_exchanged_files_are_an_error(folder, pack):
    first, second = sorted(folder.iterdir())[:2]
    content = first.read_bytes()
    first.write_bytes(second.read_bytes())
    second.write_bytes(content)
    with pytest.raises(DataError, match=f"{first.name}: holds the output of '{pack.names[1]}'"):
        evaluate_npz(folder, pack)


def test_command_prints_means_and_writes_rows(folder, pack, capsys):
    assert main([str(folder), str(pack.folder)]) == 0
    printed = capsys.readouterr().out
    rows = evaluate_npz(folder, pack)
    mean = np.mean([row["psnr"] for row in rows])
    assert f"{mean:.4f}" in printed and "chroma_baseline" in printed
    results = json.loads((folder.parent / "rows.json").read_text())
    assert results["rows"] == rows and results["psnr_mean"] == pytest.approx(mean)
    with (folder.parent / "rows.csv").open(newline="") as file:
        written = list(csv.DictReader(file))
    assert [float(row["psnr"]) for row in written] == [row["psnr"] for row in rows]


def test_command_names_a_missing_file(folder, pack, capsys):
    missing = sorted(folder.iterdir())[2]
    missing.unlink()
    assert main([str(folder), str(pack.folder)]) == 1
    assert missing.name in capsys.readouterr().err
    assert not (folder.parent / "rows.json").exists()


def test_files_of_the_vendors_tool(tmp_path, pack, outputs):
    for index, output in enumerate(outputs):
        np.savez(tmp_path / f"output_{index:06d}.npz", output_0=output)
    with pytest.raises(DataError, match="is missing"):
        evaluate_npz(tmp_path, pack)
    assert [row["name"] for row in evaluate_npz(tmp_path, pack, named=False)] == pack.names
