"""Submodels of a transformer: pure data, and index arithmetic on numpy arrays.

``submodel`` says which part of a model it is, ``families`` where an architecture keeps its heads and neurons. From
both, ``slicing`` derives index ranges, and ``cost`` parameters, bytes and FLOPs. Nothing here does I/O or imports a
framework.
"""
