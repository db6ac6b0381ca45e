"""``python -m tests.benchmarks NAME``: one benchmark, or ``all`` of them; a table, then one line of JSON each."""

from __future__ import annotations

import argparse
import importlib
import json
import pkgutil
import sys
from pathlib import Path


def names() -> list[str]:
    """Every module beside this one that is not private."""
    found = (module.name for module in pkgutil.iter_modules([str(Path(__file__).parent)]))
    return sorted(name for name in found if not name.startswith("_"))


def main(arguments: list[str] | None = None) -> int:
    """0 where it ran, 2 where there is no such benchmark."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks", description=__doc__)
    parser.add_argument("name", help=f"all, or one of: {', '.join(names())}")
    name = parser.parse_args(arguments).name
    if name not in {"all", *names()}:
        print(f"no benchmark {name!r}: use all, or one of {', '.join(names())}", file=sys.stderr)
        return 2
    for chosen in names() if name == "all" else [name]:
        print(json.dumps(importlib.import_module(f"tests.benchmarks.{chosen}").run().as_dict()), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
