"""Corpus -> token shards: read, filter, drop duplicates, tokenize; many processes, one result.

Three stages in a folder beside the result, OUT.partial, which is renamed to OUT at the end:
1. read: each block of the corpus becomes one part: tokens, fingerprints and counts of its documents.
2. compare: the fingerprints of all parts say which documents repeat an earlier one.
3. write: the parts, in order and without those, become shards.
A part is written whole or not at all and depends on its block only, so the bytes of OUT do not depend on the
number of processes or on how often the command was killed; the same command goes on from the parts it finds.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kogpt.errors import InputError
from kogpt.files import atomic_write, explain_disk_errors, lock_folder
from kogpt.pretraining import dedup, filters, shards
from kogpt.pretraining.parts import Counts, Job, Options, opened, read_corpus
from kogpt.texts import printable_path
from kogpt.tokenizer import Tokenizer

VERSION = 1
REPORT = "report.json"


def pack(
    files: Sequence[Path],
    tokenizer: Path,
    out: Path,
    options: Options,
    workers: int,
    progress: Callable[[int], None],
) -> dict[str, Any]:
    """Make the folder `out` of shards from `files`; return its report.

    `progress(n)` is called with the bytes of the files read so far, first with those that earlier calls read.
    Raises InputError for bad input, or for options that do not fit what is there. Whatever happens, `out` is
    whole or absent.
    """
    plan = _plan(files, tokenizer, options)
    work = Path(f"{out.absolute()}.partial")
    if out.exists():
        report = _finished(out, plan)
        _remove(work)  # there if a kill came after the renaming
        return report
    with explain_disk_errors(work):
        work.mkdir(parents=True, exist_ok=True)
    with explain_disk_errors(work), lock_folder(work, "kogpt pretrain pack"):
        _begin(work, plan)
        counts = read_corpus(files, Job(tokenizer, work, options), workers, progress)
        _require_unchanged(files, plan)
        removed, n_removed = _compare(work, counts.documents, options)
        kept = _write(work, removed, plan, options)
        report = _report(plan, counts, n_removed, kept)
        _write_json(work / "shards" / REPORT, report)
        (work / "shards").rename(out)
        _remove(work)
    return report


def _plan(files: Sequence[Path], tokenizer: Path, options: Options) -> dict[str, Any]:
    """Everything that decides the result, as JSON."""
    n_vocab = Tokenizer.from_file(tokenizer).n_vocab  # complains here rather than in a worker
    settings = asdict(options)
    settings["left_out"] = sorted(options.left_out)
    if options.compares_nearly:
        settings["minhash"] = dedup.algorithm()
    return {
        "version": VERSION,
        "files": [_facts(path) for path in files],
        "n_vocab": n_vocab,
        "tokenizer_sha256": hashlib.sha256(tokenizer.read_bytes()).hexdigest(),
        "options": settings,
    }


def _facts(path: Path) -> dict[str, Any]:
    """Identity of a corpus file: name, bytes, and time of the last write in ns."""
    found = path.stat()
    return {"file": printable_path(path), "bytes": found.st_size, "modified": found.st_mtime_ns}


def _finished(out: Path, plan: dict[str, Any]) -> dict[str, Any]:
    """The report of a pack that was finished earlier with this very plan; InputError for anything else."""
    path = out / REPORT
    if path.is_file():
        report: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        if report.get("plan") == _through_json(plan):
            return report
    raise InputError(
        f"{out} is there already and is not what this command makes of the files as they are now: "
        "choose another --out, or delete it",
        f"{out}: 이미 있으며 지금 파일로 이 명령이 만드는 결과가 아닙니다. 다른 --out을 고르거나 지우세요",
    )


def _begin(work: Path, plan: dict[str, Any]) -> None:
    """Write the plan, or compare it with the one written; clear away what a kill left."""
    path = work / "plan.json"
    # Parts are the same under any limit: work that was refused goes on when the limit is raised.
    plan = {**plan, "options": {**plan["options"], "max_bad_share": None}}
    if not path.exists():  # a removal was cut short: whatever is left belongs to an unknown plan
        shutil.rmtree(work / "parts", ignore_errors=True)
    elif json.loads(path.read_text(encoding="utf-8")) != _through_json(plan):
        raise InputError(
            f"{work} was begun with other files, options or tokenizer: repeat that command, or delete it",
            f"{work}: 다른 파일이나 옵션, 토크나이저로 시작했습니다. 그때의 명령을 다시 쓰거나 지우세요",
        )
    _write_json(path, plan)
    (work / "parts").mkdir(exist_ok=True)
    for name in ("compare", "shards"):
        shutil.rmtree(work / name, ignore_errors=True)
        (work / name).mkdir()


def _remove(work: Path) -> None:
    """Remove the work folder after the renaming; what cannot be removed now goes next time."""
    shutil.rmtree(work, ignore_errors=True)


def _require_unchanged(files: Sequence[Path], plan: Mapping[str, Any]) -> None:
    for path, before in zip(files, plan["files"], strict=True):
        if _facts(path) != before:
            raise InputError(
                f"{path} was changed while it was read: delete the .partial folder and start again",
                f"{path}: 읽는 동안 파일이 바뀌었습니다. .partial 폴더를 지우고 다시 시작하세요",
            )


# Stage 2: fingerprints of all parts -> which documents go.


def _compare(work: Path, n_documents: int, options: Options) -> tuple[NDArray[np.bool_], dict[str, int]]:
    """Mark repeated documents: (D,) booleans, and how many by reason."""
    removed = np.zeros(n_documents, dtype=np.bool_)
    if options.keep_duplicates:
        return removed, {"exact": 0, "near": 0}
    folder = work / "compare"
    rows = dedup.rows_per_band(options.near) if options.near else dedup.SIGNATURE
    n_bands = dedup.SIGNATURE // rows if options.near else 0
    with ExitStack() as stack:
        names = ["exact", "signatures", *map(str, range(n_bands))]
        targets = [stack.enter_context((folder / name).open("wb")) for name in names]
        for path in _in_order(work):
            with opened(path) as arrays:
                columns = [arrays["exact"], arrays["signatures"]]
            if n_bands and len(columns[1]):
                columns += dedup.band_keys(columns[1], rows)
            for column, target in zip(
                columns, targets, strict=False
            ):  # no bands from a part without documents
                target.write(column.tobytes())  # numpy's own tofile does not say why it failed
    counts = {"exact": dedup.mark_exact(_mapped(folder / "exact", np.uint64, 2), removed), "near": 0}
    if n_bands:
        signatures = _mapped(folder / "signatures", np.uint32, dedup.SIGNATURE)
        for band in range(n_bands):
            keys = _mapped(folder / str(band), np.uint64, 1)[:, 0]
            counts["near"] += dedup.mark_near(keys, signatures, removed, options.near)
    return removed, counts


def _in_order(work: Path) -> list[Path]:
    return sorted((work / "parts").glob("*.npz"))


def _mapped(path: Path, dtype: type[np.generic], columns: int) -> NDArray[Any]:
    return np.memmap(path, dtype=dtype, mode="r").reshape(-1, columns)


# Stage 3: parts less duplicates -> shards.


def _write(work: Path, removed: NDArray[np.bool_], plan: Mapping[str, Any], options: Options) -> shards.Index:
    """Write all shards, and the index that names them."""
    folder = work / "shards"
    dtype = ""
    done: list[shards.Shard] = []
    pending: list[NDArray[Any]] = []
    size = 0
    for ids in _kept(work, removed):
        dtype = ids.dtype.name
        pending.append(ids)
        size += len(ids)
        if size >= options.tokens_per_shard:
            done.append(shards.write_shard(folder, len(done), pending, dtype))
            pending, size = [], 0
    if pending:
        done.append(shards.write_shard(folder, len(done), pending, dtype))
    index = shards.Index(dtype, str(plan["tokenizer_sha256"]), tuple(done), plan["n_vocab"])
    shards.write_index(folder, index)
    return index


def _kept(work: Path, removed: NDArray[np.bool_]) -> Iterator[NDArray[Any]]:
    """The ids of every document that stays, in the order of the corpus."""
    first = 0
    for path in _in_order(work):
        with opened(path) as arrays:
            ids, lengths = arrays["tokens"], arrays["lengths"]
        stays = ~removed[first : first + len(lengths)]
        first += len(lengths)
        ends = np.cumsum(lengths)
        for end, length in zip(ends[stays], lengths[stays], strict=True):
            yield ids[end - length : end]
    assert first == len(removed), (first, len(removed))


def _report(
    plan: dict[str, Any], counts: Counts, duplicates: Mapping[str, int], index: shards.Index
) -> dict[str, Any]:
    """What report.json says: the plan, and what became of every record."""
    return {
        "records": counts.records,
        "bad": counts.bad,
        "bad_shown": counts.bad_shown,
        "filtered": {name: counts.filtered[name] for name in filters.RULES if name in counts.filtered},
        "duplicates": duplicates,
        "documents": sum(shard.documents for shard in index.shards),
        "tokens": index.n_tokens,
        "plan": plan,
    }


def _write_json(path: Path, document: Any) -> None:
    with atomic_write(path) as file:
        file.write((json.dumps(document, ensure_ascii=False, indent=1) + "\n").encode())


def _through_json(document: Any) -> Any:
    """The document as a JSON file gives it back: tuples become lists."""
    return json.loads(json.dumps(document))
