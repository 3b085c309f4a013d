"""The one door to weights: names, checkpoint files of every kind, ONNX files, and what is refused."""

import copy
import pickle
import shutil
from argparse import Namespace
from collections import OrderedDict
from pathlib import Path

import onnx
import pytest
import torch
from onnx.external_data_helper import ExternalDataInfo, set_external_data
from safetensors.torch import load_file, save_file

from gpenlib.architecture import CheckpointError, Discriminator, Generator, Gpen, GpenConfig, checkpoints
from gpenlib.architecture.checkpoints import load_checkpoint, load_discriminator, load_generator, load_weights
from gpenlib.export.graphs import export_training_form
from gpenlib.files import sha256

CONFIG = GpenConfig(64, 64, 1, 0.03125)
SOME_WEIGHT = "generator.convs.1.conv.weight"


@pytest.fixture(scope="module")
def model():
    return checkpoints.random_network(CONFIG)


@pytest.fixture
def state(model):
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


@pytest.fixture(scope="module")
def onnx_file(model, tmp_path_factory):
    return export_training_form(model, tmp_path_factory.mktemp("onnx") / "gpen.onnx")


def write(path, content):
    (save_file if path.suffix == ".safetensors" else torch.save)(content, path)
    return path


def same(loaded, state):
    assert not loaded.training
    assert list(loaded.state_dict()) == list(state)
    return all(torch.equal(tensor, state[name]) for name, tensor in loaded.state_dict().items())


@pytest.mark.parametrize("suffix", [".pth", ".pt", ".safetensors"])
@pytest.mark.parametrize("prefix", ["", "module."])  # of DataParallel
def test_plain_state_dict(tmp_path, state, suffix, prefix):
    path = write(tmp_path / f"weights{suffix}", {f"{prefix}{name}": tensor for name, tensor in state.items()})
    assert load_checkpoint(path).config == CONFIG
    assert same(load_checkpoint(path), state)


def test_names_and_paths_come_in_by_one_door(tmp_path, state, monkeypatch):
    assert load_checkpoint("tiny-random").config == checkpoints.TINY
    assert load_checkpoint("random-256").config == GpenConfig(256, 256)
    shipped = load_weights("demo-color")
    assert (shipped.name, len(shipped.digest)) == ("demo-color", 64)
    assert same(load_checkpoint("demo-color"), shipped.model.state_dict())
    path = write(tmp_path / "weights.pth", state)
    assert load_weights(path).digest == sha256(path)
    monkeypatch.chdir(tmp_path)
    assert same(load_checkpoint("weights.pth"), state)
    with pytest.raises(CheckpointError, match="weights.pth"):  # relative to the repository alone
        load_weights("weights.pth")
    write(path, {"params_ema": state, "step": 3})
    assert same(load_checkpoint(path, key="params_ema"), state)
    with pytest.raises(CheckpointError, match=r"weights\.pth.*step.*params_ema, step"):
        load_checkpoint(path, key="step")


def test_training_checkpoint_of_the_original_project(tmp_path, model):
    torch.manual_seed(0)
    critic, other = Discriminator(CONFIG).eval(), Gpen(CONFIG)
    optimisers = [torch.optim.Adam(network.parameters()) for network in (other, critic)]
    critic(other(torch.zeros(1, 3, 64, 64))).sum().backward()
    for optimiser in optimisers:
        optimiser.step()
    average = OrderedDict((f"module.{name}", tensor) for name, tensor in model.state_dict().items())
    content = {"g": other.state_dict(), "d": critic.state_dict(), "g_ema": average}
    content |= {"g_optim": optimisers[0].state_dict(), "d_optim": optimisers[1].state_dict()}
    path = write(tmp_path / "original.pth", content)
    assert same(load_checkpoint(path), model.state_dict())
    assert same(load_checkpoint(path, key="g"), other.state_dict())
    assert same(load_generator(path), model.generator.state_dict())
    for loaded in (
        load_discriminator(path),
        load_discriminator(path, key="d"),
        checkpoints.find_discriminator(path),
    ):
        assert same(loaded, critic.state_dict())
    with pytest.raises(CheckpointError, match="original.pth.*GPEN generator"):
        load_checkpoint(path, key="d")
    with pytest.raises(CheckpointError, match=r"original.pth.*GPEN discriminator.*convs\.0\.0\.weight"):
        load_discriminator(path, key="g")
    del content["g_ema"]
    assert same(load_generator(write(path, content)), other.generator.state_dict())
    assert checkpoints.find_discriminator(write(path, {"g": other.state_dict()})) is None
    prior = Generator(CONFIG)
    assert same(load_generator(write(path, {"g": prior.state_dict()})), prior.state_dict())
    with pytest.raises(CheckpointError, match=r"missing ecd0\.0\.0\.weight"):
        load_checkpoint(path)


@pytest.mark.parametrize(
    "key",
    [
        "g_ema",
        "params_ema",
        "ema",
        "g",
        "params",
        "net_g",
        "generator",
        "model",
        "state_dict",
        "state.deep.g",
    ],
)
@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.", "module._orig_mod."])
def test_weights_are_found_where_people_keep_them(tmp_path, state, key, prefix):
    content = {f"{prefix}{name}": tensor for name, tensor in state.items()}
    *outer, inner = key.split(".")
    content = {inner: content, "epoch": 3, "args": Namespace(lr=0.1, dataset="ffhq"), "note": None}
    for name in reversed(outer):
        content = {name: content, "other": {"g": 1}}
    path = write(tmp_path / "theirs.pth", content)
    assert same(load_checkpoint(path, key), state)
    if not outer:
        assert same(load_checkpoint(path), state)


def test_averaged_weights_come_first_and_what_fits_before_what_does_not(tmp_path, state):
    other = {name: tensor + 1 for name, tensor in state.items()}
    for better, worse in (
        ("g_ema", "g"),
        ("params_ema", "params"),
        ("ema", "model"),
        ("g_ema", "state_dict"),
    ):
        assert same(load_checkpoint(write(tmp_path / "both.pth", {worse: other, better: state})), state)
    critic = Discriminator(CONFIG).state_dict()
    for unfit in ({"decay": 0.9, "shadow": {}}, {}, None, 3, [1]):
        path = write(tmp_path / "odd.pth", {"ema": unfit, "model": state, "d": critic})
        assert same(load_checkpoint(path), state)
    classifier = {"fc.weight": torch.zeros(2)}
    path = write(path, {"model": classifier, "generator": state})
    assert same(load_checkpoint(path), state)
    path = write(path, {"model": state, "generator": state, "step": 1})
    with pytest.raises(CheckpointError, match=r"odd\.pth.*generator, model.*key="):
        load_checkpoint(path)
    path = write(
        path, {"ema": {"fc.weight": torch.zeros(2)}, "model": state}
    )  # damaged averages are no reason
    with pytest.raises(CheckpointError, match=r"odd\.pth.*missing ecd0"):  # to take others in silence
        load_checkpoint(path)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_other_precisions_become_float32(tmp_path, state, dtype, suffix):
    path = write(tmp_path / f"weights{suffix}", {name: tensor.to(dtype) for name, tensor in state.items()})
    loaded = load_checkpoint(path)
    assert all(tensor.dtype == torch.float32 for tensor in loaded.state_dict().values())
    assert same(loaded, {name: tensor.to(dtype).float() for name, tensor in state.items()})


def test_old_files_and_states_with_attributes_load(tmp_path, state):
    path = tmp_path / "old.pth"
    torch.save({"g_ema": OrderedDict(state)}, path, _use_new_zipfile_serialization=False)
    assert same(load_checkpoint(path), state)
    content = OrderedDict(state)
    content.values = content.get = 5  # saved with it, they would stand in for its methods
    assert same(load_checkpoint(write(path, {"g": content})), state)
    assert same(load_checkpoint(write(path, content)), state)


def test_what_torch_may_load_is_as_before_afterwards(tmp_path, state):
    before = set(torch.serialization.get_safe_globals())
    load_checkpoint(write(tmp_path / "weights.pth", {"g": state, "args": Namespace()}))
    assert set(torch.serialization.get_safe_globals()) == before


def test_loading_takes_no_random_number_more_than_building(tmp_path, state):
    path = write(tmp_path / "weights.pth", state)
    torch.manual_seed(0)
    Gpen(CONFIG)
    expected = torch.rand(1)
    torch.manual_seed(0)
    load_checkpoint(path)
    assert torch.equal(torch.rand(1), expected)


@pytest.mark.parametrize("name", ["weights.pth", "weights.safetensors"])
def test_a_file_that_may_not_be_read_is_not_called_absent(tmp_path, state, name, monkeypatch):
    path, opened = write(tmp_path / name, state), Path.open

    def refuse(self, *arguments, **options):
        if self == path:
            raise PermissionError(13, "Permission denied")
        return opened(self, *arguments, **options)

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(CheckpointError, match=rf"{name}' cannot be opened \(Permission denied\): check"):
        load_checkpoint(path)


def test_weights_too_large_for_their_type_are_not_written(tmp_path, model):
    large = copy.deepcopy(model)
    large.state_dict()[SOME_WEIGHT].fill_(1e6)
    path = tmp_path / "large.safetensors"
    with pytest.raises(CheckpointError, match=rf"large\.safetensors.*float16.*{SOME_WEIGHT}"):
        checkpoints.save_checkpoint(large, path, torch.float16)
    assert not path.exists()
    assert checkpoints.save_checkpoint(large, path).is_file()


@pytest.mark.parametrize(
    "config",
    [(2048, 2048), (256, 256, 1, 0.5), (64, 256, 2, 0.25), (64, 2048, 1, 0.125), (64, 64, 4, 0.03125)],
)
def test_config_is_deduced_from_the_shapes(config):
    with torch.device("meta"):
        model = Gpen(GpenConfig(*config))
    assert checkpoints.deduce_config(model.state_dict()) == model.config


def test_save_and_load_with_notes(tmp_path, model, state):
    path = checkpoints.save_checkpoint(
        model, tmp_path / "new" / "weights.safetensors", notes={"task": "restore-mild"}
    )
    assert same(load_checkpoint(path), state)
    assert checkpoints.read_notes(path) == {"task": "restore-mild"}
    assert [file.name for file in path.parent.iterdir()] == [path.name]
    assert checkpoints.read_notes(write(tmp_path / "weights.pth", state)) == {}
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(CheckpointError, match=r"weights\.safetensors"):
        checkpoints.read_notes(path)
    with pytest.raises(CheckpointError, match=r"weights\.pth.*\.safetensors"):
        checkpoints.save_checkpoint(model, tmp_path / "weights.pth")
    path = checkpoints.save_checkpoint(model, path, torch.float16)
    assert load_file(path)[SOME_WEIGHT].dtype == torch.float16
    halved = {n: t if n.endswith(".kernel") else t.half().float() for n, t in state.items()}
    assert same(load_checkpoint(path), halved), "FIR kernels stay exact"


@pytest.mark.parametrize("name", ["absent.pth", "tiny-randon", "weights.npz"])
@pytest.mark.parametrize("load", [load_checkpoint, load_generator, load_discriminator, load_weights])
def test_what_is_not_there_or_of_another_kind(tmp_path, state, name, load):
    path = tmp_path / name if "." in name else name
    if name.endswith(".npz"):
        write(path, state)
    with pytest.raises(CheckpointError, match=name) as caught:
        load(path)
    assert isinstance(caught.value, FileNotFoundError) == (not name.endswith(".npz"))
    if name == "tiny-randon" and load in (load_checkpoint, load_weights):
        assert "did you mean 'tiny-random'" in str(caught.value) and "demo-prior" not in str(caught.value)


class RunsCode:
    """What a malicious pickle looks like: loading it would call a function."""

    called = False

    @staticmethod
    def call():
        RunsCode.called = True
        return {}

    def __reduce__(self):
        return RunsCode.call, ()


@pytest.mark.parametrize("suffix", [".pth", ".bin", ".safetensors", ".onnx"])
@pytest.mark.parametrize("kind", ["empty", "text", "pickle", "class in zip", 0.0001, 0.5, 0.99], ids=str)
def test_damaged_files(tmp_path, state, suffix, kind):
    path = tmp_path / f"weights{suffix}"
    if kind in ("empty", "text"):
        path.write_bytes(b"<html>404: not found</html>" if kind == "text" else b"")
    elif kind == "pickle":
        path.write_bytes(pickle.dumps({"g_ema": RunsCode()}, protocol=2))
    elif kind == "class in zip":
        torch.save({"g_ema": RunsCode()}, path)
    else:
        content = write(path, state).read_bytes()
        path.write_bytes(content[: int(len(content) * kind)])
    with pytest.raises(CheckpointError, match=rf"weights\{suffix}") as caught:
        load_checkpoint(path)
    assert not RunsCode.called and "weights_only=False" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "named"),
    [
        ([1, 2], "list"),
        (torch.zeros(3), "Tensor"),
        ({}, "no entries"),
        ({"a": 1.0, "b": torch.zeros(1)}, "a, b"),
        ({"params_ema": {}, "step": 3}, "params_ema, step"),
        ({"g_ema": {"weight": 1.0}}, r"\['g_ema'\]: .*weight"),
        ({"g_ema": {3: torch.zeros(1)}}, "3"),
        ({"a": torch.zeros(2, dtype=torch.complex64)}, "floating-point tensors: a"),
        ({"a": torch.zeros(2, dtype=torch.int64)}, "floating-point tensors: a"),
        ({"a": torch.eye(2).to_sparse()}, "floating-point tensors: a"),
        ({"module.a": torch.zeros(1), "a": torch.ones(1)}, r"'module\.': a"),
        (
            {
                "ecd0.0.0.weight": torch.zeros(1, 1, 1, 1),
                "generator.input.input": torch.zeros(1, 1100, 1, 1),
                "generator.to_rgbs.0.conv.weight": torch.zeros(1, 3, 4, 1, 1),
            },
            "1100 channels.*at most 1024",
        ),
        ({"ecd0.0.0.weight": torch.tensor(1.0)}, r"ecd0\.0\.0\.weight of rank 4"),
    ],
    ids=str,
)
def test_foreign_content(tmp_path, content, named):
    with pytest.raises(CheckpointError, match=rf"weights\.pth.*{named}"):
        load_checkpoint(write(tmp_path / "weights.pth", content))


def replace(name, change):
    return lambda state: state.update({name: change(state[name])})


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda state: state.pop(SOME_WEIGHT), f"missing: {SOME_WEIGHT}"),
        (lambda state: state.update({"generator.extra": torch.zeros(2)}), "unexpected: generator.extra"),
        (lambda state: state.pop("ecd0.0.0.weight"), "missing ecd0.0.0.weight.*nearest present: ecd"),
        (lambda state: state.pop("generator.input.input"), "missing generator.input.input"),
        (replace(SOME_WEIGHT, lambda t: t[:, :-1].clone()), rf"{SOME_WEIGHT} \(1, 15, .*instead of \(1, 16,"),
        (replace(SOME_WEIGHT, lambda t: t * float("nan")), f"not finite: {SOME_WEIGHT}"),
        (replace(SOME_WEIGHT, lambda t: t * float("inf")), f"not finite: {SOME_WEIGHT}"),
        (replace("generator.to_rgbs.3.conv.weight", lambda t: t[:, :, :-2].clone()), "7 channels at 64 px"),
        (lambda state: [state.pop(n) for n in list(state) if ".convs" in n], r"convs\.0.* and \d+ more"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_wrong_entries_are_named(tmp_path, state, suffix, change, named):
    change(state)
    with pytest.raises(CheckpointError, match=rf"weights\{suffix}.*{named}"):
        load_checkpoint(write(tmp_path / f"weights{suffix}", state))


def with_external_data(source, folder):
    path = folder / "gpen.onnx"
    onnx.save_model(onnx.load(source), path, save_as_external_data=True, location="a.bin")
    stored = onnx.load(path, load_external_data=False)
    shutil.copy(folder / "a.bin", folder / "b.bin")
    moved = next(tensor for tensor in stored.graph.initializer if tensor.external_data)
    point_at(moved, "b.bin")
    onnx.save(stored, path)
    return path


def point_at(tensor, location):
    info = ExternalDataInfo(tensor)
    tensor.raw_data = b""  # set_external_data wants a tensor that has data
    set_external_data(tensor, location, info.offset, info.length)
    tensor.ClearField("raw_data")


def test_onnx_file_and_its_digest_which_covers_external_data(onnx_file, tmp_path, state):
    weights = load_weights(onnx_file)
    assert weights.digest == sha256(onnx_file)
    for name, tensor in weights.model.state_dict().items():
        torch.testing.assert_close(tensor, state[name], rtol=1e-5, atol=1e-6, msg=name)
    path = with_external_data(onnx_file, tmp_path)
    digests = [load_weights(path).digest]
    assert digests[0] != sha256(path)
    for name in ("a.bin", "b.bin"):
        content = bytearray((tmp_path / name).read_bytes())
        content[-4] ^= 1  # the smallest change of one float
        (tmp_path / name).write_bytes(bytes(content))
        digests.append(load_weights(path).digest)
    assert len(set(digests)) == 3
    (tmp_path / "b.bin").unlink()
    with pytest.raises(CheckpointError, match=r"gpen\.onnx.*b\.bin"):
        load_checkpoint(path)


@pytest.mark.parametrize("location", ["../a.bin", "{folder}/outside.bin", "link.bin", ""])
def test_external_data_elsewhere_is_refused(onnx_file, tmp_path, location):
    inside = tmp_path / "inside"
    inside.mkdir()
    path = with_external_data(onnx_file, inside)
    for name in ("a.bin", "outside.bin"):
        shutil.copy(inside / "a.bin", tmp_path / name)
    (inside / "link.bin").symlink_to(tmp_path / "a.bin")
    stored = onnx.load(path, load_external_data=False)
    point_at(next(t for t in stored.graph.initializer if t.external_data), location.format(folder=tmp_path))
    onnx.save(stored, path)
    with pytest.raises(CheckpointError, match=r"gpen\.onnx.*external data"):
        load_checkpoint(path)
