"""The server's side: plans submodels, aggregates updates, and releases models."""

from edge_sdk import __version__ as __version__  # one distribution; and its import keeps onnxruntime from reporting
