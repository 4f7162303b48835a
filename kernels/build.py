"""What kernels/build runs: .cu to PTX by NVRTC, PTX to registers by ptxas."""

import argparse
import ctypes
import difflib
import pathlib
import re
import subprocess
import sys
import sysconfig

KERNELS = pathlib.Path(__file__).resolve().parent
TARGET = KERNELS.parent / "target" / "kernels"
PACKAGES = pathlib.Path(sysconfig.get_path("purelib")) / "nvidia"
HEADER = "prelude.h"
OPTIONS = ["--gpu-architecture=compute_80", "--std=c++17"]
ARCHITECTURES = ["sm_80", "sm_90"]


class Failure(Exception):
    """Something that is wrong with the kernels."""


def load_nvrtc():
    libraries = PACKAGES / "cuda_nvrtc" / "lib"
    # NVRTC looks for its built-ins by their name alone: it finds what is loaded already.
    for pattern in ["libnvrtc-builtins.so.*", "libnvrtc.so.*"]:
        (path,) = libraries.glob(pattern)
        library = ctypes.CDLL(str(path), mode=ctypes.RTLD_GLOBAL)
    return library


def compile_to_ptx(nvrtc, source):
    """The PTX of a .cu file, which depends on its text and on the prelude's only."""
    program = ctypes.c_void_p()

    def call(function, *arguments):
        code = getattr(nvrtc, function)(*arguments)
        if code != 0:
            raise Failure(f"{source.name}: {function} returned {code}\n{log()}")

    def text(size, content):
        length = ctypes.c_size_t()
        getattr(nvrtc, size)(program, ctypes.byref(length))
        buffer = ctypes.create_string_buffer(max(length.value, 1))
        getattr(nvrtc, content)(program, buffer)
        return buffer.value.decode()

    def log():
        return text("nvrtcGetProgramLogSize", "nvrtcGetProgramLog")

    header = (KERNELS / HEADER).read_bytes()
    texts, names = (ctypes.c_char_p * 1)(header), (ctypes.c_char_p * 1)(HEADER.encode())
    options = (ctypes.c_char_p * len(OPTIONS))(*[option.encode() for option in OPTIONS])
    arguments = [source.read_bytes(), source.name.encode(), 1, texts, names]
    call("nvrtcCreateProgram", ctypes.byref(program), *arguments)
    call("nvrtcCompileProgram", program, len(OPTIONS), options)
    ptx = text("nvrtcGetPTXSize", "nvrtcGetPTX")
    call("nvrtcDestroyProgram", ctypes.byref(program))
    return ptx


def registers_of(ptx):
    """`{(architecture, kernel): registers}` of a PTX file; fails on spills."""
    used = {}
    ptxas = PACKAGES / "cuda_nvcc" / "bin" / "ptxas"
    for architecture in ARCHITECTURES:
        command = [ptxas, "-v", "-arch", architecture, "-o", TARGET / "kernels.cubin", ptx]
        run = subprocess.run(command, capture_output=True, text=True)
        if run.returncode != 0:
            raise Failure(f"{ptx.name}: {run.stderr}")
        kernel = None
        for line in run.stderr.splitlines():
            if found := re.search(r"Compiling entry function '(\w+)'", line):
                kernel = found[1]
            if found := re.search(r"(\d+) bytes spill stores, (\d+) bytes spill loads", line):
                if found[0] != "0 bytes spill stores, 0 bytes spill loads":
                    raise Failure(f"{ptx.name}: {kernel} spills on {architecture}: {found[0]}")
            if found := re.search(r"Used (\d+) registers", line):
                used[architecture, kernel] = int(found[1])
    if not used:
        raise Failure(f"{ptx.name}: ptxas told of no kernel")
    return used


def check_text(committed, built):
    """Fails if the file `committed` is not what was `built`."""
    old = committed.read_text() if committed.exists() else ""
    if old != built:
        difference = difflib.unified_diff(old.splitlines(), built.splitlines(), "committed", "built", n=1, lineterm="")
        lines = "\n".join(list(difference)[:20])
        raise Failure(f"{committed.name} is not what its source gives: run kernels/build\n{lines}")


def check_registers(committed, used):
    """Fails if a kernel uses more registers than are committed, or is not listed."""
    rows = [line.split() for line in committed.read_text().splitlines() if not line.startswith("#")]
    limits = {(architecture, kernel): int(limit) for architecture, kernel, limit in rows}
    for key in sorted(used.keys() | limits.keys()):
        limit, count = limits.get(key), used.get(key)
        if limit is None or count is None or count > limit:
            raise Failure(f"{' '.join(key)}: {count} registers, {committed.name} has {limit}")


def main():
    parser = argparse.ArgumentParser(prog="kernels/build")
    parser.add_argument("--check", action="store_true", help="change nothing, fail on a difference")
    is_check = parser.parse_args().check
    out = TARGET / "ptx" if is_check else KERNELS / "ptx"
    out.mkdir(parents=True, exist_ok=True)
    nvrtc = load_nvrtc()
    used = {}
    for source in sorted(KERNELS.glob("*.cu")):
        ptx = out / source.with_suffix(".ptx").name
        ptx.write_text(compile_to_ptx(nvrtc, source))
        if is_check:
            check_text(KERNELS / "ptx" / ptx.name, ptx.read_text())
        used.update(registers_of(ptx))
    known = {source.stem for source in KERNELS.glob("*.cu")}
    for orphan in (KERNELS / "ptx").glob("*.ptx"):
        if orphan.stem not in known:
            raise Failure(f"{orphan.name} has no source")
    committed = KERNELS / "registers.txt"
    if is_check:
        check_registers(committed, used)
    else:
        lines = [f"{architecture} {kernel} {count}\n" for (architecture, kernel), count in sorted(used.items())]
        committed.write_text("# Registers of a thread, by ptxas: architecture, kernel, number.\n" + "".join(lines))
    print(f"kernels: {len(known)} files, {len(used) // len(ARCHITECTURES)} kernels, no spills; at most "
          f"{max(used.values())} registers")


try:
    main()
except Failure as failure:
    sys.exit(f"kernels/build: {failure}")
