"""A model folder in the layouts that the peers read: GGUF (the Phi-2 layout) and CTranslate2."""

from __future__ import annotations

import ctypes
import os
import subprocess
from pathlib import Path

from kogpt import checkpoint, phi
from kogpt.export.phi import gguf_writer, write_gguf

KINDS = {"float32": "F32", "bfloat16": "BF16"}
IK_FOLDER = "IK_LLAMA_CPP"  # environment variable: the folder of ik_llama.cpp's programs


def write_gguf_model(folder: Path, path: Path, dtype: str) -> None:
    """Write a GPT-J folder as GGUF, architecture phi2, without a tokenizer: ids in, logits out.

    dtype: float32 or bfloat16; vectors are float32, as llama.cpp's own converter has them.
    """
    stored = checkpoint.load(folder)
    writer = gguf_writer(stored.config, path.stem)
    writer.add_vocab_size(stored.config.n_vocab)
    writer.add_tokenizer_model("no_vocab")
    tensors = phi.to_phi(stored.config, stored.floats())
    with path.open("wb") as file:
        write_gguf(writer, file, KINDS[dtype], phi.shapes(stored.config), tensors)


def quantize_gguf(source: Path, path: Path, dtype: str) -> None:
    """A bfloat16 GGUF -> Q8_0 (int8) or Q4_0 (int4) in every matrix, by llama.cpp's own quantiser."""
    import llama_cpp

    settings = llama_cpp.llama_model_quantize_default_params()
    settings.ftype = {
        "int8": llama_cpp.LLAMA_FTYPE_MOSTLY_Q8_0,
        "int4": llama_cpp.LLAMA_FTYPE_MOSTLY_Q4_0,
    }[dtype]
    settings.pure = True  # the head too, as KoGPT quantises it
    failed = llama_cpp.llama_model_quantize(str(source).encode(), str(path).encode(), ctypes.byref(settings))
    assert not failed, failed


def ik_program(name: str) -> Path:
    """A program of ik_llama.cpp, which has no package: it is built by hand, and its folder named."""
    folder = os.environ.get(IK_FOLDER)
    path = Path(folder or ".", name)
    if folder is None or not path.is_file():
        raise SystemExit(f"ik_llama.cpp: no {name} in {folder}; name the folder of its programs with --ik")
    return path


def quantize_ik(source: Path, path: Path, kind: str) -> None:
    """A bfloat16 GGUF -> another type in every matrix, by ik_llama.cpp's own quantiser."""
    command = [str(ik_program("llama-quantize")), "--pure", str(source), str(path), kind]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


def write_ctranslate2(folder: Path, path: Path, dtype: str) -> None:
    """Write a GPT-J folder for CTranslate2; the name of token i is str(i)."""
    from ctranslate2.converters import TransformersConverter

    n_vocab = checkpoint.load(folder).config.n_vocab

    class Converter(TransformersConverter):  # type: ignore[misc]  # a class without types
        def load_tokenizer(self, *_: object, **__: object) -> _Numbers:
            return _Numbers(n_vocab)

    Converter(str(folder)).convert(str(path), quantization=dtype, force=True)


class _Numbers:
    """What CTranslate2's converter asks of a tokenizer."""

    def __init__(self, n_vocab: int) -> None:
        self._n_vocab = n_vocab
        self.bos_token, self.eos_token, self.unk_token = "0", "1", "2"

    def get_vocab(self) -> dict[str, int]:
        return {str(i): i for i in range(self._n_vocab)}
