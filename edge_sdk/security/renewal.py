"""A device asks for its next certificate once a third of its certificate's lifetime is left, until it gets it.

The old certificate stays valid to its end, so there is no hurry: the current connection stays, and the next one shows
the new certificate.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

from edge_sdk.errors import RaffmError
from edge_sdk.protocol.messages import CoordinatorMessage, Renew, Renewed
from edge_sdk.security.identity import Identity

_log = logging.getLogger(__name__)
_SHARE_LEFT = 1 / 3
_ASK_AGAIN_SHARE = 0.02  # of the lifetime, within these bounds:
_ASK_AGAIN_S = (1.0, 3600.0)


class Renewal:
    """Renews the ``identity`` of ``device``; ``publish`` sends the request."""

    def __init__(self, identity: Identity, device: str, publish: Callable[[Renew], None]) -> None:
        self._identity, self._device, self._publish = identity, device, publish
        self._ask_due_s = float("-inf")
        self._look()

    def tick(self, wall_s: float, steady_s: float) -> None:
        """Ask if renewal is due by the wall clock, and by the steady clock the last request is not too recent."""
        if wall_s < self._due_s or steady_s < self._ask_due_s:
            return
        self._ask_due_s = steady_s + self._pause_s
        try:
            self._publish(self._identity.renewal(self._device))
        except RaffmError as error:
            _log.error("the certificate cannot be renewed: %s", error)

    def takes(self, message: CoordinatorMessage) -> bool:
        """Handle ``message`` if it is the answer, and store its certificate if that is valid; whether it was."""
        if not isinstance(message, Renewed):
            return False
        try:
            if self._identity.has(message.certificate):  # a broker may deliver it twice
                return True
            self._identity.keep(message.certificate, self._device)
        except RaffmError as error:
            _log.error("the new certificate is not accepted: %s", error)
        else:
            self._look()
            _log.info("the certificate has been renewed")
        return True

    def _look(self) -> None:
        begins_s, ends_s = self._identity.span()
        self._due_s = ends_s - _SHARE_LEFT * (ends_s - begins_s)
        least_s, most_s = _ASK_AGAIN_S
        self._pause_s = min(most_s, max(least_s, _ASK_AGAIN_SHARE * (ends_s - begins_s)))
