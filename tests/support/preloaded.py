"""What the processes of :mod:`tests.support.crash` are forked from has imported; a test never imports it."""

from tests.support import crash, light_model

light_model.install()
__all__ = ["crash"]
