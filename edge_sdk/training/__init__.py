"""Training on a device: the child process that trains under a memory limit, and the runtimes inside it.

``process`` starts ``worker`` with a ``job``; the worker trains with a ``runtime`` on the examples that the job names.
"""
