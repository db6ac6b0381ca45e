"""An agent's settings from a file, from the environment and from a command's options; later sources win.

    device = "pi-5"                                 # agent.toml
    RAFFM_EDGE_POLICY_CHARGING_ONLY=true            # the environment: a field of [policy]
    edge-agent run --config agent.toml --seed 7     # an option

All three win over what the fleet told the device when it enrolled, which is kept with the device's identity.

The keys are the fields of :class:`edge_sdk.config.AgentConfig` and :class:`~edge_sdk.device.policy.Policy` (the latter
under ``[policy]``), so a new field is a new key. ``data`` (the file of examples) and ``log_format`` are added, and
``password_file`` replaces the password, since no secret belongs in a settings file.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import MISSING, dataclass, fields, is_dataclass
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import Any, get_args, get_origin, get_type_hints

import msgspec

from edge_sdk.config import AgentConfig, default_state_dir
from edge_sdk.decoding import TomlTable, parse_toml
from edge_sdk.device.policy import Policy
from edge_sdk.errors import ConfigurationError, SettingError, did_you_mean
from edge_sdk.logs import LogFormat
from edge_sdk.security.identity import Identity
from edge_sdk.security.secrets import read_secret
from edge_sdk.settings_help import ABOUT

ENVIRONMENT_PREFIX = "RAFFM_EDGE_"
CONFIG_VARIABLE = f"{ENVIRONMENT_PREFIX}CONFIG"
_LISTS = {tuple, list, set, frozenset}
_Values = TomlTable  # by key; a field of the policy has the key policy.<field>


@dataclass(frozen=True, slots=True)
class Settings:
    """An agent, the file of its examples, and what its command writes its log as."""

    config: AgentConfig
    data: Path
    log_format: LogFormat = LogFormat.TEXT


@dataclass(frozen=True, slots=True)
class Key:
    """One key of a file of settings: its type, what holds where it is not given, and what it means.

    ``default`` is ``MISSING`` for a key that has to be given.
    """

    type: Any
    default: Any
    about: str = ""


@cache
def keys() -> dict[str, Key]:
    """Every key, those that have to be given first, those of the policy last."""
    found = {"data": Key(Path, MISSING), **_keys_of(AgentConfig), "password_file": Key(Path | None, None)}
    del found["password"]
    found["state_dir"] = Key(Path | None, None)
    found["log_format"] = Key(LogFormat, LogFormat.TEXT)
    rank = {name: ("." in name, key.default is not MISSING) for name, key in found.items()}
    named = {name: Key(key.type, key.default, ABOUT.get(name, "")) for name, key in found.items()}
    return dict(sorted(named.items(), key=lambda item: rank[item[0]]))


def load_settings(
    file: Path | None,
    environment: Mapping[str, str],
    options: Mapping[str, Any],
    flags: Mapping[str, str] = MappingProxyType({}),
) -> Settings:
    """Settings from all three sources. An option that is ``None`` was not given; text is parsed as its key's type.

    ``flags`` maps a key to what a user types for it, where that is not ``--key``; errors quote it. A relative path in
    the file is relative to the file's folder. Raises ``ConfigurationError``.
    """
    options = {name: value for name, value in options.items() if value is not None}
    given, typed = _given(file, environment, options, flags)
    for name, key in keys().items():
        if key.default is MISSING and name not in given:
            raise ConfigurationError(
                f"{name} is not given: use --{name}, {_variable(name)}, or {name} = … in a file for --config"
                f"{'; or enrol this device and give its --state-dir' if name != 'data' else ''}"
            )
    try:
        return _settings(given)
    except SettingError as error:
        name = error.name if error.name in keys() else f"policy.{error.name}"
        raise SettingError(typed.get(name, name), error.value, error.why) from error


def given_values(file: Path | None, environment: Mapping[str, str], options: Mapping[str, Any]) -> _Values:
    """The values that all three sources and enrolling give, by key, not yet checked together; else as above."""
    return _given(file, environment, {name: value for name, value in options.items() if value is not None}, {})[0]


def read_file(path: Path) -> _Values:
    """The values in a TOML file, by key. Raises ``ConfigurationError``."""
    try:
        table = parse_toml(path.read_bytes(), str(path))
    except OSError as error:
        raise ConfigurationError(
            f"{path} cannot be read ({error.strerror}); `edge-agent config` prints a template"
        ) from error
    values = dict(_flat(table))
    _refuse_unknown(values, str(path))
    return {name: _typed(value, name, f"{path}: {name}", path.parent) for name, value in values.items()}


def enrolled_values(state_dir: Path, device: str | None = None) -> _Values:
    """The settings that enrolling left in ``state_dir``, by key; empty where no device has enrolled there.

    Raises ``ConfigurationError``, also where the state is not that of ``device``.
    """
    file = Identity.of(state_dir).settings_file
    values = read_file(file) if file.exists() else {}
    if values and device not in {None, values.get("device")}:
        raise ConfigurationError(
            f"{state_dir} is the state of {values.get('device')!r}, not of {device!r}: give another state_dir"
        )
    return values


def typed_values(given: Mapping[str, object]) -> _Values:
    """Keyword arguments for ``AgentConfig``, each converted to its field's type (a path may be given as text).

    Unknown names are returned as they are. Raises ``ConfigurationError`` for a value of the wrong type.
    """
    if not isinstance(given.get("policy", Policy()), Policy):
        raise ConfigurationError(f"policy is a {type(given['policy']).__name__}; give an edge_sdk.Policy")
    return {name: _typed(value, name, name, Path()) if name in keys() else value for name, value in given.items()}


def from_environment(environment: Mapping[str, str]) -> _Values:
    """The values of the variables ``RAFFM_EDGE_…``, by key. Lists are separated by commas; an empty value is ignored.

    Raises ``ConfigurationError``, also for a variable with that prefix that names no key.
    """
    known = {_variable(name): name for name in keys()}
    given = {name: text for name, text in environment.items() if name.startswith(ENVIRONMENT_PREFIX) and text}
    given.pop(CONFIG_VARIABLE, None)
    for variable in given:
        if variable not in known:
            raise ConfigurationError(f"{variable} in the environment is unknown; {did_you_mean(variable, known)}")
    return {known[name]: _typed(_listed(text, known[name]), known[name], name) for name, text in given.items()}


def example_file() -> str:
    """A settings file with every key, its meaning and its default, each commented out."""
    lines = [
        "# Settings of edge-agent. The first three are required; the others are shown with their defaults.",
        "# A device that has enrolled got its name and its broker then, and needs data alone.",
    ]
    for name, key in keys().items():
        table, _, short = name.rpartition(".")
        lines += ["", f"[{table}]"] if table and f"[{table}]" not in lines else [""]
        lines += [f"# {key.about}"] if key.about else []
        lines += [f"#{short} = {_as_toml(key.default)}".rstrip()]
    return "\n".join(lines) + "\n"


def _given(
    file: Path | None, environment: Mapping[str, str], options: Mapping[str, Any], flags: Mapping[str, str]
) -> tuple[_Values, dict[str, str]]:
    """The strongest value of each key, and how a user has written the key there."""
    in_file = {} if file is None else read_file(file)
    in_environment = from_environment(environment)
    typed = {name: f"{file}: {name}" for name in in_file} | {name: _variable(name) for name in in_environment}
    typed |= {name: flags.get(name, f"--{name}") for name in options}
    from_options = {name: _of_option(value, name, typed[name]) for name, value in options.items()}
    given = in_file | in_environment | from_options
    return _enrolled(given) | given, typed


def _enrolled(given: _Values) -> _Values:
    """What the agent that these settings describe received when it enrolled. Raises ``ConfigurationError``."""
    device, state_dir = given.get("device"), given.get("state_dir")
    if state_dir is None and device is None:
        return {}
    return enrolled_values(state_dir or default_state_dir(device or ""), device)


def _keys_of(kind: Any, prefix: str = "") -> dict[str, Key]:  # noqa: ANN401 - any dataclass
    hints = get_type_hints(kind, include_extras=True)
    found: dict[str, Key] = {}
    for each in fields(kind):
        if is_dataclass(hints[each.name]):
            found |= _keys_of(hints[each.name], f"{prefix}{each.name}.")
        else:
            default = each.default if each.default_factory is MISSING else each.default_factory()
            found[prefix + each.name] = Key(hints[each.name], default)
    return found


def _settings(values: _Values) -> Settings:
    data, secret = values.pop("data"), values.pop("password_file", None)
    log_format = values.pop("log_format", LogFormat.TEXT)
    policy = {name.removeprefix("policy."): values.pop(name) for name in list(values) if name.startswith("policy.")}
    policy_type = get_type_hints(AgentConfig)["policy"]
    values["state_dir"] = values.get("state_dir") or default_state_dir(values["device"])
    password = None if secret is None else read_secret(secret)
    return Settings(AgentConfig(**values, policy=policy_type(**policy), password=password), data, log_format)


def _flat(table: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for name, value in table.items():
        if isinstance(value, dict) and name in _tables():
            yield from ((f"{name}.{short}", inner) for short, inner in value.items())
        else:
            yield name, value


def _tables() -> set[str]:
    return {name.partition(".")[0] for name in keys() if "." in name}


def _refuse_unknown(values: _Values, source: str) -> None:
    known = {*keys(), *_tables()}
    for name, value in values.items():
        if name in _tables():
            raise ConfigurationError(f"{source}: {name} = {value!r} is wrong: it must be a table, [{name}]")
        if name == "password":
            raise ConfigurationError(
                f"{source}: a password must not be in this file; write it to its own file and set password_file"
            )
        if name not in known:
            raise ConfigurationError(f"{source}: {name} is unknown; {did_you_mean(name, known)}")


def _typed(value: object, name: str, source: str, folder: Path | None = None) -> Any:  # noqa: ANN401 - the key's type
    """``value`` as the key's type; text from the environment (``folder`` is ``None``) may stand for a number."""
    if name == "profile" and folder is not None and str(value).endswith(".toml"):
        value = str(folder / str(value))
    try:
        return msgspec.convert(value, keys()[name].type, strict=folder is not None, dec_hook=_path_in(folder or Path()))
    except (msgspec.ValidationError, UnicodeEncodeError) as error:
        raise ConfigurationError(f"{source} = {value!r} is wrong: {error}") from error


def _of_option(value: object, name: str, flag: str) -> Any:  # noqa: ANN401 - the key's type
    return _typed(_listed(value, name), name, flag) if isinstance(value, str) else value


def _path_in(folder: Path) -> Any:  # noqa: ANN401 - what msgspec calls for a type that it does not know
    def path(kind: type, value: Any) -> Path:  # noqa: ANN401
        if kind is not Path or not isinstance(value, str | Path):
            raise TypeError(f"Expected `str`, got `{type(value).__name__}`")
        if "\0" in str(value):
            raise ValueError("a path cannot contain NUL")
        try:
            return (folder / Path(value).expanduser()).absolute()  # an application may change its current folder
        except (RuntimeError, OSError) as error:  # ~ of nobody; no current folder
            raise ValueError(str(error)) from error

    return path


def _listed(text: str, name: str) -> str | list[str]:
    kind = keys()[name].type
    is_list = any(get_origin(part) in _LISTS for part in (kind, *get_args(kind)))
    return [part.strip() for part in text.split(",")] if is_list else text


def _variable(name: str) -> str:
    return ENVIRONMENT_PREFIX + name.replace(".", "_").upper()


def _as_toml(value: object) -> str:
    """A default as TOML writes it, which for texts, numbers and lists is as JSON does; ``None`` is nothing in TOML."""
    return "" if value is None or value is MISSING else msgspec.json.encode(value).decode()
