from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from coordinator.models.foundation import load_foundation
from coordinator.models.tracing import Trace
from edge_sdk.elastic.submodel import AdapterMethod, Adapters, ModelTask, Role
from edge_sdk.errors import ModelFormatError, UnsupportedArchitectureError
from tests.support.tiny_models import LABELS, TASKS, save_tiny_model

LAYER = "bert.encoder.layer.1."


def edit_weights(folder: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def edit_config(folder: Path, **settings: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | settings))


@pytest.mark.parametrize(
    ("family", "heads", "group_size", "head_size", "layers", "encoder_layers", "positions"),
    [
        ("bert", 4, 1, 6, 3, 0, 66),
        ("roberta", 4, 1, 6, 3, 0, 64),
        ("distilbert", 4, 1, 6, 3, 0, 66),
        ("vit", 4, 1, 6, 3, 0, 10),
        ("deit", 4, 1, 6, 3, 0, 11),
        ("gpt2", 4, 1, 6, 3, 0, 66),
        ("qwen3", 3, 2, 4, 3, 0, 66),
        ("t5", 4, 1, 6, 5, 3, 512),
        ("sensor-transformer", 4, 1, 6, 3, 0, 7),
    ],
)
def test_sizes_are_read_from_the_model(
    tmp_path: Path,
    family: str,
    heads: int,
    group_size: int,
    head_size: int,
    layers: int,
    encoder_layers: int,
    positions: int,
) -> None:
    task = TASKS[family][0]
    labels = () if task.generates else LABELS
    sizes = load_foundation(save_tiny_model(tmp_path, family), labels, seed=0, task=task).architecture

    assert (sizes.heads, sizes.group_size, sizes.head_size) == (heads, group_size, head_size)
    assert (sizes.layers, sizes.encoder_layers, sizes.positions) == (layers, encoder_layers, positions)
    assert (sizes.ffn, sizes.hidden, sizes.task, sizes.labels) == (50, 24, task, len(labels))


@pytest.mark.parametrize(
    ("family", "task", "shape"),
    [
        ("bert", ModelTask.TEXT_CLASSIFICATION, ()),
        ("vit", ModelTask.IMAGE_CLASSIFICATION, (3, 12, 12)),
        ("sensor-transformer", ModelTask.TIME_SERIES_CLASSIFICATION, (24, 5)),
    ],
)
def test_input_shape_and_tokenizer_follow_the_task(
    tmp_path: Path, family: str, task: ModelTask, shape: tuple[int, ...]
) -> None:
    foundation = load_foundation(save_tiny_model(tmp_path, family), LABELS, seed=0, task=task)

    assert foundation.input_shape == shape
    assert bool(foundation.tokenizer_json) == (shape == ())


@pytest.mark.parametrize("heads", [4, 2])
@pytest.mark.parametrize("method", list(AdapterMethod))
def test_adapters_start_without_effect_on_what_they_are_added_to(
    tmp_path: Path, method: AdapterMethod, heads: int
) -> None:
    folder = save_tiny_model(tmp_path, "bert", num_attention_heads=heads)
    adapters = Adapters(rank=3, targets=(Role.Q, Role.DOWN), method=method)
    plain, adapted = (load_foundation(folder, LABELS, seed=1, adapters=choice) for choice in (None, adapters))

    added = adapted.parameters.keys() - plain.parameters.keys()
    assert {
        name.split(".layer.1.")[1].rsplit(".lora_")[0].rsplit(".ia3_l")[0] for name in added if ".layer.1." in name
    } == {
        "attention.self.query",
        "output.dense",
    }
    assert all(np.array_equal(adapted.parameters[name], values) for name, values in plain.parameters.items())
    neutral = [name for name in added if ".lora_B" in name or ".ia3_l" in name]
    assert neutral
    assert all((adapted.parameters[name] == (0 if "lora" in name else 1)).all() for name in neutral)


def test_same_seed_gives_the_same_head_and_adapters_and_another_seed_others(tmp_path: Path) -> None:
    folder = save_tiny_model(tmp_path, "bert")
    first, again, other = (
        load_foundation(folder, ("one", "two"), seed=seed, adapters=Adapters()).parameters for seed in (1, 1, 2)
    )

    for name in ("classifier.weight", f"{LAYER}attention.self.query.lora_A.weight"):
        assert np.array_equal(first[name], again[name])
        assert not np.array_equal(first[name], other[name])


def test_loading_says_nothing(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    folder = save_tiny_model(tmp_path, "bert")
    capfd.readouterr()

    load_foundation(folder, ("one", "two"), seed=0)

    assert capfd.readouterr() == ("", "")


def test_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelFormatError, match="nowhere"):
        load_foundation(tmp_path / "nowhere", LABELS, seed=0)


@pytest.mark.parametrize("config", ["{", "[]", "{}", pytest.param("[" * 200_000, id="deep")])
def test_broken_config_is_refused(tmp_path: Path, config: str) -> None:
    (tmp_path / "config.json").write_text(config)

    with pytest.raises(ModelFormatError, match=r"config\.json"):
        load_foundation(tmp_path, LABELS, seed=0)


def test_unknown_architecture_is_named_before_torch_is_imported(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "mamba"}))
    with pytest.raises(UnsupportedArchitectureError, match="mamba"):
        load_foundation(tmp_path, LABELS, seed=0)

    program = f"""
import sys, pathlib
from coordinator.models.foundation import load_foundation
from edge_sdk.errors import UnsupportedArchitectureError
try:
    load_foundation(pathlib.Path({str(tmp_path)!r}), ("a", "b"), seed=0)
except UnsupportedArchitectureError:
    sys.exit("torch" in sys.modules)
"""
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


def test_weights_that_are_not_finite_are_counted_by_name(tmp_path: Path) -> None:
    folder = save_tiny_model(tmp_path, "bert")

    def spoil(tensors: dict[str, torch.Tensor]) -> None:
        tensors[f"{LAYER}output.dense.weight"][0, :3] = torch.tensor([np.nan, np.nan, -np.inf])

    edit_weights(folder, spoil)
    with pytest.raises(
        ModelFormatError, match=r"layer\.1\.output\.dense\.weight has 2 NaN and 1 infinite values of 1200"
    ):
        load_foundation(folder, LABELS, seed=0)


def test_truncated_weights_are_refused(tmp_path: Path) -> None:
    weights = save_tiny_model(tmp_path, "bert") / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:200])

    with pytest.raises(ModelFormatError, match="cannot be loaded"):
        load_foundation(tmp_path, LABELS, seed=0)


def test_config_that_lies_about_a_size_is_refused_with_both(tmp_path: Path) -> None:
    folder = save_tiny_model(tmp_path, "bert")
    edit_config(folder, intermediate_size=60)

    with pytest.raises(
        ModelFormatError, match=r"intermediate\.dense\.bias is \(50,\) in the weights but \(60,\) by config"
    ):
        load_foundation(folder, LABELS, seed=0)


def test_config_with_more_layers_than_the_weights_is_refused(tmp_path: Path) -> None:
    folder = save_tiny_model(tmp_path, "bert")
    edit_config(folder, num_hidden_layers=4)

    with pytest.raises(ModelFormatError, match=r"lacks bert\.encoder\.layer\.3\.\S+, .* and 13 more"):
        load_foundation(folder, LABELS, seed=0)


@pytest.mark.parametrize(
    ("family", "setting", "value"),
    [
        ("bert", "hidden_size", "24"),
        ("bert", "hidden_size", None),
        ("bert", "hidden_size", 0),
        ("bert", "hidden_size", 10**13),
        ("bert", "hidden_size", 10**400),
        ("bert", "num_hidden_layers", 2.5),
        ("bert", "num_hidden_layers", 10**7),
        ("bert", "num_attention_heads", -1),
        ("bert", "num_attention_heads", 0),
        ("bert", "vocab_size", -1),
        ("bert", "hidden_act", "nope"),
        ("bert", "id2label", [1]),
        ("bert", "dtype", "nope"),
        ("bert", "pad_token_id", 10**9),
        ("bert", "num_labels", "x"),
        ("bert", "auto_map", 5),
        ("llama", "num_key_value_heads", 0),
        ("llama", "rope_parameters", {"rope_type": "x"}),
        ("t5", "num_decoder_layers", 10**7),
        ("t5", "num_heads", "x"),
        ("vit", "patch_size", 0),
        ("vit", "image_size", [12]),
    ],
)
def test_config_with_a_value_that_cannot_be_is_refused_in_one_line(
    tmp_path: Path, family: str, setting: str, value: object
) -> None:
    save_tiny_model(tmp_path, family)
    edit_config(tmp_path, **{setting: value})
    with pytest.raises(ModelFormatError) as refusal:
        load_foundation(tmp_path, LABELS, seed=0, task=TASKS[family][0])
    assert "\n" not in str(refusal.value)
    assert "config.json" in str(refusal.value) or "cannot be loaded" in str(refusal.value)


@pytest.mark.parametrize("prefix", ["bert.", ""])
def test_config_with_fewer_layers_than_the_weights_is_refused(tmp_path: Path, prefix: str) -> None:
    folder = save_tiny_model(tmp_path, "bert")
    edit_config(folder, num_hidden_layers=2)
    edit_weights(folder, lambda tensors: rename(tensors, "bert.", prefix))

    with pytest.raises(
        ModelFormatError, match=r"encoder\.layer\.2\.\S+, .* and 13 more, for which config\.json has no"
    ):
        load_foundation(folder, LABELS, seed=0)


def rename(tensors: dict[str, torch.Tensor], old: str, new: str) -> None:
    for name in [name for name in tensors if name.startswith(old)]:
        tensors[new + name.removeprefix(old)] = tensors.pop(name)


def test_missing_weight_outside_the_head_is_refused_and_a_head_is_made(tmp_path: Path) -> None:
    folder = save_tiny_model(tmp_path, "bert")
    edit_weights(folder, lambda tensors: tensors.pop("classifier.weight"))
    assert load_foundation(folder, LABELS, seed=0).parameters["classifier.weight"].shape == (3, 24)

    edit_weights(folder, lambda tensors: tensors.pop(f"{LAYER}output.dense.weight"))
    with pytest.raises(ModelFormatError, match=r"lacks bert\.encoder\.layer\.1\.output\.dense\.weight; use"):
        load_foundation(folder, LABELS, seed=0)


def test_weight_that_the_model_does_not_need_is_ignored(tmp_path: Path) -> None:
    folder = save_tiny_model(tmp_path, "bert")
    edit_weights(folder, lambda tensors: tensors.update({"cls.predictions.bias": torch.zeros(40)}))

    assert "cls.predictions.bias" not in load_foundation(folder, LABELS, seed=0).parameters


def test_quantised_model_is_refused_by_its_config(tmp_path: Path) -> None:
    folder = save_tiny_model(tmp_path, "llama")
    edit_config(folder, quantization_config={"quant_method": "gptq", "bits": 4})

    with pytest.raises(ModelFormatError, match=r"is quantised \(gptq\)"):
        load_foundation(folder, LABELS, seed=0)


@pytest.mark.parametrize(("kind", "name"), [(torch.int8, "I8"), (torch.float8_e4m3fn, "F8_E4M3")])
def test_quantised_weight_is_refused_by_name(tmp_path: Path, kind: torch.dtype, name: str) -> None:
    folder = save_tiny_model(tmp_path, "bert")
    weight = f"{LAYER}output.dense.weight"
    edit_weights(folder, lambda tensors: tensors.update({weight: tensors[weight].to(kind)}))

    with pytest.raises(ModelFormatError, match=rf"output\.dense\.weight is quantised \({name}\)"):
        load_foundation(folder, LABELS, seed=0)


def test_half_precision_is_read_as_float32(tmp_path: Path) -> None:
    folder = save_tiny_model(tmp_path, "bert")
    edit_weights(folder, lambda tensors: tensors.update({name: value.bfloat16() for name, value in tensors.items()}))

    assert {values.dtype for values in load_foundation(folder, LABELS, seed=0).parameters.values()} == {np.dtype("f4")}


def test_tied_head_that_differs_from_the_embeddings_is_refused_with_the_difference(tmp_path: Path) -> None:
    folder = save_tiny_model(tmp_path, "gpt2", task=ModelTask.TEXT_GENERATION)
    edit_weights(folder, lambda tensors: tensors.update({"lm_head.weight": tensors["transformer.wte.weight"] + 0.25}))

    with pytest.raises(ModelFormatError, match=r"lm_head\.weight and transformer\.wte\.weight differ by 0\.25"):
        load_foundation(folder, (), seed=0, task=ModelTask.TEXT_GENERATION)


@pytest.mark.parametrize(("tied", "heads"), [(True, set()), (False, {"lm_head.weight"})])
def test_tied_head_is_one_parameter_and_an_untied_one_its_own(tmp_path: Path, tied: bool, heads: set[str]) -> None:
    task = ModelTask.TEXT_GENERATION
    folder = save_tiny_model(tmp_path, "qwen3", task=task, tie_word_embeddings=tied)
    parameters = load_foundation(folder, (), seed=0, task=task).parameters

    assert parameters.keys() & {"lm_head.weight"} == heads
    assert "model.embed_tokens.weight" in parameters


def test_generator_without_its_head_is_refused(tmp_path: Path) -> None:
    task = ModelTask.TEXT_GENERATION
    folder = save_tiny_model(tmp_path, "llama", task=task)
    edit_weights(folder, lambda tensors: tensors.pop("lm_head.weight"))

    with pytest.raises(ModelFormatError, match=r"lacks lm_head\.weight"):
        load_foundation(folder, (), seed=0, task=task)


def test_pickled_weights_are_refused_and_never_read(tmp_path: Path) -> None:
    folder = save_tiny_model(tmp_path, "bert")
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(b"not even a pickle")

    with pytest.raises(ModelFormatError, match=r"holds pytorch_model\.bin, not model\.safetensors; convert it"):
        load_foundation(folder, LABELS, seed=0)


@pytest.mark.parametrize(
    ("family", "task", "complaint"),
    [
        ("vit", ModelTask.TOKEN_CLASSIFICATION, "cannot be loaded for token-classification"),
        ("bert", ModelTask.IMAGE_CLASSIFICATION, "cannot be loaded for image-classification"),
        ("t5", ModelTask.TEXT_CLASSIFICATION, "t5 for text-classification is not supported"),
        ("t5", ModelTask.TEXT_GENERATION, "an encoder-decoder writes one text for another; .* source, target"),
        ("gpt2", ModelTask.TEXT2TEXT_GENERATION, "gpt2 for text2text-generation .* no encoder and decoder"),
    ],
)
def test_task_that_the_model_cannot_do_is_refused_in_one_line(
    tmp_path: Path, family: str, task: ModelTask, complaint: str
) -> None:
    folder = save_tiny_model(tmp_path, family)
    (folder / "tokenizer.json").write_text("{}")

    with pytest.raises((ModelFormatError, UnsupportedArchitectureError), match=complaint) as caught:
        load_foundation(folder, LABELS, seed=0, task=task)
    assert "\n" not in str(caught.value)


def test_layers_that_depend_on_their_number_are_refused(tmp_path: Path) -> None:
    folder = save_tiny_model(tmp_path, "gpt2", scale_attn_by_inverse_layer_idx=True)

    with pytest.raises(UnsupportedArchitectureError, match="scale_attn_by_inverse_layer_idx"):
        load_foundation(folder, LABELS, seed=0)


def test_layers_of_different_kinds_are_not_compiled(tmp_path: Path) -> None:
    folder = save_tiny_model(tmp_path, "qwen2", use_sliding_window=True, sliding_window=8, max_window_layers=1)

    with pytest.raises(UnsupportedArchitectureError, match=r"full_attention, sliding_attention"):
        Trace(load_foundation(folder, LABELS, seed=0))


def test_decoder_that_classifies_knows_the_padding_of_its_tokenizer(tmp_path: Path) -> None:
    folder = save_tiny_model(tmp_path, "gpt2", pad_token_id=None)

    assert json.loads(load_foundation(folder, LABELS, seed=0).config_json)["pad_token_id"] == 1


def test_decoder_that_starts_from_something_else_than_the_padding_is_refused(tmp_path: Path) -> None:
    folder = save_tiny_model(tmp_path, "t5", decoder_start_token_id=2)

    with pytest.raises(ModelFormatError, match="starts from token 2, the tokenizer pads with 1"):
        load_foundation(folder, (), seed=0, task=ModelTask.TEXT2TEXT_GENERATION)


def test_missing_tokenizer_is_made_or_refused(tmp_path: Path) -> None:
    folder = save_tiny_model(tmp_path, "bert")
    (folder / "tokenizer.json").unlink()
    with pytest.raises(ModelFormatError, match=r"tokenizer\.json"):
        load_foundation(folder, LABELS, seed=0)

    (folder / "vocab.txt").write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\nword")
    assert b"word" in load_foundation(folder, LABELS, seed=0).tokenizer_json
