"""What an operator may decide about a task, and what is refused."""

from __future__ import annotations

import json
import re
from contextlib import closing
from datetime import time
from pathlib import Path

import msgspec
import pytest
from typer.testing import CliRunner

from coordinator.aggregation.rule import AdapterMerge, AggregationRule
from coordinator.cli import app
from coordinator.config import CoordinatorConfig, TaskConfig, parse_encoding, task_of_file
from coordinator.models.run import foundation_of
from coordinator.planning.selection import DataSchema
from coordinator.rounds.tasks import queue_task
from coordinator.store.opening import open_store
from coordinator.store.states import TaskStatus
from edge_sdk.data import read_examples
from edge_sdk.elastic.submodel import AdapterMethod, Adapters, TrainablePart
from edge_sdk.errors import ConfigurationError
from edge_sdk.protocol.messages import FP32, Encoding, EncodingKind
from tests.support.motion_task import LABELS, motion_task

MEAN = AggregationRule(adapters=AdapterMerge.MEAN)
_RECIPE = {"learning_rate": 1e-3, "batch_size": 4, "epochs": 1, "max_tokens": 8}


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
    with pytest.raises(ConfigurationError, match="topk sends in later rounds what it left out"):
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
    monkeypatch.setattr("coordinator.rounds.tasks.queue_task", lambda _, config, *__: queued.append(config))
    files = ("--model", "m", "--calibration", "c", "--test", "t", "--state-dir", str(tmp_path))
    done = CliRunner().invoke(app, ["task", "create", "news", *files, *words], catch_exceptions=False)

    assert done.exit_code == 0
    assert [config.nesting.shares for config in queued] == [shares]


# -- from a file

TASK_TOML = """
name = "motion"
model_dir = "model"
calibration_file = "data/few.npz"
test_file = "/data/held-out.npz"
rounds = 20
min_devices = 5
max_devices = 50
round_deadline_s = 3600.0
part = "all"

[recipe]
learning_rate = 2e-3
batch_size = 16
epochs = 1
max_tokens = 32
distillation = 0.5

[nesting]
shares = [0.5, 0.25]

[encoding]
kind = "topk"
share = 0.1

[aggregation]
floor = 1.0

[data]
labels = ["walking", "sitting"]
min_examples = 50

[targets]
profiles = ["raspberry-pi-*", "jetson-*"]

[schedule]
begins = 2027-01-01T00:00:00Z
hours = [22:00:00, 06:00:00]
every_s = 86400.0
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "motion.toml"
    path.write_text(TASK_TOML)
    return path


def test_task_is_read_from_toml_with_paths_from_its_folder(file: Path) -> None:
    config = task_of_file(file)
    assert (config.name, config.rounds, config.max_devices, config.part) == ("motion", 20, 50, TrainablePart.ALL)
    assert config.model_dir == str(file.parent / "model")
    assert config.test_file == "/data/held-out.npz"
    assert config.nesting.shares == (0.5, 0.25)
    assert (config.data.labels, config.data.min_examples) == (("walking", "sitting"), 50)
    assert config.encoding == Encoding(kind=EncodingKind.TOPK, share=0.1)
    assert config.targets.include("any", "raspberry-pi-5-8gb", "default")
    assert not config.targets.include("any", "android-phone", "default")
    assert config.schedule.hours == (time(22), time(6))
    assert msgspec.convert(msgspec.to_builtins(config), TaskConfig) == config


def test_classes_are_those_that_the_schema_names_in_its_order(tmp_path: Path) -> None:
    named = ("sitting", "lying", *LABELS)
    config = motion_task(tmp_path, AdapterMethod.LORA, data=DataSchema(labels=named))
    examples = [read_examples(Path(file)) for file in (config.calibration_file, config.test_file)]
    assert foundation_of(config, *examples).labels == named
    queue_task(open_store(tmp_path), config, 0.0, "a test")


def test_schema_without_a_label_of_the_tasks_own_files_is_refused(tmp_path: Path) -> None:
    config = motion_task(tmp_path, AdapterMethod.LORA, data=DataSchema(labels=LABELS[1:]))
    with pytest.raises(
        ConfigurationError, match=f"data.labels lacks {LABELS[0]}, which calibration_file or test_file have"
    ):
        queue_task(open_store(tmp_path), config, 0.0, "a test")


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("rounds = 20", "rounds = 'many'", "Expected `int`, got `str` - at `$.rounds`"),
        ("rounds = 20", "round = 20", "contains unknown field `round`"),
        ('kind = "topk"', 'kind = "int4"', r"Invalid enum value 'int4' - at `\$.encoding.kind`"),
        ("[targets]", "[targets", "motion.toml is not TOML: "),
        ('"walking", "sitting"]', '"a", "b", "a"]', "labels has a twice: name each class once"),
        ("min_examples = 50", "min_examples = 0", "Expected `int` >= 1"),
        ("hours = [22:00:00, 06:00:00]", "hours = [22:00:00, 22:00:00]", "hours from 22:00:00 to 22:00:00 are empty"),
        (
            "hours = [22:00:00, 06:00:00]",
            "hours = ['22:00:00Z', '06:00:00Z']",
            r"hours from 22:00:00\+00:00 to .* zone",
        ),
        ("2027-01-01T00:00:00Z", "9999-12-31T23:59:59", "begins in the year 9999: use one from 1970 to 9998"),
        ("2027-01-01T00:00:00Z", "0001-01-01T00:00:00", "begins in the year 1: "),
        ("every_s = 86400.0", "every_s = inf", "Expected `float` <= 1000000000.0"),
        ("shares = [0.5, 0.25]", "shares = [0.5, 0.25, 0.2, 0.1]", "4 nested widths: give at most 3"),
        ("rounds = 20", "rounds = 0", "Expected `int` >= 1"),
        ("rounds = 20", "rounds = 20\nquorum = 0", "Expected `int` >= 1"),
        ("rounds = 20", "rounds = 20\nseed = -1", "Expected `int` >= 0"),
        ("rounds = 20", "rounds = 20\nevaluated_shares = []", "Expected `array` of length >= 1"),
        ("round_deadline_s = 3600.0", "round_deadline_s = 0", "Expected `float` > 0.0"),
        ("round_deadline_s = 3600.0", "round_deadline_s = nan", "Expected `float` > 0.0"),
        (
            "max_devices = 50",
            "max_devices = 2\nquorum = 3",
            "takes in 2 devices .* quorum is 3, so no round could open",
        ),
    ],
)
def test_file_that_says_what_no_task_can_have_is_refused(file: Path, old: str, new: str, words: str) -> None:
    file.write_text(TASK_TOML.replace(old, new))
    with pytest.raises(ConfigurationError, match=words.replace("$.rounds", r"\$.rounds")):
        task_of_file(file)


def test_task_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"nothing\.toml cannot be read: No such file"):
        task_of_file(tmp_path / "nothing.toml")


# -- from a terminal


def coordinator(*words: object) -> str:
    return CliRunner().invoke(app, [*map(str, words)], catch_exceptions=False).stdout


def test_task_is_applied_listed_paused_stopped_and_started(tmp_path: Path) -> None:
    examples = tmp_path / "texts.csv"
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    examples.write_text("text,label\ngood,yes\nbad,no\n")
    file, state = tmp_path / "news.toml", ("--state-dir", tmp_path / "state")
    names = 'model_dir = "."\ncalibration_file = "texts.csv"\ntest_file = "texts.csv"\n'
    file.write_text(f'name = "news"\nrounds = 3\n{names}[schedule]\nevery_s = 60.0\n')

    assert "task news is queued" in coordinator("task", "apply", file, *state)
    assert "queued" in coordinator("task", "apply", file, *state), "the same again changes nothing"
    for word, status in (("pause", "paused"), ("start", "pending"), ("stop", "stopped")):
        assert coordinator("task", word, "news", *state) == f"task news is {status}\n"
        (row,) = json.loads(coordinator("task", "list", *state, "--json"))
        assert (row["task"], row["status"], row["rounds"], row["of"]) == ("news", status, 0, 3)
    shown = coordinator("task", "show", "news", *state)
    assert re.search(r"schedule\.every_s +. 60\.0", shown)
    assert "nothing yet" in shown
    with closing(open_store(tmp_path / "state")) as store, store.transaction() as tx:
        tx.tasks.set_status("news", TaskStatus.FAILED, "said [/x] no")
    said = json.loads(coordinator("task", "show", "news", *state, "--json"))
    assert list(said) == ["task", "settings", "versions", "rounds"]
    (state_row,) = said["task"]
    assert (state_row["status"], state_row["failure"]) == ("failed", "said [/x] no")
    assert "[/x]" in coordinator("task", "show", "news", *state)
    with pytest.raises(ConfigurationError, match="there is no task 'views'; the tasks are news"):
        coordinator("task", "show", "views", *state)


@pytest.mark.parametrize(
    "words",
    [
        ("--learning-rate", "nan"),
        ("--learning-rate", "100"),
        ("--distillation", "nan"),
        ("--max-steps", "1" + "0" * 30),
        ("--lora-rank", "4", "--seed", "-1"),
        ("--quorum", "3", "--max-devices", "2"),
    ],
    ids=" ".join,
)
def test_option_that_no_task_can_have_is_refused_and_the_store_stays_readable(
    tmp_path: Path, words: tuple[str, ...]
) -> None:
    (tmp_path / "state").mkdir()
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    (tmp_path / "texts.csv").write_text("text,label\ngood,yes\nbad,no\n")
    files = ("--model", tmp_path, "--calibration", tmp_path / "texts.csv", "--test", tmp_path / "texts.csv")
    with pytest.raises(ConfigurationError):
        coordinator("task", "create", "news", *files, *words, "--state-dir", tmp_path / "state")
    assert coordinator("task", "list", "--state-dir", tmp_path / "state") == "nothing yet\n"


@pytest.mark.parametrize("line", ["recipe.clip_norm = inf", "recipe.pixel_mean = [nan]", "adapters.scale = inf"])
def test_number_that_json_does_not_have_is_refused(tmp_path: Path, line: str) -> None:
    recipe = "".join(f"recipe.{key} = {value}\n" for key, value in _RECIPE.items())
    names = 'name = "t"\npart = "adapters"\nmodel_dir = "m"\ncalibration_file = "c"\ntest_file = "c"\n'
    (tmp_path / "t.toml").write_text(names + recipe + line)
    with pytest.raises(ConfigurationError, match="task 't' is invalid: it has a number that is not finite"):
        queue_task(open_store(tmp_path), task_of_file(tmp_path / "t.toml"), 0.0, "a test")


def test_compiled_templates_are_kept_with_the_state_of_who_has_no_home(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = CoordinatorConfig(state_dir=tmp_path / "fleet", broker="mqtt://127.0.0.1")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    assert config.template_cache == tmp_path / "home" / "raffm-edge" / "templates"
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert config.template_cache == tmp_path / "fleet" / "templates"
