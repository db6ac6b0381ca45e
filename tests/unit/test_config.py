"""The agent's configuration: what it refuses, and what it never shows."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

import pytest

from edge_sdk.config import AgentConfig, default_state_dir
from edge_sdk.elastic.runtimes import Runtime
from edge_sdk.errors import ConfigurationError

PHRASE = "correct-horse"
CONFIG = AgentConfig(device="pi-5", broker="mqtt://127.0.0.1", state_dir=Path("state"), password=PHRASE)


def test_password_is_not_in_the_text_of_a_configuration() -> None:
    assert CONFIG.password == PHRASE
    assert PHRASE not in repr(CONFIG) + str(CONFIG)


@pytest.mark.parametrize("name", ["", "Pi", "pi_5", "pi/5", "+", "#", "pi 5", "pi\n", "ü", "a" * 65])
@pytest.mark.parametrize("what", ["device", "fleet"])
def test_name_that_cannot_stand_in_a_topic_is_refused(what: str, name: str) -> None:
    with pytest.raises(ConfigurationError, match=f"{what} .*is not usable in a topic"):
        dataclasses.replace(CONFIG, **{what: name})


@pytest.mark.parametrize("name", ["a", "pi-5", "0", "a" * 64])
def test_name_of_a_topic_is_accepted(name: str) -> None:
    assert dataclasses.replace(CONFIG, device=name, fleet=name).device == name


@pytest.mark.parametrize("share", [-0.1, 1.0, 10.0, float("nan")])
def test_held_out_share_outside_its_range_is_refused(share: float) -> None:
    with pytest.raises(ConfigurationError, match=f"held_out_share {share}"):
        dataclasses.replace(CONFIG, held_out_share=share)


@pytest.mark.parametrize("seed", [-1, 1 << 32])
def test_seed_of_which_no_job_can_be_made_is_refused(seed: int) -> None:
    with pytest.raises(ConfigurationError, match=f"seed {seed} must be from 0"):
        dataclasses.replace(CONFIG, seed=seed)


def test_state_folder_whose_name_no_message_can_have_is_refused() -> None:
    """Its path is in each job and in what a full disk says: neither could be encoded, which ended the agent."""
    with pytest.raises(ConfigurationError, match=r"state_dir '/home/m.udcfcller' is not UTF-8"):
        dataclasses.replace(CONFIG, state_dir=Path(os.fsdecode(b"/home/m\xfcller")))
    assert dataclasses.replace(CONFIG, state_dir=Path("/home/müller")).state_dir == Path("/home/müller")


def test_nothing_held_out_is_allowed() -> None:
    assert dataclasses.replace(CONFIG, held_out_share=0.0).held_out_share == 0.0


@pytest.mark.parametrize("interval_s", [0, -1.0, float("nan"), float("inf")])
@pytest.mark.parametrize("name", ["ready_interval_s", "resend_first_s", "resend_max_s"])
def test_interval_that_is_not_positive_is_refused(name: str, interval_s: float) -> None:
    with pytest.raises(ConfigurationError, match=f"{name} .*must be positive"):
        dataclasses.replace(CONFIG, **{name: interval_s})


def test_each_device_has_a_state_folder_of_its_own() -> None:
    folder = default_state_dir("pi-5")
    assert folder.parts[-2:] == ("raffm-edge", "pi-5")
    assert folder != default_state_dir("pi-4")


def test_torch_runtime_without_torch_is_refused_with_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edge_sdk.config.find_spec", lambda _: object())
    assert dataclasses.replace(CONFIG, runtime=Runtime.TORCH).runtime is Runtime.TORCH
    monkeypatch.setattr("edge_sdk.config.find_spec", lambda _: None)
    with pytest.raises(ConfigurationError, match=r"pip install 'raffm-edge\[torch\]'"):
        dataclasses.replace(CONFIG, runtime=Runtime.TORCH)
