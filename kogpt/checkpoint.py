"""A model folder or hub name <-> (config, tensors): nothing is copied at load, nothing executed.

    read      load, Checkpoint, Stored; find_folder, read_json, open_safetensors for those who need a part
    write     save, write_manifest, atomic_write

A folder holds config.json, model.safetensors (or shards and model.safetensors.index.json), tokenizer files and
kogpt.manifest.json with a SHA-256 of every file. Where torch is installed the layouts of 2021 are read as well:
pytorch_model.bin, single or sharded.

Whatever a folder claims is checked before it is used. First names, shapes and sizes, which takes milliseconds;
then every byte, for its digest and for NaN, read once through a small buffer so that the memory map stays cold.
SHA-256 passes 1.5 GB/s per core here and shards are read in parallel: 0.04 s for kogpt-mini, 4 s for the 6B model
in 2 GiB shards on two cores, less than most disks need to deliver it. Nothing is remembered between loads: a
cached verdict would miss the bit that flips tomorrow.

Knows nothing of runners, text or devices.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import mmap
import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from kogpt.config import ModelConfig
from kogpt.errors import CheckpointError, KoGPTError, MissingExtra, localized

BUILT_IN = {"kogpt-mini": Path(__file__).parent / "mini"}
DEFAULT_REVISIONS = {"kakaobrain/kogpt": "KoGPT6B-ryan1.5b-float16"}  # as in the original's command line

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
LEGACY_WEIGHTS = "pytorch_model.bin"
LEGACY_INDEX = "pytorch_model.bin.index.json"
MANIFEST = "kogpt.manifest.json"
MANIFEST_VERSION = 1
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")

WIDTHS = {"float64": 8, "float32": 4, "float16": 2, "bfloat16": 2}  # bytes per weight
# Bits of each format's exponent: a weight that has them all set is infinite or not a number.
EXPONENTS = {"float64": 0x7FF << 52, "float32": 0xFF << 23, "float16": 0x1F << 10, "bfloat16": 0xFF << 7}
SAFETENSORS_TYPES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}
MASK_TYPES = {"BOOL": "bool", "U8": "uint8"}  # of the buffers of 2021, which are read over

BUFFER_OF_2021 = re.compile(r"transformer\.h\.\d{1,5}\.attn\.(bias|masked_bias)")
TENSOR_NAME = re.compile(r"[A-Za-z0-9._/-]{1,256}")
FILE_NAME = re.compile(r"(?!\.{1,2}$)[^\\/:\x00-\x1f\ud800-\udfff]{1,255}")  # one part of a path
HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}", re.ASCII)
OWN_WEIGHTS = re.compile(r"model(-\d{5}-of-\d{5})?\.safetensors(\.index\.json)?")

MAX_JSON_BYTES = 16 << 20
MAX_TENSORS = 1 << 16
BUFFER_BYTES = 1 << 20  # half of a core's second-level cache: hashed and checked while it is warm
SHARD_BYTES = 2 << 30

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Stored:
    """One tensor as it lies in its file: memory-mapped, read-only, not copied.

    `array` has the tensor's shape; bfloat16, which numpy lacks, is held as its uint16 bit patterns. Files written
    before 2023 may start a tensor at an odd address (`array.flags.aligned`).
    """

    dtype: str  # "float64", "float32", "float16" or "bfloat16"
    array: NDArray[Any]

    def to(self, dtype: str) -> NDArray[Any]:
        """The values in `dtype`, rounded to nearest even where it is narrower; `array` itself if it is equal."""
        if dtype == self.dtype:
            return self.array
        wide = self.array
        if self.dtype == "bfloat16":
            wide = (wide.astype(np.uint32) << 16).view(np.float32)
        return _to_bfloat16(wide) if dtype == "bfloat16" else wide.astype(dtype)


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A model on disk; the keys and shapes of `tensors` are exactly those of `config.tensor_shapes()`."""

    folder: Path
    config: ModelConfig
    tensors: Mapping[str, Stored]


@dataclass(frozen=True, slots=True)
class _Entry:
    """What the manifest says of one file."""

    n_bytes: int
    sha256: str


@dataclass(frozen=True, slots=True)
class _Shard:
    """One open file of weights. `spans` cover it from its first byte to its last, in order."""

    path: Path
    file: IO[bytes]
    tensors: dict[str, Stored]
    spans: list[tuple[str, str | None, int]]  # tensor, dtype (None: not weights), bytes


# ------------------------------------------------------------------------------------------------ reading


def load(name: str | Path, revision: str | None = None) -> Checkpoint:
    """Open a folder, a built-in name or a hub name; CheckpointError, ConfigError or MissingExtra if it is unfit."""
    folder = find_folder(name, revision)
    try:
        with _locked(folder, exclusive=False):
            return _load_folder(folder)
    except OSError as error:
        reason = error.strerror or str(error)
        raise CheckpointError(
            f"cannot read the model folder {folder}: {reason}",
            f"모델 폴더를 읽을 수 없습니다: {folder} ({reason})",
        ) from error


def _load_folder(folder: Path) -> Checkpoint:
    manifest = _read_manifest(folder)
    config = ModelConfig.from_json(read_json(safe_join(folder, "config.json")))
    with ExitStack() as stack:
        shards = _open_shards(folder, config, stack)
        tensors = _select(config, shards)
        _verify(folder, shards, manifest)
    return Checkpoint(folder, config, tensors)


def find_folder(name: str | Path, revision: str | None = None) -> Path:
    """The local folder of a model; one on the hub is downloaded, or taken from the hub's cache without network."""
    folder = BUILT_IN.get(str(name), Path(name))
    if str(name) not in BUILT_IN and not folder.exists() and HUB_NAME.fullmatch(str(name)):
        return _download(str(name), revision or DEFAULT_REVISIONS.get(str(name)))
    if not folder.is_dir():
        raise CheckpointError(
            f"no model folder {str(name)[:200]!r}: give a folder with a config.json, a hub name such as "
            "kakaobrain/kogpt, or kogpt-mini",
            f"모델 폴더가 없습니다: {str(name)[:200]!r} (config.json이 있는 폴더, kakaobrain/kogpt 같은 허브 이름, "
            "또는 kogpt-mini를 지정하세요)",
        )
    if revision is not None:
        raise CheckpointError(
            f"{folder} is a local folder and has no revision {revision!r}: leave the revision out",
            f"{folder}: 로컬 폴더에는 리비전({revision!r})이 없습니다. 리비전을 빼고 다시 실행하세요",
        )
    return folder


def _download(name: str, revision: str | None) -> Path:
    import huggingface_hub as hub
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError

    at = f"{name} ({revision})" if revision else name
    try:
        folder = Path(
            hub.snapshot_download(name, revision=revision, allow_patterns=["*.json", "*.safetensors"])
        )
        if not any(folder.glob("*.safetensors")):
            hub.snapshot_download(name, revision=revision, allow_patterns=["*.bin"])
        return folder
    except (GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError) as error:
        raise CheckpointError(
            f"the hub has no {at}, or it needs `hf auth login`: check the name and the revision",
            f"허브에서 {at} 모델을 찾을 수 없거나 `hf auth login`이 필요합니다. 이름과 리비전을 확인하세요",
        ) from error
    except OSError as error:  # no network, no answer, or a full disk
        raise CheckpointError(
            f"no folder {name}, and {at} could not be downloaded ({type(error).__name__}): connect to the network, "
            "or give the folder of a copy",
            f"{name} 폴더가 없고 {at} 모델을 내려받을 수도 없습니다 ({type(error).__name__}). 네트워크에 연결하거나 "
            "이미 받은 폴더를 지정하세요",
        ) from error


def safe_join(folder: Path, name: str) -> Path:
    """The regular file `name` of `folder`; CheckpointError if it is missing or would lie outside.

    A link may point to where the hub's cache keeps the blobs of its own repository, and nowhere else.
    """
    if not all(FILE_NAME.fullmatch(part) for part in name.split("/")):
        raise _outside(folder, name)
    path = folder / name
    root = folder.resolve()
    if root.parent.name == "snapshots" and (root.parent.parent / "blobs").is_dir():
        root = root.parent.parent
    try:
        real = path.resolve(strict=True)
    except (FileNotFoundError, RuntimeError) as error:  # RuntimeError: a loop of links, before Python 3.13
        raise CheckpointError(f"{path} is missing", f"{path} 파일이 없습니다") from error
    if not real.is_relative_to(root):
        raise _outside(folder, name)
    if not real.is_file():
        raise CheckpointError(f"{path} is not a regular file", f"{path}: 일반 파일이 아닙니다")
    return path


def _outside(folder: Path, name: str) -> CheckpointError:
    return CheckpointError(
        f"{folder} names a file outside itself, {name[:200]!r}: refused",
        f"{folder}: 폴더 밖의 파일 {name[:200]!r}을(를) 가리키므로 거부합니다",
    )


def read_json(
    path: Path, max_bytes: int = MAX_JSON_BYTES, error: type[KoGPTError] = CheckpointError
) -> dict[str, Any]:
    """A JSON object from a file that may be hostile: bounded, no duplicate keys, no NaN."""
    n_bytes = path.stat().st_size
    if n_bytes > max_bytes:
        raise error(
            f"{path} has {n_bytes:,} bytes, at most {max_bytes:,} are read",
            f"{path}: {n_bytes:,}바이트 (최대 {max_bytes:,}바이트)",
        )
    with path.open("rb") as file:
        return _parse_json(file.read(max_bytes), str(path), error)


def _parse_json(data: bytes, where: str, error: type[KoGPTError] = CheckpointError) -> dict[str, Any]:
    try:
        document = json.loads(data.decode("utf-8"), object_pairs_hook=_unique, parse_constant=_no_constant)
    except (ValueError, RecursionError) as cause:
        reason = str(cause)[:200] or type(cause).__name__
        raise error(
            f"{where} is not valid JSON: {reason}", f"{where}: 올바른 JSON이 아닙니다 ({reason})"
        ) from cause
    if type(document) is not dict:
        raise error(f"{where} is not a JSON object", f"{where}: JSON 객체가 아닙니다")
    return document


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    document = dict(pairs)
    if len(document) != len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in document if keys.count(key) > 1)
        raise ValueError(f"key {twice[:100]!r} occurs twice")
    return document


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is not a JSON number")


# ------------------------------------------------------------------------------------------------ weights


def _open_shards(folder: Path, config: ModelConfig, stack: ExitStack) -> list[_Shard]:
    """Open the weights of a folder: safetensors if there are any, else the layout of 2021."""
    # A description of one tensor takes about 110 bytes; five times as much, and room for metadata.
    max_header = min(MAX_JSON_BYTES, (64 << 10) + 512 * len(config.tensor_shapes()))

    def open_one(name: str) -> _Shard:
        path = safe_join(folder, name)
        if name.endswith(".safetensors"):
            return open_shard(path, max_header, stack)
        return _open_legacy(path, stack)

    for weights, index in ((WEIGHTS, INDEX), (LEGACY_WEIGHTS, LEGACY_INDEX)):
        if os.path.lexists(folder / weights):
            return [open_one(weights)]
        if os.path.lexists(folder / index):
            return _open_indexed(folder, index, open_one)
    raise CheckpointError(
        f"{folder} holds no weights: expected {WEIGHTS}, {INDEX}, {LEGACY_WEIGHTS} or {LEGACY_INDEX}",
        f"{folder}: 가중치 파일이 없습니다 ({WEIGHTS}, {INDEX}, {LEGACY_WEIGHTS}, {LEGACY_INDEX} 중 하나가 필요)",
    )


def _open_indexed(folder: Path, index: str, open_one: Callable[[str], _Shard]) -> list[_Shard]:
    """Open every shard that an index names, and hold the index to what they contain."""
    suffix = Path(index.removesuffix(".index.json")).suffix
    weight_map = read_json(safe_join(folder, index)).get("weight_map")
    if type(weight_map) is not dict or not all(type(name) is str for name in weight_map.values()):
        raise _damaged(folder / index, "weight_map is not an object of file names")
    for name in weight_map.values():
        if "/" in name or not FILE_NAME.fullmatch(name):
            raise _outside(folder, name)
        if not name.endswith(suffix):
            raise _damaged(folder / index, f"{name[:100]!r} is not a {suffix} file")
    shards = [open_one(name) for name in sorted(set(weight_map.values()))]
    for shard in shards:
        for tensor in shard.tensors:
            if weight_map.get(tensor) != shard.path.name:
                raise _damaged(
                    folder / index, f"{tensor} lies in {shard.path.name}, the index says otherwise"
                )
    return shards


def open_shard(path: Path, max_header: int, stack: ExitStack) -> _Shard:
    """Check the header of a safetensors file and map its tensors; the file stays open as long as `stack`.

    Format: a little-endian u64 n, n bytes of JSON, then the tensors' bytes (github.com/huggingface/safetensors).
    Stricter than the format: no duplicates, gaps, empty tensors or unusual names.
    """
    file = stack.enter_context(path.open("rb"))
    n_bytes = os.fstat(file.fileno()).st_size
    n_header = int.from_bytes(file.read(8), "little")
    if n_bytes < 10 or n_header > n_bytes - 8:
        raise _damaged(path, f"its header would end at byte {n_header + 8:,}, the file has {n_bytes:,}")
    if n_header > max_header:
        raise _damaged(path, f"its header has {n_header:,} bytes, at most {max_header:,} are read")
    header = _parse_json(file.read(n_header), f"the header of {path}")
    header.pop("__metadata__", None)
    data = mmap.mmap(file.fileno(), n_bytes, access=mmap.ACCESS_READ)
    shard = _Shard(path, file, {}, [("header", None, 8 + n_header)])
    end = 8 + n_header
    for name, dtype, shape, begin, size in _layout(path, header):
        if begin != end - 8 - n_header:
            raise _damaged(
                path, f"{name} begins at {begin:,}, expected {end - 8 - n_header:,}: a gap or an overlap"
            )
        is_weight = dtype in WIDTHS and not BUFFER_OF_2021.fullmatch(name)
        if is_weight:
            bits = np.dtype("<u2" if dtype == "bfloat16" else dtype)
            array = np.frombuffer(data, bits, math.prod(shape), end).reshape(shape)
            shard.tensors[name] = Stored(dtype, array)
        shard.spans.append((name, dtype if is_weight else None, size))
        end += size
    if end != n_bytes:
        raise _damaged(
            path, f"its tensors end at byte {end:,}, the file has {n_bytes:,}: truncated or padded"
        )
    return shard


def _layout(path: Path, header: dict[str, Any]) -> list[tuple[str, str, tuple[int, ...], int, int]]:
    """Name, dtype, shape, first byte and bytes of every tensor in a safetensors header, in the file's order."""
    if len(header) > MAX_TENSORS:
        raise _damaged(path, f"{len(header):,} tensors, at most {MAX_TENSORS:,} are read")
    layout = []
    for name, entry in header.items():
        if not TENSOR_NAME.fullmatch(name) or ".." in name:
            raise _damaged(path, f"{name[:100]!r} is no tensor name")
        if type(entry) is not dict or entry.keys() != {"dtype", "shape", "data_offsets"}:
            raise _damaged(path, f"{name} is not described by dtype, shape and data_offsets")
        dtype = (SAFETENSORS_TYPES | MASK_TYPES).get(str(entry["dtype"]))
        is_mask = BUFFER_OF_2021.fullmatch(name) is not None
        if dtype is None or (dtype not in WIDTHS and not is_mask):
            raise _damaged(path, f"{name} has dtype {str(entry['dtype'])[:40]!r}, only floats are weights")
        shape, offsets = entry["shape"], entry["data_offsets"]
        if not _is_counts(shape, 4) or not all(shape) or not _is_counts(offsets, 2) or len(offsets) != 2:
            raise _damaged(path, f"{name} has shape {str(shape)[:80]} at {str(offsets)[:80]}")
        size = math.prod(shape) * WIDTHS.get(dtype, 1)
        if offsets[1] - offsets[0] != size:
            raise _damaged(
                path, f"{name} has {offsets[1] - offsets[0]:,} bytes, its shape and dtype say {size:,}"
            )
        layout.append((name, dtype, tuple(shape), offsets[0], size))
    return sorted(layout, key=lambda tensor: tensor[3])


def _is_counts(value: object, at_most: int) -> bool:
    """Whether a JSON value is a list of at most so many whole numbers, none negative."""
    return type(value) is list and len(value) <= at_most and all(type(n) is int and n >= 0 for n in value)


def _damaged(path: Path, reason: str) -> CheckpointError:
    return CheckpointError(
        f"{path} is damaged or not a checkpoint: {reason}",
        f"{path}: 손상되었거나 체크포인트가 아닙니다 ({reason})",
    )


def _select(config: ModelConfig, shards: Iterable[_Shard]) -> dict[str, Stored]:
    """The tensors that the config asks for, in its order: none missing, none left over, each of its shape."""
    found: dict[str, Stored] = {}
    for shard in shards:
        if twice := next((name for name in shard.tensors if name in found), None):
            raise _damaged(shard.path, f"{twice} is in another shard already")
        found |= shard.tensors
    if config.tied_head and "lm_head.weight" in found:
        _require_copy(found.pop("lm_head.weight"), found.get("transformer.wte.weight"))
    expected = config.tensor_shapes()
    _require_names(expected, found)
    for name, shape in expected.items():
        if found[name].array.shape != shape:
            raise _wrong_shape(name, shape, found[name].array.shape)
    return {name: found[name] for name in expected}


def _require_names(expected: Mapping[str, Any], found: Mapping[str, Any]) -> None:
    missing = [name for name in expected if name not in found]
    extra = [name for name in found if name not in expected]
    if missing or extra:
        parts = [(missing, "missing", "없음"), (extra, "not in the model", "모델에 없는 텐서")]
        en = "; ".join(f"{len(names)} {word}: {_some(names)}" for names, word, _ in parts if names)
        ko = "; ".join(f"{word} {len(names)}개: {_some(names)}" for names, _, word in parts if names)
        raise CheckpointError(
            f"the tensors do not fit config.json, expected {len(expected)}, found {len(found)}: {en}",
            f"텐서가 config.json과 맞지 않습니다. 필요 {len(expected)}개, 발견 {len(found)}개: {ko}",
        )


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")


def _wrong_shape(name: str, expected: tuple[int, ...], found: tuple[int, ...]) -> CheckpointError:
    return CheckpointError(
        f"tensor {name}: config.json asks for shape {list(expected)}, found {list(found)}",
        f"텐서 {name}: config.json에 따른 크기는 {list(expected)}, 발견한 크기는 {list(found)}",
    )


def _require_copy(head: Stored, embedding: Stored | None) -> None:
    """A tied head may be stored twice, as some writers do, but not with two values."""
    if embedding is None or head.dtype != embedding.dtype or not np.array_equal(head.array, embedding.array):
        raise CheckpointError(
            "config.json ties the head to the embedding (tie_word_embeddings), but lm_head.weight differs from "
            "transformer.wte.weight",
            "config.json은 tie_word_embeddings인데 lm_head.weight와 transformer.wte.weight의 값이 다릅니다",
        )


# ------------------------------------------------------------------------------------------------ the layout of 2021


def _open_legacy(path: Path, stack: ExitStack) -> _Shard:
    """Map a pytorch_model.bin with torch's weights-only reader, which executes nothing."""
    try:
        import torch
    except ImportError as error:
        raise MissingExtra(f"{path.name} (a checkpoint of 2021)", "torch") from error

    file = stack.enter_context(path.open("rb"))
    _guard_zip(path, file)
    try:
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # the reader raises whatever a hostile stream drives it into
        reason = (str(error).splitlines() or [""])[0][:120]
        raise CheckpointError(
            f"{path} holds something other than plain tensors and was refused, nothing of it was executed ({reason})",
            f"{path}: 텐서가 아닌 내용이 있어 아무것도 실행하지 않고 거부했습니다 ({reason})",
        ) from error
    shard = _Shard(path, file, {}, [("pickle", None, path.stat().st_size)])
    if type(state) is not dict and not isinstance(state, Mapping):
        raise _damaged(path, "it is not a table of tensors")
    for name, tensor in state.items():
        if type(name) is not str or not TENSOR_NAME.fullmatch(name) or not isinstance(tensor, torch.Tensor):
            raise _damaged(path, f"{str(name)[:100]!r} is not a tensor with a plain name")
        if not BUFFER_OF_2021.fullmatch(name):
            shard.tensors[name] = _from_torch(path, name, tensor)
    return shard


def _from_torch(path: Path, name: str, tensor: Any) -> Stored:
    import torch

    dtype = str(tensor.dtype).removeprefix("torch.")
    if dtype not in WIDTHS or tensor.layout is not torch.strided or tensor.device.type != "cpu":
        raise _damaged(path, f"{name} has dtype {dtype}, only dense floats are weights")
    if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
        raise _damaged(path, f"{name} claims more weights than the file holds")
    plain = tensor.detach().contiguous()
    array = (plain.view(torch.uint16) if dtype == "bfloat16" else plain).numpy()
    array.flags.writeable = False
    flat = array.reshape(-1).view(np.uint8)
    for start in range(0, flat.size, BUFFER_BYTES):
        _require_finite(flat[start : start + BUFFER_BYTES], dtype, name)
    return Stored(dtype, array)


def _guard_zip(path: Path, file: IO[bytes]) -> None:
    """Refuse an archive that could unpack to more than its own size; reads its central directory only."""
    import zipfile

    try:
        members = zipfile.ZipFile(file).infolist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
        raise _damaged(path, "it is not a zip archive as torch 1.6 and later write it") from error
    n_bytes = os.fstat(file.fileno()).st_size
    compressed = any(member.compress_type != zipfile.ZIP_STORED for member in members)
    if compressed or sum(member.file_size for member in members) > n_bytes or len(members) > MAX_TENSORS:
        raise _damaged(path, "its archive unpacks to more than its own size")
    if any(member.filename.endswith(".pkl") and member.file_size > MAX_JSON_BYTES for member in members):
        raise _damaged(path, f"its pickle has more than {MAX_JSON_BYTES:,} bytes")


# ------------------------------------------------------------------------------------------------ every byte


def _read_manifest(folder: Path) -> dict[str, _Entry] | None:
    """What the manifest promises, by file name; None, and a line in the log, where there is no manifest."""
    if not os.path.lexists(folder / MANIFEST):
        logger.warning(
            localized(
                f"{folder} has no {MANIFEST}: its files were not verified",
                f"{folder}: {MANIFEST} 없음 (검증 안 함)",
            )
        )
        return None
    path = safe_join(folder, MANIFEST)
    document = read_json(path)
    if document.get("version") != MANIFEST_VERSION:
        shown = str(document.get("version"))[:40]
        raise CheckpointError(
            f"{path} has version {shown}, this KoGPT reads version {MANIFEST_VERSION}: upgrade kogpt",
            f"{path}: 버전 {shown} (지원: {MANIFEST_VERSION}). kogpt를 업그레이드하세요",
        )
    if document.get("quantization") is not None:
        raise CheckpointError(
            f"{folder} holds quantised weights ({str(document['quantization'])[:80]}), which this KoGPT cannot read",
            f"{folder}: 양자화된 가중치({str(document['quantization'])[:80]})는 읽을 수 없습니다",
        )
    files = document.get("files")
    if type(files) is not dict:
        raise _damaged(path, "files is not an object")
    return {name: _entry(path, name, entry) for name, entry in files.items()}


def _entry(path: Path, name: str, entry: Any) -> _Entry:
    if type(entry) is not dict or entry.keys() != {"bytes", "sha256"}:
        raise _damaged(path, f"{name[:100]!r} is not described by bytes and sha256")
    if type(entry["bytes"]) is not int or not re.fullmatch(r"[0-9a-f]{64}", str(entry["sha256"])):
        raise _damaged(path, f"{name[:100]!r} has no SHA-256 of 64 hexadecimal digits")
    return _Entry(entry["bytes"], entry["sha256"])


def _verify(folder: Path, shards: list[_Shard], manifest: dict[str, _Entry] | None) -> None:
    """Read every byte once: digests as the manifest has them, no weight NaN or infinite."""
    entries = dict(manifest or {})
    names = ["config.json", *(shard.path.name for shard in shards)]
    names += [index for index in (INDEX, LEGACY_INDEX) if len(shards) > 1 and (folder / index).exists()]
    if manifest is not None and (unlisted := next((name for name in names if name not in manifest), None)):
        raise _differs(folder / unlisted, "not listed", "present")
    for name, entry in entries.items():
        if (n_bytes := safe_join(folder, name).stat().st_size) != entry.n_bytes:
            raise _differs(folder / name, f"{entry.n_bytes:,} bytes", f"{n_bytes:,} bytes")
    checks = [(shard, entries.pop(shard.path.name, None)) for shard in shards]
    with ExitStack() as stack:
        for name, entry in entries.items():
            file = stack.enter_context((folder / name).open("rb"))
            checks.append((_Shard(folder / name, file, {}, [(name, None, entry.n_bytes)]), entry))
        _run_all([lambda shard=shard, entry=entry: _scan(shard, entry) for shard, entry in checks])


def _run_all(checks: list[Callable[[], None]]) -> None:
    """Run the checks side by side: hashing, reading and numpy all let go of the interpreter's lock."""
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(min(len(checks), os.cpu_count() or 1, 8)) as pool:
        futures = [pool.submit(check) for check in checks]
        try:
            for future in futures:
                future.result()
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def _scan(shard: _Shard, entry: _Entry | None) -> None:
    """Read one file through a small buffer; CheckpointError for a wrong digest or a weight that is no number."""
    digest = hashlib.sha256()
    buffer = memoryview(bytearray(BUFFER_BYTES))
    shard.file.seek(0)
    for name, dtype, n_bytes in shard.spans:
        if entry is None and dtype is None:
            shard.file.seek(n_bytes, os.SEEK_CUR)
            continue
        for start in range(0, n_bytes, BUFFER_BYTES):
            block = buffer[: min(BUFFER_BYTES, n_bytes - start)]
            if (got := shard.file.readinto(block)) != len(block):  # type: ignore[attr-defined]
                raise _damaged(shard.path, f"{name} ends {len(block) - got:,} bytes early: truncated")
            if entry is not None:
                digest.update(block)
            if dtype is not None:
                _require_finite(np.frombuffer(block, np.uint8), dtype, name)
    if entry is not None and digest.hexdigest() != entry.sha256:
        raise _differs(shard.path, f"SHA-256 {entry.sha256[:16]}...", f"{digest.hexdigest()[:16]}...")


def _require_finite(data: NDArray[np.uint8], dtype: str, name: str) -> None:
    """Refuse a block that holds a weight with every bit of its exponent set.

    Among patterns without a sign, and among those with one, the infinities and NaN are the largest integers: two
    maxima find them without a temporary array.
    """
    exponent, width = EXPONENTS[dtype], WIDTHS[dtype]
    largest_positive = int(data.view(f"<i{width}").max())
    largest_signed = int(data.view(f"<u{width}").max())
    if largest_positive >= exponent or largest_signed >= exponent | 1 << (8 * width - 1):
        raise CheckpointError(
            f"tensor {name} holds NaN or infinite weights: the checkpoint is broken, get it again",
            f"텐서 {name}에 NaN 또는 무한대 값이 있습니다. 체크포인트를 다시 받으세요",
        )


def _differs(path: Path, expected: str, found: str) -> CheckpointError:
    return CheckpointError(
        f"{path} is not the file that {MANIFEST} describes: expected {expected}, found {found}; get it again",
        f"{path}: {MANIFEST}의 내용과 다릅니다. 기대값 {expected}, 실제 {found}. 파일을 다시 받으세요",
    )


# ------------------------------------------------------------------------------------------------ writing


def save(
    folder: Path,
    config: ModelConfig,
    tensors: Mapping[str, NDArray[Any] | Stored],
    dtype: str = "float16",
    tokenizer: Path | None = None,
    shard_bytes: int = SHARD_BYTES,
) -> None:
    """Write a model folder that this package and transformers read.

    `tensors` may be lazy: each is asked for once and written in pieces. `tokenizer` is a tokenizer.json or a folder
    that has one. Saving over a folder, even one that is being read, replaces all of it or nothing: every file is
    written and synced under another name first. CheckpointError if a weight does not fit `dtype`.
    """
    if dtype not in WIDTHS:
        raise CheckpointError(
            f"weights cannot be stored as {dtype!r}, only as {', '.join(WIDTHS)}",
            f"가중치를 {dtype!r} 형식으로 저장할 수 없습니다 (가능: {', '.join(WIDTHS)})",
        )
    _require_names(config.tensor_shapes(), tensors)
    shards = _plan_shards(config, dtype, shard_bytes)
    documents = _documents(config, dtype, shards) | _tokenizer_documents(config, tokenizer)
    is_new = not folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    names = [*shards, *documents, MANIFEST]
    stale = [path for path in folder.iterdir() if OWN_WEIGHTS.fullmatch(path.name) and path.name not in names]
    try:
        with _replace_all([folder / name for name in names], stale) as files:
            entries = _digest_folder(folder, skip={*names, *(path.name for path in stale)})
            for name, file in zip(names, files, strict=True):
                if name in shards:
                    entries[name] = _write_shard(file, shards[name], tensors, dtype, config)
                elif name in documents:
                    file.write(documents[name])
                    entries[name] = _Entry(len(documents[name]), hashlib.sha256(documents[name]).hexdigest())
            files[-1].write(_manifest(entries))
    except BaseException:
        if is_new and not any(folder.iterdir()):
            folder.rmdir()
        raise


def write_manifest(folder: Path, quantization: Mapping[str, Any] | None = None) -> None:
    """(Re)write kogpt.manifest.json over every file that now lies in the folder."""
    entries = _digest_folder(folder, skip={MANIFEST})
    with atomic_write(folder / MANIFEST) as file:
        file.write(_manifest(entries, quantization))


@contextmanager
def atomic_write(path: Path) -> Iterator[IO[bytes]]:
    """Write a file whole or not at all: temporary name, fsync, rename, fsync of the folder."""
    with _replace_all([path]) as files:
        yield files[0]


@contextmanager
def _replace_all(paths: list[Path], stale: Iterable[Path] = ()) -> Iterator[list[IO[bytes]]]:
    """Files that take their places together when the block ends well, and vanish when it does not.

    All are synced before the first is renamed, so that the folder is mixed for microseconds only, and not at all for
    readers that hold its lock. The last path, the manifest, exposes a mixture that a crash would leave.
    """
    folder = paths[0].parent
    temporary = [folder / f".{os.urandom(8).hex()}.tmp" for _ in paths]
    try:
        with ExitStack() as stack:
            files = [stack.enter_context(path.open("xb")) for path in temporary]
            yield files
            for file in files:
                file.flush()
                os.fsync(file.fileno())
        with _locked(folder, exclusive=len(paths) > 1):
            for source, target in zip(temporary, paths, strict=True):
                source.replace(target)
            for path in stale:
                path.unlink(missing_ok=True)
            _sync_folder(folder)
    finally:
        for path in temporary:
            path.unlink(missing_ok=True)


@contextmanager
def _locked(folder: Path, exclusive: bool) -> Iterator[None]:
    """Hold a folder against writers (or, exclusive, against readers too) in other processes, where locks exist."""
    if sys.platform == "win32":
        yield
        return
    import fcntl

    descriptor = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH)
        except OSError as error:  # network file systems; the manifest still tells a mixture
            logger.debug("no lock on %s: %s", folder, error)
        yield
    finally:
        os.close(descriptor)


def _sync_folder(folder: Path) -> None:
    if sys.platform == "win32":
        return  # a folder cannot be opened there, and renames are journaled
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _plan_shards(config: ModelConfig, dtype: str, shard_bytes: int) -> dict[str, list[str]]:
    """Tensors of each file by its name: one file if all fit into `shard_bytes`."""
    groups: list[list[str]] = [[]]
    room = shard_bytes
    shapes = config.tensor_shapes()
    for name, shape in shapes.items():
        size = math.prod(shape) * WIDTHS[dtype]
        if size > room and groups[-1]:
            groups.append([])
            room = shard_bytes
        groups[-1].append(name)
        room -= size
    if len(groups) == 1:
        return {WEIGHTS: groups[0]}
    return {f"model-{i:05}-of-{len(groups):05}.safetensors": group for i, group in enumerate(groups, 1)}


def _write_shard(
    file: IO[bytes],
    names: list[str],
    tensors: Mapping[str, NDArray[Any] | Stored],
    dtype: str,
    config: ModelConfig,
) -> _Entry:
    """Write one safetensors file in pieces and return its size and digest."""
    shapes = config.tensor_shapes()
    kind = next(key for key, value in SAFETENSORS_TYPES.items() if value == dtype)
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}  # transformers insists on the format
    end = 0
    for name in names:
        begin, end = end, end + math.prod(shapes[name]) * WIDTHS[dtype]
        header[name] = {"dtype": kind, "shape": list(shapes[name]), "data_offsets": [begin, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # so that every tensor starts at a multiple of its width
    digest = hashlib.sha256()
    for piece in _pieces(text, names, tensors, dtype, shapes):
        file.write(piece)
        digest.update(piece)
    return _Entry(8 + len(text) + end, digest.hexdigest())


def _pieces(
    text: bytes,
    names: list[str],
    tensors: Mapping[str, NDArray[Any] | Stored],
    dtype: str,
    shapes: Mapping[str, tuple[int, ...]],
) -> Iterator[bytes | memoryview]:
    """The bytes of a safetensors file, tensor after tensor, each converted a little at a time."""
    yield len(text).to_bytes(8, "little") + text
    for name in names:
        value = tensors[name]
        stored = value if isinstance(value, Stored) else Stored(value.dtype.name, value)
        assert stored.dtype in WIDTHS, (name, stored.dtype)
        if stored.array.shape != shapes[name]:
            raise _wrong_shape(name, shapes[name], stored.array.shape)
        flat = stored.array.reshape(-1)
        for start in range(0, flat.size, BUFFER_BYTES // 8):
            part = Stored(stored.dtype, flat[start : start + BUFFER_BYTES // 8])
            with np.errstate(over="ignore"):  # what overflows is refused by name
                data = np.ascontiguousarray(part.to(dtype)).view(np.uint8)
            _require_fit(data, dtype, name)
            yield data.data


def _require_fit(data: NDArray[np.uint8], dtype: str, name: str) -> None:
    try:
        _require_finite(data, dtype, name)
    except CheckpointError as error:
        raise CheckpointError(
            f"tensor {name} does not fit {dtype}: it holds NaN, infinite or too large weights; store bfloat16 or float32",
            f"텐서 {name}: {dtype} 형식으로 나타낼 수 없는 값이 있습니다. bfloat16이나 float32로 저장하세요",
        ) from error


def _documents(config: ModelConfig, dtype: str, shards: Mapping[str, list[str]]) -> dict[str, bytes]:
    """config.json, generation_config.json and, for shards, the index."""
    documents: dict[str, Any] = {}
    documents["config.json"] = config.to_json() | {
        "torch_dtype": dtype,
        "tokenizer_class": "PreTrainedTokenizerFast",
        "use_cache": True,
    }
    # Without a pad_token_id here transformers' generate() warns at every call, whatever from_pretrained was told.
    documents["generation_config.json"] = {
        "bos_token_id": config.bos_token_id,
        "eos_token_id": config.eos_token_id,
        "pad_token_id": config.eos_token_id,
    }
    if len(shards) > 1:
        total = config.n_parameters * WIDTHS[dtype]
        weight_map = {tensor: name for name, group in shards.items() for tensor in group}
        documents[INDEX] = {"metadata": {"total_size": total}, "weight_map": weight_map}
    return {name: _dump(document) for name, document in documents.items()}


def _tokenizer_documents(config: ModelConfig, tokenizer: Path | None) -> dict[str, bytes]:
    """The tokenizer's files as they are; transformers' settings for it are added where there are none."""
    if tokenizer is None:
        return {}
    source = tokenizer if tokenizer.is_dir() else tokenizer.parent
    present = [name for name in TOKENIZER_FILES if (source / name).is_file()]
    documents = {name: safe_join(source, name).read_bytes() for name in present}
    if not tokenizer.is_dir():
        documents["tokenizer.json"] = tokenizer.read_bytes()
    if "tokenizer.json" not in documents:
        raise CheckpointError(f"{source} has no tokenizer.json", f"{source}: tokenizer.json 파일이 없습니다")
    if "tokenizer_config.json" not in documents:
        settings = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False}
        added = _parse_json(documents["tokenizer.json"], str(source / "tokenizer.json")).get(
            "added_tokens", []
        )
        contents = {token["content"] for token in added}
        roles = {f"{role}_token": f"[{role.upper()}]" for role in ("bos", "eos", "unk", "pad", "mask")}
        special = {role: content for role, content in roles.items() if content in contents}
        documents["tokenizer_config.json"] = _dump(settings | {"model_max_length": config.n_ctx} | special)
    return documents


def _digest_folder(folder: Path, skip: Iterable[str]) -> dict[str, _Entry]:
    """Size and digest of every regular file under a folder that is not hidden and not skipped."""
    entries = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if name not in skip and path.is_file() and not any(part.startswith(".") for part in name.split("/")):
            with safe_join(folder, name).open("rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
            entries[name] = _Entry(path.stat().st_size, digest)
    return entries


def _manifest(entries: Mapping[str, _Entry], quantization: Mapping[str, Any] | None = None) -> bytes:
    files = {
        name: {"bytes": entry.n_bytes, "sha256": entry.sha256} for name, entry in sorted(entries.items())
    }
    return _dump({"version": MANIFEST_VERSION, "files": files, "quantization": quantization})


def _dump(document: Mapping[str, Any]) -> bytes:
    return (json.dumps(document, ensure_ascii=False, indent=2) + "\n").encode()


def _to_bfloat16(wide: NDArray[Any]) -> NDArray[np.uint16]:
    """Bit patterns of the nearest bfloat16, ties to even; NaN stays NaN."""
    bits = np.ascontiguousarray(wide, dtype=np.float32).view(np.uint32)
    rounded = (bits + (0x7FFF + ((bits >> 16) & 1))) >> 16
    return np.where(np.isnan(wide), 0x7FC0, rounded).astype(np.uint16)
