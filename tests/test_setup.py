"""scripts/setup.sh on machines that lack something, acted by stand-ins for python, uv, apt-get and others."""

import shutil
import subprocess

import pytest

from gpenlib.files import repository_root

TOOLS = ["bash", "dirname", "touch", "rm", "mkdir", "cp", "cat"]
FRESH = ["uv --dry-run --torch-backend=cpu torch", "uv --torch-backend=cpu torch", "uv -e .[dev]"]
FALLBACK = "PyTorch's own index cannot be reached"

# What the machine has is a set of files in $STATE; what was called is a log.
PYTHON = r"""#!/usr/bin/env bash
say_missing() { echo "Traceback (most recent call last):"; echo "ImportError: $1"; } >&2
here=${0%/*}
case "$*" in
    *'%d.%d.%d'*) cat "$STATE/version" ;;
    *sys.exit*) [ -e "$STATE/new_enough" ] ;;
    *'import venv, ensurepip'*) [ -e "$STATE/ensurepip" ] ;;
    *'python%d.%d-venv'*) echo python3.11-venv ;;
    *importlib.metadata*torch*) cat "$here/../torch" ;;
    *'import cv2'*)
        if [ -e "$STATE/opencv_broken" ]; then say_missing "numpy.core failed"; exit 1; fi
        [ -e "$STATE/libraries" ] || {
            say_missing "libxcb.so.1: cannot open shared object file: No such file or directory"; exit 1; } ;;
    '-m venv --clear '*)
        echo "venv" >>"$STATE/log"
        rm -rf "$4"; mkdir -p "$4/bin"; cp "$0" "$4/bin/python" ;;
    '-m pip --version') ;;
    '-m pip config list') if [ -e "$STATE/pip_settings" ]; then cat "$STATE/pip_settings"; fi ;;
    '-m pip install '*' -c constraints.txt uv')
        echo "pip uv" >>"$STATE/log"
        [ ! -e "$STATE/no_uv" ] || exit 1
        cp "$STATE/uv" "$here/uv" ;;
    *) echo "unexpected: $*" >&2; exit 99 ;;
esac
"""
UV = r"""#!/usr/bin/env bash
case "$*" in
    'venv --help') echo "  --clear  Remove what is there" ;;
    'cache dir') echo "$STATE/cache" ;;
    'venv -q --clear --seed --python '*' .venv')
        echo "uv venv" >>"$STATE/log"
        rm -rf .venv; mkdir -p .venv/bin; cp "$STATE/../bin/python3" .venv/bin/python ;;
    'pip install -q --python .venv/bin/python -c constraints.txt '*)
        echo "uv ${*:8}" >>"$STATE/log"
        for name in "${!UV_@}"; do echo "$name=${!name}"; done >"$STATE/uv_variables"
        case "$*" in
            *--dry-run*) [ ! -e "$STATE/no_torch_index" ] ;;
            *'-e .[dev]') [ ! -e "$STATE/no_packages" ] ;;
            *torch) [ ! -e "$STATE/no_torch" ] && echo 2.13.0+cpu >.venv/torch ;;
        esac ;;
    *) echo "unexpected: uv $*" >&2; exit 99 ;;
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
        (folder / "checkout" / "constraints.txt").write_text(
            "tqdm==4.70.1\ntorch==2.13.0\n", encoding="utf-8"
        )
        for name in TOOLS:
            (self.bin / name).symlink_to(shutil.which(name))
        self.put(self.bin / "python3", PYTHON)
        self.put(self.state / "uv", UV)  # what pip would bring
        self.put(self.bin / "apt-get", APT_GET)
        self.put(self.bin / "apt-cache", APT_CACHE)
        self.put(self.bin / "id", ID)
        (self.state / "uid").write_text(f"{uid}\n", encoding="utf-8")
        (self.state / "version").write_text("3.11.2\n", encoding="utf-8")
        self.give("new_enough", *has)

    @staticmethod
    def put(path, script):
        path.write_text(script, encoding="utf-8")
        path.chmod(0o755)

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
    def uv_variables(self):
        """What uv last saw of variables of its own."""
        lines = (self.state / "uv_variables").read_text(encoding="utf-8").splitlines()
        return dict(line.split("=", 1) for line in lines)


@pytest.fixture
def machine(tmp_path):
    return lambda uid, *has: Machine(tmp_path / "machine", uid, *has)


def test_bare_machine_as_root(machine):
    bare = machine(0)
    code, text = bare.setup()
    assert code == 0
    assert text.splitlines()[-1] == "setup: ready: .venv (Python 3.11.2, torch 2.13.0+cpu)"
    assert bare.log == [
        "apt-get --no-install-recommends python3.11-venv",
        "apt-get update -qq",
        "apt-get --no-install-recommends python3.11-venv",
        "venv",
        "pip uv",
        *FRESH,
        "apt-get libgl1 libglib2.0-0",
    ]


def test_nothing_missing_installs_nothing_from_apt_and_keeps_the_venv(machine):
    complete = machine(1000, "ensurepip", "libraries")
    assert complete.setup()[0] == 0
    assert complete.log == ["venv", "pip uv", *FRESH]
    assert complete.setup()[0] == 0
    assert complete.log == ["uv -e .[dev]"]


@pytest.mark.parametrize(("has", "line"), [((), "python3.11-venv"), (("ensurepip",), "libgl1 libglib2.0-0")])
def test_without_root_what_is_missing_is_one_line_to_run(machine, has, line):
    bare = machine(1000, *has)
    code, text = bare.setup()
    assert code == 1
    assert text.splitlines()[-1].strip() == f"sudo apt-get install -y {line}"
    assert not any(entry.startswith("apt-get") for entry in bare.log)


def test_uv_on_the_path_needs_no_venv_module(machine):
    modern = machine(1000, "libraries")
    modern.put(modern.bin / "uv", UV)
    assert modern.setup()[0] == 0
    assert modern.log == ["uv venv", *FRESH]


def test_an_old_uv_on_the_path_is_passed_over(machine):
    dated = machine(1000, "ensurepip", "libraries")
    dated.put(dated.bin / "uv", "#!/usr/bin/env bash\necho '  --seed  Install seed packages'\n")
    assert dated.setup()[0] == 0
    assert dated.log == ["venv", "pip uv", *FRESH]


@pytest.mark.parametrize(
    ("gpu", "variables", "backend"),
    [
        (None, {}, "cpu"),
        ("echo 'GPU 0: NVIDIA H100'", {}, "auto"),
        ("echo 'No devices were found'; exit 6", {}, "cpu"),
        ("echo 'GPU 0: NVIDIA H100'", {"UV_TORCH_BACKEND": "cu126"}, "cu126"),
    ],
)
def test_the_build_of_torch_follows_the_gpu(machine, gpu, variables, backend):
    owner = machine(1000, "ensurepip", "libraries")
    if gpu:
        owner.put(owner.bin / "nvidia-smi", f"#!/usr/bin/env bash\n{gpu}\n")
    code, text = owner.setup(**variables)
    assert code == 0 and FALLBACK not in text
    assert f"uv --torch-backend={backend} torch" in owner.log
    assert "UV_TORCH_BACKEND" not in owner.uv_variables, "only torch is asked for by build"


def test_without_pytorchs_index_torch_comes_from_pips(machine):
    behind_a_mirror = machine(1000, "ensurepip", "libraries", "no_torch_index")
    code, text = behind_a_mirror.setup()
    assert code == 0
    assert [line for line in text.splitlines() if FALLBACK in line] != []
    assert behind_a_mirror.log == ["venv", "pip uv", FRESH[0], "uv torch", "uv -e .[dev]"]
    assert FALLBACK not in behind_a_mirror.setup()[1], "torch is there now"


def test_uv_takes_packages_from_where_pip_does(machine):
    mirrored = machine(1000, "ensurepip", "libraries")
    (mirrored.state / "pip_settings").write_text(
        "global.extra-index-url='\\nfile:/one\\nfile:/two'\n"
        "global.index-url='file:/global'\n"
        "global.timeout='60'\n"
        "global.no-index='true'\n"
        "install.find-links='/wheels /more'\n"
        "install.index-url='file:/install'\n"
        ":env:.index-url='file:/environment'\n"
        ":env:.no-color='1'\n",
        encoding="utf-8",
    )
    assert mirrored.setup()[0] == 0
    assert mirrored.uv_variables == {
        "UV_DEFAULT_INDEX": "file:/environment",
        "UV_FIND_LINKS": "/wheels,/more",
        "UV_HTTP_TIMEOUT": "60",
        "UV_INDEX": "file:/one file:/two",
        "UV_INDEX_STRATEGY": "unsafe-best-match",
        "UV_OFFLINE": "true",
    }
    assert mirrored.setup(UV_DEFAULT_INDEX="file:/mine", UV_INDEX="file:/own")[0] == 0
    assert mirrored.uv_variables == {
        "UV_DEFAULT_INDEX": "file:/mine",
        "UV_FIND_LINKS": "/wheels,/more",
        "UV_HTTP_TIMEOUT": "60",
        "UV_INDEX": "file:/own",
        "UV_OFFLINE": "true",
    }


@pytest.mark.parametrize(
    ("lost", "reached"), [("no_uv", []), ("no_torch", FRESH[:2]), ("no_packages", FRESH)]
)
def test_interrupted_set_up_is_repaired(machine, lost, reached):
    broken = machine(1000, "ensurepip", "libraries", lost)
    assert broken.setup()[0] == 1
    assert broken.log == ["venv", "pip uv", *reached]
    (broken.state / lost).unlink()
    code, text = broken.setup()
    assert code == 0 and "did not finish" in text
    assert broken.log == ["venv", "pip uv", *FRESH]
    assert broken.setup()[0] == 0
    assert broken.log == ["uv -e .[dev]"]


def test_another_pin_of_torch_is_installed_by_build_again(machine):
    updated = machine(1000, "ensurepip", "libraries")
    assert updated.setup()[0] == 0
    (updated.folder / "checkout" / ".venv" / "torch").write_text("2.12.0+cpu\n", encoding="utf-8")
    assert updated.setup()[0] == 0
    assert updated.log == FRESH
