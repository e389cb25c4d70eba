"""Products of few rows equal the layer's own, and a model is as before afterwards."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from paragator.engines.local.products import narrow, narrow_products


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(8, 1, 37), (1, 37), (3, 5, 37), (33, 37), (32, 1, 37)])
def test_a_product_of_few_rows_is_the_layers(bias, shape):
    torch.manual_seed(0)
    layer, x = nn.Linear(37, 53, bias=bias), torch.randn(shape)
    torch.testing.assert_close(narrow(layer, x), layer(x))


def test_layers_are_turned_round_inside_only_and_others_are_left_alone():
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4, dtype=torch.bfloat16))
    model[1].forward = own = lambda x: x
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with narrow_products(model):
            assert ["forward" in vars(layer) for layer in model] == [True, True, False]
            assert model[1].forward is own
        assert ["forward" in vars(layer) for layer in model] == [False, True, False]
        torch.set_num_threads(1)
        with narrow_products(model):
            assert "forward" not in vars(model[0])
    finally:
        torch.set_num_threads(threads)


def test_under_autocast_a_layer_is_as_it_is():
    torch.manual_seed(0)
    layer, x = nn.Linear(37, 53), torch.randn(8, 37)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found, expected = narrow(layer, x), layer(x)
    assert found.dtype == torch.bfloat16 and torch.equal(found, expected)
