"""Imports the user's own modules, which a `_target_` names."""

import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType


class _WorkingFolder:
    """Finds the modules and packages in the working folder: files, never folders without an `__init__.py`."""

    @staticmethod
    def find_spec(
        name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Returns the spec of a module that no other finder has; a package finds its own submodules."""
        found = PathFinder.find_spec(name, [""], target) if path is None else None
        return found if found is not None and found.origin is not None else None


def search_working_folder() -> None:
    """Lets imports find modules in the working folder, after all installed modules."""
    if _WorkingFolder not in sys.meta_path:
        sys.meta_path.append(_WorkingFolder)
