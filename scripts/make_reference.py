"""Write ``docs/reference`` from the code: notebooks, build and training files, stages, commands, names.

``python scripts/make_reference.py`` writes the pages and the JSON Schemas; with ``--check`` it writes nothing
and fails, naming the files, if one of them is not what the code says. The fields of the manifests stand in
``docs/reference/fields.json``, as a run has them: ``--run demo`` reads them anew from its manifests.
"""

from __future__ import annotations

import argparse
import inspect
import json
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

import nbformat
from pydantic import BaseModel

import gpenlib
from gpenlib.__main__ import COMMANDS
from gpenlib.data.tasks import TASKS
from gpenlib.files import repository_root, write_text
from gpenlib.infer.runtime import TABLE
from gpenlib.notebooks import find_notebooks
from gpenlib.run import Run
from gpenlib.settings import DEVICES, DTYPES, BuildConfig, RunFolder, Settings
from gpenlib.stages import MANIFEST as MANIFEST_FILE
from gpenlib.train.config import TrainConfig

ROOT = repository_root()
FOLDER = ROOT / "docs" / "reference"
FIELDS = FOLDER / "fields.json"
AS_ELSEWHERE = {"build", "network", "packages"}  # mappings that are described where they come from
NAMED_BY_DATA = {
    "arithmetic", "clipped_share", "convolutions_by_weight_type", "differences", "executed_convolutions",
    "files", "files_sha256", "forms", "operators", "others", "quantised", "torch_files",
}  # fmt: skip
NOTE = "<!-- Written by scripts/make_reference.py: change the code, then run it again. -->\n\n"
MACHINE = {"workers": "at most four per processor"}  # keys whose upper limit is the machine's
DIALECT = "https://json-schema.org/draft/2020-12/schema"
PARAMETER = re.compile(r"(?P<name>\w+): \w+ = (?P<default>.+?)  # (?P<what>.+)")
SIGNS = {"minimum": "at least {}", "exclusiveMinimum": "above {}"}
SIGNS |= {"maximum": "at most {}", "exclusiveMaximum": "below {}"}

PARAMETERS = """\
Give them as `papermill NOTEBOOK out.ipynb -p NAME VALUE`, in a file of `params/`, or to all notebooks that
know them with `python -m gpenlib notebooks --params params/demo.yaml -p NAME VALUE`. Relative paths count
from the root of the repository. An unknown name or a value that is not allowed is refused, with the nearest
that is.
"""
FILES = """\
YAML files as in [`params/{0}`](../../params/{0}). Unknown keys are refused with the nearest known one. With
the line `# yaml-language-server: $schema=../../docs/reference/{0}.schema.json` at the top (the path counts
from the file) editors complete the keys and mark mistakes: [the JSON Schema]({0}.schema.json).
"""
BACKENDS = """\
# Backends

What runs an artefact: the precisions (`dtype`) of every backend on every device, and the file that it opens.
"""
COMMAND = """\
# Commands

`python -m gpenlib COMMAND ...`; each has its own `--help`. Errors are one line, and the exit status is not
0.
"""
NAMES = """\
# Python

The public names. `help(gpenlib.compile_model)` has parameters, results and errors of each; `gpenlib.Run`
has a method per stage: [stages](stages.md).
"""
MANIFEST = """\
# Stages and their manifests

A stage is a folder `outputs/<run>/<stage>/` with a `manifest.json`, which is written last. A folder without
one is half a result, and is built again. Every manifest has these fields:

| field | what |
|---|---|
| `stage` | name of the folder below the run |
| `settings` | what the stage declares to depend on, and what else follows from the settings |
| `inputs` | SHA-256 of what was read, and `digest` of every stage that was used, by name |
| `packages` | versions of the packages that compute |
| `code` | hash of the parts of `gpenlib` that decide the result; comments and docstrings do not count |
| `metrics` | the figures: see each stage below |
| `outputs` | SHA-256 of every file of the folder, by path |
| `digest` | hash of all of the above: an edited manifest does not count |

A stage stands while `settings`, `inputs`, `packages`, `code` and the files are the same; otherwise it is
built again, and the log says which of them changed. In Python every method of `gpenlib.Run` below returns
its manifest, with `folder`, `where` (the same from the root of the repository) and `built` (whether it was
built just now) added.

Beside the stages a run's folder holds `report.html` (notebook 05), `notebooks/` and `html/` (executed
copies and pages, of `make run`), and `00_architecture/results.json`, the counts of notebook 00.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the reference, or check it; return 1 if a file is not what the code says."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--check", action="store_true", help="write nothing")
    parser.add_argument("--run", help="first read the fields from the manifests of this run")
    options = parser.parse_args(arguments)
    if options.run:
        found = fields_of_run(RunFolder(run=options.run).folder)
        write_text(FIELDS, json.dumps(found, indent=1) + "\n")
    wrong = []
    for path, text in pages().items():
        if options.check:
            wrong += (
                []
                if path.is_file() and path.read_text(encoding="utf-8") == text
                else [str(path.relative_to(ROOT))]
            )
        else:
            write_text(path, text)
            print(path.relative_to(ROOT))
    if wrong:
        print(f"not as the code says: {', '.join(wrong)}; run scripts/make_reference.py", file=sys.stderr)
    return bool(wrong)


def pages() -> dict[Path, str]:
    """Return the text of every file of the reference."""
    files = {}
    for name, model, title in (
        ("build", BuildConfig, "Build files"),
        ("train", TrainConfig, "Training files"),
    ):
        schema = schema_of(model, title)
        files[f"{name}.schema.json"] = json.dumps(schema, indent=2, ensure_ascii=False) + "\n"
        files[f"{name}.md"] = NOTE + settings_page(name, model, title, schema)
    files["notebooks.md"] = NOTE + notebooks_page()
    files["stages.md"] = NOTE + stages_page()
    files["backends.md"] = NOTE + backends_page()
    files["commands.md"] = NOTE + commands_page()
    files["python.md"] = NOTE + python_page()
    return {FOLDER / name: text for name, text in files.items()}


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    escaped = [[escape(cell).replace("|", r"\|") for cell in line] for line in lines]
    return "".join(f"| {' | '.join(line)} |\n" for line in escaped)


def escape(text: str) -> str:
    """Return Markdown whose ``<`` outside of code is no HTML."""
    return "".join(
        part if part.startswith("`") else part.replace("<", "&lt;") for part in re.split(r"(`[^`]*`)", text)
    )


def plain(text: str) -> str:
    """Return docstring text as Markdown: roles and double backticks become single ones."""
    text = re.sub(r":\w+:`~?([^`]+)`", r"`\1`", inspect.cleandoc(text))
    return text.replace("``", "`")


# Notebooks


def notebooks_page() -> str:
    """Return the parameters of every notebook, as its parameters cell states them."""
    parts = ["# Parameters of the notebooks\n"]
    parts.append(PARAMETERS)
    for path in find_notebooks(ROOT / "notebooks"):
        cells = nbformat.read(path, as_version=4).cells
        title = cells[0].source.splitlines()[0].lstrip("# ")
        (source,) = (cell.source for cell in cells if "parameters" in cell.metadata.get("tags", ()))
        rows = [PARAMETER.fullmatch(line) for line in source.splitlines()]
        values = [[f"`{row['name']}`", f"`{row['default']}`", row["what"]] for row in rows if row]
        assert len(values) == len(rows), f"{path}: a line of the parameters cell has another form"
        parts.append(f"## {path.stem}\n\n{title}.\n\n{table(['parameter', 'default', 'what'], values)}")
    return "\n".join(parts)


# Build and training files


def schema_of(model: type[Settings], title: str) -> dict[str, Any]:
    """Return the JSON Schema of settings for editors: titles left out, tasks and defaults filled in."""
    schema = {"$schema": DIALECT, **model.model_json_schema()}
    models = {kind.__name__: kind for kind in models_in(model)}
    for name, part in {**schema.get("$defs", {}), model.__name__: schema}.items():
        part.pop("title", None)
        part["description"] = plain(part["description"])
        for key, entry in part["properties"].items():
            entry.pop("title", None)
            if "description" in entry:
                entry["description"] = plain(entry["description"])
            field = models[name].model_fields[key]
            default = field.get_default(call_default_factory=True)
            if not field.is_required() and not isinstance(default, BaseModel):
                entry["default"] = json.loads(json.dumps(default))
            else:
                entry.pop("default", None)
            if key in MACHINE:
                del entry["maximum"]
                entry["description"] += f"; {MACHINE[key]}"
            if key == "task":  # others can be registered, so these are offered and none is refused
                entry.pop("type")
                entry["anyOf"] = [{"enum": list(TASKS)}, {"type": "string"}]
    return {"title": f"{title} of the GPEN workbench", **schema}


def models_in(model: type[BaseModel]) -> Iterator[type[BaseModel]]:
    """Yield a model and those of its fields."""
    yield model
    for field in model.model_fields.values():
        if inspect.isclass(field.annotation) and issubclass(field.annotation, BaseModel):
            yield from models_in(field.annotation)


def settings_page(name: str, model: type[Settings], title: str, schema: dict[str, Any]) -> str:
    """Return the keys of a file as tables, one per mapping."""
    parts = [f"# {title}\n", FILES.format(name)]
    parts.append(section(schema, "", name))
    return "\n".join([*parts, *nested(schema, schema, "", name)])


def nested(schema: dict[str, Any], part: dict[str, Any], prefix: str, name: str) -> Iterator[str]:
    """Yield a section for every mapping inside of ``part``."""
    for key, entry in part["properties"].items():
        if "$ref" in entry:
            inner = schema["$defs"][entry["$ref"].rpartition("/")[2]]
            dotted = f"{prefix}{key}"
            yield f"## `{dotted}`\n\n{section(inner, f'{dotted}.', name)}"
            yield from nested(schema, inner, f"{dotted}.", name)


def section(part: dict[str, Any], prefix: str, name: str) -> str:
    """Return what a mapping is for, and the table of its keys."""
    rows = []
    for key, entry in part["properties"].items():
        dotted = f"{prefix}{key}"
        link = f"see [`{dotted}`](#{dotted.replace('.', '')})"
        default = f"`{json.dumps(entry['default'])}`" if entry.get("default") is not None else ""
        if key in part.get("required", ()):
            default = "needed"
        allowed = link if "$ref" in entry else allowed_by(entry)
        rows.append([f"`{key}`", allowed, default, entry.get("description", "")])
    description = part["description"]
    return f"{description}\n\n{table(['key', 'allowed', 'default', 'what'], rows)}"


def allowed_by(entry: dict[str, Any]) -> str:
    """Return in words what a JSON Schema allows."""
    if "anyOf" in entry:
        return " or ".join(allowed_by(kind) for kind in entry["anyOf"] if kind != {"type": "null"})
    if "enum" in entry or "const" in entry:
        return ", ".join(f"`{value}`" for value in entry.get("enum", [entry.get("const")]))
    bounds = "".join(f", {words.format(entry[sign])}" for sign, words in SIGNS.items() if sign in entry)
    match entry.get("type"):
        case "array" if "prefixItems" in entry:
            return f"[{', '.join(allowed_by(kind) for kind in entry['prefixItems'])}]"
        case "array":
            return f"list of: {allowed_by(entry['items'])}"
        case "object":
            return "mapping"
        case kind:
            words = {"integer": "whole number", "boolean": "`true`, `false`", "string": "text"}
            return f"{words.get(kind, kind)}{bounds}"


# Stages


def stages_page() -> str:
    """Return what every stage writes: its folder, what decides it, and the docstring of its method."""
    parts = {}
    known = json.loads(FIELDS.read_text(encoding="utf-8"))
    for name, method in vars(Run).items():
        folder, declared = decorated(method)
        public = getattr(Run, name.lstrip("_"), None)
        text = plain(public.__doc__ or "") if public else ""
        if not re.match(r"\d\d_", text) and not folder:
            continue
        if name.startswith("_") and public:
            continue  # told at the public method
        if public and not folder:
            folder, declared = decorated(vars(Run).get(f"_{name}"))
        heading, _, rest = text.partition(": ")
        folder = stage_of((folder or heading).replace("06_train", "06_train/").replace("{dtype}", DTYPES[0]))
        rest = (
            rest or "What the page `report.html` of the run is made of; `metrics` has the `recommendation`."
        )
        rest = escape(sections(rest[0].upper() + rest[1:]))
        called = f"Method `Run.{name}()`." if public else ""
        decides = ", ".join(f"`{word}`" for word in declared.split())
        said = (
            f"{called} Settings that decide it beside its inputs: {decides}.\n" if decides else f"{called}\n"
        )
        listed = fields_list(known.get(folder, []))
        parts[folder] = f"## `{folder}`\n\n{rest}\n\n{said}{listed}"
    return "\n".join([MANIFEST, *(parts[folder] for folder in sorted(parts))])


def decorated(method: Any) -> tuple[str, str]:
    """Return the folder and the settings that a method's ``@stage`` declares; "" if it has none."""
    if not (inspect.isfunction(method) and hasattr(method, "__wrapped__")):
        return "", ""
    found = inspect.getclosurevars(method).nonlocals
    return found.get("folder", ""), found.get("settings", "")


def sections(text: str) -> str:
    """Return the parts of a NumPy docstring as paragraphs and lists."""
    text = re.sub(r"^(\w+)\n-{3,}\n", r"*\1*\n\n", text, flags=re.MULTILINE)
    return re.sub(r"^(\S.*)\n {4}(\S.*)", r"- `\1`: \2", text, flags=re.MULTILINE)


def stage_of(name: str) -> str:
    """Return the name of a stage with placeholders, such as ``04_infer/<dtype>``."""
    first, _, last = name.partition("/")
    return f"{first}/<dtype>" if last in DTYPES else "06_train/<name>" if first == "06_train" else name


def fields_of_run(folder: Path) -> dict[str, list[str]]:
    """Return the dotted names of what the manifests of a run hold as ``metrics``, by stage."""
    found: dict[str, dict[str, None]] = {}
    for path in sorted(folder.rglob(MANIFEST_FILE)):
        manifest = json.loads(path.read_text(encoding="utf-8"))
        if manifest.get("metrics"):
            names = dict.fromkeys(fields_of(manifest["metrics"]))
            found.setdefault(stage_of(manifest["stage"]), {}).update(names)
    if not found:
        raise SystemExit(f"{folder}: no manifest of a stage; run the notebooks first (make run)")
    return {name: shortened(fields) for name, fields in sorted(found.items())}


def shortened(fields: Iterable[str]) -> list[str]:
    """Leave out what only says that others lie inside of it: empty lists, mappings of no entries."""
    fields = list(fields)
    return [
        name for name in fields if not any(other.startswith((f"{name}[", f"{name}.")) for other in fields)
    ]


def fields_of(value: Any, name: str = "") -> Iterator[str]:
    """Yield the dotted names inside of a value: ``rows[].psnr``; ``<...>`` is a name that data give."""
    if isinstance(value, list) and value and isinstance(value[0], dict):
        for entry in value:
            yield from fields_of(entry, f"{name}[]")
    elif isinstance(value, dict) and value and name.rpartition(".")[2] not in AS_ELSEWHERE:
        nested = name and len(value) > 1 and all(isinstance(entry, dict) for entry in value.values())
        for key, entry in value.items():
            named_by_data = nested or key.isdigit() or name.rpartition(".")[2] in NAMED_BY_DATA
            yield from fields_of(entry, f"{name}.{'<...>' if named_by_data else key}".lstrip("."))
    else:
        yield name


def fields_list(fields: Sequence[str]) -> str:
    """Return the fields as a list, those of the same rows on one line."""
    rows: dict[str, list[str]] = {}
    for field in fields:
        head, inside, last = field.rpartition("[].")
        rows.setdefault(head + inside.rstrip("."), []).append(last)
    lines = [
        f"- {f'`{head}`: ' if head else ''}{', '.join(f'`{n}`' for n in names)}"
        for head, names in rows.items()
    ]
    return "".join(f"{line}\n" for line in ["\nFields of `metrics`:\n", *lines]) if lines else ""


# Backends


def backends_page() -> str:
    """Return which backend runs which precision on which device, and opens which file of an artefact."""
    rows = [
        [f"`{name}`", f"`{entry.file}`", *(", ".join(entry.dtypes.get(device, ())) for device in DEVICES)]
        for name, entry in TABLE.items()
    ]
    return f"{BACKENDS}\n{table(['backend', 'file', *(f'`{device}`' for device in DEVICES)], rows)}"


# Commands


class Caught(BaseException):  # no Exception: commands turn those into messages
    """Carries the parser that a command was about to use."""


@contextmanager
def caught_parsers() -> Iterator[None]:
    """Let commands stop where they parse, with their parser."""
    parse = argparse.ArgumentParser.parse_args

    def caught(parser: argparse.ArgumentParser, *rest: Any) -> Any:
        raise Caught(parser)

    argparse.ArgumentParser.parse_args = caught  # type: ignore[assignment, method-assign]
    try:
        yield
    finally:
        argparse.ArgumentParser.parse_args = parse  # type: ignore[method-assign]


def parser_of(run: Callable[[], object]) -> argparse.ArgumentParser:
    """Return the parser that a command makes."""
    with caught_parsers():
        try:
            run()
        except Caught as caught:
            parser: argparse.ArgumentParser = caught.args[0]
            return parser
    raise AssertionError("the command parses nothing")


def command_parser(name: str) -> argparse.ArgumentParser:
    """Return the parser of ``python -m gpenlib NAME``."""
    return parser_of(lambda: import_module(f"gpenlib.{COMMANDS[name][0]}").main([]))


def commands_page() -> str:
    """Return the arguments of every command of ``python -m gpenlib``."""
    listed = [[f"[`{name}`](#{name})", what] for name, (_, what) in COMMANDS.items()]
    parts = [COMMAND]
    parts.append(table(["command", "what"], listed))
    for name in COMMANDS:
        parser = command_parser(name)
        rows = []
        for action in parser._actions:
            if isinstance(action, argparse._HelpAction):
                continue
            rows.append([f"`{written(action)}`", action.help or ""])
            if action.choices:
                rows[-1][1] = (
                    f"{', '.join(f'`{choice}`' for choice in action.choices)}; {rows[-1][1]}".rstrip("; ")
                )
        what = " ".join(plain(parser.description or "").split())
        parts.append(f"## {name}\n\n{what}\n\n{table(['argument', 'what'], rows)}")
    return "\n".join(parts)


def written(action: argparse.Action) -> str:
    """Return how an argument is written on the command line."""
    flag = ", ".join(action.option_strings)
    if action.nargs == 0:
        return flag
    names = action.metavar or (action.dest.upper().replace("_", "-"))
    name = " ".join(names) if isinstance(names, tuple) else names
    if action.nargs in ("+", "*"):
        name = f"{name} ..."
    name = name if flag or action.nargs != "*" else f"[{name}]"
    return f"{flag} {name}".strip()


# Python


def python_page() -> str:
    """Return the public names of the package with the first sentence of their docstrings."""
    rows = []
    for name in gpenlib.__all__:
        thing = getattr(gpenlib, name)
        first = " ".join(plain(thing.__doc__ or "").partition("\n\n")[0].split())
        rows.append([f"`gpenlib.{name}`", "class" if inspect.isclass(thing) else "function", first])
    return f"{NAMES}\n{table(['name', 'is a', 'what'], rows)}"


if __name__ == "__main__":
    raise SystemExit(main())
