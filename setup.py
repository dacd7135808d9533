"""Builds native/ into kogpt/_native.so where there is a C++ compiler; elsewhere the numpy runner serves.

The library has a plain C interface, loaded by ctypes: it needs no Python headers and serves every Python.
Each instruction set is a translation unit with its own flags; which one runs is decided when it is loaded.
"""

import os
import platform
import sys
import sysconfig
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import ClassVar

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext

# errno and floating-point traps are unused, which lets the compiler vectorize. A product and a sum are joined
# only where the source says fma: integers rounded from them are then the same on every processor.
FLAGS = [
    "-std=c++20",
    "-O3",
    "-Wall",
    "-Wextra",
    "-fvisibility=hidden",
    "-fno-math-errno",
    "-fno-trapping-math",
    "-ffp-contract=off",
]
AVX2 = ["-mavx2", "-mfma", "-mf16c"]
AVX512 = [*AVX2, "-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mavx512vnni", "-mavx512bf16"]
AVX512 += ["-mprefer-vector-width=512"]
COMMON = {
    name: [] for name in ("adapter", "api", "cache", "cpu", "model", "plain", "pool", "sampling", "weights")
}
BY_MACHINE = {
    "x86_64": {"avx2": AVX2, "avx512": AVX512, "amx": [*AVX512, "-mamx-tile", "-mamx-bf16", "-mamx-int8"]},
    "aarch64": {"neon": [], "dotprod": ["-march=armv8.2-a+dotprod"]},
}


def target() -> str:
    """The processor to build for: this one, or what _PYTHON_HOST_PLATFORM names to a cross compiler."""
    name = sysconfig.get_platform().rsplit("-", 1)[-1]
    name = platform.machine().lower() if name == "universal2" else name
    return {"amd64": "x86_64", "arm64": "aarch64"}.get(name, name)


MACHINE = target()
SOURCES = COMMON | BY_MACHINE.get(MACHINE, {})


SANITIZERS = ["-O1", "-g", "-fno-sanitize-recover=all"]


class build_native(build_ext):
    user_options: ClassVar = [
        *build_ext.user_options,
        ("sanitize=", None, "what -fsanitize shall be: scripts/sanitize"),
    ]

    def initialize_options(self) -> None:
        super().initialize_options()
        self.sanitize = None

    def get_ext_filename(self, fullname: str) -> str:
        return os.path.join(*fullname.split(".")) + ".so"

    def get_export_symbols(self, ext: Extension) -> list[str]:
        return []

    def build_extension(self, ext: Extension) -> None:
        target = Path(self.get_ext_fullpath(ext.name))
        target.parent.mkdir(parents=True, exist_ok=True)
        if not self.force and target.exists() and target.stat().st_mtime > newest(ext.depends):
            return
        self.compiler.set_executable("compiler_so_cxx", compiler_of(self.compiler))

        checks = [*SANITIZERS, f"-fsanitize={self.sanitize}"] if self.sanitize else []

        def compile_one(item: tuple[str, list[str]]) -> str:
            name, flags = item
            source = [f"native/{name}.cpp"]
            options = [*FLAGS, *flags, *checks]
            return self.compiler.compile(source, self.build_temp, extra_postargs=options)[0]

        with ThreadPoolExecutor(os.cpu_count()) as pool:
            objects = list(pool.map(compile_one, SOURCES.items()))
        self.compiler.link_shared_object(
            objects, str(target), extra_postargs=["-pthread", *checks], target_lang="c++"
        )


def compiler_of(compiler: object) -> list[str]:
    """The C++ compiler without the interpreter's own build flags, which may ask for debugging or -O0."""
    return [*compiler.compiler_so_cxx[:1], "-fPIC", "-pthread"]  # type: ignore[attr-defined]


def newest(paths: list[str]) -> float:
    return max(Path(path).stat().st_mtime for path in paths)


class plain_wheel(bdist_wheel):
    """One wheel for every Python 3 of a platform."""

    def get_tag(self) -> tuple[str, str, str]:
        return "py3", "none", super().get_tag()[2]


sources = sorted(str(path) for path in Path("native").iterdir())
supported = sys.platform != "win32" and MACHINE in ("x86_64", "aarch64")
extension = Extension(
    "kogpt._native", [p for p in sources if p.endswith(".cpp")], depends=sources, optional=True
)
setup(
    ext_modules=[extension] if supported else [],
    cmdclass={"build_ext": build_native, "bdist_wheel": plain_wheel},
)
