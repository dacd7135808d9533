"""What a model folder can do to whoever opens it: one edit of a good folder per case, and the answer it gets.

As a program, `python [-O] tests/hostile.py FOLDER WORK` opens every case made from FOLDER and prints, as
JSON, the class of each error: a guard that is an `assert` would be missing under `python -O`.
"""

from __future__ import annotations

import json
import os
import pickle
import shutil
import struct
import sys
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from kogpt import checkpoint
from kogpt.config import ModelConfig
from kogpt.errors import CheckpointError, ConfigError, KoGPTError
from kogpt.export.folder import export
from kogpt.weights import WIDTHS

WTE = "transformer.wte.weight"
FC_IN = "transformer.h.0.mlp.fc_in.weight"
LN_F = "transformer.ln_f.bias"  # (64,): small, and near the end of the file
NO_WEIGHTS = ("model.safetensors", "kogpt.manifest.json")

Edit = Callable[[Path], object]
CASES: dict[str, tuple[Edit, type[KoGPTError], str]] = {}


def case(name: str, message: str, error: type[KoGPTError] = CheckpointError) -> Callable[[Edit], Edit]:
    """Register an edit of a folder, and the error with which the folder must then be refused."""

    def register(edit: Edit) -> Edit:
        assert name not in CASES
        CASES[name] = (edit, error, message)
        return edit

    return register


def make(name: str, source: Path, folder: Path) -> None:
    """A copy of a good folder, made bad; it keeps its manifest only where the case is about that."""
    shutil.copytree(source, folder)
    if not name.startswith("manifest"):
        (folder / "kogpt.manifest.json").unlink()
    CASES[name][0](folder)


def replaced(name: str, put: Edit) -> Edit:
    """An edit that removes a file and puts something else in its place."""

    def edit(folder: Path) -> None:
        (folder / name).unlink()
        put(folder / name)

    return edit


def edit_json(path: Path, edit: Callable[[dict[str, Any]], object]) -> None:
    document = json.loads(path.read_text())
    edit(document)
    path.write_text(json.dumps(document))


def with_value(key: str, value: object) -> Edit:
    """An edit of one key of config.json."""
    return lambda folder: edit_json(folder / "config.json", lambda document: document.update({key: value}))


def with_config(text: bytes) -> Edit:
    """An edit that puts other bytes into config.json."""
    return lambda folder: (folder / "config.json").write_bytes(text)


def with_name(name: str) -> Callable[[dict[str, Any], bytes], object]:
    """An edit of a header that gives a tensor another name."""
    return lambda header, _: header.update({name: header.pop(FC_IN)})


def read_header(folder: Path) -> tuple[dict[str, Any], bytes]:
    data = (folder / "model.safetensors").read_bytes()
    end = 8 + int.from_bytes(data[:8], "little")
    return json.loads(data[8:end]), data[end:]


def write_weights(folder: Path, header: bytes | Mapping[str, Any], data: bytes, n: int | None = None) -> None:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    length = struct.pack("<Q", len(text) if n is None else n)
    (folder / "model.safetensors").write_bytes(length + text + data)


def header_case(name: str, message: str) -> Callable[[Callable[[dict[str, Any], bytes], Any]], None]:
    """A case that changes the header of model.safetensors; the edit may return other tensor bytes."""

    def register(edit: Callable[[dict[str, Any], bytes], Any]) -> None:
        @case(name, message)
        def rewrite(folder: Path) -> None:
            header, data = read_header(folder)
            returned = edit(header, data)
            write_weights(folder, header, returned if isinstance(returned, bytes) else data)

    return register


def entry_case(name: str, message: str, tensor: str, **values: Any) -> None:
    """A case in which one tensor's entry says something else."""
    header_case(name, message)(lambda header, _: header[tensor].update(values))


# ------------------------------------------------------------------------------------- folder and config

case("folder: config missing", "config.json is missing")(lambda f: (f / "config.json").unlink())
case("folder: weights missing", "holds no weights")(lambda f: (f / "model.safetensors").unlink())
case("folder: config is a folder", "not a regular file")(replaced("config.json", Path.mkdir))
case("folder: weights are a pipe", "not a regular file")(replaced("model.safetensors", os.mkfifo))
case("folder: weights are a device", "names a file outside itself")(
    replaced("model.safetensors", lambda path: path.symlink_to("/dev/zero"))
)
case("folder: weights link to themselves", "is missing")(
    replaced("model.safetensors", lambda path: path.symlink_to("model.safetensors"))
)
case("folder: weights link to nothing", "is missing")(
    replaced("model.safetensors", lambda path: path.symlink_to("gone"))
)


@case("folder: empty", "config.json is missing")
def empty(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.mkdir()


@case("folder: config links outside", "names a file outside itself")
def config_outside(folder: Path) -> None:
    shutil.move(folder / "config.json", folder.parent)
    (folder / "config.json").symlink_to("../config.json")


for _name, _text, _message in (
    ("empty", b"", "not valid JSON"),
    ("not JSON", b"model_type: gptj", "not valid JSON"),
    ("not UTF-8", b'{"model_type": "\xb0\xa1"}', "not valid JSON"),
    ("UTF-16", '{"model_type": "gptj"}'.encode("utf-16"), "not valid JSON"),
    ("a list", b"[1, 2]", "not a JSON object"),
    ("NaN", b'{"model_type": "gptj", "n_layer": NaN}', "NaN is not a JSON number"),
    ("twice", b'{"model_type": "gptj", "model_type": "gptj"}', "occurs twice"),
    ("nested", b'{"a":' * 50_000, "not valid JSON"),
    ("a huge number", b'{"n_layer": ' + b"9" * 100_000 + b"}", "not valid JSON"),
    ("1 MB", b'{"a": "' + b"x" * (1 << 20) + b'"}', "at most 262,144 are read"),
):
    case(f"config: {_name}", _message)(with_config(_text))

for _key, _value, _message in (
    ("model_type", "gpt2", "model_type"),
    ("auto_map", {"AutoModelForCausalLM": "modeling_evil.Evil"}, "auto_map"),
    ("vocab_size", 10**12, "vocab_size is 1000000000000"),
    ("n_layer", 10**6, "n_layer is 1000000"),
    ("n_layer", -3, "n_layer is -3"),
    ("n_head", 63, "multiple of n_head"),
    ("n_positions", "2048", "n_positions is '2048'"),
    ("rotary_dim", 2.0, "rotary_dim is 2.0"),
):
    case(f"config: {_key} = {_value}", _message, ConfigError)(with_value(_key, _value))

for _key, _value, _message in (
    ("n_layer", 4, "expected 45, found 35: 10 missing: transformer.h.3.ln_1.weight"),
    ("n_layer", 2, "expected 25, found 35: 10 not of this model: transformer.h.2"),
    ("n_layer", 4096, "missing"),
    ("n_embd", 128, r"transformer.wte.weight: config.json asks for shape \[512, 128\], found \[512, 64\]"),
    ("n_inner", 128, r"fc_in.weight: config.json asks for shape \[128, 64\], found \[256, 64\]"),
    ("vocab_size", 513, r"wte.weight: config.json asks for shape \[513, 64\], found \[512, 64\]"),
    ("vocab_size", 2**24, r"wte.weight: config.json asks for shape \[16777216, 64\]"),
    ("tie_word_embeddings", True, "lm_head.weight is not transformer.wte.weight"),
):
    case(f"tensors: {_key} = {_value}", _message)(with_value(_key, _value))


# ------------------------------------------------------------------------------------ the safetensors file


def cut(keep: Callable[[int], int]) -> Edit:
    def truncate(folder: Path) -> None:
        path = folder / "model.safetensors"
        os.truncate(path, keep(path.stat().st_size))

    return truncate


case("file: empty", "its header would end at byte 8")(cut(lambda n: 0))
case("file: 7 bytes", "its header would end")(cut(lambda n: 7))
case("file: header cut", "its header would end")(cut(lambda n: 100))
case("file: half", "would end at byte")(cut(lambda n: n // 2))
case("file: one byte short", "would end at byte")(cut(lambda n: n - 1))
case("file: one byte long", "its tensors end at byte")(cut(lambda n: n + 1))
case("file: 1 TiB of holes", "its tensors end at byte")(cut(lambda n: 1 << 40))
case("file: HTML", "its header would end")(
    lambda f: (f / "model.safetensors").write_bytes(b"<!DOCTYPE html><html>404</html>")
)
case("file: LFS pointer", "its header would end")(
    lambda f: (f / "model.safetensors").write_bytes(
        b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n"
    )
)
case("header: length 2^63", "its header would end at byte 9,223,372,036,854,775,816")(
    lambda f: write_weights(f, b"{}", b"", 2**63)
)
case("header: length 2^64 - 1", "its header would end")(lambda f: write_weights(f, b"{}", b"", 2**64 - 1))
case("header: no tensors", "35 missing")(lambda f: write_weights(f, b"{}", b""))
case("header: a list", "not a JSON object")(lambda f: write_weights(f, b"[]", b""))
case("header: not UTF-8", "not valid JSON")(lambda f: write_weights(f, b'{"\xff": 1}', b""))
case("header: nested", "not valid JSON")(lambda f: write_weights(f, b'{"a":' * 10_000, b""))
case("header: 20,000 empty tensors", "at most .* are read")(
    lambda f: write_weights(
        f, {f"t{i}": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]} for i in range(20_000)}, b""
    )
)


@case("header: a tensor twice", "occurs twice")
def _twice(folder: Path) -> None:
    header, data = read_header(folder)
    text = json.dumps(header)
    write_weights(folder, (text[:-1] + f', "{LN_F}": ' + json.dumps(header[LN_F]) + "}").encode(), data)


entry_case("header: unknown dtype", "dtype 'F4', only floats", FC_IN, dtype="F4")
entry_case("header: integers", "dtype 'I16', only floats", FC_IN, dtype="I16")
entry_case("header: dtype is a list", "has dtype", FC_IN, dtype=[])
entry_case("header: another width", "its shape says 32,768", FC_IN, dtype="F16")
entry_case("header: negative offset", r"data_offsets \[-1", FC_IN, data_offsets=[-1, 65535])
entry_case("header: offsets reversed", "spans -65,536 bytes", FC_IN, data_offsets=[65536, 0])
entry_case("header: three offsets", "data_offsets", FC_IN, data_offsets=[0, 1, 2])
entry_case("header: offsets are floats", "data_offsets", FC_IN, data_offsets=[0.0, 65536.0])
entry_case("header: offset 2^63", "data_offsets", FC_IN, data_offsets=[2**63, 2**63 + 65536])
entry_case("header: far offset", "gap or an overlap", FC_IN, data_offsets=[2**40, 2**40 + 65536])
entry_case("header: overlap", "gap or an overlap", LN_F, data_offsets=[0, 256])
entry_case("header: negative shape", r"has shape \[-256", FC_IN, shape=[-256, -64])
entry_case("header: empty tensor", r"has shape \[1099511627776, 0\]", FC_IN, shape=[2**40, 0])
entry_case("header: shape overflows", "its shape says", FC_IN, shape=[2**62, 2**62, 2**62])
entry_case("header: five dimensions", r"has shape \[256, 64, 1", FC_IN, shape=[256, 64, 1, 1, 1])
entry_case("header: shape is a number", "has shape 16384", FC_IN, shape=16384)
entry_case("header: shape holds true", "has shape", FC_IN, shape=[256, 64, True])
entry_case("header: one key more", "not described by", FC_IN, compression="zip")
entry_case(
    "tensors: transposed", r"fc_in.weight: .* shape \[256, 64\], found \[64, 256\]", FC_IN, shape=[64, 256]
)
entry_case("tensors: flat", r"fc_in.weight: .* found \[16384\]", FC_IN, shape=[16384])
header_case("header: entry is null", "not described by")(lambda h, _: h.update({FC_IN: None}))
header_case("header: hole", "its tensors end at byte|gap")(lambda h, data: data + b"\0" * 16)
header_case("tensors: one missing", "expected 35, found 34: 1 missing: transformer.ln_f.bias")(
    lambda h, data: data[: -drop_last(h)]
)
for _bad in ("../../etc/x", "a\0b", "가중치", "", "x" * 257, "a b"):
    header_case(f"header: tensor named {_bad[:20]!r}", "is no tensor name")(with_name(_bad))


def drop_last(header: dict[str, Any]) -> int:
    """Remove ln_f.bias after moving what follows it down; the number of bytes to cut from the end."""
    begin, end = header.pop(LN_F)["data_offsets"]
    for name, entry in header.items():
        if name != "__metadata__" and entry["data_offsets"][0] >= end:
            entry["data_offsets"] = [offset - (end - begin) for offset in entry["data_offsets"]]
    return int(end - begin)


@case("tensors: one more", "expected 35, found 36: 1 not of this model: transformer.h.0.attn.rope")
def _extra(folder: Path) -> None:
    header, data = read_header(folder)
    offsets = [len(data), len(data) + 8]
    header["transformer.h.0.attn.rope"] = {"dtype": "F32", "shape": [2], "data_offsets": offsets}
    write_weights(folder, header, data + b"\0" * 8)


def poison(name: str, dtype: str, bits: int, tensor: str = LN_F, at: int = -1) -> None:
    """A case with one weight that is no number, stored in `dtype`."""

    @case(name, f"tensor {tensor} holds NaN or infinite weights")
    def write(folder: Path) -> None:
        loaded = checkpoint.load(folder)
        checkpoint.save(folder, loaded.config, loaded.tensors, dtype)
        (folder / "kogpt.manifest.json").unlink()
        header, data = read_header(folder)
        width = WIDTHS[dtype]
        values = np.frombuffer(data, f"<u{width}").copy()
        begin, end = (offset // width for offset in header[tensor]["data_offsets"])
        values[begin:end][at] = bits
        write_weights(folder, header, values.tobytes())


poison("weights: NaN in float32", "float32", 0x7FC00000)
poison("weights: -NaN in float32", "float32", 0xFFC00001)
poison("weights: inf in float32", "float32", 0x7F800000, WTE, 0)
poison("weights: -inf in float32", "float32", 0xFF800000, FC_IN, 77)
poison("weights: NaN in float16", "float16", 0x7E00)
poison("weights: -inf in float16", "float16", 0xFC00, WTE, 9)
poison("weights: NaN in bfloat16", "bfloat16", 0x7FC0)
poison("weights: -inf in bfloat16", "bfloat16", 0xFF80)
poison("weights: NaN in float64", "float64", 0x7FF8 << 48)
poison("weights: -inf in float64", "float64", 0xFFF0 << 48)


# ----------------------------------------------------------------------------------------------- the index


def shard(folder: Path) -> None:
    """Store the folder's tensors in shards of 300 KB, without a manifest."""
    loaded = checkpoint.load(folder)
    checkpoint.save(folder, loaded.config, loaded.tensors, "float32", shard_bytes=300_000)
    (folder / "kogpt.manifest.json").unlink()


def index_case(name: str, message: str, edit: Callable[[Path, dict[str, Any]], object]) -> None:
    @case(f"index: {name}", message)
    def rewrite(folder: Path) -> None:
        shard(folder)
        edit_json(folder / "model.safetensors.index.json", lambda document: edit(folder, document))


def elsewhere(name: str) -> Callable[[Path, dict[str, Any]], object]:
    """Point one tensor of the index at another file; a copy of its shard lies beside the folder."""

    def edit(folder: Path, document: dict[str, Any]) -> None:
        shutil.copy(folder / document["weight_map"][LN_F], folder.parent / "secret.safetensors")
        document["weight_map"][LN_F] = name.replace("ABSOLUTE", str(folder.parent))

    return edit


for _bad in (
    "../secret.safetensors",
    "ABSOLUTE/secret.safetensors",
    "./../secret.safetensors",
    "a/../../secret.safetensors",
    "..\\secret.safetensors",
    "C:\\secret.safetensors",
    "\\\\host\\share\\secret.safetensors",
    "//host/secret.safetensors",
    "/proc/self/root/etc/secret.safetensors",
    "secret\0.safetensors",
    "\udc80.safetensors",
    ".",
    "..",
    "",
    "x" * 300 + ".safetensors",
):
    index_case(f"{_bad[:40]!r}", "names a file outside itself", elsewhere(_bad))
for _bad in ("gone.safetensors", "%2e%2e%2fsecret.safetensors", "~secret.safetensors"):
    index_case(f"{_bad!r}", "is missing", elsewhere(_bad))
index_case("config as weights", "is not a .safetensors file", elsewhere("config.json"))
index_case("number", "names a file outside", lambda f, d: d["weight_map"].update({LN_F: 7}))
index_case("map is a list", "weight_map is not", lambda f, d: d.update(weight_map=[]))
index_case("no map", "weight_map is not", lambda f, d: d.pop("weight_map"))
index_case(
    "wrong shard", "which it does not say", lambda f, d: d["weight_map"].update({LN_F: first_shard(f)})
)
index_case("tensor unlisted", "which it does not say", lambda f, d: d["weight_map"].pop(LN_F))
index_case("shard missing", "is missing", lambda f, d: first_path(f).unlink())
index_case("shard truncated", "would end at byte", lambda f, d: os.truncate(first_path(f), 5000))
index_case(
    "shards swapped",
    "already|which it does not say",
    lambda f, d: shutil.copy(
        first_path(f), first_path(f).with_name(first_shard(f).replace("00001", "00002", 1))
    ),
)


def link_outside(folder: Path, document: dict[str, Any]) -> None:
    path = first_path(folder)
    shutil.move(path, folder.parent / "out")
    path.symlink_to(folder.parent / "out")


index_case("shard links outside", "names a file outside itself", link_outside)


def first_path(folder: Path) -> Path:
    return next(folder.glob("model-00001-of-*.safetensors"), folder / "gone")


def first_shard(folder: Path) -> str:
    return first_path(folder).name


# --------------------------------------------------------------------------------------------- the manifest


def flip(name: str, at: int) -> Edit:
    """Change one bit of one file."""

    def write(folder: Path) -> None:
        data = bytearray((folder / name).read_bytes())
        data[at] ^= 1
        (folder / name).write_bytes(data)

    return write


def manifest_case(name: str, message: str, edit: Callable[[dict[str, Any]], object]) -> None:
    case(f"manifest: {name}", message)(lambda f: edit_json(f / "kogpt.manifest.json", edit))


for _name in ("model.safetensors", "tokenizer.json", "generation_config.json", "tokenizer_config.json"):
    case(f"manifest: a bit of {_name}", f"{_name} is not as kogpt.manifest.json describes it")(
        flip(_name, -2)
    )
case("manifest: a bit of a weight in the middle", "model.safetensors is not as")(
    flip("model.safetensors", 300_000)
)
case("manifest: file missing", "tokenizer.json is missing")(lambda f: (f / "tokenizer.json").unlink())
case("manifest: file cut", "expected .* bytes, found")(lambda f: os.truncate(f / "tokenizer.json", 100))
case("manifest: not JSON", "not valid JSON")(lambda f: (f / "kogpt.manifest.json").write_text("sha256"))
case("manifest: other weights", "not as kogpt.manifest.json describes")(lambda f: restore(f))
manifest_case("newer version", "version 2, this KoGPT reads version 1", lambda d: d.update(version=2))
manifest_case("no version", "version None", lambda d: d.pop("version"))
manifest_case("quantised", "quantised weights", lambda d: d.update(quantization={"format": "int3"}))
manifest_case("quantised, it says", "states quantised weights", lambda d: d.update(quantization="int4"))


def quantized_case(name: str, message: str, edit: Callable[[Path], object], dtype: str = "int4") -> None:
    """A case in which a sound quantised folder is made bad."""

    def write(folder: Path) -> None:
        export(checkpoint.load(folder), dtype, folder / "made")
        for path in (folder / "made").iterdir():
            path.replace(folder / path.name)
        (folder / "made").rmdir()
        edit(folder)

    case(f"manifest: {dtype}, {name}", message)(write)


def quantized_entry(name: str, message: str, tensor: str, of: str = "int4", **values: Any) -> None:
    def edit(folder: Path) -> None:
        header, data = read_header(folder)
        header[tensor].update(values)
        write_weights(folder, header, data)

    quantized_case(name, message, edit, of)


def poke(tensor: str, data: bytes) -> Edit:
    """Other bytes at the start of a tensor."""

    def edit(folder: Path) -> None:
        header, _ = read_header(folder)
        old = (folder / "model.safetensors").read_bytes()
        begin = 8 + int.from_bytes(old[:8], "little") + header[tensor]["data_offsets"][0]
        (folder / "model.safetensors").write_bytes(old[:begin] + data + old[begin + len(data) :])

    return edit


def state(**values: Any) -> Edit:
    """Other facts about the quantisation."""
    return lambda f: edit_json(f / "kogpt.manifest.json", lambda d: d["quantization"].update(values))


quantized_case("no manifest", "has dtype 'U8', only floats", lambda f: (f / "kogpt.manifest.json").unlink())
quantized_case("not stated", "has dtype 'U8', only floats", lambda f: edit_json(
    f / "kogpt.manifest.json", lambda d: d.update(quantization=None)))  # fmt: skip
quantized_case("a newer version", "version 'int4' 2, this KoGPT reads", state(version=2))
quantized_case("another format", "'int3' 1, this KoGPT reads int8 and int4", state(format="int3"))
quantized_case("another group size", "'group_size' = 64", state(group_size=64))
quantized_case("another codebook", "'codebook' =", state(codebook=list(range(16))))
quantized_case("other tensors", "'tensors' =", state(tensors=[FC_IN]))
quantized_case("one fact more", "'act_order' = True", state(act_order=True))
quantized_case("stated as int8", "states quantised weights with", state(format="int8"))
quantized_case("file cut", "is damaged", lambda f: os.truncate(f / "model.safetensors", 100_000))
quantized_case(
    "a bit of a code", "is not as kogpt.manifest.json describes it", flip("model.safetensors", -5000)
)
quantized_case("NaN scale", "holds NaN or infinite", poke(f"{FC_IN}.scales", b"\0\0\xc0\x7f"))
quantized_case("infinite scale", "holds NaN or infinite", poke(f"{FC_IN}.scales", b"\0\0\x80\x7f"))
quantized_case("a code of -128", "holds -128", poke(FC_IN, b"\x80"), "int8")
quantized_entry("codes too narrow", r"fc_in.weight: .* found \[2, 256, 16\]", FC_IN, shape=[2, 256, 16])
quantized_entry("codes of two dimensions", r"shape \[1, 256, 64\], found", FC_IN, "int8", shape=[256, 64])
quantized_entry("codes of another type", "uint8 expected, found int8", FC_IN, dtype="I8")
quantized_entry("groups missing their rows", r"groups: .* found \[512\]", f"{FC_IN}.groups", shape=[512])
quantized_entry("scales are integers", "its shape says", f"{FC_IN}.scales", dtype="U8")
manifest_case("weights unlisted", "expected no such file", lambda d: d["files"].pop("model.safetensors"))
manifest_case("config unlisted", "expected no such file", lambda d: d["files"].pop("config.json"))
manifest_case("no files", "files is not an object", lambda d: d.pop("files"))
manifest_case("no digest", "not described by bytes", lambda d: d["files"]["config.json"].pop("sha256"))
manifest_case("short digest", "no SHA-256", lambda d: d["files"]["config.json"].update(sha256="ab"))
manifest_case("size is text", "no SHA-256", lambda d: d["files"]["config.json"].update(bytes="9"))
manifest_case(
    "names a file outside",
    "names a file outside itself",
    lambda d: d["files"].update({"../../etc/passwd": d["files"]["config.json"]}),
)


def restore(folder: Path) -> None:
    """Weights of the right shapes, but other ones than the manifest knows."""
    config = ModelConfig.from_json(json.loads((folder / "config.json").read_text()))
    manifest = (folder / "kogpt.manifest.json").read_bytes()
    zeros = {name: np.zeros(shape, np.float32) for name, shape in config.tensor_shapes().items()}
    checkpoint.save(folder, config, zeros, "float32")
    (folder / "kogpt.manifest.json").write_bytes(manifest)


# ------------------------------------------------------------------------------ pytorch_model.bin of 2021


class Payload:
    """What a hostile pickle would run: it writes a file called `canary` beside the model folder."""

    def __init__(self, canary: Path, how: str = "system") -> None:
        self.canary, self.how = canary, how

    def __reduce__(self) -> tuple[Any, ...]:
        if self.how == "system":
            return os.system, (f"touch {self.canary}",)
        if self.how == "exec":
            return exec, (f"open({str(self.canary)!r}, 'w').close()",)
        return open, (str(self.canary), "w")


def legacy_case(name: str, message: str) -> Callable[[Callable[[Path, Path], object]], None]:
    """A case whose folder has a pytorch_model.bin instead of safetensors."""

    def register(write: Callable[[Path, Path], object]) -> None:
        @case(f"legacy: {name}", message)
        def replace(folder: Path) -> None:
            (folder / "model.safetensors").unlink()
            write(folder / "pytorch_model.bin", folder.parent / "canary")

    return register


def archive_of(state: bytes) -> Callable[[Path, Path], object]:
    return lambda path, _: write_archive(path, state)


def bare_pickle(protocol: int) -> Callable[[Path, Path], object]:
    return lambda path, canary: path.write_bytes(pickle.dumps(Payload(canary), protocol))


def code_by(how: str) -> Callable[[Path, Path], object]:
    return lambda path, canary: torch_save({WTE: Payload(canary, how)}, path)


REFUSED = "refused, nothing executed|not an archive as torch"
for _protocol in range(6):
    legacy_case(f"bare pickle, protocol {_protocol}", REFUSED)(bare_pickle(_protocol))


def torch_save(value: Any, path: Path, **options: Any) -> None:
    import torch

    torch.save(value, path, **options)


for _how in ("system", "exec", "open"):
    legacy_case(f"code by {_how}", REFUSED)(code_by(_how))
legacy_case("code before torch 1.6", REFUSED)(
    lambda path, canary: torch_save({WTE: Payload(canary)}, path, _use_new_zipfile_serialization=False)
)
legacy_case("code as a key", REFUSED)(lambda path, canary: torch_save({"a": [Payload(canary)]}, path))
legacy_case("not an archive", REFUSED)(lambda path, _: path.write_bytes(b"\x80\x02hello"))
legacy_case("empty", REFUSED)(lambda path, _: path.write_bytes(b""))
legacy_case("a list", "not a table of tensors")(lambda path, _: torch_save([1, 2], path))
legacy_case("numbers", "is a int, only dense float tensors")(lambda path, _: torch_save({WTE: 7}, path))
legacy_case("names", "is no tensor name")(lambda path, _: torch_save({"../x": 7}, path))
legacy_case("nested", "only dense float tensors")(lambda path, _: torch_save({"state_dict": {WTE: 7}}, path))


def write_archive(path: Path, state: bytes, storage: bytes = bytes(1 << 17)) -> None:
    """An archive as torch.save writes it, around any pickle and one storage of 32,768 floats."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr("archive/data.pkl", state)
        archive.writestr("archive/data/0", storage)


FLOATS = b"ctorch\nFloatStorage\n"
STORAGE = b"(\x8c\x07storage" + FLOATS + b"\x8c\x010\x8c\x03cpuJ\0\x80\0\0tQ"
TENSOR = b"ctorch._utils\n_rebuild_tensor_v2\n(" + STORAGE + b"K\0M\0\x02K@\x86K@K\1\x86\x89tR"
KEY = b"\x8c" + bytes([len(WTE)]) + WTE.encode()
for _name, _pickle in (
    # 2 GB by the weights-only reader of torch: bytearray is among the functions that it calls.
    ("bytearray", b"\x80\2cbuiltins\nbytearray\nJ\0\0\0\x7f\x85R."),
    ("a storage that is called", b"\x80\2" + FLOATS + b"J\0\0\0\x7f\x85R."),
    ("a table by REDUCE", b"\x80\2ccollections\nOrderedDict\nJ\0\0\0\x7f\x85R."),
    ("a name from the stack", b"\x80\4\x8c\x08builtins\x8c\x09bytearray\x93J\0\0\0\x7f\x85R."),
    ("a key that is a deep tuple", b"\x80\2})" + b"\x85" * 100_000 + b"Ns."),
    ("no end", b"\x80\2}"),
    ("an empty stack", b"\x80\2R."),
    ("attributes of a tensor", b"\x80\2" + TENSOR + b"}b."),
    ("a shape of strings", b"\x80\2" + TENSOR.replace(b"M\0\x02K@\x86", b"\x8c\1xK@\x86") + b"."),
    ("a far opcode", b"\x80\2" + b"\x8a\xff" + b"\1" * 255 + b"i__main__\nX\n."),
):
    legacy_case(f"pickle: {_name}", "refused, nothing executed")(archive_of(_pickle))
for _name, _change, _message in (
    ("a storage that is not there", (b"\x8c\x010", b"\x8c\x011"), "has no storage in it"),
    ("a larger storage", (b"J\0\x80\0\0", b"J\0\0\0\x7f"), "claims more weights than the file holds"),
    ("an offset beyond the storage", (b"tQK\0", b"tQK\1"), "claims more weights than the file holds"),
    ("strides beyond the storage", (b"K@K\1\x86", b"M\xff\xffK\1\x86"), "claims more weights"),
):
    legacy_case(f"pickle: {_name}", _message)(archive_of(b"\x80\2}" + KEY + TENSOR.replace(*_change) + b"s."))


@legacy_case("pickle: big-endian", REFUSED)
def big_endian(path: Path, _: Path) -> None:
    write_archive(path, b"\x80\2}" + KEY + TENSOR + b"s.")
    zipfile.ZipFile(path, "a").writestr("archive/byteorder", "big")


legacy_case("pickle: one storage a thousand times", "claim more weights than the file holds")(
    lambda path, _: write_archive(
        path,
        b"\x80\2}" + b"".join(b"\x8c\6" + b"t%05d" % i + TENSOR + b"s" for i in range(1000)) + b".",
    )
)


def bomb(path: Path, *, n_bytes: int = 1 << 26) -> None:
    """A small archive that would unpack to a thousand times its size."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", pickle.dumps({}, 2))
        with archive.open("archive/data/0", "w") as member:
            for _ in range(n_bytes >> 20):
                member.write(bytes(1 << 20))


legacy_case("bomb", "unpacks to more than its own size")(lambda path, _: bomb(path))


def torch_tensors(value: float = 0.0, shape: tuple[int, ...] = (512, 64)) -> dict[str, Any]:
    import torch

    return {WTE: torch.full(shape, value)}


legacy_case("tensor missing", "expected 35, found 1: 34 missing")(lambda p, _: torch_save(torch_tensors(), p))
legacy_case("NaN", "holds NaN or infinite")(lambda p, _: torch_save(torch_tensors(float("nan")), p))
legacy_case("integers", "is a int64, only dense float")(
    lambda p, _: torch_save({name: tensor.long() for name, tensor in torch_tensors().items()}, p)
)
legacy_case("sparse", REFUSED)(
    lambda p, _: torch_save({name: tensor.to_sparse() for name, tensor in torch_tensors().items()}, p)
)
legacy_case("a view larger than its storage", "claims more weights than the file holds")(
    lambda p, _: torch_save({WTE: torch_tensors(0.0, (1,))[WTE].expand(2**40)}, p)
)


@legacy_case("truncated", REFUSED)
def half_an_archive(path: Path, _: Path) -> None:
    torch_save(torch_tensors(), path)
    os.truncate(path, path.stat().st_size // 2)


def main(source: Path, work: Path) -> None:
    """Print the class of the error that each case gets."""
    os.fsync = lambda descriptor: None  # type: ignore[assignment]  # as the fixture no_fsync does
    answers = {}
    for number, name in enumerate(CASES):
        folder = work / str(number) / "model"
        make(name, source, folder)
        try:
            checkpoint.load(folder)
            answers[name] = "loaded"
        except KoGPTError as error:
            answers[name] = type(error).__name__
        shutil.rmtree(folder.parent)
    print(json.dumps(answers))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
