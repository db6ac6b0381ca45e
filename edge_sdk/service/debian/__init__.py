"""A .deb of the agent: a virtual environment in /opt/raffm-edge, the unit, its user, its settings.

``build`` makes it with nothing but pip, venv and dpkg-deb (`make deb`); ``postinst``, ``prerm`` and ``postrm`` are what
dpkg runs on the board. The package is for the architecture and the Python that built it, and says so.
"""
