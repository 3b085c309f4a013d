import itertools
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.signal import upfirdn

from gpenlib.architecture.model import (
    Blur,
    ConvLayer,
    EqualConv2d,
    EqualLinear,
    FusedLeakyReLU,
    PixelNorm,
    Upsample,
    fir_kernel,
    minibatch_stddev,
    upfirdn2d,
)

TAPS = np.array([1.0, 2.0, 4.0, 3.0])  # not symmetric: a flipped kernel would show
FACTORS = [(1, 1), (2, 1), (1, 2), (3, 1), (2, 2), (4, 1), (1, 3)]
PADS = [(0, 0), (1, 1), (2, 1), (1, 2), (2, 2), (3, 0), (5, 4)]
SHAPES = [(1, 1, 4, 4), (2, 3, 7, 5), (3, 2, 1, 9)]
COMBINATIONS = [
    (up, down, pad, shape)
    for (up, down), pad, shape in itertools.product(FACTORS, PADS, SHAPES)
    if min(shape[2:]) * up + sum(pad) >= 4  # the filter fits
]


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


@pytest.mark.parametrize(("up", "down", "pad", "shape"), COMBINATIONS)
def test_upfirdn2d_fast_is_the_reference(up, down, pad, shape):
    kernel = torch.from_numpy(np.outer(TAPS, TAPS[::-1])).float()
    x = torch.randn(shape)
    sides = [side * up + sum(pad) - 4 for side in shape[2:]]
    fast = upfirdn2d(x, kernel, up, down, pad)
    slow = upfirdn2d(x, kernel, up, down, pad, impl="reference")
    assert fast.shape == (*shape[:2], *(side // down + 1 for side in sides))
    torch.testing.assert_close(fast, slow, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("up", "down"), FACTORS)
@pytest.mark.parametrize("impl", ["fast", "reference"])
def test_upfirdn2d_agrees_with_scipy(up, down, impl):
    x = torch.randn(1, 1, 6, 9, dtype=torch.float64)
    kernel = torch.from_numpy(np.outer(TAPS, TAPS))
    ours = upfirdn2d(x, kernel, up, down, pad=(3, 3), impl=impl)[0, 0].numpy()
    # scipy pads with zeros so that every tap meets every sample; its last (up - 1) zeros are not inserted
    rows = upfirdn(TAPS, x[0, 0].numpy(), up, down, axis=0)
    theirs = upfirdn(TAPS, rows, up, down, axis=1)
    height, width = (min(a, b) for a, b in zip(ours.shape, theirs.shape, strict=True))
    np.testing.assert_allclose(ours[:height, :width], theirs[:height, :width], rtol=1e-9, atol=1e-9)


def test_fir_kernel():
    kernel = fir_kernel(gain=4.0)
    assert kernel.shape == (4, 4)
    assert kernel.sum() == pytest.approx(4.0)
    torch.testing.assert_close(kernel, kernel.T)


def test_upsample_doubles_and_keeps_a_flat_image_flat():
    doubled = Upsample()(torch.full((1, 3, 5, 6), 0.7))
    assert doubled.shape == (1, 3, 10, 12)
    torch.testing.assert_close(doubled[:, :, 1:-1, 1:-1], torch.full((1, 3, 8, 10), 0.7))


def test_blur_changes_the_size_as_documented():
    for pad in [(1, 1), (2, 2), (2, 1)]:
        assert Blur(pad)(torch.zeros(1, 2, 8, 9)).shape == (1, 2, 8 + sum(pad) - 3, 9 + sum(pad) - 3)


@pytest.mark.parametrize("kernel_size", [1, 3])
def test_conv_layer_halves(kernel_size):
    layer = ConvLayer(4, 6, kernel_size, downsample=True)
    assert layer(torch.zeros(2, 4, 16, 16)).shape == (2, 6, 8, 8)


def test_equalised_learning_rate():
    conv, linear = EqualConv2d(8, 4, 3, padding=1), EqualLinear(16, 8, lr_mul=0.01)
    x, v = torch.randn(1, 8, 5, 5), torch.randn(2, 16)
    torch.testing.assert_close(conv(x), F.conv2d(x, conv.weight / math.sqrt(8 * 9), padding=1))
    linear.bias.data.normal_()
    expected = F.linear(v, linear.weight * 0.01 / 4, linear.bias * 0.01)
    torch.testing.assert_close(linear(v), expected)


def test_fused_leaky_relu():
    layer = FusedLeakyReLU(2)
    layer.bias.data = torch.tensor([1.0, -1.0])
    x = torch.tensor([1.0, -2.0]).view(1, 2, 1, 1)
    expected = torch.tensor([2.0, -0.6]).view(1, 2, 1, 1) * math.sqrt(2.0)
    torch.testing.assert_close(layer(x), expected)


def test_pixel_norm_gives_unit_mean_square():
    y = PixelNorm()(7.0 * torch.randn(3, 512))
    torch.testing.assert_close(y.square().mean(dim=1), torch.ones(3))


@pytest.mark.parametrize(("batch", "group"), [(1, 1), (3, 3), (4, 4), (6, 3), (8, 4)])
def test_minibatch_stddev(batch, group):
    x = torch.randn(batch, 5, 4, 4)
    channel = minibatch_stddev(x)
    assert channel.shape == (batch, 1, 4, 4)
    count = batch // group
    for i in range(batch):
        members = x[i % count :: count]  # the images of one group stand ``count`` apart
        assert len(members) == group
        expected = torch.sqrt(members.var(dim=0, unbiased=False) + 1e-8).mean()
        torch.testing.assert_close(channel[i], expected.expand(1, 4, 4))
