"""Packaging hook: builds the native library into the wheel; without a C compiler the wheel is pure."""

from __future__ import annotations

import importlib.util
import sysconfig
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class NativeLibrary(BuildHookInterface[Any]):
    """Runs `native/build.py` by its path: the project is not installed while it is being built."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:  # noqa: ARG002 the hook's signature
        """Called by hatchling before files are collected, for wheels and editable installs."""
        if self.target_name != "wheel":
            return
        path = Path(self.root) / "collector" / "otelbill_collector" / "native" / "build.py"
        spec = importlib.util.spec_from_file_location("otelbill_native_build", path)
        assert spec is not None
        assert spec.loader is not None
        build = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(build)
        try:
            library = build.build_library()
        except build.CannotBuild as error:
            self.app.display_warning(f"without the native library: {error}")
            return
        platform = sysconfig.get_platform().replace("-", "_").replace(".", "_")
        build_data["pure_python"] = False
        build_data["tag"] = f"py3-none-{platform}"  # no Python of any version is in it: ctypes loads it
        build_data["artifacts"].append(str(library.relative_to(self.root)))
