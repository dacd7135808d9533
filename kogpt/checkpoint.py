"""A model folder or hub name <-> (config, tensors).

    read      load, find_folder, digest, safe_join, read_json
    write     save, write_manifest, atomic_write

A folder holds config.json, model.safetensors (or shards and their index), tokenizer files, and
kogpt.manifest.json with a SHA-256 of every file. pytorch_model.bin, the layout of 2021, is read as well.

Whatever a folder claims is checked before it is used: names, shapes and sizes in milliseconds, then every
byte. Hashing passes 1.3 GB/s per core here and shards are read side by side: 0.05 s for kogpt-mini, 5 s for
the 6B model in 2 GiB shards on two cores, less than most disks need to deliver it; without a manifest, the
look for NaN alone passes 5 GB/s. No verdict is remembered between loads: that would miss the bit that flips
tomorrow.

Knows nothing of runners, text or devices.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from numpy.typing import NDArray

from kogpt.config import ModelConfig
from kogpt.errors import CheckpointError, KoGPTError, localized
from kogpt.quantize import (
    EMBEDDING,
    FORMATS,
    HEAD,
    Floats,
    Part,
    Quantized,
    matrices,
    parts,
    read_statement,
    statement,
)
from kogpt.weights import (
    MAX_JSON_BYTES,
    SIZES,
    WIDTHS,
    Stored,
    WeightsFile,
    damaged,
    open_weights,
    parse_json,
    write_safetensors,
    wrong_shape,
)

__all__ = [
    "Checkpoint",
    "Stored",
    "atomic_write",
    "digest",
    "find_folder",
    "load",
    "read_json",
    "safe_join",
    "save",
    "write_manifest",
]

BUILT_IN = {"kogpt-mini": Path(__file__).parent / "mini"}
DEFAULT_REVISIONS = {"kakaobrain/kogpt": "KoGPT6B-ryan1.5b-float16"}  # as in the original's command line

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
LEGACY_WEIGHTS = "pytorch_model.bin"
LEGACY_INDEX = "pytorch_model.bin.index.json"
MANIFEST = "kogpt.manifest.json"
MANIFEST_VERSION = 1
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")
LICENSE = "LICENSE"

HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}", re.ASCII)
FILE_NAME = re.compile(r"(?!\.{1,2}$)[^\\/:\x00-\x1f\ud800-\udfff]{1,255}")  # one part of a path
OWN_WEIGHTS = re.compile(r"model(-\d{5}-of-\d{5})?\.safetensors(\.index\.json)?")
SHARD_BYTES = 2 << 30

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A model on disk; `tensors` has exactly the keys and shapes of `config.tensor_shapes()`.

    quantization: None, or "int8" or "int4": the matrices are then Quantized (see quantize.py), and a tied
    head is there as lm_head.weight.
    """

    folder: Path
    config: ModelConfig
    tensors: Mapping[str, Stored | Quantized]
    quantization: str | None = None

    def floats(self) -> Mapping[str, Stored]:
        """The tensors as floats, quantised ones unpacked as they are asked for."""
        return Floats(self.config, self.tensors)


@dataclass(frozen=True, slots=True)
class _Entry:
    """What the manifest says of one file."""

    n_bytes: int
    sha256: str


@dataclass(frozen=True, slots=True)
class _Manifest:
    """What the manifest says: of each file, and how the weights are quantised, if they are."""

    files: Mapping[str, _Entry]
    quantization: Any


# ---------------------------------------------------------------------------------------------- reading


def load(name: str | Path, revision: str | None = None) -> Checkpoint:
    """Open a folder, a built-in name or a hub name. CheckpointError, ConfigError, MissingExtra if unfit."""
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
    stated = None if manifest is None else manifest.quantization
    quantization = read_statement(stated, config, str(folder / MANIFEST))
    # Describing a tensor takes about 110 bytes: five times as much, and room for metadata.
    max_header = min(MAX_JSON_BYTES, (64 << 10) + 512 * len(config.tensor_shapes()))
    with ExitStack() as stack:
        files = _weight_files(folder)
        shards = [open_weights(path, stack, max_header, quantization is not None) for path in files]
        _require_index(folder, shards)
        tensors = _select(config, shards, quantization)
        _verify(folder, shards, None if manifest is None else manifest.files)
    return Checkpoint(folder, config, tensors, quantization)


def stored_format(folder: Path) -> tuple[str, int] | None:
    """In what the weights of a local folder are stored, and their bytes; None where they are not there.

    Reads the manifest and the headers of the weights, not the weights.
    """
    try:
        files = _weight_files(folder)
    except CheckpointError:
        return None
    manifest = _read_manifest(folder)
    config = ModelConfig.from_json(read_json(safe_join(folder, "config.json")))
    stated = None if manifest is None else manifest.quantization
    dtype = read_statement(stated, config, str(folder / MANIFEST))
    if dtype is None:
        with ExitStack() as stack:
            tensors = open_weights(files[0], stack).tensors
        dtype = max(tensors.values(), key=lambda tensor: tensor.array.nbytes).dtype
    return dtype, sum(path.stat().st_size for path in files)


def find_folder(name: str | Path, revision: str | None = None, weights: bool = True) -> Path:
    """The local folder of a model; one on the hub is downloaded, or found in the hub's cache.

    A built-in name goes before a folder of that name (which "./NAME" or a Path means), a folder before a hub
    name. Without `weights` only the small files of a hub model are fetched.
    """
    folder = Path(name)
    if isinstance(name, str) and name in BUILT_IN:
        folder = BUILT_IN[name]
    elif isinstance(name, str) and HUB_NAME.fullmatch(name) and not os.path.lexists(name):
        return _download(name, revision or DEFAULT_REVISIONS.get(name), weights)
    if not os.path.isdir(folder):
        shown = repr(str(name)[:200])
        raise CheckpointError(
            f"no model folder {shown}: give a folder with a config.json, a hub name such as "
            "kakaobrain/kogpt, or kogpt-mini",
            f"모델 폴더가 없습니다: {shown} (config.json이 있는 폴더나 kakaobrain/kogpt 같은 허브 이름, "
            "또는 kogpt-mini를 지정하세요)",
        )
    if revision is not None:
        raise CheckpointError(
            f"{folder} is a local folder and has no revision {revision!r}: leave the revision out",
            f"{folder}: 로컬 폴더에는 리비전({revision!r})이 없습니다. 리비전을 빼고 다시 실행하세요",
        )
    return folder


def _download(name: str, revision: str | None, weights: bool) -> Path:
    import huggingface_hub as hub
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError

    at = f"{name} ({revision})" if revision else name
    try:
        patterns = ["*.json", "*.safetensors"] if weights else ["*.json"]
        folder = Path(hub.snapshot_download(name, revision=revision, allow_patterns=patterns))
        if weights and not any(folder.glob("*.safetensors")):
            hub.snapshot_download(name, revision=revision, allow_patterns=["*.bin"])
        return folder
    except (GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError) as error:
        raise CheckpointError(
            f"the hub has no {at}, or it needs `hf auth login`: check the name and the revision",
            f"허브에 {at} 모델이 없거나 `hf auth login`이 필요합니다. 이름과 리비전을 확인하세요",
        ) from error
    except Exception as error:  # no network, no answer, a full disk: the client has no common base for them
        kind = type(error).__name__
        raise CheckpointError(
            f"no folder {name}, and {at} could not be downloaded from the hub ({kind}): "
            "connect to the network, or give the folder of a copy",
            f"{name} 폴더가 없고, 허브에서 {at} 모델을 내려받을 수도 없습니다 ({kind}). "
            "네트워크에 연결하거나 이미 받은 폴더를 지정하세요",
        ) from error


def digest(folder: Path) -> str:
    """SHA-256 over config.json and the weights of a model folder: equal for what computes the same."""
    weights = sorted(path for path in folder.iterdir() if path.suffix in (".safetensors", ".bin"))
    total = hashlib.sha256()
    for path in (folder / "config.json", *weights):
        with path.open("rb") as file:
            total.update(hashlib.file_digest(file, "sha256").digest())
    return total.hexdigest()


def safe_join(folder: Path, name: str) -> Path:
    """The regular file `name` of `folder`; CheckpointError if it is missing or would lie outside.

    A link may lead to where the hub's cache keeps the blobs of the same repository, and nowhere else.
    """
    if not all(FILE_NAME.fullmatch(part) for part in name.split("/")):
        raise _outside(folder, name)
    path, root = folder / name, folder.resolve()
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
    shown = repr(name[:200])
    return CheckpointError(
        f"{folder} names a file outside itself, {shown}: refused",
        f"{folder}: 폴더 밖의 파일 {shown} 접근을 거부합니다",
    )


def read_json(
    path: Path, max_bytes: int = MAX_JSON_BYTES, error: type[KoGPTError] = CheckpointError
) -> dict[str, Any]:
    """The object of a JSON file that may be hostile; `error` if it is too large or not valid."""
    n_bytes = path.stat().st_size
    if n_bytes > max_bytes:
        raise error(
            f"{path} has {n_bytes:,} bytes, at most {max_bytes:,} are read",
            f"{path}: {n_bytes:,}바이트 (최대 {max_bytes:,}바이트)",
        )
    with path.open("rb") as file:
        return parse_json(file.read(max_bytes), str(path), error)


def _weight_files(folder: Path) -> list[Path]:
    """A folder's files of weights: safetensors before the layout of 2021, one file before shards."""
    for weights, index in ((WEIGHTS, INDEX), (LEGACY_WEIGHTS, LEGACY_INDEX)):
        if os.path.lexists(folder / weights):
            return [safe_join(folder, weights)]
        if os.path.lexists(folder / index):
            return [safe_join(folder, name) for name in sorted(set(_weight_map(folder, index).values()))]
    raise CheckpointError(
        f"{folder} holds no weights: no {WEIGHTS}, {INDEX}, {LEGACY_WEIGHTS} or {LEGACY_INDEX}",
        f"{folder}: 가중치 파일({WEIGHTS}, {INDEX}, {LEGACY_WEIGHTS}, {LEGACY_INDEX})이 없습니다",
    )


def _weight_map(folder: Path, index: str) -> dict[str, str]:
    """Tensor -> file, from an index; every file is one of this folder's own, of the index's kind."""
    suffix = Path(index.removesuffix(".index.json")).suffix
    weight_map = read_json(safe_join(folder, index)).get("weight_map")
    if type(weight_map) is not dict or not weight_map:
        raise damaged(folder / index, "weight_map is not an object of file names")
    for name in weight_map.values():
        if type(name) is not str or not FILE_NAME.fullmatch(name):
            raise _outside(folder, str(name))
        if not name.endswith(suffix):
            raise damaged(folder / index, f"{name[:100]!r} is not a {suffix} file")
    return weight_map


def _require_index(folder: Path, shards: list[WeightsFile]) -> None:
    """Hold an index to what its shards contain."""
    name = shards[0].path.name
    if name in (WEIGHTS, LEGACY_WEIGHTS):
        return
    index = INDEX if name.endswith(".safetensors") else LEGACY_INDEX
    weight_map = _weight_map(folder, index)
    for shard in shards:
        for tensor in shard.tensors:
            if weight_map.get(tensor) != shard.path.name:
                raise damaged(folder / index, f"{tensor} is in {shard.path.name}, which it does not say")


def _select(
    config: ModelConfig, shards: Iterable[WeightsFile], quantization: str | None
) -> dict[str, Stored | Quantized]:
    """The tensors that the config asks for, in its order: none missing, none left over, all in shape."""
    found: dict[str, Stored] = {}
    for shard in shards:
        if twice := next((name for name in shard.tensors if name in found), None):
            raise damaged(shard.path, f"{twice} is in another shard already")
        found |= shard.tensors
    if config.tied_head and quantization is None and HEAD in found:
        _require_copy(found.pop(HEAD), found.get(EMBEDDING))
    if (
        len(found) < config.n_layers
    ):  # refused before a layout is made for each of the layers that are claimed
        _require_names(config.tensor_shapes(), found)
    layout = _layout(config, quantization)
    expected = {part: kind for group in layout.values() for part, kind in group.items()}
    _require_names(expected, found)
    for name, (dtype, shape) in expected.items():
        if found[name].array.shape != shape:
            raise wrong_shape(name, shape, found[name].array.shape)
        kinds = WIDTHS if dtype in WIDTHS else (dtype,)
        if found[name].dtype not in kinds:
            raise _wrong_dtype(name, " or ".join(kinds), found[name].dtype)
    tensors: dict[str, Stored | Quantized] = {name: found[name] for name in layout}
    if quantization is not None:
        for name, shape in matrices(config).items():
            tensors[name] = Quantized.of_parts(name, quantization, shape, found)
    return tensors


def _layout(config: ModelConfig, dtype: str | None, embedding: str = "float16") -> dict[str, dict[str, Part]]:
    """Each tensor of the model -> the tensors of a file that hold it, with their dtypes and shapes.

    dtype: of all floats (None: float32 stands for any), or int8 or int4; only then the embedding has its own.
    """
    if dtype not in FORMATS:
        return {name: {name: (dtype or "float32", shape)} for name, shape in config.tensor_shapes().items()}
    kinds = {EMBEDDING: embedding}
    layout = {
        name: {name: (kinds.get(name, "float32"), shape)} for name, shape in config.tensor_shapes().items()
    }
    return layout | {name: parts(name, dtype, shape) for name, shape in matrices(config).items()}


def _require_names(expected: Mapping[str, Any], found: Mapping[str, Any]) -> None:
    missing = [name for name in expected if name not in found]
    extra = [name for name in found if name not in expected]
    if missing or extra:
        parts = [(missing, "missing", "없음"), (extra, "not of this model", "이 모델에 없는 텐서")]
        en = "; ".join(f"{len(names)} {word}: {_some(names)}" for names, word, _ in parts if names)
        ko = "; ".join(f"{word} {len(names)}개: {_some(names)}" for names, _, word in parts if names)
        raise CheckpointError(
            f"tensors do not fit config.json, expected {len(expected)}, found {len(found)}: {en}",
            f"텐서가 config.json과 맞지 않습니다. 필요 {len(expected)}개, 발견 {len(found)}개: {ko}",
        )


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")


def _wrong_dtype(name: str, expected: str, found: str) -> CheckpointError:
    return CheckpointError(
        f"tensor {name}: {expected} expected, found {found}; get the folder again, or export it again",
        f"텐서 {name}: 필요한 형식은 {expected}, 발견한 형식은 {found}. 폴더를 다시 받거나 다시 내보내세요",
    )


def _require_copy(head: Stored, embedding: Stored | None) -> None:
    """A tied head may be stored once more, as some writers do, but not with values of its own."""
    if embedding is None or head.dtype != embedding.dtype or not (head.array == embedding.array).all():
        raise CheckpointError(
            "config.json ties the head to the embedding (tie_word_embeddings), but lm_head.weight is not "
            "transformer.wte.weight: set tie_word_embeddings to false, or remove lm_head.weight",
            "config.json은 tie_word_embeddings인데 lm_head.weight와 transformer.wte.weight가 다릅니다. "
            "tie_word_embeddings를 false로 바꾸거나 lm_head.weight를 빼세요",
        )


# ------------------------------------------------------------------------------------------- every byte


def _read_manifest(folder: Path) -> _Manifest | None:
    """What the manifest says; None, and a line in the log, where there is none."""
    if not os.path.lexists(folder / MANIFEST):
        en = f"{folder} has no {MANIFEST}: its files could not be verified"
        logger.warning(localized(en, f"{folder}: {MANIFEST} 파일이 없어 무결성을 확인하지 못했습니다"))
        return None
    path = safe_join(folder, MANIFEST)
    document = read_json(path)
    if document.get("version") != MANIFEST_VERSION:
        shown = str(document.get("version"))[:40]
        raise CheckpointError(
            f"{path} has version {shown}, this KoGPT reads version {MANIFEST_VERSION}: upgrade kogpt",
            f"{path}: 버전 {shown} (지원: {MANIFEST_VERSION}). kogpt를 업그레이드하세요",
        )
    files = document.get("files")
    if type(files) is not dict:
        raise damaged(path, "files is not an object")
    entries = {name: _entry(path, name, entry) for name, entry in files.items()}
    return _Manifest(entries, document.get("quantization"))


def _entry(path: Path, name: str, entry: Any) -> _Entry:
    if type(entry) is not dict or entry.keys() != {"bytes", "sha256"}:
        raise damaged(path, f"{name[:100]!r} is not described by bytes and sha256")
    if type(entry["bytes"]) is not int or not re.fullmatch(r"[0-9a-f]{64}", str(entry["sha256"])):
        raise damaged(path, f"{name[:100]!r} has no SHA-256 of 64 hexadecimal digits")
    return _Entry(entry["bytes"], entry["sha256"])


def _verify(folder: Path, shards: list[WeightsFile], manifest: Mapping[str, _Entry] | None) -> None:
    """Every byte read once: digests as the manifest has them, no weight NaN or infinite."""
    entries = manifest or {}
    used = ["config.json", *(shard.path.name for shard in shards)]
    if manifest is not None and (unlisted := next((name for name in used if name not in manifest), None)):
        raise _differs(folder / unlisted, "no such file", "one")
    for name, entry in entries.items():
        if (n_bytes := safe_join(folder, name).stat().st_size) != entry.n_bytes:
            raise _differs(folder / name, f"{entry.n_bytes:,} bytes", f"{n_bytes:,}")
    with ExitStack() as stack:
        files = list(shards)
        for name in entries.keys() - used[1:]:
            file = stack.enter_context((folder / name).open("rb"))
            files.append(WeightsFile(folder / name, file, {}, [(name, None, entries[name].n_bytes)]))
        _scan_all(folder, files, entries)


def _scan_all(folder: Path, files: list[WeightsFile], entries: Mapping[str, _Entry]) -> None:
    """Scan files side by side: hashing, reading and numpy all let go of the interpreter's lock."""
    from concurrent.futures import ThreadPoolExecutor

    names = [file.path.relative_to(folder).as_posix() for file in files]
    pool = ThreadPoolExecutor(min(len(files), os.cpu_count() or 1, 8))
    try:
        digests = pool.map(lambda file, name: file.scan(name in entries), files, names)
        for file, name, digest in zip(files, names, digests, strict=True):
            if digest is not None and digest != entries[name].sha256:
                raise _differs(file.path, f"SHA-256 {entries[name].sha256[:16]}...", f"{digest[:16]}...")
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _differs(path: Path, expected: str, found: str) -> CheckpointError:
    return CheckpointError(
        f"{path} is not as {MANIFEST} describes it: expected {expected}, found {found}; get it again",
        f"{path}: {MANIFEST}의 내용과 다릅니다. 기대값 {expected}, 실제 {found}. 파일을 다시 받으세요",
    )


# ---------------------------------------------------------------------------------------------- writing


def save(
    folder: Path,
    config: ModelConfig,
    tensors: Mapping[str, NDArray[Any] | Stored | Quantized],
    dtype: str = "float16",
    tokenizer: Path | None = None,
    shard_bytes: int = SHARD_BYTES,
) -> None:
    """Write a model folder that this package reads, and transformers where dtype is one of floats.

    dtype: of all tensors; or int8 or int4, then `tensors` has the matrices Quantized, vectors are stored in
    float32 and the embedding in its own 16 bits, or in float16. `tensors` may be lazy: each is asked for once
    and written in pieces. `tokenizer` is a tokenizer.json or a folder that has one, whose licence is taken
    along. Saving over a model, even one that is in use, replaces it as a whole or not at all.
    CheckpointError if a tensor is missing, extra, of another shape or too large for `dtype`.
    """
    if dtype not in WIDTHS and dtype not in FORMATS:
        raise CheckpointError(
            f"weights cannot be stored as {dtype!r}, only as {', '.join((*WIDTHS, *FORMATS))}",
            f"가중치를 {dtype!r} 형식으로 저장할 수 없습니다 (가능: {', '.join((*WIDTHS, *FORMATS))})",
        )
    float_dtype = dtype
    if dtype in FORMATS:
        given = tensors.get(EMBEDDING)  # a mapped file's, or an array: it is asked for twice
        float_dtype = "bfloat16" if isinstance(given, Stored) and given.dtype == "bfloat16" else "float16"
    layout = _layout(config, dtype, float_dtype)
    _require_names(layout, tensors)
    shards = _plan_shards(layout, shard_bytes)
    documents = _documents(config, float_dtype, shards) | _tokenizer_documents(config, tokenizer)
    names = [*shards, *documents, MANIFEST]
    is_new = not folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with _replace_all(folder, names, stale=OWN_WEIGHTS) as files:
            entries = _digest_folder(folder, lambda name: name in names or OWN_WEIGHTS.fullmatch(name))
            for name, group in shards.items():
                entries[name] = _Entry(*write_safetensors(files[name], group, _parts(group, tensors)))
            for name, data in documents.items():
                files[name].write(data)
                entries[name] = _Entry(len(data), hashlib.sha256(data).hexdigest())
            stated = statement(config, dtype) if dtype in FORMATS else None
            files[MANIFEST].write(_manifest(entries, stated))
    except BaseException:
        if is_new:
            with suppress(OSError):  # another process may have put something there
                folder.rmdir()
        raise


def write_manifest(folder: Path) -> None:
    """(Re)write kogpt.manifest.json over every file in the folder now; how it is quantised stays."""
    stated = read_json(folder / MANIFEST).get("quantization") if (folder / MANIFEST).exists() else None
    entries = _digest_folder(folder, MANIFEST.__eq__)
    with atomic_write(folder / MANIFEST) as file:
        file.write(_manifest(entries, stated))


@contextmanager
def atomic_write(path: Path) -> Iterator[IO[bytes]]:
    """Write a file whole or not at all: temporary name, fsync, rename, fsync of the folder."""
    with _replace_all(path.parent, [path.name]) as files:
        yield files[path.name]


@contextmanager
def _replace_all(
    folder: Path, names: list[str], stale: re.Pattern[str] | None = None
) -> Iterator[Mapping[str, IO[bytes]]]:
    """Files that take their places together when the block ends well, and vanish when it does not.

    All are synced before the first is renamed, and readers wait meanwhile; other files that match `stale` go
    with what they belonged to. A crash between two renames leaves a folder whose manifest, renamed last,
    does not fit.
    """
    temporary = {name: folder / f".{os.urandom(8).hex()}.tmp" for name in names}
    try:
        with ExitStack() as stack:
            files = {name: stack.enter_context(path.open("xb")) for name, path in temporary.items()}
            yield files
            for file in files.values():
                file.flush()
                os.fsync(file.fileno())
        with _locked(folder, exclusive=len(names) > 1):
            for name, path in temporary.items():
                path.replace(folder / name)
            if stale is not None:
                for name in os.listdir(folder):
                    if stale.fullmatch(name) and name not in names:
                        (folder / name).unlink()
            _sync_folder(folder)
    finally:
        for path in temporary.values():
            path.unlink(missing_ok=True)


@contextmanager
def _locked(folder: Path, exclusive: bool) -> Iterator[None]:
    """Keep other processes from replacing (exclusive: also from loading) a folder, where locks exist."""
    if sys.platform == "win32":
        yield
        return
    import fcntl

    descriptor = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH)
        except OSError as error:  # some network file systems; the manifest still tells a mixture
            logger.debug("no lock on %s: %s", folder, error)
        yield
    finally:
        os.close(descriptor)


def _sync_folder(folder: Path) -> None:
    if sys.platform == "win32":
        return  # folders cannot be opened there, and the file system journals renames
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _plan_shards(layout: Mapping[str, Mapping[str, Part]], shard_bytes: int) -> dict[str, dict[str, Part]]:
    """What each file holds, by its name: one file if all fits into `shard_bytes`, a tensor never cut."""
    groups: list[dict[str, Part]] = [{}]
    room = shard_bytes
    for tensor in layout.values():
        size = sum(math.prod(shape) * SIZES[dtype] for dtype, shape in tensor.values())
        if size > room and groups[-1]:
            groups.append({})
            room = shard_bytes
        groups[-1].update(tensor)
        room -= size
    if len(groups) == 1:
        return {WEIGHTS: groups[0]}
    return {f"model-{i:05}-of-{len(groups):05}.safetensors": group for i, group in enumerate(groups, 1)}


def _parts(
    names: Iterable[str], tensors: Mapping[str, NDArray[Any] | Stored | Quantized]
) -> Iterator[tuple[str, Stored]]:
    """The tensors of a file one by one; each of the model's is asked for once, for its first part."""
    for name in names:
        if name not in tensors:
            continue  # a further part of the matrix before it
        tensor = tensors[name]
        if isinstance(tensor, Quantized):
            yield from tensor.parts(name).items()
        else:
            yield name, tensor if isinstance(tensor, Stored) else Stored(tensor.dtype.name, tensor)


def _documents(config: ModelConfig, dtype: str, shards: Mapping[str, Mapping[str, Part]]) -> dict[str, bytes]:
    """config.json, generation_config.json and, for shards, the index."""
    settings = {"torch_dtype": dtype, "tokenizer_class": "PreTrainedTokenizerFast", "use_cache": True}
    ids = {"bos_token_id": config.bos_token_id, "eos_token_id": config.eos_token_id}
    # transformers' generate() takes the padding from here, whatever from_pretrained was told.
    generation = ids | {"pad_token_id": config.eos_token_id}
    documents = {"config.json": config.to_json() | settings, "generation_config.json": generation}
    if len(shards) > 1:
        weight_map = {tensor: name for name, group in shards.items() for tensor in group}
        kinds = [kind for group in shards.values() for kind in group.values()]
        total = {"total_size": sum(math.prod(shape) * SIZES[dtype] for dtype, shape in kinds)}
        documents[INDEX] = {"metadata": total, "weight_map": weight_map}
    return {name: _dump(document) for name, document in documents.items()}


def _tokenizer_documents(config: ModelConfig, tokenizer: Path | None) -> dict[str, bytes]:
    """The tokenizer's files and licence as they are, and transformers' settings where there are none."""
    if tokenizer is None:
        return {}
    folder = tokenizer if tokenizer.is_dir() else tokenizer.parent
    documents = {
        name: (folder / name).read_bytes()
        for name in (*TOKENIZER_FILES, LICENSE)
        if (folder / name).is_file()
    }
    if not tokenizer.is_dir():
        documents["tokenizer.json"] = tokenizer.read_bytes()
    if "tokenizer.json" not in documents:
        raise CheckpointError(f"{folder} has no tokenizer.json", f"{folder}: tokenizer.json 파일이 없습니다")
    if "tokenizer_config.json" not in documents:
        document = parse_json(documents["tokenizer.json"], str(tokenizer))
        added = {token["content"] for token in document.get("added_tokens") or ()}
        roles = {f"{role}_token": f"[{role.upper()}]" for role in ("bos", "eos", "unk", "pad", "mask")}
        settings = {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": config.n_ctx}
        special = {role: content for role, content in roles.items() if content in added}
        documents["tokenizer_config.json"] = _dump(settings | special)
    return documents


def _digest_folder(folder: Path, skip: Callable[[str], object]) -> dict[str, _Entry]:
    """Size and digest of every file under a folder that is neither hidden nor skipped."""
    entries = {}
    for path in folder.rglob("*"):
        name = path.relative_to(folder).as_posix()
        if skip(name) or not path.is_file() or any(part.startswith(".") for part in name.split("/")):
            continue
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
