"""What an operator may decide about a task, and what is refused."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
from typer.testing import CliRunner

from coordinator.aggregation.rule import AdapterMerge, AggregationRule
from coordinator.cli import app
from coordinator.config import TaskConfig, parse_encoding
from edge_sdk.elastic.submodel import AdapterMethod, Adapters, TrainablePart
from edge_sdk.errors import ConfigurationError
from edge_sdk.protocol.messages import FP32, Encoding, EncodingKind

MEAN = AggregationRule(adapters=AdapterMerge.MEAN)


def task(encoding: str, method: AdapterMethod | None = None, rule: AggregationRule | None = None) -> TaskConfig:
    return TaskConfig(
        name="t",
        model_dir="",
        calibration_file="",
        test_file="",
        part=TrainablePart.ADAPTERS if method else TrainablePart.NO_EMBEDDINGS,
        adapters=Adapters.of(method, 4) if method else None,
        aggregation=rule or AggregationRule(),
        encoding=parse_encoding(encoding),
    )


@pytest.mark.parametrize(
    ("text", "encoding"),
    [
        ("fp32", FP32),
        ("fp16", Encoding(kind=EncodingKind.FP16)),
        ("int8", Encoding(kind=EncodingKind.INT8)),
        ("topk", Encoding(kind=EncodingKind.TOPK, share=0.1)),
        ("topk:0.01", Encoding(kind=EncodingKind.TOPK, share=0.01)),
        ("topk:1", Encoding(kind=EncodingKind.TOPK, share=1.0)),
    ],
)
def test_encoding_is_read_as_it_is_typed(text: str, encoding: Encoding) -> None:
    assert parse_encoding(text) == encoding


@pytest.mark.parametrize("text", ["", "fp64", "int8:0.5", "topk:", "topk:0", "topk:2", "topk:-1", "topk:nan", "topk:x"])
def test_encoding_that_there_is_not_is_refused_with_those_that_there_are(text: str) -> None:
    with pytest.raises(ConfigurationError, match="use fp32, fp16, int8, or topk:SHARE"):
        parse_encoding(text)


def test_task_from_before_there_were_encodings_is_read() -> None:
    old = msgspec.json.decode(msgspec.json.encode(task("fp32")))
    del old["encoding"]
    assert msgspec.convert(old, TaskConfig) == task("fp32")


@pytest.mark.parametrize(
    ("method", "rule", "feedback"),
    [
        (None, None, True),
        (AdapterMethod.IA3, None, True),
        (AdapterMethod.LORA, MEAN, True),
        (AdapterMethod.LORA, None, False),
        (AdapterMethod.DORA, None, False),
    ],
)
def test_devices_keep_what_is_lost_unless_a_round_makes_its_parameters_anew(
    method: AdapterMethod | None, rule: AggregationRule | None, feedback: bool
) -> None:
    assert task("int8", method, rule).offered_encoding.feedback is feedback


def test_topk_of_factors_that_are_made_anew_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="topk needs what it leaves out"):
        task("topk", AdapterMethod.LORA)
    assert task("topk", AdapterMethod.LORA, MEAN).offered_encoding.feedback


@pytest.mark.parametrize(
    ("words", "shares"),
    [((), (0.25,)), (("--nest", "0.5", "--nest", "0.25"), (0.5, 0.25)), (("--nest", "0.1"), (0.1,))],
)
def test_nested_widths_are_an_option(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...], shares: tuple[float, ...]
) -> None:
    queued = list[TaskConfig]()
    monkeypatch.setattr("coordinator.rounds.tasks.queue_task", lambda _, config, __: queued.append(config))
    files = ("--model", "m", "--calibration", "c", "--test", "t", "--state-dir", str(tmp_path))
    done = CliRunner().invoke(app, ["task", "create", "news", *files, *words], catch_exceptions=False)

    assert done.exit_code == 0
    assert [config.nesting.shares for config in queued] == [shares]
