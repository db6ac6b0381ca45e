"""The unit's limits, from the board's profile; pure."""

from __future__ import annotations

from edge_sdk.profile import DeviceProfile

AGENT_MIB = 128  # the agent without a model, 67 MiB resident on x86-64, and the kernel memory charged to it


def memory_max_mib(profile: DeviceProfile) -> int:
    """The control group's memory limit in MiB, for everything that may run at once.

    That is the agent, one training process, the models that serve, and a new model beside the one that it replaces. The
    models of several tasks share the profile's inference limit, so their number does not matter.
    """
    return AGENT_MIB + profile.limits.training_memory_mib + 2 * profile.limits.inference_memory_mib


def cpu_percent(profile: DeviceProfile) -> int:
    """The control group's processor time in percent: 100 for each thread that the agent may use."""
    return 100 * profile.limits.threads
