"""A task of one's own from a TOML file: data file, columns, prompt, labels and metric, without Python.

    data = "reviews.tsv"                       # beside this file; .tsv .csv .jsonl .json, or under .gz, .zst
    label = "sentiment"                        # column of the right answer
    prompt = "리뷰: {text}\\n감정:"               # {COLUMN} stands for the value of a column
    labels = { neg = " 부정", pos = " 긍정" }    # value in the column -> text that is scored after the prompt
    metric = "accuracy"                        # or several; macro_f1 binary_f1 pearson spearman

    shots = "train.tsv"                        # file for shots; otherwise a fixed tenth of the data
    choices = [" {a}", " {b}"]                 # instead of labels: texts of each item; the label is 0, 1, ...
    name = "reviews"                           # default: the file's name
    instruction = "..."                        # before the shots
    separator = "\\n\\n"                         # after each shot
    scoring = "raw"                            # normalised, calibrated
    id = "id"                                  # column that names an item; otherwise its line

With pearson or spearman the labels are numbers, and the expected grade is the score. binary_f1 beside them
counts grades from the middle of the scale up as 1; accuracy and macro_f1 beside them need exactly two labels.
"""

from __future__ import annotations

import math
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from string import Formatter
from typing import Any

from kogpt.data_files import Row, Source, digest_of
from kogpt.datasets import Example
from kogpt.errors import InputError
from kogpt.evaluation.task import Prompt, Task
from kogpt.files import read_limited
from kogpt.metrics import METRICS
from kogpt.texts import decode, format_of, read_records, unpack

KEYS = (
    *("data", "label", "prompt", "labels", "choices", "metric", "shots", "name", "instruction"),
    *("separator", "scoring", "id"),
)
EXAMPLE = '{ neg = " 부정", pos = " 긍정" }'
REQUIRED = ("data", "label", "prompt", "metric")
SCORINGS = ("raw", "normalised", "calibrated")
GRADED = ("pearson", "spearman")  # metrics of numbers
COUNTED = ("accuracy", "macro_f1")  # metrics of all labels
MAX_FILE_BYTES = 1 << 20
MAX_DATA_BYTES = 1 << 30
MAX_NAME_BYTES = 200  # names of result files add prompt, shots and seed to it, and may have 255


def read_task(path: Path) -> Task:
    """The task that a TOML file describes. InputError names the file, the key and the remedy."""
    try:
        table = tomllib.loads(read_limited(path, MAX_FILE_BYTES, InputError).decode("utf-8-sig"))
    except FileNotFoundError as error:
        raise InputError(f"there is no file {path}", f"파일이 없습니다: {path}") from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is not valid TOML: {error}", f"{path}: TOML 문법 오류: {error}") from error
    return _Description(path, table).task()


@dataclass(frozen=True, slots=True)
class _Description:
    """The keys of a file, checked one by one."""

    path: Path
    table: Mapping[str, Any]

    def task(self) -> Task:
        """Check every key, and put the task together."""
        for key in self.table:
            if key not in KEYS:
                close = next(iter(get_close_matches(key, KEYS, n=1)), ", ".join(KEYS))
                raise self._wrong(
                    f"there is no key {key[:40]!r}, try {close}", f"{key[:40]!r} 키는 없습니다 ({close})"
                )
        if missing := [key for key in REQUIRED if key not in self.table]:
            names = ", ".join(missing)
            raise self._wrong(f"it lacks {names}", f"빠진 키: {names}")
        name, metrics = self._name(), self._metrics()
        values, prompt = self._prompt(any(metric in GRADED for metric in metrics))
        middle = f"{prompt.middle_grade:g}" if prompt.grades else ""
        self._require_one_meaning(metrics, prompt)
        return Task(
            name=name,
            title=name,
            version=1,
            labels=(f"below {middle}", f"{middle} and up") if middle else values,
            metrics=metrics,
            prompts=(prompt,),
            test=(self._source("data"),),
            pool=(self._source("shots"),) if "shots" in self.table else (),
            read=self._reader("data", values, prompt).read,
            read_pool=self._reader("shots", values, prompt).read if "shots" in self.table else None,
            scoring=self._one_of("scoring", SCORINGS, "raw"),
            grade_threshold=prompt.middle_grade if prompt.grades else 3.0,
            content=tuple(sorted(_fields(prompt.question))),
            contamination="unknown: the data is the user's own",
        )

    def text(self, key: str, default: str = "") -> str:
        """The value of a key that holds a text."""
        value = self.table.get(key, default)
        if not isinstance(value, str):
            raise self._wrong(f"{key} is {value!r}, must be a text", f"{key} 값 {value!r} (조건: 글)")
        return value

    def _name(self) -> str:
        """The task's name, under which its results are kept: the same rule on every system."""
        name = self.text("name", self.path.stem)
        printable = name.isprintable() and name.strip(" .") and not set(name) & set("/\\")
        if not printable or len(name.encode()) > MAX_NAME_BYTES:
            raise self._wrong(
                f"no results can be kept under the name {name[:40]!r}: give a `name` of 1 to {MAX_NAME_BYTES}"
                " bytes without / and \\",
                f"{name[:40]!r} 이름으로는 결과를 저장할 수 없습니다. `name`에 /와 \\가 없는"
                f" 1~{MAX_NAME_BYTES}바이트 이름을 적으세요",
            )
        return name

    def _reader(self, key: str, values: tuple[str, ...], prompt: Prompt) -> _Reader:
        """The reader of the file whose name stands under `key`."""
        path = self.path.parent / self.text(key)
        return _Reader(path, self.text("label"), values, self.table.get("id"), prompt)

    def _require_one_meaning(self, metrics: Sequence[str], prompt: Prompt) -> None:
        """Refuse a count of labels beside grades, which are cut in two, where there are more labels."""
        counted = next((metric for metric in metrics if metric in COUNTED), None)
        if counted and len(prompt.grades) > 2:
            raise self._wrong(
                f"{counted} would count two halves of the scale, not {len(prompt.grades)} labels, beside"
                " pearson or spearman: take binary_f1, or measure it with a file of its own",
                f"pearson이나 spearman과 함께 쓴 {counted} 값은 레이블 {len(prompt.grades)}개가 아니라 척도의"
                " 위아래 절반만 구별합니다. binary_f1을 쓰거나 다른 파일로 따로 평가하세요",
            )

    def _metrics(self) -> tuple[Any, ...]:
        given = self.table["metric"]
        metrics = tuple(given) if isinstance(given, list) else (given,)
        for metric in metrics:
            if metric not in METRICS:
                known = ", ".join(METRICS)
                raise self._wrong(
                    f"metric is {metric!r}, must be one of {known}", f"metric 값 {metric!r} (가능: {known})"
                )
        if not metrics:
            raise self._wrong("metric names none", "metric이 비어 있습니다")
        return metrics

    def _one_of(self, key: str, known: Sequence[str], default: str) -> Any:
        value = self.text(key, default)
        if value not in known:
            names = ", ".join(known)
            raise self._wrong(
                f"{key} is {value!r}, must be one of {names}", f"{key} 값 {value!r} (가능: {names})"
            )
        return value

    def _prompt(self, graded: bool) -> tuple[tuple[str, ...], Prompt]:
        """The values of the label's column, and the prompt with a choice for each of them."""
        labels, choices = self.table.get("labels"), self.table.get("choices")
        if (labels is None) == (choices is None):
            raise self._wrong("give labels or choices, one of them", "labels와 choices 중 하나만 쓰세요")
        if choices is not None:
            texts = choices if isinstance(choices, list) else None
            values = tuple(map(str, range(len(texts or ()))))
        else:
            texts = list(labels.values()) if isinstance(labels, dict) else None
            values = tuple(labels) if isinstance(labels, dict) else ()
        if (
            not isinstance(texts, list)
            or len(texts) < 2
            or not all(isinstance(t, str) and t.strip() for t in texts)
        ):
            raise self._wrong(
                f"labels is a table such as {EXAMPLE}, choices a list of texts; two or more",
                f"labels는 {EXAMPLE} 같은 표, choices는 글의 목록입니다. 둘 이상이 필요합니다",
            )
        if choices is None and (brace := next((text for text in texts if "{" in text or "}" in text), None)):
            raise self._wrong(
                f"label {brace!r} has a brace: use choices", f"레이블 {brace!r}의 중괄호: choices를 쓰세요"
            )
        prompt = Prompt(
            name="own",
            source=str(self.path.name),
            question=self.text("prompt"),
            choices=tuple(texts),
            instruction=self.text("instruction"),
            separator=self.text("separator", "\n\n"),
            grades=self._grades(values) if graded else (),
        )
        for template in (prompt.question, *(prompt.choices if choices is not None else ())):
            self._require_template(template)
        return values, prompt

    def _grades(self, values: Sequence[str]) -> tuple[float, ...]:
        try:
            return tuple(map(float, values))
        except ValueError as error:
            raise self._wrong(
                "pearson and spearman need labels that are numbers",
                "pearson과 spearman에는 수인 labels가 필요합니다",
            ) from error

    def _require_template(self, template: str) -> None:
        try:
            fields = _fields(template)
        except ValueError as error:
            raise self._wrong(f"{template[:40]!r}: {error}", f"{template[:40]!r}: {error}") from error
        if bad := next((name for name in fields if not name or set(name) & set(".[]!:")), None):
            raise self._wrong(
                f"{{{bad}}} in {template[:40]!r} is no column name; a brace is written twice",
                f"{template[:40]!r}의 {{{bad}}}: 열 이름이 아닙니다. 중괄호 글자는 두 번 쓰세요",
            )

    def _source(self, key: str) -> Source:
        path = self.path.parent / self.text(key)
        content = _content(path)
        format = format_of(path.name)
        if format not in ("csv", "tsv", "jsonl", "json"):
            raise self._wrong(
                f"{key} is {path.name}, must be .tsv, .csv, .jsonl or .json",
                f"{key} 값 {path.name} (가능: .tsv .csv .jsonl .json)",
            )

        def read(content: bytes) -> list[Row]:
            records = read_records(decode(unpack(content, path), str(path)), str(path), format)
            return [{"": str(r.line), **{k: _shown(v) for k, v in r.values.items()}} for r in records]

        digest = digest_of(content, "sha256")
        return Source(str(path.resolve()), digest, f"{path.name}, the user's own", read)

    def _wrong(self, en: str, ko: str) -> InputError:
        return InputError(f"{self.path}: {en}", f"{self.path}: {ko}")


@dataclass(frozen=True, slots=True)
class _Reader:
    """A row as an example."""

    path: Path  # file that holds the rows
    label: str
    values: tuple[str, ...]
    id: str | None
    prompt: Prompt

    def read(self, row: Row) -> Example:
        """InputError for a missing column, or a label that is none of the values."""
        fields = {key: value for key, value in row.items() if key}
        used = {name for text in (self.prompt.question, *self.prompt.choices) for name in _fields(text)}
        for column in (self.label, *used, *([self.id] if self.id else ())):
            if column not in fields:
                raise self._wrong(row, f"there is no column {column!r}", f"{column!r} 열이 없습니다")
        value = fields[self.label].strip()
        name = fields[self.id] if self.id else row[""]
        if self.prompt.grades:
            return self._graded(row, name, fields, value)
        if value not in self.values:
            known = ", ".join(self.values)
            raise self._wrong(
                row, f"label {value[:40]!r} is none of {known}", f"레이블 {value[:40]!r} (가능: {known})"
            )
        return Example(name, fields, self.values.index(value))

    def _graded(self, row: Row, name: str, fields: Mapping[str, str], value: str) -> Example:
        try:
            grade = float(value)
        except ValueError:
            grade = math.nan
        if not math.isfinite(grade):
            raise self._wrong(row, f"label {value[:40]!r} is no number", f"레이블 {value[:40]!r} (조건: 수)")
        return Example(name, fields, int(grade >= self.prompt.middle_grade), grade)

    def _wrong(self, row: Row, en: str, ko: str) -> InputError:
        return InputError(f"{self.path}, line {row['']}: {en}", f"{self.path}, {row['']}행: {ko}")


def _fields(template: str) -> set[str]:
    """The columns that a template names."""
    return {name for _, name, _, _ in Formatter().parse(template) if name is not None}


def _content(path: Path) -> bytes:
    try:
        return read_limited(path, MAX_DATA_BYTES, InputError)
    except OSError as error:
        reason = error.strerror or str(error)
        raise InputError(f"cannot read {path}: {reason}", f"읽을 수 없습니다: {path} ({reason})") from error


def _shown(value: Any) -> str:
    """A value of a record as text: true and false as JSON has them."""
    return str(value).lower() if isinstance(value, bool) else str(value)
