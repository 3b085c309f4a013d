"""The deploy form is the training form with constant weights; its mixed precision; fp16 by emulation."""

import copy

import pytest
import torch
from torch import nn

from gpenlib.architecture import Gpen, GpenConfig
from gpenlib.architecture.checkpoints import random_network
from gpenlib.architecture.model import ModulatedConv2d
from gpenlib.export import (
    assert_parity,
    deploy_form,
    mixed_precision,
    parity,
    read_mixed_precision,
    save_torchscript,
    write_mixed_precision,
)
from gpenlib.export.deploy import HalfArithmetic, StyledStage, StyleScale
from gpenlib.export.graphs import example_input

TOLERANCE = 5e-5  # of the standard deviation; two orders of summation of float32 differ by about 1e-5
CONVOLUTIONS = (nn.Conv2d, nn.ConvTranspose2d)
CONFIGS = {
    "32": GpenConfig(32, 32, 1, 0.0625),
    "64": GpenConfig(64, 64, 1, 0.0625),
    "64 to 128": GpenConfig(64, 128, 1, 0.0625),
    "64 to 256": GpenConfig(64, 256, 1, 0.03125),
    "128, multiplier 2": GpenConfig(128, 128, 2, 0.03125),
}


def outputs(model: nn.Module, image: torch.Tensor):
    with torch.inference_mode():
        return model(image).numpy()


def scale_styles(model: Gpen, factor: float) -> Gpen:
    """Multiply the styles of every modulated layer."""
    scaled = copy.deepcopy(model)
    with torch.no_grad():
        for module in scaled.modules():
            if isinstance(module, ModulatedConv2d):
                module.modulation.weight *= factor
                module.modulation.bias *= factor
    return scaled


@pytest.fixture(scope="module", params=CONFIGS.values(), ids=CONFIGS)
def network(request):
    return random_network(request.param, seed=3)


@pytest.mark.parametrize("batch", [1, 3])
def test_equals_the_training_form(network, batch):
    image = example_input(network.config, batch)
    expected = outputs(network, image)
    assert expected.shape == (batch, 3, network.config.out_size, network.config.out_size)
    assert_parity(expected, outputs(deploy_form(network), image), "deploy form", TOLERANCE)


@pytest.mark.parametrize("factor", [1.0, 1e3, 1e-3, 1e-6])
def test_styles_of_any_size_are_equalled_and_seen_as_of_unit_size(tiny_model, factor):
    # At 1e-6 the epsilon of demodulation outweighs the styles, so it must have followed their scale.
    scaled = scale_styles(tiny_model, factor)
    image = example_input(scaled.config, 2)
    deploy, directions = deploy_form(scaled), []
    for module in deploy.modules():
        if isinstance(module, StyleScale):
            module.register_forward_hook(lambda _, __, result: directions.append(result[0]))
    assert_parity(outputs(scaled, image), outputs(deploy, image), "scaled styles", TOLERANCE)
    assert len(directions) == sum(isinstance(m, ModulatedConv2d) for m in tiny_model.modules())
    for direction in directions:
        assert torch.allclose(direction.abs().amax(dim=1), torch.ones(2))


def test_an_all_zero_style_stays_finite(tiny_model):
    silent = copy.deepcopy(tiny_model)
    with torch.no_grad():
        silent.generator.convs[2].conv.modulation.weight.zero_()
        silent.generator.convs[2].conv.modulation.bias.zero_()
    image = example_input(silent.config)
    assert_parity(outputs(silent, image), outputs(deploy_form(silent), image), "zero style", TOLERANCE)


def test_is_a_frozen_copy(tiny_model):
    model = copy.deepcopy(tiny_model).train()
    deploy = deploy_form(model)
    assert not any(module.training for module in deploy.modules())
    assert not any(parameter.requires_grad for parameter in deploy.parameters())
    image = example_input(deploy.config)
    expected = outputs(deploy, image)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    assert (outputs(deploy, image) == expected).all()


def test_decoder_convolutions_keep_their_names(tiny_model, tiny_deploy):
    modulated = {name for name, module in tiny_model.named_modules() if isinstance(module, ModulatedConv2d)}
    plain = {name for name, module in tiny_deploy.named_modules() if isinstance(module, CONVOLUTIONS)}
    assert modulated and modulated <= plain


def test_is_float32_whatever_the_network_is(tiny_model):
    half = copy.deepcopy(tiny_model).half()
    assert {tensor.dtype for tensor in deploy_form(half).state_dict().values()} == {torch.float32}
    assert {tensor.dtype for tensor in half.state_dict().values()} == {torch.float16}


def test_refuses_another_module(tiny_deploy):
    with pytest.raises(TypeError, match="DeployGpen"):
        deploy_form(tiny_deploy)


# Mixed precision: maps in the low type, the style path in float32, the same function

LEAST_PSNR = {"fp32": 90.0, "bf16": 35.0, "fp16": 50.0}
MOST_PSNR = {"fp32": 200.0, "bf16": 100.0, "fp16": 100.0}  # closer would mean that nothing was rounded
MAP_TYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


@pytest.fixture(scope="module")
def run(tiny_model):
    """Function (module, batch) -> outputs of the float network and of the module on the same images."""

    def run(module, batch=2):
        image = example_input(tiny_model.config, batch)
        with torch.inference_mode():
            return tiny_model(image).numpy(), module(image)

    return run


@pytest.mark.parametrize("dtype", LEAST_PSNR)
def test_precision_of_every_image(tiny_deploy, run, dtype):
    expected, output = run(mixed_precision(tiny_deploy, dtype), 1 if dtype == "fp16" else 2)
    assert output.dtype == torch.float32 and output.is_contiguous()
    for one, other in zip(expected, output.numpy(), strict=True):
        assert LEAST_PSNR[dtype] < parity(one, other).psnr < MOST_PSNR[dtype]


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
    with pytest.raises(ValueError, match=r"model\.safetensors "):
        read_mixed_precision(path, GpenConfig(64, 64, 1, 0.125), "fp32")


def test_int8_has_no_such_form(tiny_deploy, tmp_path):
    path = write_mixed_precision(mixed_precision(tiny_deploy, "fp32"), tmp_path / "model.safetensors")
    for make in (mixed_precision, lambda _, dtype: read_mixed_precision(path, tiny_deploy.config, dtype)):
        with pytest.raises(ValueError, match=r"dtype='int8': allowed are fp32, bf16, fp16"):
            make(tiny_deploy, "int8")


# fp16 arithmetic by emulation: rounding after every operator, and the first overflow by name


def test_every_result_is_rounded():
    x = torch.linspace(-3, 3, 1001).half()
    with HalfArithmetic():
        total = (x * x + 0.1).sum()
    squares = (x.float() * x.float()).half()
    expected = (squares.float() + 0.1).half().float().sum().half()
    assert total.dtype == torch.float16 and total == expected


def test_accumulates_in_float32():
    """A thousand ones and a thousand 2^-11: added one by one in fp16 the small ones would vanish."""
    x = torch.cat([torch.ones(1024), torch.full((1024,), 2.0**-11)]).half()
    with HalfArithmetic():
        assert x.sum() == torch.tensor(1024.5).half()


class Squares(nn.Module):
    def forward(self, x):
        return x.square().sum()


@pytest.mark.parametrize(("value", "operator"), [(10.0, None), (200.0, "aten.sum"), (300.0, "aten.pow")])
def test_the_first_overflow_is_named(value, operator):
    model = nn.Sequential(nn.Identity(), Squares(), nn.Identity())
    with HalfArithmetic() as arithmetic:
        model(torch.full((1, 4), value).half())
    found = arithmetic.overflow
    if operator is None:
        assert found is None
    else:
        assert (found.module, found.operator.replace("square", "pow")) == ("Sequential.1", operator)


def test_division_by_a_vanished_number_is_found():
    with HalfArithmetic() as arithmetic:
        (torch.full((3,), 1e-8).half() + 0).rsqrt()
    assert arithmetic.overflow.operator == "aten.rsqrt" and arithmetic.overflow.shape == (3,)
    x = torch.linspace(0, 1, 7) * 1e6
    with HalfArithmetic() as arithmetic:  # float32 is left alone
        assert torch.equal(x * x, x.square())
    assert arithmetic.overflow is None
