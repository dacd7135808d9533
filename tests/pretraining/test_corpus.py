"""Readers: formats, compression, encodings, blocks, bad records, damage; the same at any block size."""

from __future__ import annotations

import gzip
import json
import tracemalloc
import unicodedata
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from kogpt.errors import InputError
from kogpt.pretraining import corpus
from kogpt.pretraining.corpus import BadRecord, Document, Position, Reading
from kogpt.texts import detect_encoding

TEXTS = [
    "한국어 문서 하나.\n둘째 줄입니다.",
    "ㅋㅋㅋ 재미있다 ㅠㅠ",
    "韓國 漢字 café 🇰🇷👨‍👩‍👧",
    'tab\t"quote" \\ 끝',
]


def jsonl(texts: Iterable[str]) -> bytes:
    return b"".join(json.dumps({"text": t}, ensure_ascii=False).encode() + b"\n" for t in texts)


PACKED: dict[str, Callable[[bytes], bytes]] = {"": bytes, ".gz": gzip.compress, ".zst": zstandard.compress}


def read(files: list[Path], **options: object) -> list[Document | BadRecord]:
    reading = Reading(**options)  # type: ignore[arg-type]
    return [record for block in corpus.blocks(files, reading) for record in corpus.documents(block, reading)]


def texts_of(files: list[Path], **options: object) -> list[str]:
    records = read(files, **options)
    assert not [record for record in records if isinstance(record, BadRecord)]
    return [record.text for record in records if isinstance(record, Document)]


def write(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


@pytest.mark.parametrize("suffix", ["", ".gz", ".zst"])
def test_json_lines_plain_and_compressed(tmp_path: Path, suffix: str) -> None:
    path = write(tmp_path / f"a.jsonl{suffix}", PACKED[suffix](jsonl(TEXTS)))
    assert texts_of([path]) == TEXTS


def test_parquet(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    many = [f"{i}번째 글: {TEXTS[i % 4]}" for i in range(3000)]
    table = pyarrow.table({"본문": many, "id": list(range(3000))})
    parquet.write_table(table, tmp_path / "a.parquet", row_group_size=700)
    path = tmp_path / "a.parquet"
    assert texts_of([path], text_field="본문", block_bytes=10_000) == many
    with pytest.raises(InputError, match=r"no column of strings named 'text'; there are 본문 \(string\)"):
        read([path])
    (tmp_path / "b.parquet").write_bytes(path.read_bytes()[:-100])
    with pytest.raises(InputError, match=r"b\.parquet: not readable as Parquet"):
        read([tmp_path / "b.parquet"], text_field="본문")


def test_parquet_null_is_a_bad_record_and_positions_resume(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    texts = [None if i == 5 else f"글 {i}" for i in range(4000)]
    parquet.write_table(pyarrow.table({"text": texts}), tmp_path / "a.parquet")
    records = read([tmp_path / "a.parquet"])
    assert [r for r in records if isinstance(r, BadRecord)] == [
        BadRecord(tmp_path / "a.parquet", 6, "no-text")
    ]
    resume_everywhere([tmp_path / "a.parquet"], Reading(block_bytes=4000))


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "cp949"])
@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_plain_text_in_each_encoding(tmp_path: Path, encoding: str, newline: str) -> None:
    lines = ["첫 줄: 오늘 서울의 날씨는 맑겠습니다.", "", "둘째 문단. 뷁, 똠방각하, 펲시콜라."]
    path = write(tmp_path / "a.txt", newline.join(lines).encode(encoding))
    assert texts_of([path]) == ["\n".join(lines)]
    assert texts_of([path], split="blank-line") == [lines[0] + "\n\n" * 0, lines[2]]
    assert texts_of([path], split="line") == [lines[0], lines[2]]


def test_cp949_json_lines_with_an_ascii_beginning(tmp_path: Path) -> None:
    """The encoding is settled by the first block with a byte beyond ASCII, and that settles the file."""
    texts = ["only ascii here"] * 200 + ["한글은 여기부터 나옵니다", "다시 한글입니다"] * 20
    path = write(tmp_path / "a.jsonl", jsonl(texts).decode().encode("cp949"))
    assert texts_of([path], block_bytes=500) == texts


def test_every_cp949_syllable_is_read_or_refused_never_replaced(tmp_path: Path) -> None:
    """K4: one syllable in CP949 may be UTF-8 as well; such a file is refused with both readings."""
    refused = 0
    for code in range(0xAC00, 0xD7A4):
        syllable = chr(code)
        try:
            assert detect_encoding(syllable.encode("cp949"), "x") == "cp949"
        except InputError as error:
            refused += 1
            other = syllable.encode("cp949").decode("utf-8")
            assert syllable in error.en and (other if other.isprintable() else repr(other)[1:-1]) in error.en
    assert refused == 345


def test_every_doubled_utf8_syllable_is_read() -> None:
    for code in range(0xAC00, 0xD7A4):
        assert detect_encoding((chr(code) * 2).encode(), "x") == "utf-8"


SENTENCE = "이 영화는 정말 재미있었다 다음의 각 호에 따라 서울에서 태어난 사람을 하고 있는 것이다 뷁 똠방각하"
WORDS = SENTENCE.split(" ")


@settings(max_examples=300, deadline=None)
@given(st.lists(st.sampled_from(WORDS), min_size=6, max_size=60), st.sampled_from([" ", "\n"]))
def test_korean_is_told_apart(words: list[str], between: str) -> None:
    """Read rightly or, when it is short, refused."""
    text = between.join(words)
    for encoding in ("utf-8", "cp949"):
        try:
            assert detect_encoding(text.encode(encoding), "a") == encoding
        except InputError:
            assert len(text) < 60


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ("これは日本語の文章です。東京特許許可局で働いています。".encode("euc-jp") * 2, "nor Korean"),
        ("这是中文的文章。今天天气很好，我们一起去公园散步吧。".encode("gb2312"), "neither"),
        (b"\xff\xfe\x00\xd8\xc0\x80" * 20, "utf-16"),
        (b"\x80\x81\xc0 caf\xe9 \xff", "neither"),
        ("한글 문장입니다\n".encode() + "한글 문장입니다\n".encode("cp949"), "neither"),
        ("×".encode("cp949") + "꺼".encode("cp949"), "neither"),
        ("챙".encode("cp949"), "may be UTF-8"),
    ],
)
def test_refused_encodings(tmp_path: Path, data: bytes, message: str) -> None:
    with pytest.raises(InputError, match=message):
        read([write(tmp_path / "a.txt", data)])


def test_a_stated_encoding_is_obeyed_strictly(tmp_path: Path) -> None:
    path = write(tmp_path / "a.txt", "café".encode())
    assert texts_of([path], encoding="utf-8") == ["café"]
    assert texts_of([path], encoding="cp949") == ["caf챕"]
    korean = write(tmp_path / "b.txt", "첫 줄\n둘째 줄\n".encode("cp949"))
    assert read([korean], encoding="utf-8") == [BadRecord(korean, 1, "not-utf-8")]


def test_text_is_nfc(tmp_path: Path) -> None:
    decomposed = unicodedata.normalize("NFD", "한국어 값")
    assert texts_of([write(tmp_path / "a.jsonl", jsonl([decomposed]))]) == ["한국어 값"]
    kept = "ㅋㅋㅠㅠ ㈜ ①"  # compatibility characters are not touched: never NFKC
    assert texts_of([write(tmp_path / "b.jsonl", jsonl([kept]))]) == [kept]


def test_bad_records_name_file_line_and_reason(tmp_path: Path) -> None:
    good = jsonl(["한국어 문장이 여기 있습니다"] * 3)
    bad = [b"{broken", b"[1]", b'{"text": 3}', b'{"body": "x"}', b'{"text": "\\ud800"}', b'{"text": "\xff"}']
    path = write(tmp_path / "a.jsonl", good + b"\n" + b"\n".join(bad) + b"\n" + b'{"text":' * 100_000)
    found = [record for record in read([path]) if isinstance(record, BadRecord)]
    reasons = ["not-json", "not-json", "no-text", "no-text", "surrogate", "not-utf-8", "not-json"]
    assert [(r.line, r.reason) for r in found] == list(zip(range(5, 12), reasons, strict=True))
    assert str(found[0]) == f"{path}:5: not a JSON object"


def test_a_record_too_long_to_hold_is_skipped_and_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(corpus, "MAX_RECORD_BYTES", 50_000)
    monkeypatch.setattr("kogpt.texts.READ_BYTES", 1000)
    path = write(tmp_path / "a.jsonl", jsonl(["앞", "긴" * 100_000, "뒤", "긴" * 100_000]))
    records = read([path], block_bytes=10_000, encoding="utf-8")
    assert [r.text if isinstance(r, Document) else (r.line, r.reason) for r in records] == [
        "앞",
        (2, "too-long"),
        "뒤",
        (4, "too-long"),
    ]


def resume_everywhere(files: list[Path], reading: Reading) -> None:
    """Starting at the end of any block gives exactly the blocks after it."""
    whole = list(corpus.blocks(files, reading))
    assert len(whole) > 3
    for done, block in enumerate(whole, 1):
        assert list(corpus.blocks(files, reading, block.end, done)) == whole[done:]


@pytest.mark.parametrize("suffix", ["", ".gz", ".zst"])
def test_reading_can_start_after_any_block(tmp_path: Path, suffix: str) -> None:
    files = [
        write(tmp_path / f"{i}.jsonl{suffix}", PACKED[suffix](jsonl(TEXTS * (20 + i)))) for i in range(3)
    ]
    files.append(write(tmp_path / "b.txt", "한글 문단입니다.\n\n".encode("cp949") * 500))
    resume_everywhere(files, Reading(block_bytes=3000, split="blank-line"))


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=60), max_size=40),
    st.integers(1, 4000),
    st.sampled_from([7, 100, 1 << 20]),
)
def test_any_block_size_gives_the_same_texts(
    tmp_path_factory: pytest.TempPathFactory, texts: list[str], block: int, step: int
) -> None:
    path = write(tmp_path_factory.mktemp("any") / "a.jsonl", jsonl(texts))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("kogpt.texts.READ_BYTES", step)
        expected = [unicodedata.normalize("NFC", text.replace("\r\n", "\n")) for text in texts]
        assert texts_of([path], block_bytes=block, encoding="utf-8") == expected


def test_concatenated_frames_and_members_are_read(tmp_path: Path) -> None:
    halves = jsonl(TEXTS[:2]), jsonl(TEXTS[2:])
    for suffix, pack in ((".zst", zstandard.compress), (".gz", gzip.compress)):
        path = write(tmp_path / f"a.jsonl{suffix}", b"".join(map(pack, halves)))
        assert texts_of([path]) == TEXTS


@pytest.mark.parametrize("suffix", [".gz", ".zst"])
def test_damage_in_compressed_files(tmp_path: Path, suffix: str) -> None:
    whole = {".gz": gzip.compress, ".zst": zstandard.ZstdCompressor(write_checksum=True).compress}[suffix](
        jsonl([f"문서 {i} {TEXTS[i % 4]}" for i in range(3000)])
    )
    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 1
    for name, data in (("cut", whole[:-7]), ("half", whole[: len(whole) // 2]), ("flip", bytes(flipped))):
        with pytest.raises(InputError, match=f"{name}.jsonl{suffix}: damaged near byte"):
            read([write(tmp_path / f"{name}.jsonl{suffix}", data)])


@pytest.mark.parametrize("suffix", [".gz", ".zst"])
def test_no_bytes_are_no_compressed_file(tmp_path: Path, suffix: str) -> None:
    """A download that was cut at its start; `gzip -t` and `zstd -t` call it damaged too."""
    nothing = gzip.compress(b"") if suffix == ".gz" else zstandard.compress(b"")
    good = write(tmp_path / f"a.jsonl{suffix}", nothing)
    assert texts_of([good, write(tmp_path / "a.txt", b""), write(tmp_path / "a.jsonl", b"")]) == []
    with pytest.raises(InputError, match=f"b.jsonl{suffix}: damaged near byte 0: it is empty") as error:
        read([good, write(tmp_path / f"b.jsonl{suffix}", b"")])
    assert "비어 있습니다" in error.value.ko


def test_memory_stays_bounded(tmp_path: Path) -> None:
    """A file of 64 MiB that is 6 KiB on disk: blocks of 1 MiB never need more than a few of them."""
    line = jsonl(["가" * 300])
    path = write(tmp_path / "bomb.jsonl.zst", zstandard.compress(line * ((64 << 20) // len(line))))
    reading = Reading(block_bytes=1 << 20)
    tracemalloc.start()
    n_bytes = sum(len(s.payload) for block in corpus.blocks([path], reading) for s in block.segments)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert n_bytes > 60 << 20
    assert peak < 100 << 20  # one read of 1 KiB may hold 32 MiB, and passes through a few buffers


def test_long_plain_text_is_cut_at_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(corpus, "MAX_TEXT_DOCUMENT", 1000)
    text = "".join(f"{i}번째 줄입니다.\n" for i in range(500))
    pieces = texts_of([write(tmp_path / "a.txt", text.encode())])
    assert "".join(pieces) == text and len(pieces) > 5
    assert all(len(piece.encode()) <= 1000 and piece.endswith("\n") for piece in pieces)


def test_find_files(tmp_path: Path) -> None:
    names = ["b.jsonl", "a.jsonl.zst", "sub/c.txt", "README.md", "valid_x.jsonl"]
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    inside = [
        path.relative_to(tmp_path).as_posix() for path in corpus.find_files([str(tmp_path)], ["valid_*"])
    ]
    assert inside == ["a.jsonl.zst", "b.jsonl", "sub/c.txt"]
    assert corpus.find_files([f"{tmp_path}/*.jsonl"], ["valid_*"]) == [tmp_path / "b.jsonl"]
    assert corpus.find_files([f"{tmp_path}/**/*.txt"]) == [tmp_path / "sub/c.txt"]
    for missing in ("nothing.jsonl", "*.zip", "empty"):
        (tmp_path / "empty").mkdir(exist_ok=True)
        with pytest.raises(InputError, match="no such file, or none to read"):
            corpus.find_files([f"{tmp_path}/{missing}"])
    with pytest.raises(InputError, match="named twice"):
        corpus.find_files([f"{tmp_path}/b.jsonl", f"{tmp_path}/sub/../*.jsonl"])


def test_an_unknown_suffix_asks_for_the_format(tmp_path: Path) -> None:
    path = write(tmp_path / "wiki_00", jsonl(TEXTS))
    with pytest.raises(InputError, match="give --format"):
        read([path])
    assert texts_of([path], format="jsonl") == TEXTS


def test_a_position_is_plain_data() -> None:
    assert Position() == Position(file=0, offset=0, line=1, encoding=None, stored=0)
