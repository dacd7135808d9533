"""Files as passages: paragraphs, tables, pages, PDF, and what is refused."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest

from kogpt.errors import InputError
from kogpt.search.index import Passage
from kogpt.search.readers import MAX_PASSAGE, Found, find_files, read_document, split_text

LONG = "이 문단은 서른 글자보다 길게 쓴 문단이므로 다음 문단과 합치지 않는다."


def passages(path: Path) -> list[Passage]:
    return list(read_document(Found(path, path.name), b"").passages)


def make_pdf(*pages: str) -> bytes:
    """A PDF with a line of ASCII text on each page; an empty string makes a page without text."""
    kids = " ".join(f"{10 + 2 * i} 0 R" for i in range(len(pages)))
    objects = {
        1: "<< /Type /Catalog /Pages 2 0 R >>",
        2: f"<< /Type /Pages /Kids [{kids}] /Count {len(pages)} >>",
        3: "<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica >>",
    }
    for i, text in enumerate(pages):
        stream = f"BT /F1 12 Tf 72 720 Td ({text}) Tj ET" if text else ""
        resources = "/Resources << /Font << /F1 3 0 R >> >> /MediaBox [0 0 612 792]"
        page, content = 10 + 2 * i, 11 + 2 * i
        objects[page] = f"<< /Type /Page /Parent 2 0 R {resources} /Contents {content} 0 R >>"
        objects[content] = f"<< /Length {len(stream)} >>\nstream\n{stream}\nendstream"
    data, places = b"%PDF-1.4\n", {}
    for number, body in objects.items():
        places[number] = len(data)
        data += f"{number} 0 obj\n{body}\nendobj\n".encode()
    table = "".join(f"{number} 1\n{place:010} 00000 n \n" for number, place in places.items())
    start = len(data)
    size = max(objects) + 1
    return data + f"xref\n{table}trailer << /Size {size} /Root 1 0 R >>\nstartxref\n{start}\n%%EOF".encode()


def test_paragraphs_stand_between_blank_lines() -> None:
    text = f"# 제목\n\n{LONG}\n둘째 줄\n\n\n{LONG}"
    assert list(split_text(text)) == [Passage(f"# 제목\n{LONG}\n둘째 줄", 1), Passage(LONG, 7)]


def test_a_long_paragraph_is_cut_at_sentences_and_none_of_it_is_lost() -> None:
    for text in ("가나다라 마바사. " * 400, "가" * 2500, "가나다\n" * 700):
        cut = list(split_text(text))
        assert all(len(passage.text) <= MAX_PASSAGE for passage in cut)
        assert "".join("".join(passage.text.split()) for passage in cut) == "".join(text.split())
    assert [passage.position for passage in split_text("가나다\n" * 700)] == [1, 251, 501]


def test_text_without_blank_lines_has_a_paragraph_a_line(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes("오늘은 날씨가 좋다.\n내일은 비가 온다.\n".encode("cp949") * 20)
    assert passages(tmp_path / "a.txt")[:2] == [
        Passage("오늘은 날씨가 좋다.", 1),
        Passage("내일은 비가 온다.", 2),
    ]


def test_records_have_a_title_and_a_line(tmp_path: Path) -> None:
    with gzip.open(tmp_path / "a.jsonl.gz", "wt", encoding="utf-8") as file:
        file.write('{"title": "제주", "text": "제주도는 섬이다."}\n\n{"content": "글"}\n')
    assert passages(tmp_path / "a.jsonl.gz") == [Passage("제주\n제주도는 섬이다.", 1), Passage("글", 3)]
    (tmp_path / "b.tsv").write_text("id\tname\n1\t가\n", encoding="utf-8")
    with pytest.raises(InputError, match="line 2 has none of text, passage"):
        passages(tmp_path / "b.tsv")


def test_a_page_without_its_scripts(tmp_path: Path) -> None:
    page = (
        f"<title>t</title><nav>메뉴</nav><h1>제목</h1><div>{LONG}<p>안 <b>쪽</b>\n글 {LONG}</p>{LONG}</div>"
    )
    (tmp_path / "a.html").write_text(page + "<script>alert(1)</script><p></p>", encoding="utf-8")
    texts = [passage.text for passage in passages(tmp_path / "a.html")]
    assert texts == [f"제목\n{LONG}", f"안 쪽 글 {LONG}", LONG]


def test_pages_of_a_pdf_and_a_scan(tmp_path: Path) -> None:
    (tmp_path / "a.pdf").write_bytes(make_pdf("Hello from page one", "", "And this is page three"))
    found = passages(tmp_path / "a.pdf")
    assert found == [Passage("Hello from page one", 1), Passage("And this is page three", 3)]
    (tmp_path / "scan.pdf").write_bytes(make_pdf("", ""))
    with pytest.raises(InputError, match="scanned"):
        passages(tmp_path / "scan.pdf")


@pytest.mark.parametrize("data", [b"", b"%PDF-1.4\nnonsense", make_pdf("text")[:-200], b"\0" * 100])
def test_a_damaged_pdf_is_one_line(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "a.pdf").write_bytes(data)
    with pytest.raises(InputError, match=r"a\.pdf"):
        passages(tmp_path / "a.pdf")


def test_files_below_a_folder(tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    (tmp_path / ".git").mkdir()
    for name in ("b/2.txt", "1.MD", ".hidden.txt", ".git/x.txt", "picture.png", "b/3.txt.gz"):
        (tmp_path / name).touch()
    assert [found.source for found in find_files(tmp_path)] == ["1.MD", "b/2.txt", "b/3.txt.gz"]
    with pytest.raises(InputError, match="there is no"):
        find_files(tmp_path / "none")
    with pytest.raises(InputError, match="no file that can be read"):
        find_files(_empty(tmp_path))


def _empty(folder: Path) -> Path:
    (folder / "empty").mkdir()
    return folder / "empty"
