"""A device asks for its next certificate when a third of its own certificate's time is left, until it has it.

The old one is good to its end, so nothing hurries: a link that is up stays up, and shows the new one when it comes
again.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

from edge_sdk.errors import RaffmError
from edge_sdk.protocol.messages import CoordinatorMessage, Renew, Renewed
from edge_sdk.security.identity import Identity

_log = logging.getLogger(__name__)
_SHARE_LEFT = 1 / 3
_ASK_AGAIN_SHARE = 0.02
_ASK_AGAIN_S = (1.0, 3600.0)  # at least and at most


class Renewal:
    """Of the ``identity`` of ``device``; ``publish`` says what is to be said."""

    def __init__(self, identity: Identity, device: str, publish: Callable[[Renew], None]) -> None:
        self._identity, self._device, self._publish = identity, device, publish
        self._ask_due_s = float("-inf")
        self._look()

    def tick(self, wall_s: float, steady_s: float) -> None:
        """Ask, where it is time by the wall's clock, and by the steady one not too soon after the last time."""
        if wall_s < self._due_s or steady_s < self._ask_due_s:
            return
        self._ask_due_s = steady_s + self._pause_s
        try:
            self._publish(self._identity.renewal(self._device))
        except RaffmError as error:
            _log.error("the certificate cannot be renewed: %s", error)

    def takes(self, message: CoordinatorMessage) -> bool:
        """Whether ``message`` is the answer, which is kept where it holds."""
        if not isinstance(message, Renewed):
            return False
        try:
            self._identity.keep(message.certificate, self._device)
        except RaffmError as error:
            _log.error("the certificate is not renewed: %s", error)
        else:
            self._look()
            _log.info("the certificate is renewed")
        return True

    def _look(self) -> None:
        begins_s, ends_s = self._identity.span()
        self._due_s = ends_s - _SHARE_LEFT * (ends_s - begins_s)
        least_s, most_s = _ASK_AGAIN_S
        self._pause_s = min(most_s, max(least_s, _ASK_AGAIN_SHARE * (ends_s - begins_s)))
