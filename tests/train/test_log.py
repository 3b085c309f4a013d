"""The log of a training, read and judged."""

import json
from pathlib import Path

import numpy as np
import pytest

from gpenlib.images import write_image
from gpenlib.train.trainer import beginning_and_end, check_log, read_log, read_samples, series, smooth


def test_repeated_steps_count_once_and_a_torn_line_is_passed_over(tmp_path: Path) -> None:
    lines = [{"step": 1, "content": 3.0}, {"step": 2, "content": 9.0}]
    lines += [{"step": 2, "content": 2.0}, {"step": 2, "held_out_psnr": 20.0}]
    text = "\n".join(json.dumps(line) for line in lines) + '\n{"step": 3, "cont'
    (tmp_path / "log.jsonl").write_text(text)
    rows = read_log(tmp_path)
    assert rows == [{"step": 1, "content": 3.0}, {"step": 2, "content": 2.0, "held_out_psnr": 20.0}]
    assert series(rows, "held_out_psnr") == ([2], [20.0])
    with pytest.raises(FileNotFoundError, match="train first"):
        read_log(tmp_path / "absent")


def test_moving_mean_keeps_length_constants_and_ends() -> None:
    assert smooth([2.0] * 7) == pytest.approx([2.0] * 7)
    assert smooth([0.0, 3.0, 6.0, 9.0], window=3) == pytest.approx([1.5, 3.0, 6.0, 7.5])
    assert smooth([5.0]) == pytest.approx([5.0])
    assert smooth([1.0, 3.0]).shape == (2,)
    assert len(smooth(list(np.arange(200.0)))) == 200


def test_beginning_and_end_are_fifths() -> None:
    rows = [{"step": i + 1.0, "content": float(i)} for i in range(10)]
    assert beginning_and_end(rows, "content") == (0.5, 8.5)
    with pytest.raises(ValueError, match="'r1' was never logged; logged were content"):
        beginning_and_end(rows, "r1")


def test_unsound_logs_are_refused() -> None:
    rows = [{"step": i, "content": 5.0 - i} for i in range(1, 5)]
    check_log(rows, 4, "content")
    with pytest.raises(ValueError, match="4 steps, not each of 1 to 5"):
        check_log(rows, 5)
    with pytest.raises(ValueError, match="nothing was learned: content was 1 and is 4"):
        check_log([{**row, "content": float(row["step"])} for row in rows], 4, "content")
    rows[2]["content"] = float("nan")
    with pytest.raises(ValueError, match="content is not finite at step 3"):
        check_log(rows, 4)


def test_samples_are_spread_over_the_run(tmp_path: Path) -> None:
    for step in range(10, 80, 10):
        write_image(tmp_path / "samples" / f"{step:07d}.png", np.full((4, 4, 3), step, np.uint8))
    found = read_samples(tmp_path, 3)
    assert list(found) == [10, 40, 70]
    assert (found[40] == 40).all()
    assert len(read_samples(tmp_path, 99)) == 7
    with pytest.raises(FileNotFoundError, match="no sample pictures"):
        read_samples(tmp_path / "absent", 3)
