"""The coordinator's memory: the only SQL of the project. One repository a noun, opened by :mod:`.database`."""
