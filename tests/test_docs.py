"""README and docs hold: commands parse, names and paths exist, links lead somewhere, examples run."""

import importlib.util
import json
import re
import shlex
import shutil
from pathlib import Path

import jsonschema
import nbformat
import pytest
import yaml
from papermill.cli import _resolve_type

from gpenlib.__main__ import main as run_gpenlib
from gpenlib.data import tasks
from gpenlib.data.faces import photographs, whole_photographs
from gpenlib.files import read_json, repository_root
from gpenlib.images import to_grey, write_image
from gpenlib.notebooks import check_parameters, declared_parameters, execute, find_notebooks
from gpenlib.run import Run
from gpenlib.settings import (
    BuildConfig,
    PhotoSettings,
    RunSettings,
    SettingsError,
    parse_overrides,
    read_yaml,
)
from gpenlib.sweep import parse_grid
from gpenlib.train.config import TrainConfig, TrainSettings
from tests.conftest import SLOW

ROOT = repository_root()
NOTEBOOKS = ROOT / "notebooks"
PAGES = [ROOT / "README.md", ROOT / "SECURITY.md", *sorted((ROOT / "docs").rglob("*.md"))]
WRITTEN = [page for page in PAGES if page.parent.name != "reference"]  # by hand
KINDS = {"06_train": TrainSettings, "07_photos": PhotoSettings}
TOP = "gpenlib|notebooks|scripts|params|benchmarks|tests|docs"
# What a reader brings, and what stands for it here
BROUGHT = {"official_gpen.yaml": "tests/data_files/vendor_build.yaml", "FILE": "params/train/prior_128.yaml"}
MOST_PICTURES = 1_500_000  # bytes


def load(path):
    """Import a script that is no part of the package, and may import others of its folder."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(path.parent)
        spec.loader.exec_module(module)
    return module


reference = load(ROOT / "scripts/make_reference.py")


def name_of(path):
    return str(path.relative_to(ROOT))


def blocks(page, language):
    return re.findall(
        rf"^```{language}\n(.*?)^```", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL
    )


def spans(page):
    """Return the inline code of a page."""
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    return re.findall(r"`([^`]+)`", text)


def commands_of(page):
    """Return the command lines of a page, as words: those of blocks, and inline ones that are complete."""
    lines = [line for block in blocks(page, "sh") for line in block.replace("\\\n", " ").splitlines()]
    lines += [span for span in spans(page) if re.match(r"(python|papermill|make|torchrun) \S", span)]
    return [words for line in lines if (words := shlex.split(line, comments=True))]


def check_command(words, bring):
    """Check a command as far as it can be without running it; ``bring`` makes what the reader brings."""
    program, *rest = [bring(word) for word in words]
    match program:
        case "papermill":
            check_papermill(rest)
        case "torchrun":
            check_command(["python", *rest[rest.index("-m") :]], bring)
        case "python" if rest[:2] == ["-m", "gpenlib"]:
            check_gpenlib(rest[2], rest[3:]) if rest[2:] != ["COMMAND", "..."] else None
        case "python" if rest[:2] == ["-m", "pytest"]:
            assert all((ROOT / path).exists() for path in rest[2:]), rest
        case "python":
            module = load(ROOT / rest[0])
            if len(rest) > 1:
                parse(reference.parser_of(module.main), rest[1:])
        case "make":
            targets = re.findall(r"^([a-z]+):.*## ", (ROOT / "Makefile").read_text(), re.MULTILINE)
            assert {word for word in rest if "=" not in word} <= set(targets), rest
        case "cd":
            assert rest == [".."] or (ROOT / rest[0]).is_dir(), rest
        case "curl":
            assert rest[::2] == ["--data-binary", "--output", "http://127.0.0.1:8000/"], rest
        case ".":
            assert rest == [".venv/bin/activate"]
        case "tensorboard" | "pip" | "conda":
            assert rest[0] in ("--logdir", "install", "env")
        case _:
            raise AssertionError(f"{program}: no test knows this program")


def parse(parser, words):
    """Parse as the command does; what it refuses is a failure, not the end of the tests."""
    try:
        return parser.parse_args(words)
    except SystemExit:
        raise AssertionError(f"{parser.prog} does not take {words}") from None


def check_papermill(words):
    if words[0] == "--help-notebook":
        assert (NOTEBOOKS / words[1]).is_file(), words
        return
    notebook, output, *rest = words
    path = NOTEBOOKS / Path(notebook).name
    assert path.is_file() and Path(output).match("out*.ipynb"), words
    assert rest[::3] == ["-p"] * (len(rest) // 3) and len(rest) % 3 == 0, rest
    values = dict(zip(rest[1::3], map(_resolve_type, rest[2::3]), strict=True))
    check_parameters(values, [path])
    KINDS.get(path.stem, RunSettings).of(values)


def check_gpenlib(command, words):
    assert command in reference.COMMANDS, command
    if not words:  # spoken of
        return
    options = parse(reference.command_parser(command), words)
    if command == "compile":
        BuildConfig.from_yaml(options.build, parse_overrides(options.overrides))
    elif command == "train":
        TrainConfig.from_yaml(options.config, parse_overrides(options.overrides))
    elif command == "notebooks":
        given = read_yaml(ROOT / options.params) if options.params else {}
        grid = parse_grid(options.sweep or ())
        check_parameters(given | dict(options.p) | grid, find_notebooks(NOTEBOOKS, options.only))
        for name, values in grid.items():
            for value in values if name in RunSettings.model_fields else ():
                RunSettings.of({name: value})


@pytest.fixture
def bring(tmp_path):
    """Return what stands for a word of the reader's: folders are made, files need not be there."""

    def stand_in(word):
        key, equals, value = word.rpartition("=")
        if value.startswith("/path/to/"):
            value = str(tmp_path / value.removeprefix("/path/to/"))
            if not Path(value).suffix:
                Path(value).mkdir(parents=True, exist_ok=True)
        return key + equals + BROUGHT.get(value, value)

    return stand_in


@pytest.mark.parametrize("page", WRITTEN, ids=name_of)
def test_commands_are_those_that_there_are(page, bring):
    for words in commands_of(page):
        try:
            check_command(words, bring)
        except Exception as error:
            raise AssertionError(f"{name_of(page)}: {shlex.join(words)}: {error}") from error


@pytest.mark.parametrize(
    "line",
    [
        "papermill 09_none.ipynb out.ipynb",
        "papermill 04_infer.ipynb out.ipynb -p dtpye int8",
        "papermill 04_infer.ipynb out.ipynb -p dtype int7",
        "papermill 07_photos.ipynb out.ipynb -p strength 1.5",
        "python -m gpenlib bench folder --batches 1",
        "python -m gpenlib compile params/build/int8.yaml backend.dtpye=int8",
        "python -m gpenlib train params/train/prior_32.yaml steps=0",
        "python -m gpenlib notebooks --params params/demo.yaml -p colour red",
        "python -m gpenlib notebooks --sweep dtype=int8,int7",
        "python -m gpenlib notebooks --sweep dtype=int8,fp32 --only 06",
        "python benchmarks/none.py",
        "python benchmarks/deploy_vs_original.py --rund 7",
        "make coffee",
        "rm -rf /",
    ],
)
def test_commands_that_do_not_exist_are_found(line, bring):
    with pytest.raises((AssertionError, SettingsError, RuntimeError, OSError)):
        check_command(shlex.split(line), bring)


def test_there_are_commands_to_check():
    shown = [words for page in WRITTEN for words in commands_of(page)]
    assert sum(words[0] == "papermill" for words in shown) > 15
    assert {words[3] for words in shown if words[1:3] == ["-m", "gpenlib"]} >= reference.COMMANDS.keys()


@pytest.mark.parametrize("page", WRITTEN, ids=name_of)
def test_parameters_and_paths_in_the_text_exist(page):
    known = {name for path in find_notebooks(NOTEBOOKS) for name in declared_parameters(path)}
    for span in spans(page):
        for name in re.findall(r"(?:^|\s)-p (\w+)", span):
            assert name in known or name == "NAME", f"{span}: no notebook has {name}"
        if re.fullmatch(rf"({TOP})/[\w./-]*", span):
            assert (ROOT / span).exists(), span


def anchors(page):
    """Return the anchors that a Git host makes of the headings."""
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_lead_somewhere(page):
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    for target in re.findall(r"\]\(([^)]+)\)", text) + re.findall(r'src="([^"]+)"', text):
        if "://" in target:
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        assert file.exists(), f"{target}: no such file"
        if anchor:
            assert anchor in anchors(file), f"{target}: {name_of(file)} has no such heading"


def test_every_page_can_be_reached_from_the_map():
    linked = re.findall(r"\]\(([^)#]+)\)", (ROOT / "docs/README.md").read_text(encoding="utf-8"))
    reached = {(ROOT / "docs" / target).resolve() for target in linked}
    missing = {page for page in PAGES if page.parent != ROOT} - reached - {ROOT / "docs/README.md"}
    assert missing == set()


EXAMPLES = [(page, number) for page in PAGES for number in range(len(blocks(page, "python")))]
# Small things in the place of those that take long, or that the reader brings
SMALL = {
    '"GPEN-BFR-512.pth"': '"tiny-random"',
    '"demo-color"': '"tiny-random"',
    '"get_data_num": 50': '"get_data_num": 2',
}
SMALL |= {'"dataset_size": 100': '"dataset_size": 1, "calib_size": 2, "weights": "tiny-random"'}
SMALL |= {'"dataset_size": 2': '"dataset_size": 1, "calib_size": 1, "weights": "tiny-random"'}


@pytest.mark.parametrize(("page", "number"), EXAMPLES, ids=[f"{name_of(p)}-{n}" for p, n in EXAMPLES])
def test_examples_run(page, number, tmp_path, outputs_root, monkeypatch, float_graph):
    def copied(model, path):
        return Path(shutil.copy(float_graph, path))

    for module in ("export", "compile.build", "run"):  # the graph is exported once for all examples
        monkeypatch.setattr(f"gpenlib.{module}.export_onnx", copied)
    faces = photographs(96)
    for index in range(6):
        write_image(tmp_path / f"faces/{index}.png", faces.read(index % 2)[index:, index:])
    write_image(tmp_path / "photograph.png", whole_photographs()["astronaut"][:300, 80:350])
    code = blocks(page, "python")[number]
    for long, small in SMALL.items():
        code = code.replace(long, small)
    for path in ("faces", "photograph.png", "gpen.onnx", "deploy_weights/"):
        code = code.replace(f'"{path}', f'"{tmp_path / path}' + ("/" if path.endswith("/") else ""))
    monkeypatch.setattr(tasks, "_TASKS", dict(tasks._TASKS))
    exec(compile(code, f"{name_of(page)}, example {number}", "exec"), {})


# The page that translates the vendor's card: its commands are run, one after the other

CARD = ROOT / "docs/migration.md"
OUTPUTS_OF_04 = "outputs/card/04_infer/int8/npz"
QUICK = {"/path/to/GPEN-512.pth": "tiny-random", "1000": "2", "/path/to/npz_output": OUTPUTS_OF_04}
OPERATORS = (
    "{type: DecodeImage}, {type: Resize}, {type: Normalize, mean: [0.5, 0.5, 0.5], std: [0.5, 0.5, 0.5]}"
)
QUICKER = {  # words behind a command's own: for a network of 64 px in place of 512, and few calls
    "compile": (
        "frontend.shape={input: [1, 3, 64, 64]}",
        "dataset.sampler={suffix: png, get_data_num: 2}",
        f"dataset.process_ops=[{OPERATORS}, {{type: ToTensor}}]",
    ),
    "bench": ("--repeats", "1", "--warm-up", "0"),
}
LEFT = {  # what the page says that a command leaves behind, or is given
    "02_data": "outputs/card/02_data/evaluation/datalist.txt",
    "compile": "deploy_weights/card_int8/manifest.json",
    "04_infer": "outputs/card/04_infer/int8/images/0.png",
    "bench": "outputs/card/03_compile/int8/artefact/manifest.json",
    "score": OUTPUTS_OF_04,
}


@SLOW
def test_the_commands_beside_the_vendors_do_what_the_page_says(tmp_path, outputs_root, capsys):
    faces = photographs(64)
    for index in range(2):
        write_image(tmp_path / f"GPEN/hq/{index}.png", faces.read(index))
        write_image(tmp_path / f"GPEN/hq_gray/{index}.png", to_grey(faces.read(index)))

    def placed(word):
        key, equals, value = word.rpartition("=")
        value = QUICK.get(value, BROUGHT.get(value, value))
        return key + equals + re.sub(r"^(/path/to/|(?=outputs/))", f"{tmp_path}/", value)

    ran = []
    for program, *words in ([placed(word) for word in line] for line in commands_of(CARD)):
        if program == "papermill":
            given = dict(zip(words[3::3], map(_resolve_type, words[4::3]), strict=True))
            execute(NOTEBOOKS / words[0], tmp_path / words[1], given)
            ran.append(Path(words[0]).stem)
        elif program == "python":
            ran.append(words[2])
            into = [f"workspace.path={tmp_path}/deploy_weights"] if ran[-1] == "compile" else []
            assert run_gpenlib([*words[2:], *QUICKER.get(ran[-1], ()), *into]) == 0, capsys.readouterr().err
        assert not ran or (tmp_path / LEFT[ran[-1]]).exists()
    assert ran == ["02_data", "compile", "04_infer", "bench", "score", "score"]
    printed = capsys.readouterr().out
    assert "card_int8: int8 for" in printed and "p50 ms" in printed and "truncated" in printed
    results = read_json(outputs_root / "card/04_infer/int8/results.json")
    scored = read_json(outputs_root / "card/04_infer/int8-scores/rows.json")
    assert scored["psnr_mean"] == pytest.approx(results["psnr_mean"], abs=1e-6)
    assert results["ssim_truncated_mean"] == pytest.approx(scored["ssim_truncated_mean"], abs=1e-6)


# The reference


def test_the_reference_is_what_the_code_says(capsys):
    assert reference.main(["--check"]) == 0, capsys.readouterr().err


def test_an_outdated_reference_is_found(tmp_path, monkeypatch, capsys):
    outdated = {ROOT / "docs/reference/build.md": "something else"}
    monkeypatch.setattr(reference, "pages", lambda: outdated)
    assert reference.main(["--check"]) == 1
    assert "docs/reference/build.md" in capsys.readouterr().err


def test_the_fields_of_manifests_are_listed(outputs_root, monkeypatch, float_graph):
    monkeypatch.setattr("gpenlib.run.export_onnx", lambda model, path: Path(shutil.copy(float_graph, path)))
    values = {"weights": "tiny-random", "dataset_size": 6, "calib_size": 1, "repeats": 1}
    run = Run.of({**values, "run": "fields", "dtypes": "fp32,fp16"})
    run.data()
    run.errors()
    listed = json.loads((ROOT / "docs/reference/fields.json").read_text(encoding="utf-8"))
    found = reference.fields_of_run(run.folder)
    assert found.keys() > {
        "02_data",
        "03_latency",
        "04_baselines",
        "04_infer/<dtype>",
        "05_errors",
        "05_report",
    }
    for name, fields in found.items():
        assert set(fields) - set(listed[name]) == set(), f"{name}: run make_reference.py --run demo"
        top = {field.partition(".")[0].removesuffix("[]") for field in listed[name]}
        assert name == "03_compile/<dtype>" or top == {f.partition(".")[0].removesuffix("[]") for f in fields}


class EditorsLoader(yaml.SafeLoader):
    """YAML 1.2 as editors read it: 2e-3 is a number."""


EditorsLoader.yaml_implicit_resolvers = {k: [*v] for k, v in yaml.SafeLoader.yaml_implicit_resolvers.items()}
EditorsLoader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?\d+(\.\d+)?[eE][-+]?\d+$"), list("-+0123456789")
)
FILES = [*sorted((ROOT / "params/build").glob("*.yaml")), *sorted((ROOT / "params/train").glob("*.yaml"))]


def validator(kind):
    schema = json.loads((ROOT / f"docs/reference/{kind}.schema.json").read_text(encoding="utf-8"))
    jsonschema.Draft202012Validator.check_schema(schema)
    return jsonschema.Draft202012Validator(schema)


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_editors_find_the_schema_and_no_mistake(path):
    first, *_ = (text := path.read_text(encoding="utf-8")).splitlines()
    target = first.removeprefix("# yaml-language-server: $schema=")
    kind = path.parent.name
    assert (path.parent / target).resolve() == ROOT / f"docs/reference/{kind}.schema.json"
    validator(kind).validate(yaml.load(text, EditorsLoader))


def test_the_vendors_build_file_is_no_mistake_either():
    text = (ROOT / "tests/data_files/vendor_build.yaml").read_text(encoding="utf-8")
    validator("build").validate(yaml.load(text, EditorsLoader))


@pytest.mark.parametrize(
    ("kind", "values"),
    [
        ("build", {"backend": {"dtpye": "int8"}}),
        ("build", {"backend": {"dtype": "int7"}}),
        ("build", {"dataset": {"sampler": {"get_data_num": 0}}}),
        ("train", {"stage": "prior", "data_dir": "faces", "run_dir": "out"}),
        ("train", {"stage": "prior", "data_dir": "faces", "run_dir": "out", "steps": 1, "losses": {"r2": 1}}),
    ],
)
def test_the_schemas_refuse_what_the_code_refuses(kind, values):
    with pytest.raises(jsonschema.ValidationError):
        validator(kind).validate(values)
    with pytest.raises(SettingsError):
        {"build": BuildConfig, "train": TrainConfig}[kind].parse(values)


@pytest.mark.parametrize("kind", ["build", "train"])
def test_every_key_is_explained(kind):
    schema = json.loads((ROOT / f"docs/reference/{kind}.schema.json").read_text(encoding="utf-8"))
    silent = [
        f"{name}.{key}"
        for name, part in {kind: schema, **schema["$defs"]}.items()
        for key, entry in part["properties"].items()
        if "$ref" not in entry and "description" not in entry and name != "VendorCompileOptions"
    ]
    assert silent == []


# Pictures


def test_every_notebook_has_a_small_picture_in_the_readme():
    pictures = sorted((ROOT / "docs/pictures").iterdir())
    assert [path.stem for path in pictures] == [path.stem for path in find_notebooks(NOTEBOOKS)]
    assert sum(path.stat().st_size for path in pictures) <= MOST_PICTURES
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert all(f"docs/pictures/{path.name}" in text for path in pictures)


def test_pictures_are_cut_from_cells_that_there_are():
    for cut in load(ROOT / "scripts/make_docs_pictures.py").CUTS:
        cells = nbformat.read(NOTEBOOKS / f"{cut.notebook}.ipynb", as_version=4).cells
        assert cut.cell in [cell.id for cell in cells], cut
