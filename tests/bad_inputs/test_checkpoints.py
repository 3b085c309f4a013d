"""Weights files that strangers made: what costs memory, what they are instead, and what is wrong in them."""

import contextlib
import io
import json
import os
import pickle
import zipfile

import numpy as np
import onnx
import pytest
import torch
from safetensors.torch import save, save_file

from gpenlib import Run, load_checkpoint, metrics
from gpenlib.architecture import Discriminator, Gpen, GpenConfig
from gpenlib.architecture.checkpoints import LEGACY, load_discriminator, load_generator
from gpenlib.compile import build
from gpenlib.files import write_json
from gpenlib.photos.find import YuNet
from gpenlib.photos.upscale import TiledUpscaler
from gpenlib.train import average, trainer
from tests.bad_inputs.harness import Case, check

SMALL = GpenConfig(32, 32, 1, 0.03125)
SOME = "generator.convs.1.conv.weight"
FETCH, ALONE = "fetch it again", "save its weights alone"


def state(config=SMALL):
    torch.manual_seed(0)
    return Gpen(config).state_dict()


# Files


def torch_file(change, name="bad.pth", **options):
    """Return what writes the content that ``change`` makes of a sound state dict."""

    def make(folder):
        torch.save(change(state()), folder / name, **options)
        return folder / name

    return make


def entries(change, name="bad.pth"):
    """As ``torch_file``, but ``change`` changes the state dict in place."""

    def make(folder):
        content = state()
        change(content)
        (save_file if name.endswith(".safetensors") else torch.save)(content, folder / name)
        return folder / name

    return make


def raw(content, name="bad.pth"):
    def make(folder):
        (folder / name).write_bytes(content)
        return folder / name

    return make


def cut(share, name):
    def make(folder):
        path = entries(lambda content: None, name)(folder)
        path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])
        return path

    return make


def zipped(pickled, packing=zipfile.ZIP_STORED, **more):
    """Return what writes an archive as torch.save's, with this ``data.pkl``."""

    def make(folder):
        with zipfile.ZipFile(folder / "bad.pth", "w", packing) as archive:
            parts = {"data.pkl": pickled, "version": b"3\n", "byteorder": b"little", **more}
            for name, content in parts.items():
                archive.writestr(f"bad/{name}", content)
        return folder / "bad.pth"

    return make


def header(fields, tail=b"", name="bad.safetensors"):
    """Return what writes safetensors with any header, of text or made of a dictionary."""
    text = (fields if isinstance(fields, str) else json.dumps(fields)).encode()
    return raw(len(text).to_bytes(8, "little") + text + tail, name)


def giant(folder):
    """A few bytes that claim the largest network: every entry repeats one number."""
    with torch.device("meta"):
        shapes = {name: entry.shape for name, entry in Gpen(GpenConfig(2048, 2048, 2)).state_dict().items()}
    one = torch.zeros(1)
    torch.save({name: one.expand(shape) for name, shape in shapes.items()}, folder / "bad.pth")
    return folder / "bad.pth"


def widest(folder):
    """The entries that fix the configuration, of narrow=8, channel_multiplier=1000."""
    one, content = torch.zeros(1), {f"ecd{stage}.0.weight": torch.zeros(1) for stage in range(1, 10)}
    content["ecd0.0.0.weight"] = one.expand(64000, 3, 1, 1)
    content["generator.input.input"] = one.expand(1, 4096, 4, 4)
    content |= {f"generator.to_rgbs.{i}.conv.weight": one.expand(1, 3, 128000, 1, 1) for i in range(9)}
    torch.save(content, folder / "bad.pth")
    return folder / "bad.pth"


def sparse_file(size, name):
    """A file that begins well and is long, of zeros that take no space on the disk."""

    def make(folder):
        path = entries(lambda content: None, name)(folder)
        os.truncate(path, size)
        return path

    return make


def long_tensor(folder):
    """Safetensors with 3 GiB of zeros, which are no GPEN's and need not be read to see that."""
    size = 3 << 30
    fields = {"ecd0.0.0.weight": {"dtype": "F16", "shape": [size // 2, 1, 1, 1], "data_offsets": [0, size]}}
    path = header(fields)(folder)
    os.truncate(path, path.stat().st_size + size)
    return path


def pipe(name):
    def make(folder):
        os.mkfifo(folder / name)
        return folder / name

    return make


def subfolder(folder):
    (folder / "bad.pth").mkdir()
    return folder / "bad.pth"


def dangling(folder):
    (folder / "bad.pth").symlink_to(folder / "gone.pth")
    return folder / "bad.pth"


def deep(folder):
    """Lists in each other, 100,000 deep."""
    pickled = b"\x80\x02" + b"}" + b"X\5\0\0\0g_ema" + b"]" * 100_000 + b"a" * 99_999 + b"s."
    return zipped(pickled)(folder)


def nested(folder):
    """Dictionaries in each other, 100,000 deep."""
    pickled = b"\x80\x02" + b"}X\5\0\0\0g_ema" * 100_000 + b"N" + b"s" * 100_000 + b"."
    return zipped(pickled)(folder)


def many_names(folder):
    fields = {f"ecd{i}.weight": {"dtype": "F16", "shape": [0], "data_offsets": [0, 0]} for i in range(20_000)}
    return header(fields)(folder)


def twice(folder):
    one, other = ({"dtype": "F32", "shape": [4], "data_offsets": [i, i + 16]} for i in (0, 16))
    return header(f'{{"a": {json.dumps(one)}, "a": {json.dumps(other)}}}', bytes(32))(folder)


def program(folder):
    torch.jit.trace(torch.nn.Linear(1, 1), torch.zeros(1)).save(folder / "bad.pt")
    return folder / "bad.pt"


def no_inputs(folder):
    made = onnx.helper.make_node("Constant", [], ["y"], value_float=1.0)
    output = onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [])
    graph = onnx.helper.make_graph([made], "g", [], [output])
    opset = [onnx.helper.make_opsetid("", 17)]
    onnx.save(onnx.helper.make_model(graph, opset_imports=opset, ir_version=8), folder / "u.onnx")
    return folder / "u.onnx"


def long_text(count):
    return b"\x80\x02X" + count.to_bytes(4, "little") + b"short"


def refer(size, count, view=b""):
    """A data.pkl whose tensor takes ``count`` numbers from a storage that claims ``size``, and has one."""
    integer = lambda value: b"J" + value.to_bytes(4, "little")  # noqa: E731
    storage = (
        b"(X\7\0\0\0storagectorch\nFloatStorage\nX\1\0\0\x000X\3\0\0\0cpu" + integer(size) + view + b"tQ"
    )
    rest = b"K\0" + integer(count) + b"\x85K\1\x85\x89ccollections\nOrderedDict\n)RtR"
    return b"\x80\x02}X\1\0\0\0actorch._utils\n_rebuild_tensor_v2\n(" + storage + rest + b"s."


def noted(folder):
    save_file(state(), folder / "bad.safetensors", {"task": "x" * 10**7})
    return folder / "bad.safetensors"


def broken_critic():
    content = Discriminator(GpenConfig(64, 64, 1, 0.0625)).state_dict()
    content["final_conv.0.weight"].fill_(float("nan"))
    return content


# Doors


def load(path, out):
    return load_checkpoint(path)


def with_key(key):
    return lambda path, out: load_checkpoint(path, key)


def run(path, out, **more):
    return Run.of({"weights": str(path), "run": "bad", "dataset_size": 1, **more}).infer()


def run_with_key(path, out):
    return run(path, out, key="nothing")


def printed(main, arguments):
    """Raise what a command-line program printed when it failed."""
    text = io.StringIO()
    with contextlib.redirect_stdout(text), contextlib.redirect_stderr(text):
        code = main(arguments)
    if code:
        raise ValueError(text.getvalue().strip())


def train(path, out, **more):
    values = {"stage": "finetune", "data_dir": "embedded", "run_dir": str(out / "train"), "init": str(path)}
    values |= {"size": 64, "steps": 1, "narrow": 0.0625, "channel_multiplier": 1, "accelerator": "cpu"}
    values |= {"batch_size": 1, "holdout": 1}
    write_json(out / "train.yaml", values | more)
    printed(trainer.main, [str(out / "train.yaml")])


def embed(path, out):
    train(path, out, stage="embed")


def train_on_critic(path, out):
    train("tiny-random", out, discriminator_init=str(path))


def resume(path, out):
    (out / "train").mkdir()
    (out / "train" / "checkpoint.pt").write_bytes(path.read_bytes())
    try:
        train("", out, init=None)
    except ValueError as error:
        raise ValueError(f"{error} {path.name}") from None


def mean(path, out):
    printed(average.main, [str(out / "mean.safetensors"), str(path), str(path)])


def mean_of_shares(path, out):
    shares = ["--shares", "1", "nan"]
    printed(average.main, [str(out / "mean.safetensors"), "tiny-random", "tiny-random", *shares])


def mean_into_folder(path, out):
    (out / "mean.safetensors").mkdir()
    printed(average.main, [str(out / "mean.safetensors"), str(path), str(path)])


def compiled(path, out):
    (out / "build.yaml").write_text(json.dumps({"frontend": {"checkpoint": str(path), "key": "absent"}}))
    printed(build.main, [str(out / "build.yaml"), f"workspace.path={out}"])


def extract(path, out):
    metrics.open_extractor(path)(np.zeros((1, 3, 8, 8), np.uint8))


def upscale(path, out):
    TiledUpscaler(path)


def detect(path, out):
    YuNet(path)


def fill(name, value):
    return lambda content: content[name].fill_(value)


def convert(dtype):
    return lambda content: content.update({SOME: content[SOME].to(dtype)})


def case(name, make, says, call=load, **more):
    return Case(name, make, call, says, **more)


PTH, SAFE = ("bad.pth",), ("bad.safetensors",)
CASES = [
    # What must not cost memory, or time
    case("giant of repeated numbers", giant, (*PTH, "bytes in a file of", FETCH)),
    case("giant of repeated numbers in training", giant, (*PTH, "bytes in a file of", FETCH), train),
    case("wider than any GPEN", widest, (*PTH, "bytes in a file of", FETCH)),
    case(
        "header wider than any GPEN",
        header({"ecd0.0.0.weight": {"dtype": "F16", "shape": [1 << 40], "data_offsets": [0, 1 << 41]}}),
        (*SAFE, "damaged or cut off", FETCH),
    ),
    case("3 GiB of another shape", long_tensor, (*SAFE, "missing generator.input.input")),
    case("9 GiB", sparse_file(9 << 30, "bad.pth"), (*PTH, "9.0 GiB, at most 8 are read", ALONE)),
    case("9 GiB of safetensors", sparse_file(9 << 30, "bad.safetensors"), (*SAFE, "at most 8", ALONE), run),
    case("bomb of zeros", zipped(b"\0" * (20 << 20), zipfile.ZIP_DEFLATED), (*PTH, "torch.save", ALONE)),
    case("long version", zipped(b"\x80\x02}.", version=b"\0" * (65 << 20)), (*PTH, "torch.save", ALONE)),
    case(
        "bytearray of any length",
        zipped(b"\x80\x02c__builtin__\nbytearray\nJ\xff\xff\xff\x7f\x85R."),
        (*PTH, "bytearray", ALONE),
    ),
    case("storage that is not there", zipped(refer(1 << 30, 1 << 30), **{"data/0": b"1234"}), (*PTH, FETCH)),
    case("storage longer than it is", zipped(refer(1, 1 << 30), **{"data/0": b"1234"}), (*PTH, FETCH)),
    case("text longer than the file", zipped(long_text(0xFFFFFFF0)), (*PTH, "damaged or cut off", FETCH)),
    case("lists 100,000 deep", deep, (*PTH, "no state dict under", "g_ema", "pass key=")),
    case("dictionaries 100,000 deep", nested, (*PTH, "g_ema (dict)", ALONE)),
    case("20,000 names", many_names, (*SAFE, "10001 entries", FETCH)),
    case(
        "legacy storage of 2 GiB",
        raw(LEGACY + b"\x80\x02M\xe9\x03.\x80\x02}." + refer(1 << 30, 4, b"N")),
        (*PTH, FETCH),
    ),
    # No file at all
    case("pipe", pipe("bad.pth"), (*PTH, "a pipe, socket or device: name a weights file")),
    case("pipe of safetensors", pipe("bad.safetensors"), (*SAFE, "pipe", "name a weights file"), run),
    case("pipe of ONNX", pipe("bad.onnx"), ("bad.onnx", "a pipe, socket or device: name a weights file")),
    case("pipe to average", pipe("bad.pth"), (*PTH, "a pipe, socket or device: name a weights file"), mean),
    case("folder", subfolder, (*PTH, "is a folder: name a weights file"), run),
    case(
        "device", lambda folder: "/dev/zero", ("/dev/zero", "a pipe, socket or device: name a weights file")
    ),
    case("link to nothing", dangling, (*PTH, "a link to", "gone.pth", "remove the link")),
    case("name of 5000 letters", lambda folder: "w" * 5000, ("www", "longer", "shorten it"), run),
    case("path of 5000 letters", lambda folder: f"{folder}/{'w' * 5000}.pth", ("longer", "shorten it"), run),
    case("home of nobody", lambda folder: "~nobody-at-all/w.pth", ("nobody-at-all", "does not exist"), run),
    case("zero in the name", lambda folder: "bad\0.pth", ("does not exist", "demo-color")),
    # Another kind of file
    case("nothing", raw(b""), (*PTH, "is empty: fetch it again")),
    case("web page", raw(b"<!DOCTYPE html><html>404</html>"), (*PTH, "a web page", "download"), run),
    case(
        "web page as safetensors",
        raw(b"\n <html>", "bad.safetensors"),
        (*SAFE, "a web page", "download"),
        run,
    ),
    case("LFS pointer", raw(b"version https://git-lfs.github.com/spec/v1\n"), (*PTH, "git lfs pull"), train),
    case("JSON", raw(b'{"error": "no such model"}'), (*PTH, "is text, not a weights file"), mean),
    case("gzip", raw(b"\x1f\x8b\x08\0" + bytes(100)), (*PTH, "a gzip archive: unpack it")),
    case("picture", raw(b"\x89PNG\r\n\x1a\n" + bytes(99)), (*PTH, "of an unknown format", ".safetensors")),
    case("other archive", zipped(b"", **{"data.pkl": b""}), (*PTH, FETCH)),
    case("archive of pictures", raw(b"PK\3\4" + bytes(30)), (*PTH, "damaged or cut off", FETCH)),
    case("TorchScript", program, ("bad.pt", "a TorchScript program", ALONE)),
    case("a pickle", raw(pickle.dumps({"a": 1}, 2)), (*PTH, "unknown format")),
    case("PyTorch's as safetensors", torch_file(dict, "bad.safetensors"), (*SAFE, "name it .pth"), run),
    case("safetensors as PyTorch's", raw(save({"a": torch.zeros(1)})), (*PTH, "name it .safetensors")),
    case("half a file", cut(0.5, "bad.pth"), (*PTH, "damaged or cut off", FETCH), run),
    case("half of safetensors", cut(0.5, "bad.safetensors"), (*SAFE, "damaged or cut off", FETCH), train),
    case("all but the end", cut(0.999, "bad.pth"), (*PTH, "damaged or cut off", FETCH), mean),
    case("unknown suffix", raw(b"1", "bad.npz"), ("bad.npz", "allowed: .onnx, .safetensors, .pth")),
    # Another content
    case("list", torch_file(lambda s: list(s.values())), (*PTH, "of type list", ALONE)),
    case("tensor", torch_file(lambda s: s[SOME]), (*PTH, "of type Tensor", ALONE), run),
    case("number", torch_file(lambda s: 3), (*PTH, "of type int", ALONE)),
    case("None", torch_file(lambda s: {"g_ema": None, "g": None}), (*PTH, "g_ema", "pass key=")),
    case("a network whole", torch_file(lambda s: torch.nn.Linear(1, 1)), (*PTH, "Linear", ALONE)),
    case("NumPy's number", torch_file(lambda s: {"g": s, "best": np.float64(1)}), (*PTH, "scalar", ALONE)),
    case(
        "keys that are numbers", torch_file(lambda s: dict(enumerate(s.values()))), (*PTH, "0 (int)", ALONE)
    ),
    case("two that fit", torch_file(lambda s: {"params": s, "model": s}), (*PTH, "params, model", "key=")),
    case(
        "no such key",
        torch_file(lambda s: {"g_ema": s}),
        (*PTH, "under nothing", "present: g_ema"),
        run_with_key,
    ),
    case("key of a flat file", torch_file(dict), (*PTH, "under g;", "pass no key"), with_key("g")),
    case(
        "key too deep",
        torch_file(lambda s: {"a": {"g": s}}),
        (*PTH, "under a.g.h", "pass key="),
        with_key("a.g.h"),
    ),
    case(
        "key of a name", lambda folder: "tiny-random", ("key=g", "tiny-random", "leave it out"), with_key("g")
    ),
    case(
        "key of a build file",
        torch_file(lambda s: {"g_ema": s}),
        (*PTH, "under absent", "pass key="),
        compiled,
    ),
    case("a critic", torch_file(lambda s: Discriminator(SMALL).state_dict()), (*PTH, "missing ecd0"), run),
    # Wrong entries
    case("int64", entries(convert(torch.int64)), (*PTH, SOME, "torch.int64", ALONE)),
    case("complex", entries(convert(torch.complex64)), (*PTH, SOME, "torch.complex64", ALONE), run),
    case("8-bit floats", entries(convert(torch.float8_e4m3fn), "bad.safetensors"), (*SAFE, "float8")),
    case(
        "sparse",
        torch_file(lambda s: s | {SOME: torch.eye(2).to_sparse()}),
        (*PTH, f"{SOME} (torch.float32, torch.sparse_coo", ALONE),
    ),
    case(
        "no data",
        torch_file(lambda s: s | {SOME: torch.empty(2, device="meta")}),
        (*PTH, f"{SOME} (torch.float32, torch.strided, meta)"),
    ),
    case(
        "quantised",
        torch_file(lambda s: s | {SOME: torch.quantize_per_tensor(torch.zeros(2), 1.0, 0, torch.qint8)}),
        (*PTH, SOME, ALONE),
    ),
    case("text among them", torch_file(lambda s: s | {"note": "x" * 10**6}), (*PTH, "no state dict under")),
    case("prefix twice", torch_file(lambda s: s | {f"module.{SOME}": s[SOME]}), (*PTH, "module.", SOME)),
    case(
        "two prefixes",
        torch_file(lambda s: {f"_orig_mod.{n}": s[n] for n in s} | {f"module.{SOME}": s[SOME]}),
        (*PTH, SOME, "keep one"),
    ),
    case("not a number", entries(fill(SOME, float("nan"))), (*PTH, "not finite", SOME, FETCH), mean),
    case("infinite", entries(fill(SOME, float("-inf")), "bad.safetensors"), (*SAFE, "not finite", SOME), run),
    case(
        "too large for float32",
        torch_file(lambda s: s | {SOME: torch.full_like(s[SOME], 1e300, dtype=torch.float64)}),
        (*PTH, "not finite", SOME),
    ),
    case("too large for fp16", entries(fill(SOME, 1e5)), ("mean.safetensors", "torch.float16", SOME), mean),
    case("name twice in the header", twice, (*SAFE, "damaged", FETCH)),
    case(
        "one missing",
        entries(lambda s: s.pop(SOME)),
        (*PTH, "missing", SOME, "give the whole state dict"),
        train,
    ),
    case("one more", entries(lambda s: s.update(more=torch.ones(1))), (*PTH, "unexpected: more"), train),
    case(
        "names of 10,000 letters",
        entries(lambda s: s.update({"a\n" + "x" * 10_000 + str(i): torch.ones(1) for i in range(9)})),
        (*PTH, r"a\nxx", "and 4 more"),
    ),
    case(
        "4000 encoder stages",
        entries(lambda s: s.update({f"ecd{i}.weight": torch.ones(1) for i in range(4000)})),
        (*PTH, "fit no GPEN"),
    ),
    case("note of 10 MB", noted, ("weights=", "header names the task", "color"), run),
    # Training and averaging
    case("a prior of wrong entries", entries(fill(SOME, float("nan"))), (*PTH, "not finite", SOME), embed),
    case(
        "broken critic beside a network",
        torch_file(lambda s: {"g": state(GpenConfig(64, 64, 1, 0.0625)), "d": broken_critic()}),
        (*PTH, "not finite: final_conv.0.weight", FETCH),
        train_on_critic,
    ),
    case("resumed from text", raw(b"no checkpoint"), ("checkpoint.pt", "is text", "remove it"), resume),
    case(
        "resumed from a list",
        torch_file(lambda s: [1]),
        ("checkpoint.pt", "of type list", "remove it"),
        resume,
    ),
    case(
        "resumed from numbers",
        torch_file(
            lambda s: dict.fromkeys(("g", "g_ema", "d", "g_optim", "d_optim", "step", "config", "extra"), 1)
        ),
        ("checkpoint.pt", "no checkpoint of this run", "remove it"),
        resume,
    ),
    case("share that is no number", entries(lambda s: None), ("shares", "nan", "positive"), mean_of_shares),
    case(
        "mean into a folder",
        entries(lambda s: None),
        ("mean.safetensors", "files of that name"),
        mean_into_folder,
    ),
    case(
        "generator of a list",
        torch_file(lambda s: []),
        (*PTH, "of type list", ALONE),
        lambda p, o: load_generator(p),
    ),
    case("extractor of a pipe", pipe("f.pt"), ("f.pt", "pipe", "name a TorchScript file"), extract),
    case(
        "extractor of a web page", raw(b"<html>", "f.pt"), ("f.pt", "a web page", "torch.jit.save"), extract
    ),
    case(
        "extractor of tensors",
        torch_file(dict, "f.pt"),
        ("f.pt", "no TorchScript", "torch.jit.save"),
        extract,
    ),
    case("extractor of other inputs", program, ("bad.pt", "cannot take uint8 RGB (1, 3, 8, 8)"), extract),
    case("upscaler of a pipe", pipe("u.onnx"), ("u.onnx", "pipe", "name a super-resolution"), upscale),
    case("upscaler of a web page", raw(b"<html>", "u.onnx"), ("u.onnx", "a web page", "download"), upscale),
    case("upscaler without inputs", no_inputs, ("u.onnx", "takes []", "expected one [1, 3, H, W]"), upscale),
    case("detector of a folder", lambda folder: folder, ("is a folder", "name a detector"), detect),
    case("detector of an LFS pointer", raw(b"version https://git-lfs", "d.onnx"), ("git lfs pull",), detect),
    case("critic of a pipe", pipe("bad.pth"), (*PTH, "pipe"), lambda p, o: load_discriminator(p)),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_bad_input_ends_in_one_clear_error(case, tmp_path):
    check(case, __file__, tmp_path)
