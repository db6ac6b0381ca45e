"""Training on a device: examples, the child process that trains under a memory limit, and the runtime inside it.

``process`` starts ``worker`` with a ``job``; the worker trains on ``data`` with a ``runtime``.
"""
