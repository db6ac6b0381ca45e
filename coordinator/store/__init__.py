"""The coordinator's state and the project's only SQL: one repository per noun, opened by :mod:`.database`."""
