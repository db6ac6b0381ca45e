"""What the unit lets the agent use, from the profile of the board; pure."""

from __future__ import annotations

from edge_sdk.device.profile import DeviceProfile

AGENT_MIB = 128  # the agent itself, without a model: 67 MiB resident on x86-64, and what the kernel keeps for it


def memory_max_mib(profile: DeviceProfile) -> int:
    """Memory of the control group, in MiB, for all that may be there at once.

    That is the agent, one training process, the models that answer, and the next of them while it is tried beside the
    one that it replaces. Those of several tasks share the profile's limit, so it does not matter how many there are.
    """
    return AGENT_MIB + profile.limits.training_memory_mib + 2 * profile.limits.inference_memory_mib


def cpu_percent(profile: DeviceProfile) -> int:
    """Processor time of the control group, 100 for each thread that the agent may use."""
    return 100 * profile.limits.threads
