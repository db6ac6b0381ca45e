"""The project's own transformer for windows of a sensor."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from edge_sdk.errors import ConfigurationError
from edge_sdk.modules.sensor_transformer import SensorTransformer, SensorTransformerConfig


@pytest.fixture
def model() -> SensorTransformer:
    torch.manual_seed(4)
    return SensorTransformer(SensorTransformerConfig(num_labels=5)).eval()


def test_logits_have_one_row_a_window(model: SensorTransformer) -> None:
    assert model(series=torch.randn(7, 128, 6)).logits.shape == (7, 5)


def test_default_has_about_150_thousand_parameters(model: SensorTransformer) -> None:
    assert sum(parameter.numel() for parameter in model.parameters()) == 154_705


def test_saved_model_answers_the_same(model: SensorTransformer, tmp_path: Path) -> None:
    model.embeddings.mean.data += 0.5
    model.embeddings.scale.data *= 3
    model.save_pretrained(tmp_path)
    again = SensorTransformer.from_pretrained(tmp_path).eval()
    series = torch.randn(2, 128, 6)

    assert torch.equal(again(series).logits, model(series).logits)


def test_windows_are_standardised_inside(model: SensorTransformer) -> None:
    series, mean, scale = torch.randn(2, 128, 6), torch.arange(6.0), torch.arange(1.0, 7.0)
    expected = model(series).logits
    model.embeddings.mean.data, model.embeddings.scale.data = mean, scale

    assert torch.allclose(model(series * scale + mean).logits, expected, atol=1e-5)


def test_order_of_patches_matters_and_each_step_counts(model: SensorTransformer) -> None:
    series = torch.randn(1, 128, 6)
    expected = model(series).logits

    assert not torch.allclose(model(series.flip(1)).logits, expected, atol=1e-4)
    changed = series.clone()
    changed[0, 127, 5] += 10
    assert not torch.allclose(model(changed).logits, expected, atol=1e-4)


def test_window_that_cannot_be_cut_evenly_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="100 steps cannot be cut into patches of 8"):
        SensorTransformer(SensorTransformerConfig(steps=100))
