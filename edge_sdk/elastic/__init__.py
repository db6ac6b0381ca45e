"""What a submodel of a transformer is: pure data and index arithmetic on numpy arrays.

``submodel`` says which part, ``families`` where an architecture keeps its heads and neurons; ``slicing`` turns both
into index ranges; ``cost`` into parameters, bytes and FLOPs. Nothing here does I/O or knows a framework.
"""
