"""Settings from a file, the environment and options: which wins, and what is said of one that cannot be."""

from __future__ import annotations

import re
import sys
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Annotated, Any

import msgspec
import pytest
from typer.testing import CliRunner

from edge_sdk import settings
from edge_sdk.cli import app
from edge_sdk.config import AgentConfig, default_state_dir
from edge_sdk.device.policy import Policy
from edge_sdk.elastic.runtimes import Runtime
from edge_sdk.errors import ConfigurationError
from edge_sdk.settings import example_file, from_environment, keys, load_settings, read_file
from edge_sdk.transport.address import MqttVersion

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

COMPLETE = """
device = "pi-5"
broker = "mqtts://broker.example"
data = "texts.csv"
fleet = "barn"
profile = "raspberry-pi-5-8gb"
root = "root.json"
user = "pi"
password_file = "secret"
ca_file = "/etc/ssl/ours.pem"
allow_plaintext = true
runtime = "onnx"
seed = 3
held_out_share = 0.2
ready_interval_s = 5
resend_first_s = 1.5
resend_max_s = 30

[policy]
charging_only = true
battery_floor_share = 0.5
min_disk_free_bytes = 1
max_temperature_c = 70
"""
PHRASE = "correct-horse"
NEEDED = {"device": "pi-5", "broker": "mqtt://127.0.0.1", "data": Path("texts.csv")}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    (tmp_path / "secret").write_text(f"{PHRASE}\n")
    path = tmp_path / "agent.toml"
    path.write_text(COMPLETE)
    return path


def write(folder: Path, text: str) -> Path:
    path = folder / "agent.toml"
    path.write_text(text)
    return path


def test_every_key_of_a_file_arrives(file: Path) -> None:
    folder, found = file.parent, load_settings(file, {}, {})
    assert found.data == folder / "texts.csv"
    expected = AgentConfig(
        device="pi-5",
        broker="mqtts://broker.example",
        fleet="barn",
        profile="raspberry-pi-5-8gb",
        state_dir=default_state_dir("pi-5"),
        root=folder / "root.json",
        user="pi",
        password=PHRASE,
        ca_file=Path("/etc/ssl/ours.pem"),
        allow_plaintext=True,
        runtime=Runtime.ONNX,
        seed=3,
        held_out_share=0.2,
        ready_interval_s=5,
        resend_first_s=1.5,
        resend_max_s=30,
        policy=Policy(charging_only=True, battery_floor_share=0.5, min_disk_free_bytes=1, max_temperature_c=70),
    )
    assert asdict(found.config) == asdict(expected)


def test_every_field_but_the_password_is_a_key() -> None:
    beside = {"data", "log_format", "password_file"}
    wanted = {each.name for each in fields(AgentConfig)} - {"password", "policy"} | beside
    assert set(keys()) == wanted | {f"policy.{each.name}" for each in fields(Policy)}


def test_environment_wins_over_the_file_and_options_over_both(file: Path) -> None:
    environment = {"RAFFM_EDGE_SEED": "4", "RAFFM_EDGE_FLEET": "yard", "RAFFM_EDGE_POLICY_CHARGING_ONLY": "false"}
    found = load_settings(file, environment, {"seed": 5, "fleet": None}).config
    assert (found.seed, found.fleet, found.device) == (5, "yard", "pi-5")
    assert (found.policy.charging_only, found.policy.max_temperature_c) == (False, 70)


def test_settings_need_no_file() -> None:
    found = load_settings(None, {"RAFFM_EDGE_DEVICE": "pi-4", "HOME": "/x"}, {**NEEDED, "device": None})
    assert found.config.device == "pi-4"
    assert found.data == Path("texts.csv")


@pytest.mark.parametrize("name", ["device", "broker", "data"])
def test_what_has_to_be_given_is_named_with_all_three_places(name: str) -> None:
    with pytest.raises(ConfigurationError, match=rf"{name} is not given: use --{name}, RAFFM_EDGE_{name.upper()}, or"):
        load_settings(None, {}, {key: value for key, value in NEEDED.items() if key != name})


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("sede = 1", "agent.toml: sede is unknown; did you mean seed"),
        ("xyz = 1", "agent.toml: xyz is unknown; known are allow_plaintext, broker"),
        ("[policy]\ncharging = true", "policy.charging is unknown; did you mean policy.charging_only"),
        ("[polcy]\ncharging_only = true", "polcy is unknown; did you mean policy"),
        ('password = "x"', "a password must not be in this file"),
        ('seed = "1"', "agent.toml: seed = '1' is wrong: Expected `int`, got `str`"),
        ("data = 1", "data = 1 is wrong: .*got `int`"),
        ('data = "~nobody-of-this-name/a.csv"', "data = '~nobody-of-this-name/a.csv' is wrong: Could not determine"),
        ('state_dir = "a\\u0000b"', "is wrong: a path cannot contain NUL"),
        ("policy = 1", "policy = 1 is wrong: it must be a table"),
        ('runtime = "tourch"', "runtime = 'tourch' is wrong"),
        ("[policy]\ncharging_only = 1", "policy.charging_only = 1 is wrong: Expected `bool`"),
        ("seed = ", "agent.toml is not TOML: Invalid value"),
    ],
)
def test_wrong_key_in_a_file_is_refused_by_name(tmp_path: Path, line: str, said: str) -> None:
    with pytest.raises(ConfigurationError, match=said) as caught:
        read_file(write(tmp_path, line))
    assert "\n" not in str(caught.value)


def test_missing_file_tells_how_to_get_one(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"no\.toml cannot be read .*`edge-agent config`"):
        read_file(tmp_path / "no.toml")


@pytest.mark.parametrize(
    ("variable", "value", "said"),
    [
        ("RAFFM_EDGE_SEEED", "1", "RAFFM_EDGE_SEEED in the environment is unknown; did you mean RAFFM_EDGE_SEED"),
        ("RAFFM_EDGE_SEED", "one", "RAFFM_EDGE_SEED = 'one' is wrong"),
        (
            "RAFFM_EDGE_PASSWORD",
            "hush",
            "RAFFM_EDGE_PASSWORD in the environment is unknown; .*RAFFM_EDGE_PASSWORD_FILE",
        ),
    ],
)
def test_wrong_variable_is_refused_by_name(variable: str, value: str, said: str) -> None:
    with pytest.raises(ConfigurationError, match=said):
        from_environment({variable: value})


def test_wrong_value_is_told_as_its_owner_has_typed_it(tmp_path: Path) -> None:
    file = write(tmp_path, "ready_interval_s = 0\n[policy]\nbattery_floor_share = 3")
    with pytest.raises(ConfigurationError, match=r"agent\.toml: ready_interval_s 0.0 must be positive"):
        load_settings(file, {"RAFFM_EDGE_POLICY_BATTERY_FLOOR_SHARE": "0.3"}, NEEDED)
    with pytest.raises(ConfigurationError, match=r"agent\.toml: policy\.battery_floor_share 3.0 must be from 0 to 1"):
        load_settings(file, {"RAFFM_EDGE_READY_INTERVAL_S": "1"}, NEEDED)
    with pytest.raises(ConfigurationError, match=r"^RAFFM_EDGE_POLICY_BATTERY_FLOOR_SHARE 4\.0 must be from 0 to 1"):
        load_settings(file, {"RAFFM_EDGE_POLICY_BATTERY_FLOOR_SHARE": "4"}, NEEDED)
    options = {**NEEDED, "policy.battery_floor_share": "5"}
    with pytest.raises(ConfigurationError, match=r"^--battery-floor 5\.0 must be from 0 to 1"):
        load_settings(file, {}, options, {"policy.battery_floor_share": "--battery-floor"})


def enrolled(state_dir: Path, **changes: str) -> Path:
    """What `edge-agent enroll` leaves in a state folder."""
    told = {"device": "pi-5", "broker": "mqtts://fleet.example", "certificate_file": "identity.pem"} | changes
    folder = state_dir / "identity"
    folder.mkdir(parents=True)
    (folder / "agent.toml").write_text("".join(f'{name} = "{value}"\n' for name, value in told.items()))
    return state_dir


def test_enrolled_device_knows_its_fleet_and_everything_else_is_stronger(tmp_path: Path) -> None:
    given = {"state_dir": enrolled(tmp_path / "state"), "data": Path("x.csv")}
    config = load_settings(None, {}, given).config
    assert (config.device, config.broker) == ("pi-5", "mqtts://fleet.example")
    assert config.certificate_file == tmp_path / "state" / "identity" / "identity.pem"
    assert load_settings(None, {"RAFFM_EDGE_BROKER": "mqtts://other"}, given).config.broker == "mqtts://other"
    file = write(tmp_path, 'broker = "mqtts://third"\n')
    assert load_settings(file, {}, given).config.broker == "mqtts://third"


def test_enrolled_device_is_found_by_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    enrolled(default_state_dir("pi-5"))
    assert load_settings(None, {}, {"device": "pi-5", "data": Path("x.csv")}).config.broker == "mqtts://fleet.example"


def test_state_of_another_device_is_refused(tmp_path: Path) -> None:
    given = NEEDED | {"device": "pi-6", "state_dir": enrolled(tmp_path)}
    with pytest.raises(ConfigurationError, match=f"{tmp_path} is the state of 'pi-5', not of 'pi-6'"):
        load_settings(None, {}, given)


def test_what_the_fleet_has_told_is_read_as_any_settings_are(tmp_path: Path) -> None:
    given = {"state_dir": enrolled(tmp_path, colour="red"), "data": Path("x.csv")}
    with pytest.raises(ConfigurationError, match="colour is unknown"):
        load_settings(None, {}, given)


def test_empty_variable_is_not_given() -> None:
    assert from_environment({"RAFFM_EDGE_PROFILE": "", "RAFFM_EDGE_CONFIG": "a.toml"}) == {}


def test_refused_password_variable_is_not_shown() -> None:
    with pytest.raises(ConfigurationError) as caught:
        from_environment({"RAFFM_EDGE_PASSWORD": "hush"})
    assert "hush" not in str(caught.value)


def test_profile_that_is_a_file_counts_from_the_folder_of_the_settings(tmp_path: Path) -> None:
    assert read_file(write(tmp_path, 'profile = "board.toml"')) == {"profile": str(tmp_path / "board.toml")}


def test_example_is_a_file_of_defaults_that_explains_every_key(tmp_path: Path) -> None:
    text = example_file()
    assert tomllib.loads(text) == {"policy": {}}
    assert all(key.about in text and key.about for key in keys().values())
    given = "\n".join(line.removeprefix("#") for line in text.splitlines() if re.match(r"\[|#\w+ = ", line))
    needed = 'device = "pi-5"\nbroker = "mqtt://127.0.0.1"\ndata = "/texts.csv"\n'
    (tmp_path / "defaults").mkdir()
    expected = load_settings(write(tmp_path, needed), {}, {})
    assert load_settings(write(tmp_path / "defaults", needed + given), {}, {}) == expected
    assert given.count("=") >= 10


@dataclass(frozen=True, kw_only=True)
class WiderPolicy(Policy):
    """A policy with fields that nobody told :mod:`edge_sdk.settings` of."""

    hours: tuple[str, ...] = ()
    share: Annotated[float, msgspec.Meta(gt=0)] | None = None


@dataclass(frozen=True, kw_only=True)
class WiderConfig(AgentConfig):
    policy: WiderPolicy = field(default_factory=WiderPolicy)


@pytest.fixture
def wider(monkeypatch: pytest.MonkeyPatch) -> Any:
    keys.cache_clear()
    monkeypatch.setattr(settings, "AgentConfig", WiderConfig)
    yield
    keys.cache_clear()


@pytest.mark.usefixtures("wider")
def test_field_added_to_the_policy_is_a_key_at_once(tmp_path: Path) -> None:
    file = write(tmp_path, '[policy]\nhours = ["22:00-06:00", "12:00-13:00"]\nshare = 0.5')
    policy = load_settings(file, {}, NEEDED).config.policy
    assert policy == WiderPolicy(hours=("22:00-06:00", "12:00-13:00"), share=0.5)
    environment = {"RAFFM_EDGE_POLICY_HOURS": "22:00-06:00, 12:00-13:00", "RAFFM_EDGE_POLICY_SHARE": "0.5"}
    assert load_settings(None, environment, NEEDED).config.policy == policy
    assert "#hours = []" in example_file()
    with pytest.raises(ConfigurationError, match=r"policy\.share = -1 is wrong"):
        read_file(write(tmp_path, "[policy]\nshare = -1"))


def test_version_of_mqtt_is_an_option(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    monkeypatch.setattr(
        "edge_sdk.agent.supervisor.Supervisor.__init__", lambda _, config, *__, **___: seen.append(config)
    )
    monkeypatch.setattr("edge_sdk.agent.supervisor.Supervisor.run", lambda _: None)
    monkeypatch.setattr("signal.signal", lambda *_: None)
    data = tmp_path / "texts.csv"
    data.write_text("text,label\na,b\n")
    words = ["run", "--device", "a", "--broker", "mqtt://127.0.0.1", "--data", str(data), "--mqtt-version", "3.1.1"]

    assert CliRunner().invoke(app, words, catch_exceptions=False).exit_code == 0
    assert [config.mqtt_version for config in seen] == [MqttVersion.V311]
