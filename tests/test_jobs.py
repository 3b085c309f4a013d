"""Progress bars by place; the live and headless kernels are stand-ins with the real interface."""

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from gpenlib import jobs


def test_a_terminal_gets_a_bar_that_counts(capsys):
    assert list(jobs.progress(range(3), desc="counting")) == [0, 1, 2]
    assert "3/3" in capsys.readouterr().err
    assert not jobs.front_end_is_live()


class Handle:
    """Stands for IPython's display with an id: keeps what was shown."""

    def __init__(self):
        self.states = []

    def update(self, data, raw, metadata):
        assert raw and metadata == jobs.PROGRESS
        self.states.append(data["text/plain"])

    def display(self, data, raw, metadata, display_id):
        assert display_id
        self.update(data, raw, metadata)
        return self


@pytest.fixture
def notebook(monkeypatch):
    """Metadata of the request that a kernel runs, and what it shows, state by state."""
    metadata, handle = {}, Handle()
    shell = SimpleNamespace(get_parent=lambda: {"metadata": metadata})
    monkeypatch.setattr(jobs, "_kernel_shell", lambda: shell)
    monkeypatch.setattr("IPython.display.display", handle.display)
    return metadata, handle.states


@pytest.mark.parametrize("leave", [True, False])
def test_a_notebook_without_a_reader_gets_one_line_or_none(notebook, capsys, leave):
    _, states = notebook
    assert not jobs.front_end_is_live()
    assert len(list(jobs.progress(range(500), desc="counting", leave=leave))) == 500
    assert len(states) <= 3 and bool(states) == leave
    assert not leave or states[-1].startswith("counting: 100%")
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("leave", [True, False])
def test_a_reader_sees_the_last_state_and_needs_no_kernel_for_it(notebook, capsys, leave):
    metadata, states = notebook
    metadata["cellId"] = "abc"  # JupyterLab and others send it
    assert jobs.front_end_is_live()
    assert len(list(jobs.progress(range(500), desc="counting", mininterval=0, leave=leave))) == 500
    assert len(states) > 20 and all("\r" not in state and "\n" not in state for state in states)
    assert states[-1].startswith("counting: 100%") if leave else states[-1] == "", "or clears itself"
    assert capsys.readouterr() == ("", "")


KEEPING = """
import numpy as np
from gpenlib.jobs import keep_memory

def resident():
    return int(open("/proc/self/statm").read().split()[1]) * 4096

def grown(keep):
    told = keep_memory(keep)
    before = resident()
    arrays = [np.ones(2**20, np.uint8) for _ in range(200)]
    last = np.ones(2**20, np.uint8)  # lies behind them on the heap
    del arrays
    return (resident() - before) // 2**20 if told else None

print(grown(True), grown(False), keep_memory(False))
"""


@pytest.mark.skipif(not Path("/proc/self/statm").is_file(), reason="no /proc")
def test_what_is_freed_is_kept_or_given_back():
    done = subprocess.run([sys.executable, "-c", KEEPING], capture_output=True, text=True, check=True)
    kept, given_back, told = done.stdout.split()
    if told == "False":
        pytest.skip("this C library cannot be told")
    assert int(kept) > 150 and int(given_back) < 50
