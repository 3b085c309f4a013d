import pickle
import re

import pytest
import torch
from safetensors.torch import load_file, save_file

from gpenlib.architecture import (
    CheckpointError,
    Discriminator,
    Gpen,
    GpenConfig,
    load_checkpoint,
    load_discriminator,
    read_notes,
    save_checkpoint,
)
from gpenlib.architecture.checkpoints import deduce_config

CONFIG = GpenConfig(64, 64, 1, 0.03125)
TORCH_SUFFIXES = [".pth", ".pt"]
SOME_WEIGHT = "generator.convs.1.conv.weight"


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return Gpen(CONFIG).eval()


@pytest.fixture
def state(model):
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def write(path, content):
    if path.suffix == ".safetensors":
        save_file(content, path)
    else:
        torch.save(content, path)
    return path


def same(loaded, state):
    assert not loaded.training
    assert list(loaded.state_dict()) == list(state)
    return all(torch.equal(tensor, state[name]) for name, tensor in loaded.state_dict().items())


@pytest.mark.parametrize("suffix", [*TORCH_SUFFIXES, ".safetensors"])
def test_plain_state_dict(tmp_path, state, suffix):
    loaded = load_checkpoint(write(tmp_path / f"weights{suffix}", state))
    assert loaded.config == CONFIG
    assert same(loaded, state)


@pytest.mark.parametrize("suffix", TORCH_SUFFIXES)
def test_training_checkpoint(tmp_path, state, suffix):
    other = {name: tensor + 1 for name, tensor in state.items()}
    path = write(tmp_path / f"weights{suffix}", {"g": other, "g_ema": state, "step": 7})
    assert same(load_checkpoint(path), state)
    assert same(load_checkpoint(path, key="g_ema"), state)
    assert same(load_checkpoint(path, key="g"), other)


def test_generator_without_average(tmp_path, state):
    path = write(tmp_path / "weights.pth", {"g": state, "d": {}})
    assert same(load_checkpoint(path), state)


def test_data_parallel_prefix(tmp_path, state):
    path = write(tmp_path / "weights.pth", {f"module.{name}": tensor for name, tensor in state.items()})
    assert same(load_checkpoint(path), state)


def test_save_and_load(tmp_path, model, state):
    path = save_checkpoint(model, tmp_path / "new" / "weights.safetensors")
    assert same(load_checkpoint(path), state)
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_half_precision_keeps_the_kernels(tmp_path, model, state):
    path = save_checkpoint(model, tmp_path / "weights.safetensors", torch.float16)
    assert load_file(path)[SOME_WEIGHT].dtype == torch.float16
    loaded = load_checkpoint(path).state_dict()
    for name, tensor in state.items():
        assert loaded[name].dtype == torch.float32
        expected = tensor if name.endswith(".kernel") else tensor.half().float()
        assert torch.equal(loaded[name], expected), name


def test_other_suffixes_are_refused(tmp_path, model, state):
    with pytest.raises(CheckpointError, match=r"weights\.npz: unknown checkpoint suffix"):
        load_checkpoint(write(tmp_path / "weights.npz", state))
    with pytest.raises(CheckpointError, match=r"written as \.safetensors"):
        save_checkpoint(model, tmp_path / "weights.pth")


@pytest.mark.parametrize(
    "config",
    [
        GpenConfig(512, 512, 2, 1.0),
        GpenConfig(256, 256, 1, 0.5),
        GpenConfig(1024, 1024, 2, 1.0),
        GpenConfig(2048, 2048, 2, 1.0),
        GpenConfig(64, 256, 2, 0.25),
        GpenConfig(128, 512, 2, 1.0),
        GpenConfig(64, 2048, 1, 0.125),
        GpenConfig(64, 64, 4, 0.03125),
    ],
    ids=str,
)
def test_config_is_deduced_from_the_shapes(config):
    with torch.device("meta"):
        assert deduce_config(Gpen(config).state_dict()) == config


def test_discriminator(tmp_path):
    torch.manual_seed(0)
    critic = Discriminator(CONFIG).eval()
    path = write(tmp_path / "critic.pth", {"d": critic.state_dict()})
    loaded = load_discriminator(path, key="d")
    image = torch.rand(2, 3, 64, 64)
    with torch.inference_mode():
        assert torch.equal(loaded(image), critic(image))
    with pytest.raises(CheckpointError, match="not a GPEN generator"):
        load_checkpoint(path, key="d")


def test_generator_is_no_discriminator(tmp_path, state):
    with pytest.raises(CheckpointError, match="not a GPEN discriminator"):
        load_discriminator(write(tmp_path / "weights.pth", state))


def test_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"absent\.pth: no such checkpoint"):
        load_checkpoint(tmp_path / "absent.pth")


@pytest.mark.parametrize("suffix", [*TORCH_SUFFIXES, ".safetensors"])
@pytest.mark.parametrize("kept", [0.0, 0.0001, 0.5, 0.99])
def test_truncated_file(tmp_path, state, suffix, kept):
    path = write(tmp_path / f"weights{suffix}", state)
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * kept)])
    with pytest.raises(CheckpointError, match=rf"weights\{suffix}: damaged, truncated"):
        load_checkpoint(path)


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_something_else_entirely(tmp_path, suffix):
    path = tmp_path / f"weights{suffix}"
    path.write_text("<html>404: not found</html>", encoding="utf-8")
    with pytest.raises(CheckpointError, match=rf"weights\{suffix}"):
        load_checkpoint(path)


class RunsCode:
    """What a malicious pickle looks like: loading it would call a function."""

    called = False

    @staticmethod
    def call():
        RunsCode.called = True
        return {}

    def __reduce__(self):
        return RunsCode.call, ()


@pytest.mark.parametrize("raw", [True, False], ids=["pickle", "torch"])
def test_pickled_code_is_refused_and_not_run(tmp_path, raw):
    path = tmp_path / "weights.pth"
    if raw:
        path.write_bytes(pickle.dumps({"g_ema": RunsCode()}, protocol=2))
    else:
        torch.save({"g_ema": RunsCode()}, path)
    with pytest.raises(CheckpointError, match=r"weights\.pth"):
        load_checkpoint(path)
    assert not RunsCode.called


def test_wrong_key(tmp_path, state):
    path = write(tmp_path / "weights.pth", {"params_ema": state, "step": 3})
    with pytest.raises(CheckpointError, match=r"no state dict under g_ema, g; .*params_ema, step"):
        load_checkpoint(path)
    with pytest.raises(CheckpointError, match=r"no state dict under key 'g'; present: params_ema, step"):
        load_checkpoint(path, key="g")
    with pytest.raises(CheckpointError, match="no state dict under key 'step'"):
        load_checkpoint(path, key="step")
    assert same(load_checkpoint(path, key="params_ema"), state)


@pytest.mark.parametrize("content", [[1, 2], torch.zeros(3), {}, {"g_ema": {"weight": 1.0}}], ids=repr)
def test_no_state_dict_at_all(tmp_path, content):
    with pytest.raises(CheckpointError, match=r"weights\.pth"):
        load_checkpoint(write(tmp_path / "weights.pth", content))


def refusal(tmp_path, state):
    """Return the message with which ``state`` is refused, in both formats."""
    messages = []
    for name in ("weights.pth", "weights.safetensors"):
        path = write(tmp_path / name, state)
        with pytest.raises(CheckpointError) as caught:
            load_checkpoint(path)
        assert str(path) in str(caught.value)
        messages.append(str(caught.value).replace(str(path), ""))
    assert messages[0] == messages[1]
    return messages[0]


def test_missing_entry(tmp_path, state):
    del state[SOME_WEIGHT]
    assert f"missing: {SOME_WEIGHT}" in refusal(tmp_path, state)


@pytest.mark.parametrize("name", ["ecd0.0.0.weight", "generator.input.input"])
def test_missing_entry_that_fixes_the_config(tmp_path, state, name):
    state[f"{name}s"] = state.pop(name)
    assert re.search(rf"missing {re.escape(name)}", refusal(tmp_path, state))


def test_unexpected_entry(tmp_path, state):
    state["generator.extra.weight"] = torch.zeros(2)
    assert "unexpected: generator.extra.weight" in refusal(tmp_path, state)


def test_wrong_shape(tmp_path, state):
    state[SOME_WEIGHT] = state[SOME_WEIGHT][:, :-1].contiguous()
    assert re.search(
        r"wrong shape: generator\.convs\.1\.conv\.weight \(1, 15, .*instead of \(1, 16,",
        refusal(tmp_path, state),
    )


def test_contradicting_widths(tmp_path, state):
    state["generator.to_rgbs.3.conv.weight"] = torch.zeros(1, 3, 34, 1, 1)
    message = refusal(tmp_path, state)
    assert "17 channels at 64 px and 16 at 4 px" in message


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_values_that_are_not_finite(tmp_path, state, value):
    state[SOME_WEIGHT].view(-1)[3] = value
    assert f"not finite: {SOME_WEIGHT}" in refusal(tmp_path, state)


def test_long_lists_are_cut(tmp_path, state):
    for name in [name for name in state if name.startswith("generator.convs.")]:
        del state[name]
    assert re.search(
        r"missing: generator\.convs\.0.*generator\.convs.* and \d+ more", refusal(tmp_path, state)
    )


def test_notes_in_the_header(model, tmp_path):
    noted = save_checkpoint(model, tmp_path / "noted.safetensors", notes={"task": "restore-mild"})
    assert read_notes(noted) == {"task": "restore-mild"}
    assert read_notes(save_checkpoint(model, tmp_path / "plain.safetensors")) == {}
    torch.save(model.state_dict(), tmp_path / "weights.pth")
    assert read_notes(tmp_path / "weights.pth") == {}
    noted.write_bytes(noted.read_bytes()[:100])
    with pytest.raises(CheckpointError, match=r"noted\.safetensors: damaged"):
        read_notes(noted)
