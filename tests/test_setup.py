"""scripts/setup.sh on machines that lack something, acted by stand-ins for python, apt-get and id."""

import shutil
import subprocess

import pytest

from gpenlib.files import repository_root

TOOLS = ["bash", "dirname", "touch", "rm", "mkdir", "cp", "cat"]

# What the machine has is a set of files in $STATE; what was called is a log.
PYTHON = r"""#!/usr/bin/env bash
say_missing() { echo "Traceback (most recent call last):"; echo "ImportError: $1"; } >&2
case "$*" in
    *'%d.%d.%d'*) cat "$STATE/version" ;;
    *sys.exit*) [ -e "$STATE/new_enough" ] ;;
    *'import venv, ensurepip'*) [ -e "$STATE/ensurepip" ] ;;
    *'python%d.%d-venv'*) echo python3.11-venv ;;
    *'import cv2'*)
        if [ -e "$STATE/opencv_broken" ]; then say_missing "numpy.core failed"; exit 1; fi
        [ -e "$STATE/libraries" ] || {
            say_missing "libxcb.so.1: cannot open shared object file: No such file or directory"; exit 1; } ;;
    '-m venv --clear '*)
        echo "venv" >>"$STATE/log"
        rm -rf "$4"; mkdir -p "$4/bin"; cp "$0" "$4/bin/python" ;;
    '-m pip --version') ;;
    '-m pip show -q torch') [ -e "$STATE/torch" ] ;;
    '-m pip install '*)
        echo "pip ${*: -2}" >>"$STATE/log"
        [ ! -e "$STATE/offline" ] || exit 1
        if [ "${*: -1}" = torch ]; then touch "$STATE/torch"; fi ;;
    *) echo "unexpected: $*" >&2; exit 99 ;;
esac
"""
APT_GET = r"""#!/usr/bin/env bash
echo "apt-get ${*: -2}" >>"$STATE/log"
case "$*" in
    update*) touch "$STATE/lists" ;;
    *) [ -e "$STATE/lists" ] || exit 100
       case "$*" in *-venv*) touch "$STATE/ensurepip" ;; *libgl1*) touch "$STATE/libraries" ;; esac ;;
esac
"""
APT_CACHE = '#!/usr/bin/env bash\n[ -e "$STATE/t64" ]\n'
ID = '#!/usr/bin/env bash\ncat "$STATE/uid"\n'


class Machine:
    """A checkout and a PATH on which only the stand-ins and a few plain tools exist."""

    def __init__(self, folder, uid, *has):
        self.folder, self.state, self.bin = folder, folder / "state", folder / "bin"
        for inner in (self.state, self.bin, folder / "checkout" / "scripts"):
            inner.mkdir(parents=True)
        shutil.copy(repository_root() / "scripts" / "setup.sh", folder / "checkout" / "scripts")
        for name in TOOLS:
            (self.bin / name).symlink_to(shutil.which(name))
        for name, text in (("python3", PYTHON), ("apt-get", APT_GET), ("apt-cache", APT_CACHE), ("id", ID)):
            (self.bin / name).write_text(text, encoding="utf-8")
            (self.bin / name).chmod(0o755)
        (self.state / "uid").write_text(f"{uid}\n", encoding="utf-8")
        (self.state / "version").write_text("3.11.2\n", encoding="utf-8")
        self.give("new_enough", *has)

    def give(self, *names):
        for name in names:
            (self.state / name).touch()

    def setup(self, **variables):
        """Run set-up; return its exit code and what it wrote."""
        (self.state / "log").write_text("", encoding="utf-8")
        environment = {"PATH": str(self.bin), "STATE": str(self.state), **variables}
        done = subprocess.run(
            [str(self.bin / "bash"), "scripts/setup.sh"],
            cwd=self.folder / "checkout",
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert "Traceback" not in done.stdout + done.stderr
        assert "unexpected:" not in done.stderr
        return done.returncode, done.stdout + done.stderr

    @property
    def log(self):
        return (self.state / "log").read_text(encoding="utf-8").splitlines()

    @property
    def venv(self):
        return self.folder / "checkout" / ".venv"


@pytest.fixture
def machine(tmp_path):
    return lambda uid, *has: Machine(tmp_path / "machine", uid, *has)


def test_bare_machine_as_root(machine):
    bare = machine(0)
    code, text = bare.setup()
    assert code == 0
    assert text.splitlines()[-1] == "setup: ready: .venv (3.11.2)"
    assert bare.log == [
        "apt-get --no-install-recommends python3.11-venv",
        "apt-get update -qq",
        "apt-get --no-install-recommends python3.11-venv",
        "venv",
        "pip constraints.txt torch",
        "pip -e .[dev]",
        "apt-get libgl1 libglib2.0-0",
    ]


def test_nothing_missing_installs_nothing_from_apt_and_keeps_the_venv(machine):
    complete = machine(1000, "ensurepip", "libraries")
    assert complete.setup()[0] == 0
    assert complete.log == ["venv", "pip constraints.txt torch", "pip -e .[dev]"]
    assert complete.setup()[0] == 0
    assert complete.log == ["pip -e .[dev]"]


@pytest.mark.parametrize(
    ("has", "line"),
    [((), "python3.11-venv"), (("ensurepip",), "libgl1 libglib2.0-0")],
)
def test_without_root_what_is_missing_is_one_line_to_run(machine, has, line):
    bare = machine(1000, *has)
    code, text = bare.setup()
    assert code == 1
    assert text.splitlines()[-1].strip() == f"sudo apt-get install -y {line}"
    assert not any(entry.startswith("apt-get") for entry in bare.log)


def test_interrupted_set_up_is_repaired(machine):
    broken = machine(1000, "ensurepip", "libraries", "offline")
    assert broken.setup()[0] == 1
    assert broken.log == ["venv", "pip constraints.txt torch"]
    (broken.state / "offline").unlink()
    code, text = broken.setup()
    assert code == 0 and "did not finish" in text
    assert broken.log == ["venv", "pip constraints.txt torch", "pip -e .[dev]"]
    assert broken.setup()[0] == 0
    assert broken.log == ["pip -e .[dev]"]
