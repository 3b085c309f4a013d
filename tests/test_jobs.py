"""Progress bars by place; the live and headless kernels are stand-ins with the real interface."""

from types import SimpleNamespace

import pytest

from gpenlib import jobs


def test_a_terminal_gets_a_bar_that_counts(capsys):
    assert list(jobs.progress(range(3), desc="counting")) == [0, 1, 2]
    assert "3/3" in capsys.readouterr().err
    assert not jobs.front_end_is_live()


@pytest.mark.parametrize("leave", [True, False])
def test_a_notebook_without_a_reader_gets_few_lines_or_none(monkeypatch, capsys, leave):
    metadata = {}
    shell = SimpleNamespace(get_parent=lambda: {"metadata": metadata})
    monkeypatch.setattr(jobs, "_kernel_shell", lambda: shell)
    assert not jobs.front_end_is_live()
    assert len(list(jobs.progress(range(500), leave=leave))) == 500
    written = capsys.readouterr().err
    assert written.count("\r") <= 2 and bool(written) == leave
    metadata["cellId"] = "abc"  # JupyterLab and others send it
    assert jobs.front_end_is_live()
