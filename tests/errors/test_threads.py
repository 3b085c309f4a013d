"""As many threads as pay, and as before afterwards."""

import time

import pytest
import torch

from gpenlib.errors.layers import measured_threads


@pytest.mark.parametrize(("slow", "expected"), [(1, 2), (2, 1)])
def test_the_faster_number_is_used_and_the_former_restored(slow, expected):
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with measured_threads(lambda: time.sleep(0.02 * (torch.get_num_threads() == slow))) as chosen:
            assert chosen == torch.get_num_threads() == expected
        assert torch.get_num_threads() == 2
        with pytest.raises(KeyError), measured_threads(lambda: None, trials=1):
            raise KeyError
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
