"""One set of pins: constraints.txt, environment.yml and pyproject.toml tell the same story."""

import ast
import re
import subprocess
import sys
import tomllib
from importlib import metadata

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from gpenlib.files import repository_root

ROOT = repository_root()
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
DIRECT = [Requirement(text) for text in [*PROJECT["dependencies"], *PROJECT["optional-dependencies"]["dev"]]]
PYTHONS = [text.rpartition(" ")[2] for text in PROJECT["classifiers"] if re.search(r":: 3\.\d+$", text)]
CONFIGURATION = [
    ".ci/run",
    "Makefile",
    "constraints.txt",
    "environment.yml",
    "pyproject.toml",
    "scripts/setup.sh",
]


def pins(lines):
    """Return versions by canonical name; anything but `name==version` is an error."""
    found = {}
    for line in lines:
        match = re.fullmatch(r"([A-Za-z0-9._-]+)==([0-9][0-9A-Za-z.]*)", line)
        assert match, f"{line!r} is not name==version"
        name = canonicalize_name(match[1])
        assert name not in found, f"{name} is pinned twice"
        found[name] = match[2]
    return found


@pytest.fixture(scope="module")
def constraints():
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    return pins([line for line in lines if line and not line.startswith("#")])


@pytest.fixture(scope="module")
def conda():
    return yaml.safe_load((ROOT / "environment.yml").read_text(encoding="utf-8"))


def test_conda_environment_has_the_same_pins(conda, constraints):
    packages = next(entry["pip"] for entry in conda["dependencies"] if isinstance(entry, dict))
    assert {"-c constraints.txt", "-e ."} <= set(packages)
    conda_pins = pins([entry for entry in packages if not entry.startswith("-")])
    assert conda_pins == {name: constraints[name] for name in conda_pins}
    assert conda_pins.keys() == {canonicalize_name(requirement.name) for requirement in DIRECT}


def test_conda_python_satisfies_the_project(conda):
    (python,) = (e for e in conda["dependencies"] if isinstance(e, str) and e.startswith("python="))
    version = python.removeprefix("python=")
    assert Requirement(f"python{PROJECT['requires-python']}").specifier.contains(version)
    assert f"Programming Language :: Python :: {version}" in PROJECT["classifiers"]


@pytest.mark.parametrize("requirement", DIRECT, ids=lambda requirement: requirement.name)
def test_direct_dependency_is_pinned_within_its_bound(requirement, constraints):
    bounds = list(requirement.specifier)
    assert [bound.operator for bound in bounds] == [">="], "one honest lower bound, no more"
    pinned = constraints[canonicalize_name(requirement.name)]
    assert Version(bounds[0].version) <= Version(pinned)


def applies(requirement, extras):
    """Return whether a requirement holds on any Python version that the project declares."""
    if requirement.marker is None:
        return True
    environments = [
        {"extra": extra, "python_version": version, "python_full_version": f"{version}.0"}
        for extra in [*extras, ""]
        for version in PYTHONS
    ]
    return any(requirement.marker.evaluate(environment) for environment in environments)


def test_everything_that_is_installed_for_us_is_pinned(constraints):
    """Follow the requirements of the installed packages; pip and setuptools belong to the venv itself."""
    waiting = [*DIRECT, Requirement("uv")]  # scripts/setup.sh has pip bring uv
    seen = set()
    unpinned = set()
    while waiting:
        requirement = waiting.pop()
        name = canonicalize_name(requirement.name)
        key = (name, frozenset(requirement.extras))
        if key in seen or name in {"pip", "setuptools"}:
            continue
        seen.add(key)
        if name == "triton" or name.startswith(("cuda-", "nvidia-")):
            continue  # what the CUDA build of torch brings is torch's own choice
        if name not in constraints:
            unpinned.add(name)
            continue
        try:
            children = metadata.requires(requirement.name) or []
        except metadata.PackageNotFoundError:
            continue  # needed on another Python version only
        waiting += [child for child in map(Requirement, children) if applies(child, requirement.extras)]
    assert len(seen) > len(DIRECT)
    assert unpinned == set()
    installed = {canonicalize_name(found.name) for found in metadata.distributions()}
    stale = constraints.keys() & installed - {name for name, _ in seen}
    assert stale == set(), "pinned, but nothing needs it"


def test_pins_hold_no_local_build(constraints):
    assert constraints["torch"] == "2.13.0"  # CPU and CUDA builds both satisfy it


def test_every_third_party_import_is_a_declared_dependency():
    distributions = metadata.packages_distributions()
    declared = {canonicalize_name(Requirement(text).name) for text in PROJECT["dependencies"]}
    extras = {name: texts for name, texts in PROJECT["optional-dependencies"].items() if name != "dev"}
    optional = {canonicalize_name(Requirement(text).name) for texts in extras.values() for text in texts}
    undeclared = set()
    for path in sorted((ROOT / "gpenlib").rglob("*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                tops = {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and not node.level and node.module:
                tops = {node.module.partition(".")[0]}
            else:
                continue
            for top in tops - sys.stdlib_module_names - {"gpenlib"}:
                owners = {canonicalize_name(name) for name in distributions.get(top, [top])}
                # Extras are imported where they are used, so that the rest works without them.
                if not owners & (declared if node in tree.body else declared | optional):
                    undeclared.add(f"{path.relative_to(ROOT)}: {top}")
    assert undeclared == set()


@pytest.mark.parametrize("name", CONFIGURATION)
def test_no_package_host_is_named(name):
    """Where packages come from, and which build of torch, is the user's choice: pip's own configuration."""
    text = (ROOT / name).read_text(encoding="utf-8")
    assert "://" not in text
    assert not re.search(r"--(extra-)?index-url|--find-links|--trusted-host|\bchannels:", text)


@pytest.mark.parametrize("name", ["scripts/setup.sh", ".ci/run"])
def test_scripts_parse_and_ci_is_executable(name):
    subprocess.run(["bash", "-n", str(ROOT / name)], check=True)
    assert (ROOT / name).stat().st_mode & 0o111


def test_importing_the_package_stays_light():
    code = "import gpenlib, sys; print(sorted({'torch', 'cv2', 'onnx', 'openvino'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.strip() == "[]"
