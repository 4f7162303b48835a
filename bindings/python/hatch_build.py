"""Puts the shared library into the wheel: built with cargo from the crate two folders up, or $DUALPIPE_LIBRARY."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sysconfig
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class CustomBuildHook(BuildHookInterface):  # type: ignore[type-arg]
    """A wheel for this platform and every Python 3."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Called before the files are collected. ``version`` is "standard" or "editable"."""
        if self.target_name != "wheel":
            return
        library = _library(Path(self.root))
        name = "libdualpipe" + library.suffix
        if version == "editable":
            shutil.copyfile(library, Path(self.root, "dualpipe", name))
        else:
            build_data["force_include"][str(library)] = f"dualpipe/{name}"
            license_file = Path(self.root).parent.parent / "LICENSE"
            if license_file.is_file():
                build_data["force_include"][str(license_file)] = "dualpipe/LICENSE"
        platform = sysconfig.get_platform().replace("-", "_").replace(".", "_")
        build_data["pure_python"] = False
        build_data["tag"] = f"py3-none-{platform}"


def _library(root: Path) -> Path:
    named = os.environ.get("DUALPIPE_LIBRARY")
    if named:
        if not Path(named).is_file():
            raise FileNotFoundError(f"DUALPIPE_LIBRARY names {named}, which is not there")
        return Path(named).resolve()
    crate = root.parent.parent
    if not (crate / "Cargo.toml").is_file():
        raise FileNotFoundError(
            f"{crate} has no Cargo.toml: build from a checkout of libdualpipe, or set DUALPIPE_LIBRARY to a built library"
        )
    cargo = os.environ.get("CARGO", "cargo")
    if shutil.which(cargo) is None:
        raise FileNotFoundError(f"{cargo} was not found: install Rust, or set DUALPIPE_LIBRARY to a built library")
    command = [cargo, "build", "--release", "--lib", "--locked", "--message-format=json-render-diagnostics"]
    built = subprocess.run(command, cwd=crate, check=True, stdout=subprocess.PIPE, text=True)
    return _cdylib(built.stdout)


def _cdylib(messages: str) -> Path:
    """The shared library among what cargo says that it has made."""
    for message in map(json.loads, messages.splitlines()):
        target = message.get("target", {})
        if target.get("name") == "dualpipe" and "cdylib" in target.get("crate_types", []):
            for name in message.get("filenames", []):
                if name.endswith((".so", ".dylib")):
                    return Path(name)
    raise RuntimeError("cargo built no shared library of dualpipe")
