"""fp16 arithmetic by emulation: rounding after every operator, and the first overflow by name."""

import pytest
import torch
from torch import nn

from gpenlib.export.deploy import HalfArithmetic


def test_every_result_is_rounded():
    x = torch.linspace(-3, 3, 1001).half()
    with HalfArithmetic():
        found = (x * x + 0.1).sum()
    squares = (x.float() * x.float()).half()
    expected = (squares.float() + 0.1).half().float().sum().half()
    assert found.dtype == torch.float16 and found == expected


def test_accumulates_in_float32():
    """A thousand ones and a thousand 2^-11: added one by one in fp16 the small ones would vanish."""
    x = torch.cat([torch.ones(1024), torch.full((1024,), 2.0**-11)]).half()
    with HalfArithmetic():
        assert x.sum() == torch.tensor(1024.5).half()


def test_float32_is_left_alone():
    x = torch.linspace(0, 1, 7) * 1e6
    with HalfArithmetic() as arithmetic:
        assert torch.equal(x * x, x.square())
    assert arithmetic.overflow is None


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
