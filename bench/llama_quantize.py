#!/usr/bin/env python3
"""The `llama-quantize` of llama.cpp where only its library is at hand: one call of `llama_model_quantize`.

    LIBLLAMA=path/to/libllama.so bench/llama_quantize.py [--allow-requantize] [--pure] FROM TO KIND

For `bench/quality.py --quantize`. The npm package @node-llama-cpp/linux-x64 has a built library. The struct
is that of llama.h since `dry_run` was added (2026); what the library gives as defaults is checked.
"""

from __future__ import annotations

import argparse
import ctypes
import os
import sys
from pathlib import Path

KINDS = {"F16": 1, "Q4_0": 2, "Q8_0": 7, "Q4_K_S": 14, "Q4_K_M": 15, "Q6_K": 18, "IQ4_NL": 25}  # llama_ftype
FLAGS = ("allow_requantize", "quantize_output_tensor", "only_copy", "pure", "keep_split", "dry_run")


class Parameters(ctypes.Structure):
    """llama_model_quantize_params."""

    _fields_ = [
        *((name, ctypes.c_int32) for name in ("nthread", "ftype", "output_type", "embedding_type")),
        *((name, ctypes.c_bool) for name in FLAGS),
        *((name, ctypes.c_void_p) for name in ("imatrix", "overrides", "types", "pruned")),
    ]


def main() -> int:
    """The library's status: 0 when the file was written."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--allow-requantize", action="store_true")
    parser.add_argument("--pure", action="store_true")
    parser.add_argument("source", type=Path)
    parser.add_argument("target", type=Path)
    parser.add_argument("kind", choices=KINDS)
    args = parser.parse_args()
    path = Path(os.environ["LIBLLAMA"])
    for backend in sorted(path.parent.glob("libggml-base*.so*")) + sorted(path.parent.glob("libggml.*so*")):
        ctypes.CDLL(str(backend), mode=ctypes.RTLD_GLOBAL)
    library = ctypes.CDLL(str(path))
    library.llama_model_quantize_default_params.restype = Parameters
    parameters = library.llama_model_quantize_default_params()
    flags = [getattr(parameters, name) for name in FLAGS]
    if flags != [False, True, False, False, False, False] or parameters.imatrix:
        raise SystemExit(
            f"{path} is of a version with another llama_model_quantize_params: its flags are {flags}"
        )
    parameters.ftype = KINDS[args.kind]
    parameters.allow_requantize, parameters.pure = args.allow_requantize, args.pure
    library.llama_model_quantize.argtypes = [ctypes.c_char_p, ctypes.c_char_p, ctypes.POINTER(Parameters)]
    return int(library.llama_model_quantize(os.fsencode(args.source), os.fsencode(args.target), parameters))


if __name__ == "__main__":
    sys.exit(main())
