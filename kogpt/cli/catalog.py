"""`kogpt models`: the models that are here, built in or in the hub's cache."""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from kogpt import checkpoint, hub
from kogpt.cli.info import describe, shown_size
from kogpt.cli.machine import gpus
from kogpt.errors import InputError, KoGPTError, columns, localized, pad
from kogpt.memory import available_memory

LICENCES = {"kakaobrain/kogpt": "cc-by-nc-nd-4.0"}  # where no model card is in the cache
CARD_BYTES = 4096  # bytes at the start of a model card, where its licence stands


@dataclass(frozen=True, slots=True)
class Model:
    """One model that needs no download; the names of the fields are those of --json."""

    model: str
    revision: str | None
    bytes: int
    licence: str | None
    fits: str | None  # the most exact precision that fits a GPU or the memory of this machine


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `kogpt models`."""
    parser.add_argument("--json", action="store_true", help="print one JSON object for each model")


def run(args: argparse.Namespace) -> int:
    """Print the models."""
    models = [*_built_in(), *_cached()]
    if args.json:
        print("\n".join(json.dumps(asdict(model), ensure_ascii=False) for model in models))
        return 0
    head = localized("model revision size licence fits", "모델 리비전 크기 라이선스 실행")
    rows = [head.split()]
    for model in models:
        fits = model.fits or localized("no", "불가")
        licence = model.licence or localized("unknown", "모름")
        rows.append([model.model, model.revision or "-", shown_size(model.bytes), licence, fits])
    widths = [max(map(columns, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        print("  ".join(pad(cell, width) for cell, width in zip(row, widths, strict=True)).rstrip())
    return 0


def _built_in() -> Iterator[Model]:
    for name, folder in hub.BUILT_IN.items():
        n_bytes = sum(path.stat().st_size for path in folder.iterdir() if path.is_file())
        yield Model(name, None, n_bytes, _licence(name, folder), _fits(name, folder))


def _cached() -> Iterator[Model]:
    """Every GPT-J with weights in the hub's cache; other models there are not KoGPT's."""
    from huggingface_hub import scan_cache_dir
    from huggingface_hub.errors import CacheNotFound

    try:
        repositories = scan_cache_dir().repos
    except CacheNotFound:
        return
    except ValueError as error:
        raise InputError(
            f"the hub's cache cannot be read ({error}): set HF_HUB_CACHE to a folder",
            f"허브 캐시를 읽을 수 없습니다({error}). HF_HUB_CACHE를 폴더로 지정하세요",
        ) from error
    for repository in sorted(repositories, key=lambda repository: repository.repo_id):
        name = repository.repo_id
        for stored in sorted(repository.revisions, key=lambda stored: stored.commit_hash):
            folder = stored.snapshot_path
            if repository.repo_type != "model" or not _has_weights(folder):
                continue
            try:
                fits = _fits(name, folder)
            except KoGPTError:  # a model of another architecture
                continue
            revision = ", ".join(sorted(stored.refs)) or stored.commit_hash[:8]
            yield Model(name, revision, stored.size_on_disk, _licence(name, folder), fits)


def _has_weights(folder: Path) -> bool:
    return any(path.suffix in (".safetensors", ".bin", ".gguf") for path in folder.iterdir())


def _fits(name: str, folder: Path) -> str | None:
    memory = describe(name, checkpoint.read_config(folder), available_memory(), gpus())["memory"]
    return next((dtype for dtype, row in memory.items() if row["fits_ram"] or row["fits_gpu"]), None)


def _licence(name: str, folder: Path) -> str | None:
    """Read the licence from the front matter of the model card."""
    card = folder / "README.md"
    if not card.is_file():
        return LICENCES.get(name)
    with card.open("rb") as file:
        text = file.read(CARD_BYTES).decode("utf-8", "replace")
    found = re.search(r"\A---\n(?:.*\n)*?license: *[\"']?([\w.+-]+)", text)
    return found[1] if found else LICENCES.get(name)
