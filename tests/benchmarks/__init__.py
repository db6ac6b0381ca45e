"""Benchmarks: ``python -m tests.benchmarks NAME``. Each module has ``run() -> Figure``; none is part of the tests."""
