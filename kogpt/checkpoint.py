"""A model folder or hub name <-> (config, tensors).

    read      load, stored_format, digest
    write     save

A folder holds config.json, model.safetensors (or shards and their index), tokenizer files, and
kogpt.manifest.json with a SHA-256 of every file. pytorch_model.bin, the layout of 2021, is read as well.
Whatever a folder claims is checked before it is used: names, shapes and sizes in milliseconds, then every
byte (manifest.py), beside the first step of a runner if its caller sees to that.

Knows nothing of runners, text or devices.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any

from numpy.typing import NDArray

from kogpt import phi
from kogpt.config import ModelConfig
from kogpt.errors import CheckpointError
from kogpt.files import (
    FILE_NAME,
    damaged,
    open_inside,
    outside,
    parse_json,
    read_json,
    read_limited,
    replace_all,
    safe_join,
    share_folder,
)
from kogpt.gguf_file import NAME as GGUF_NAME
from kogpt.gguf_file import open_gguf
from kogpt.hub import find_folder
from kogpt.layout import file_layout, require_copy, require_names, select
from kogpt.manifest import (
    MANIFEST,
    Entry,
    Manifest,
    Verification,
    digest_folder,
    read_manifest,
    to_bytes,
    verify_settings,
    verify_weights,
)
from kogpt.quantize import EMBEDDING, FORMATS, Floats, Part, Quantized, read_statement, statement
from kogpt.weights import (
    SIZES,
    WIDTHS,
    OpenFile,
    Stored,
    WeightsFile,
    is_small,
    open_safetensors,
    write_safetensors,
)

__all__ = ["Checkpoint", "Stored", "digest", "load", "read_config", "save", "stored_format"]

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
LEGACY_WEIGHTS = "pytorch_model.bin"
LEGACY_INDEX = "pytorch_model.bin.index.json"
TOKENIZER = "tokenizer.json"
# Largest size of each file that is taken along; a vocabulary of 200,000 takes 15 MB.
TAKEN_ALONG = {
    TOKENIZER: 32 << 20,
    "tokenizer_config.json": 4 << 20,
    "special_tokens_map.json": 1 << 20,
    "generation_config.json": 1 << 20,
    "LICENSE": 1 << 20,
    "LICENSE.md": 1 << 20,
    "LICENSE.txt": 1 << 20,
    "README.md": 1 << 20,
}
MAX_CONFIG_BYTES = 256 << 10  # a published config.json takes 1 to 20 kB
MAX_INDEX_BYTES = 8 << 20  # 65,536 tensors

# Weights of any format that is read here, and the Modelfile that names a GGUF file.
REPLACED = re.compile(
    r"(model(-\d{5}-of-\d{5})?\.safetensors|pytorch_model(-\d{5}-of-\d{5})?\.bin)(\.index\.json)?|Modelfile|"
    + GGUF_NAME.pattern
)
# The same with card and licence, which would be wrong for another model.
WHOLE_MODEL = re.compile(
    rf"{REPLACED.pattern}|LICENSE\.[\w.-]+|{'|'.join(map(re.escape, TAKEN_ALONG))}", re.ASCII
)
SHARD_BYTES = 2 << 30

Writer = Callable[[IO[bytes]], Entry]  # writes a file


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A model on disk; `tensors` has exactly the keys and shapes of `config.tensor_shapes()`.

    quantization: None, or "int8" or "int4": the matrices are then Quantized (see quantize.py), and a tied
    head is there as lm_head.weight.
    verification: of the weights, where `load` left it to its caller.
    """

    folder: Path
    config: ModelConfig
    tensors: Mapping[str, Stored | Quantized]
    quantization: str | None = None
    verification: Verification | None = None

    def floats(self) -> Mapping[str, Stored]:
        """The tensors as floats, quantised ones unpacked as they are asked for."""
        return Floats(self.config, self.tensors)


def load(name: str | Path, revision: str | None = None, beside: bool = False) -> Checkpoint:
    """Open a folder, a built-in name or a hub name. CheckpointError, ConfigError, MissingExtra if unfit.

    beside: large weights are not verified yet; whoever shows something of them waits for
    `Checkpoint.verification` first.
    """
    folder = find_folder(name, revision)
    with _readable(folder), share_folder(folder):
        return _load_folder(folder, beside)


@contextmanager
def _readable(folder: Path) -> Iterator[None]:
    """CheckpointError where the system cannot read a file of the folder."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        raise CheckpointError(
            f"cannot read the model folder {folder}: {reason}",
            f"모델 폴더를 읽을 수 없습니다: {folder} ({reason})",
        ) from error


def _load_folder(folder: Path, beside: bool) -> Checkpoint:
    manifest = read_manifest(folder)
    document = read_json(safe_join(folder, "config.json"), MAX_CONFIG_BYTES)
    config = _config_of(document)
    stated = None if manifest is None else manifest.quantization
    quantization = read_statement(stated, config, str(folder / MANIFEST))
    verification = None
    with ExitStack() as stack:
        files = _open_shards(folder, stack, config, quantization is not None)
        _require_index(folder, files)
        shards = files
        if phi.is_phi(document):
            shards = [replace(file, tensors=phi.from_phi(config, file.tensors)) for file in files]
        tensors, copy_of_embedding = select(config, shards, quantization)
        verify_settings(folder, files, manifest)
        if beside and not is_small([file.file for file in files]):
            verification = _verification(folder, files, manifest, stack.pop_all())
        else:
            verify_weights(folder, files, manifest)
        if phi.is_phi(document):
            phi.require_no_bias(config, files)
    if copy_of_embedding is not None:
        require_copy(copy_of_embedding.load(), tensors[EMBEDDING])
    return Checkpoint(folder, config, tensors, quantization, verification)


def _verification(
    folder: Path, files: list[WeightsFile], manifest: Manifest | None, opened: ExitStack
) -> Verification:
    """The check of weights that may be read before it; `opened` closes the files."""
    sources = [OpenFile(file.path, file.file.fileno()) for file in files]

    def check() -> None:
        with _readable(folder), opened:
            verify_weights(folder, files, manifest)
            for source in sources:  # a file that changed meanwhile was not verified as it was loaded
                source.require_unchanged()

    verification = Verification(check)
    weakref.finalize(verification, opened.close)  # where nobody waits for it
    return verification


def read_config(folder: Path) -> ModelConfig:
    """The dimensions in a folder's config.json. CheckpointError, ConfigError."""
    return _config_of(read_json(safe_join(folder, "config.json"), MAX_CONFIG_BYTES))


def _config_of(document: Mapping[str, Any]) -> ModelConfig:
    return ModelConfig.from_json(phi.from_config(document) if phi.is_phi(document) else document)


def _open_shards(folder: Path, stack: ExitStack, config: ModelConfig, quantized: bool) -> list[WeightsFile]:
    """Open a folder's files of weights, which stay open as long as `stack`."""
    names = _weight_files(folder)
    files = [stack.enter_context(open_inside(folder, name)) for name in names]
    copy = is_small(files)
    # Describing a tensor takes about 110 bytes: five times as much, and room for metadata.
    max_header = (64 << 10) + 512 * len(config.tensor_shapes())
    openers: dict[str, Callable[[Path, IO[bytes]], WeightsFile]] = {
        ".safetensors": lambda path, file: open_safetensors(path, file, max_header, quantized, copy),
        ".bin": lambda path, file: _open_archive(path, file, copy),
        ".gguf": open_gguf,
    }
    paths = [folder / name for name in names]
    return [openers[path.suffix](path, file) for path, file in zip(paths, files, strict=True)]


def _open_archive(path: Path, file: IO[bytes], copy: bool) -> WeightsFile:
    from kogpt.torch_archive import open_archive  # zipfile and pickletools, which other folders do not need

    return open_archive(path, file, copy)


def stored_format(folder: Path) -> tuple[str, int] | None:
    """The format in which a local folder stores its weights, and their bytes; None where they are not there.

    Reads the manifest and the headers of the weights, not the weights.
    """
    try:
        names = _weight_files(folder)
    except CheckpointError:
        return None
    if not all(os.path.exists(folder / name) for name in names):  # an index can come without its shards
        return None
    manifest = read_manifest(folder)
    config = read_config(folder)
    stated = None if manifest is None else manifest.quantization
    dtype = read_statement(stated, config, str(folder / MANIFEST))
    with ExitStack() as stack:
        shards = _open_shards(folder, stack, config, dtype is not None)
        tensors = [tensor for shard in shards for tensor in shard.tensors.values()]
    if not tensors:
        raise damaged(folder / names[0], "it holds no tensors")
    if (found := GGUF_NAME.fullmatch(names[0])) is not None:
        dtype = f"GGUF {found[1]}"  # its blocks would pass for float32
    elif dtype is None:
        dtype = max(tensors, key=lambda tensor: math.prod(tensor.shape) * SIZES[tensor.dtype]).dtype
    return dtype, sum(safe_join(folder, name).stat().st_size for name in names)


def digest(folder: Path) -> str:
    """SHA-256 over config.json and the weights of a model folder: equal for what computes the same."""
    weights = sorted(path for path in folder.iterdir() if path.suffix in (".safetensors", ".bin", ".gguf"))
    total = hashlib.sha256()
    for path in (folder / "config.json", *weights):
        with open_inside(folder, path.name) as file:
            total.update(hashlib.file_digest(file, "sha256").digest())
    return total.hexdigest()


def _weight_files(folder: Path) -> list[str]:
    """Names of a folder's files of weights: safetensors before the layout of 2021, one file before shards."""
    for weights, index in ((WEIGHTS, INDEX), (LEGACY_WEIGHTS, LEGACY_INDEX)):
        if os.path.lexists(folder / weights):
            return [weights]
        if os.path.lexists(folder / index):
            return sorted(set(_weight_map(folder, index).values()))
    found = sorted(name for name in os.listdir(folder) if GGUF_NAME.fullmatch(name))
    if len(found) == 1:
        return found
    if found:
        shown = ", ".join(found)
        raise CheckpointError(
            f"{folder} holds several GGUF files ({shown}): keep one",
            f"{folder}: GGUF 파일이 여러 개 있습니다({shown}). 하나만 남기세요",
        )
    raise CheckpointError(
        f"{folder} holds no weights: no {WEIGHTS}, {INDEX}, {LEGACY_WEIGHTS}, {LEGACY_INDEX}, GGUF file",
        f"{folder}: 가중치 파일({WEIGHTS}, {INDEX}, {LEGACY_WEIGHTS}, {LEGACY_INDEX}, GGUF)이 없습니다",
    )


def _weight_map(folder: Path, index: str) -> dict[str, str]:
    """Tensor -> file, from an index; every file is one of this folder's own, of the index's kind."""
    suffix = Path(index.removesuffix(".index.json")).suffix
    weight_map = read_json(safe_join(folder, index), MAX_INDEX_BYTES).get("weight_map")
    if type(weight_map) is not dict or not weight_map:
        raise damaged(folder / index, "weight_map is not an object of file names")
    for name in weight_map.values():
        if type(name) is not str or not FILE_NAME.fullmatch(name):
            raise outside(folder, str(name))
        if not name.endswith(suffix):
            raise damaged(folder / index, f"{name[:100]!r} is not a {suffix} file")
    return weight_map


def _require_index(folder: Path, shards: list[WeightsFile]) -> None:
    """Hold an index to what its shards contain."""
    name = shards[0].path.name
    if name in (WEIGHTS, LEGACY_WEIGHTS) or GGUF_NAME.fullmatch(name):
        return
    index = INDEX if name.endswith(".safetensors") else LEGACY_INDEX
    weight_map = _weight_map(folder, index)
    for shard in shards:
        for tensor in shard.tensors:
            if weight_map.get(tensor) != shard.path.name:
                raise damaged(folder / index, f"{tensor} is in {shard.path.name}, which it does not say")


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
    writers = model_writers(config, tensors, dtype, shard_bytes)
    writers |= plain_writers({} if tokenizer is None else taken_along(config, tokenizer))
    write_folder(folder, writers, statement(config, dtype) if dtype in FORMATS else None)


def model_writers(
    config: ModelConfig,
    tensors: Mapping[str, NDArray[Any] | Stored | Quantized],
    dtype: str,
    shard_bytes: int = SHARD_BYTES,
) -> dict[str, Writer]:
    """The writers of a model folder's weights and settings; arguments and errors as of `save`."""
    if dtype not in WIDTHS and dtype not in FORMATS:
        raise CheckpointError(
            f"weights cannot be stored as {dtype!r}, only as {', '.join((*WIDTHS, *FORMATS))}",
            f"가중치를 {dtype!r} 형식으로 저장할 수 없습니다 (가능: {', '.join((*WIDTHS, *FORMATS))})",
        )
    float_dtype = dtype
    if dtype in FORMATS:
        given = tensors.get(EMBEDDING)  # a file's, or an array: it is asked for twice
        float_dtype = "bfloat16" if isinstance(given, Stored) and given.dtype == "bfloat16" else "float16"
    layout = file_layout(config, dtype, float_dtype)
    require_names(layout, tensors)
    documents = settings_documents(config, config.to_json(), float_dtype)
    return weights_writers(layout, tensors, shard_bytes) | plain_writers(documents)


def write_folder(
    folder: Path,
    writers: Mapping[str, Writer],
    stated: Mapping[str, Any] | None = None,
    stale: re.Pattern[str] = REPLACED,
) -> None:
    """Write the files of a model folder and its manifest; what is there is replaced as a whole or not at all.

    writers: a function for each file; it writes the file and returns size and digest. stated: the statement
    about quantised weights. stale: names of files that leave where they are not written anew; by default
    weights of other formats, and a Modelfile.
    """
    names = [*writers, MANIFEST]
    is_new = not folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with replace_all(folder, names, stale) as files:
            entries = digest_folder(folder, lambda name: name in names or stale.fullmatch(name))
            for name, write in writers.items():
                entries[name] = write(files[name])
            files[MANIFEST].write(to_bytes(entries, stated))
    except BaseException:
        if is_new:
            with suppress(OSError):  # another process may have put something there
                folder.rmdir()
        raise


def weights_writers(
    layout: Mapping[str, Mapping[str, Part]],
    tensors: Mapping[str, NDArray[Any] | Stored | Quantized],
    shard_bytes: int = SHARD_BYTES,
) -> dict[str, Writer]:
    """The writers of one weights file, or of shards and their index. Each tensor is read once."""
    shards = _plan_shards(layout, shard_bytes)

    def writer(group: Mapping[str, Part]) -> Writer:
        return lambda file: Entry(*write_safetensors(file, group, _parts(group, tensors)))

    writers = {name: writer(group) for name, group in shards.items()}
    if len(shards) > 1:
        weight_map = {tensor: name for name, group in shards.items() for tensor in group}
        kinds = [kind for group in shards.values() for kind in group.values()]
        total = {"total_size": sum(math.prod(shape) * SIZES[dtype] for dtype, shape in kinds)}
        writers |= plain_writers({INDEX: _dump({"metadata": total, "weight_map": weight_map})})
    return writers


def plain_writers(documents: Mapping[str, bytes]) -> dict[str, Writer]:
    """A writer for each of these files, by its name."""

    def writer(data: bytes) -> Writer:
        def write(file: IO[bytes]) -> Entry:
            file.write(data)
            return Entry(len(data), hashlib.sha256(data).hexdigest())

        return write

    return {name: writer(data) for name, data in documents.items()}


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


def settings_documents(config: ModelConfig, document: Mapping[str, Any], dtype: str) -> dict[str, bytes]:
    """config.json, whose layout is that of `document`, and generation_config.json."""
    settings = {"torch_dtype": dtype, "tokenizer_class": "PreTrainedTokenizerFast", "use_cache": True}
    ids = {key: config.to_json()[key] for key in ("bos_token_id", "eos_token_id")}
    # transformers' generate() takes the padding from here, whatever from_pretrained was told.
    generation = ids | {"pad_token_id": config.eos_token_id}
    documents = {"config.json": {**document, **settings}, "generation_config.json": generation}
    return {name: _dump(document) for name, document in documents.items()}


def taken_along(config: ModelConfig, tokenizer: Path) -> dict[str, bytes]:
    """The tokenizer's files, card and licence as they are, and transformers' settings where there are none.

    tokenizer: a tokenizer.json, or a folder that has one. CheckpointError where there is none.
    """
    folder = tokenizer if tokenizer.is_dir() else tokenizer.parent
    documents = {
        name: read_limited(safe_join(folder, name), max_bytes)
        for name, max_bytes in TAKEN_ALONG.items()
        if os.path.lexists(folder / name)
    }
    if not tokenizer.is_dir():
        documents[TOKENIZER] = read_limited(tokenizer, TAKEN_ALONG[TOKENIZER])
    if TOKENIZER not in documents:
        raise CheckpointError(f"{folder} has no tokenizer.json", f"{folder}: tokenizer.json 파일이 없습니다")
    if "tokenizer_config.json" not in documents:
        path = tokenizer / TOKENIZER if tokenizer.is_dir() else tokenizer
        added = _added_contents(parse_json(documents[TOKENIZER], str(path)), path)
        roles = {f"{role}_token": f"[{role.upper()}]" for role in ("bos", "eos", "unk", "pad", "mask")}
        settings = {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": config.n_ctx}
        special = {role: content for role, content in roles.items() if content in added}
        documents["tokenizer_config.json"] = _dump(settings | special)
    return documents


def _added_contents(document: Mapping[str, Any], path: Path) -> set[str]:
    """The texts of the tokens that a tokenizer.json adds to its vocabulary."""
    tokens = document.get("added_tokens") or []
    if type(tokens) is not list or not all(type(token) is dict for token in tokens):
        raise damaged(path, "added_tokens is not a list of tokens")
    contents = [token.get("content") for token in tokens]
    return {content for content in contents if type(content) is str}


def _dump(document: Mapping[str, Any]) -> bytes:
    return (json.dumps(document, ensure_ascii=False, indent=2) + "\n").encode()
