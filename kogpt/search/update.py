"""An index made to hold what a file or a folder holds: new and changed files in, gone ones out."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path

from kogpt.errors import InputError
from kogpt.search.index import IndexWriter
from kogpt.search.readers import Found, digest_file, find_files, read_document


@dataclass(slots=True)
class Update:
    """A file or folder, and what becomes of its files."""

    root: Path
    encoding: str = "auto"
    n_new: int = 0
    n_changed: int = 0
    n_removed: int = 0
    n_same: int = 0
    n_passages: int = 0  # that were added
    refused: list[InputError] = field(default_factory=list)

    def run(self, writer: IndexWriter) -> Iterator[tuple[int, int]]:
        """Bring the index up to date; yields (files done, files in all) after each.

        A file that cannot be read leaves the index and is listed in `refused`. InputError where no file can,
        or the index was made from another folder.
        """
        writer.bind(self.root)
        files = find_files(self.root)
        for source in writer.sources - {file.source for file in files}:
            writer.remove(source)
            self.n_removed += 1
        for done, file in enumerate(files, 1):
            try:
                self._take(file, writer)
            except InputError as error:
                self.refused.append(error)
                self.n_removed += writer.remove(file.source)
            yield done, len(files)
        if len(self.refused) == len(files):
            raise self._nothing(files)

    def _take(self, file: Found, writer: IndexWriter) -> None:
        digest = digest_file(file.path)
        if self.encoding != "auto":  # the same bytes may be another text
            digest = sha256(digest + self.encoding.encode()).digest()
        if writer.has(file.source, digest):
            self.n_same += 1
            return
        document = read_document(file, digest, self.encoding)
        known = file.source in writer.sources
        self.n_passages += writer.add(document)
        self.n_changed += known
        self.n_new += not known

    def _nothing(self, files: list[Found]) -> InputError:
        if len(files) == 1:
            return self.refused[0]
        first = self.refused[0]
        return InputError(
            f"{self.root}: none of {len(files)} files can be read; the first: {first.en}",
            f"{self.root}: 파일 {len(files)}개 중 읽을 수 있는 것이 없습니다. 첫 오류: {first.ko}",
        )
