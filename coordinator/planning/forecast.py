"""What devices that nobody has seen yet would train and run, by their profiles."""

from __future__ import annotations

from dataclasses import dataclass

from coordinator.planning.budget import inference_budget, training_budget
from coordinator.planning.planner import Planner, TrainingPlan
from edge_sdk.elastic.runtimes import Runtime
from edge_sdk.elastic.submodel import Submodel
from edge_sdk.profile import DeviceProfile


@dataclass(frozen=True, slots=True)
class Forecast:
    """What a device of ``profile`` would train and run; ``None`` where not even the smallest submodel fits."""

    profile: DeviceProfile
    training: TrainingPlan | None
    inference: Submodel | None


def forecast(planner: Planner, profile: DeviceProfile, runtime: Runtime) -> Forecast:
    """The plan for a device that has all that its owner leaves to the agent, and that trains on ``runtime``.

    Nobody knows its speed before it was measured, so the deadline of a round is not counted.
    """
    if profile.is_32_bit:
        return Forecast(profile, None, None)
    snapshot, (_, ladder) = profile.at_rest(), planner.of(Runtime.ONNX)
    training = planner.for_training(training_budget(snapshot), runtime)
    return Forecast(profile, training, ladder.for_inference(inference_budget(snapshot)))
