"""`coordinator task plan`: what each known kind of device would train and run in a task, before there is one."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from fnmatch import fnmatchcase
from pathlib import Path

from coordinator.config import Participation, TaskConfig, read_task
from coordinator.listing import Row
from coordinator.models.run import foundation_of
from coordinator.planning.forecast import Forecast, forecast
from coordinator.planning.planner import Planner, TaskCosts
from coordinator.rounds.tasks import known_task
from coordinator.store.database import Store
from edge_sdk.data import read_examples
from edge_sdk.elastic.cost import CostModel
from edge_sdk.elastic.runtimes import MIB, Runtime
from edge_sdk.elastic.submodel import Submodel, full
from edge_sdk.profile import DeviceProfile, all_profiles, load_profile


def forecast_rows(store: Store, task: str, profiles: Sequence[str], runtime: Runtime) -> list[Row]:
    """One row per profile: by default those that ``task`` is for. ``None`` where nothing fits.

    Raises ``ConfigurationError`` if there is no such task, ``UnknownProfileError`` for a profile, and what loading the
    task's model and files raises.
    """
    chosen = [load_profile(name) for name in profiles]
    with store.reading() as tx:
        config = read_task(known_task(tx, task).config)
    calibration, test = read_examples(Path(config.calibration_file)), read_examples(Path(config.test_file))
    foundation = foundation_of(config, calibration, test)
    shapes = {name: values.shape for name, values in foundation.parameters.items()}
    costs = CostModel.of(foundation.architecture, shapes)
    trained_on = runtime if foundation.architecture.has_graph else Runtime.TORCH
    planner = Planner(
        TaskCosts(costs, config.part, config.recipe, config.nesting, config.encoding),
        config.space,
        range(foundation.architecture.layers),  # which layers are the salient ones changes no cost
    )
    return [_row(forecast(planner, it, trained_on), costs, config) for it in chosen or _targets(config)]


def _targets(config: TaskConfig) -> Iterator[DeviceProfile]:
    patterns = config.targets.profiles
    return (it for it in all_profiles() if any(fnmatchcase(it.name, pattern) for pattern in patterns))


def _row(found: Forecast, costs: CostModel, config: TaskConfig) -> Row:
    whole = full(costs.architecture)
    plan = found.training
    if plan is not None and config.participation is Participation.ABLE and plan.submodel != whole:
        plan = None

    def share(submodel: Submodel) -> float:
        return round(costs.parameter_count(submodel) / costs.parameter_count(whole), 4)

    return {
        "profile": found.profile.name,
        "trains": None if plan is None else plan.submodel.width,
        "share": None if plan is None else share(plan.submodel),
        "memory_mib": None if plan is None else round(plan.memory_bytes / MIB),
        "limit_mib": found.profile.limits.training_memory_mib,
        "runs_share": None if found.inference is None else share(found.inference),
    }
