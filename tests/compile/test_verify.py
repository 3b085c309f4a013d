"""Limits of the verification; that they are applied is seen in test_compile_model."""

from types import SimpleNamespace

import pytest

from gpenlib.compile.build import LEAST_PSNR, least_psnr
from gpenlib.infer import DTYPES


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_every_dtype_has_a_limit(dtype, device):
    assert least_psnr(SimpleNamespace(dtype=dtype, device=device)) == LEAST_PSNR[dtype] >= 20


def test_fp32_under_tensorrt_is_judged_as_tf32():
    assert least_psnr(SimpleNamespace(dtype="fp32", device="tensorrt")) == LEAST_PSNR["fp16"]
    assert least_psnr(SimpleNamespace(dtype="int8", device="tensorrt")) == LEAST_PSNR["int8"]
