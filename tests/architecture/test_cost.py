import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from gpenlib.architecture import Gpen, GpenConfig
from gpenlib.architecture.inspect import block_costs, stage_costs, total_cost
from gpenlib.architecture.model import Blur, EqualConv2d, EqualLinear, ModulatedConv2d, Upsample

SMALL = GpenConfig(64, 64, 1, 0.0625)
SMALL_SR = GpenConfig(64, 128, 1, 0.0625)
CONFIGS = [
    *(GpenConfig(size, size) for size in (64, 128, 256, 512, 1024, 2048)),
    GpenConfig(256, 256, 1, 0.5),
    GpenConfig(64, 256, 2, 0.25),
    SMALL,
    SMALL_SR,
]


def on_meta(config):
    with torch.device("meta"):
        return Gpen(config).eval()


@pytest.fixture(scope="module", params=[SMALL, SMALL_SR], ids=["same size", "super-resolution"])
def counted(request):
    """A small real network, and output shape and MACs of every module during one forward pass."""
    model = Gpen(request.param).eval()
    shapes, macs = {}, {}

    def record(name):
        def hook(module, inputs, output):
            shapes[name] = tuple(output.shape)
            positions = output.shape[-2:].numel()
            if isinstance(module, EqualLinear):
                macs[name] = module.weight.numel()
            elif isinstance(module, EqualConv2d):
                macs[name] = module.weight.numel() * positions
            elif isinstance(module, ModulatedConv2d):  # transposed: every input position meets every weight
                macs[name] = module.weight.numel() * inputs[0].shape[-2:].numel()
            elif isinstance(module, Blur):
                macs[name] = 16 * output.numel()
            elif isinstance(module, Upsample):
                macs[name] = 16 * inputs[0].numel()

        return hook

    handles = [module.register_forward_hook(record(name)) for name, module in model.named_modules()]
    with torch.inference_mode():
        model(torch.zeros(1, 3, request.param.in_size, request.param.in_size))
    for handle in handles:
        handle.remove()
    return request.param, model, shapes, macs


def owner(name, rows):
    """Return the row of the innermost block that a module belongs to."""
    return max((row for row in rows if f"{name}.".startswith(f"{row}.")), key=len)


@pytest.mark.parametrize("config", CONFIGS, ids=str)
def test_parameters_add_up(config):
    blocks = block_costs(config)
    expected = sum(p.numel() for p in on_meta(config).parameters())
    assert sum(block.parameters for block in blocks) == total_cost(config).parameters == expected
    assert sum(block.weight_bytes for block in blocks) == total_cost(config).weight_bytes == 4 * expected


def test_the_published_512_network():
    total = total_cost(GpenConfig())
    assert total.parameters == 71_005_223
    assert total.macs == pytest.approx(138.1e9, rel=1e-3)
    assert total.gflops == pytest.approx(2e-9 * total.macs)


def test_every_block_is_a_module_with_its_parameters(counted):
    config, model, _, _ = counted
    rows = {block.name: 0 for block in block_costs(config)}
    assert len(rows) == len(block_costs(config))
    for name, parameter in model.named_parameters():
        rows[owner(name, rows)] += parameter.numel()
    assert {block.name: block.parameters for block in block_costs(config)} == rows


def test_macs_of_every_block_are_those_of_the_running_network(counted):
    config, _, _, macs = counted
    rows = {block.name: 0 for block in block_costs(config)}
    for name, value in macs.items():
        rows[owner(name, rows)] += value
    assert {block.name: block.macs for block in block_costs(config)} == rows


def test_outputs_of_every_block_are_those_of_the_running_network(counted):
    config, _, shapes, _ = counted
    for block in block_costs(config):
        shape = shapes[block.name]
        side = shape[-1] if len(shape) == 4 else 1
        assert (block.channels, block.resolution) == (shape[1], side), block.name
        assert block.activation_bytes == 4 * torch.Size(shape).numel(), block.name


@pytest.mark.parametrize("config", [SMALL, SMALL_SR, GpenConfig(128, 128, 2, 0.125)], ids=str)
def test_macs_agree_with_torch(config):
    model = Gpen(config).eval().set_modulation("weights").requires_grad_(False)
    with FlopCounterMode(display=False) as counter:
        model(torch.zeros(1, 3, config.in_size, config.in_size))
    assert 2 * total_cost(config).macs == counter.get_total_flops()


def test_macs_of_the_full_network_agree_with_torch_on_the_meta_device():
    model = on_meta(GpenConfig()).set_modulation("weights").requires_grad_(False)
    with FlopCounterMode(display=False) as counter:
        model(torch.empty(1, 3, 512, 512, device="meta"))
    assert 2 * total_cost(GpenConfig()).macs == counter.get_total_flops()


@pytest.mark.parametrize("config", CONFIGS, ids=str)
def test_stages_keep_the_sums(config):
    blocks = block_costs(config)
    stages = stage_costs(blocks)
    assert len(stages) == (config.log_in - 1) + 2 + (config.log_out - 1)
    for field in ("parameters", "macs", "activation_bytes"):
        assert sum(getattr(s, field) for s in stages) == sum(getattr(b, field) for b in blocks)
    widest = {stage.name: (stage.resolution, stage.channels) for stage in stages}
    assert widest[f"decoder {config.out_size} px"] == (config.out_size, 2 * config.channels(config.out_size))
    assert widest[f"encoder {config.in_size} px"] == (config.in_size, config.channels(config.in_size))


def test_nothing_is_built(monkeypatch):
    def refuse(*_args, **_options):
        raise AssertionError("a module was built")

    monkeypatch.setattr(nn.Module, "__init__", refuse)
    assert total_cost(GpenConfig(2048, 2048)).parameters == 71_294_769
