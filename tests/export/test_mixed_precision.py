"""Mixed precision: maps in the low type, the style path in float32, the same function."""

import pytest
import torch
from torch import nn

from gpenlib.architecture import GpenConfig
from gpenlib.export import (
    mixed_precision,
    parity,
    read_mixed_precision,
    save_torchscript,
    write_mixed_precision,
)
from gpenlib.export.deploy import StyledStage, StyleScale
from gpenlib.export.graphs import example_input

LEAST_PSNR = {"bf16": 35.0, "fp16": 50.0}
MAP_TYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
CONVOLUTIONS = (nn.Conv2d, nn.ConvTranspose2d)


@pytest.fixture(scope="module")
def run(tiny_model):
    """Function (module, batch) -> outputs of the float network and of the module on the same images."""

    def run(module, batch=2):
        image = example_input(tiny_model.config, batch)
        with torch.inference_mode():
            return tiny_model(image).numpy(), module(image)

    return run


def test_fp32_equals_the_network(tiny_deploy, run):
    expected, output = run(mixed_precision(tiny_deploy, "fp32"))
    assert parity(expected, output.numpy()).relative < 1e-4


@pytest.mark.parametrize("dtype", LEAST_PSNR)
def test_low_precision_stays_close_on_every_image(tiny_deploy, run, dtype):
    expected, output = run(mixed_precision(tiny_deploy, dtype), 1 if dtype == "fp16" else 2)
    assert output.dtype == torch.float32 and output.is_contiguous()
    for one, other in zip(expected, output.numpy(), strict=True):
        assert LEAST_PSNR[dtype] < parity(one, other).psnr < 100, "closer would mean that nothing was rounded"


@pytest.mark.parametrize("dtype", MAP_TYPES)
def test_maps_are_low_and_style_is_float32(tiny_deploy, run, dtype, monkeypatch):
    module = mixed_precision(tiny_deploy, dtype)
    seen = {"map": [], "vector": []}

    def note(kind):
        return lambda _, inputs, output: seen[kind].extend(
            [*inputs, *(output if isinstance(output, tuple) else [output])]
        )

    for part in module.modules():
        if isinstance(part, CONVOLUTIONS):
            part.register_forward_hook(note("map"))
        elif isinstance(part, (nn.Linear, StyleScale)):
            part.register_forward_hook(note("vector"))
    demodulation = StyledStage.demodulation

    def noted(self, *arguments):
        result = demodulation(self, *arguments)
        seen["vector"] += [*arguments, result, self.energy, self.epsilon]
        return result

    monkeypatch.setattr(StyledStage, "demodulation", noted)
    run(module)
    assert len(seen["map"]) > 40 and len(seen["vector"]) > 100
    assert {tensor.dtype for tensor in seen["map"]} == {MAP_TYPES[dtype]}
    assert {tensor.dtype for tensor in seen["vector"]} == {torch.float32}
    assert all(tensor.is_contiguous(memory_format=torch.channels_last) for tensor in seen["map"])


def test_weights_of_convolutions_are_low_and_all_else_is_float32(tiny_deploy):
    network = mixed_precision(tiny_deploy, "bf16").network
    for part in network.modules():
        wanted = torch.bfloat16 if isinstance(part, CONVOLUTIONS) else torch.float32
        for name, tensor in (*part.named_parameters(recurse=False), *part.named_buffers(recurse=False)):
            assert tensor.dtype == (torch.bfloat16 if tensor.ndim == 4 else wanted), name


def test_the_model_itself_is_not_changed(tiny_deploy):
    before = {name: (tensor.dtype, tensor.stride()) for name, tensor in tiny_deploy.state_dict().items()}
    mixed_precision(tiny_deploy, "bf16")
    after = {name: (tensor.dtype, tensor.stride()) for name, tensor in tiny_deploy.state_dict().items()}
    assert before == after


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
def test_the_float_deploy_form_traces_without_a_cast(tiny_deploy):
    traced = torch.jit.trace(tiny_deploy, example_input(tiny_deploy.config))
    assert "aten::to(" not in str(traced.inlined_graph)


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
def test_the_trace_casts_where_the_module_does_and_names_no_device(tiny_deploy, run, tmp_path):
    module = mixed_precision(tiny_deploy, "bf16")
    path = save_torchscript(module, tmp_path / "model.pt")
    script = torch.jit.load(str(path))
    _, expected = run(module, 3)
    _, output = run(script, 3)
    assert parity(expected.numpy(), output.numpy()).psnr > 50
    assert "torch.to(" in script.code
    assert "torch.device" not in script.code, "it must run where it is loaded"


def test_weights_survive_the_file(tiny_deploy, run, tmp_path):
    module = mixed_precision(tiny_deploy, "bf16")
    path = write_mixed_precision(module, tmp_path / "model.safetensors")
    loaded = read_mixed_precision(path, tiny_deploy.config, "bf16")
    assert not loaded.training and not any(tensor.is_meta for tensor in loaded.state_dict().values())
    torch.testing.assert_close(run(loaded)[1], run(module)[1], rtol=0, atol=0)


def test_another_networks_weights_are_refused(tiny_deploy, tmp_path):
    path = write_mixed_precision(mixed_precision(tiny_deploy, "fp32"), tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=r"model\.safetensors does not hold a deploy form of GpenConfig"):
        read_mixed_precision(path, GpenConfig(64, 64, 1, 0.125), "fp32")


def test_int8_has_no_such_form(tiny_deploy, tmp_path):
    with pytest.raises(ValueError, match=r"dtype='int8': allowed are fp32, bf16, fp16"):
        mixed_precision(tiny_deploy, "int8")
    with pytest.raises(ValueError, match=r"dtype='int8': allowed are fp32, bf16, fp16"):
        read_mixed_precision(tmp_path / "none", tiny_deploy.config, "int8")
