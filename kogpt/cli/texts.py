"""Arguments, files and standard input -> texts, with their labels where there are any."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from dataclasses import dataclass

from kogpt.cli.defaults import pass_over
from kogpt.cli.options import add_adapter_option, add_filter_option, add_model_options
from kogpt.cli.reading import RECORDS
from kogpt.errors import InputError, localized
from kogpt.texts import ENCODINGS, decode, decode_argument, format_of, read_bytes, read_records, text_lines


@dataclass(frozen=True, slots=True)
class Item:
    """One text, and where it comes from."""

    text: str
    line: int
    label: str | None = None


def add_text_arguments(parser: argparse.ArgumentParser, labels: bool = True) -> None:
    """TEXT, --file, --text-column, --label-column (where labels are of use), --encoding."""
    parser.add_argument(
        "texts", nargs="*", metavar="TEXT", help="texts; without one, standard input, a text per line"
    )
    parser.add_argument(
        "--file",
        metavar="PATH",
        help="file of texts: lines, or a table or JSON Lines (.tsv, .csv, .jsonl)",
    )
    parser.add_argument(
        "--text-column",
        default="text",
        metavar="NAME",
        help="name of the text's column (default: %(default)s)",
    )
    parser.set_defaults(label_column="label")
    if labels:
        parser.add_argument(
            "--label-column",
            default="label",
            metavar="NAME",
            help="name of the right label's column (default: %(default)s)",
        )
    _add_encoding(parser)


def add_text_options(parser: argparse.ArgumentParser) -> None:
    """--encoding, --json, and the options of a model that reads one text and writes another."""
    _add_encoding(parser)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    add_model_options(parser)
    add_adapter_option(parser)
    add_filter_option(parser)


def _add_encoding(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--encoding", choices=ENCODINGS, default="auto", help="encoding of the input (default: %(default)s)"
    )


def read_items(args: argparse.Namespace) -> list[Item]:
    """The texts that the options name, at least one."""
    if args.texts:
        pass_over(args, "file")
    if args.texts and args.file is not None:
        raise InputError("give TEXT or a --file, not both", "TEXT와 --file 중 하나만 지정하세요")
    if args.texts and args.texts != ["-"]:
        return [Item(decode_argument(text, "TEXT"), 1) for text in args.texts]
    if args.file is None and not args.texts and sys.stdin is not None and sys.stdin.isatty():
        raise InputError(
            "there is no text: give it, pipe it in, or name a --file",
            "글이 없습니다. 인자나 표준 입력으로 주거나 --file로 파일을 지정하세요",
        )
    path = "-" if args.file is None else args.file
    items = list(_rows(path, args))
    if not items:
        source = source_of(path)
        raise InputError(f"{source} holds no text", f"{source}: 글이 없습니다")
    return items


def rows_of(path: str) -> list[Item]:
    """The texts of a file with the usual names of columns."""
    return list(_rows(path, argparse.Namespace(text_column="text", label_column="label", encoding="auto")))


def source_of(path: str) -> str:
    """What messages call an input."""
    return localized("standard input", "표준 입력") if path == "-" else path


def _rows(path: str, args: argparse.Namespace) -> Iterator[Item]:
    source = source_of(path)
    text = decode(read_bytes(path), source, args.encoding)
    format = format_of(path)
    if format not in RECORDS:
        yield from (Item(line, number) for number, line in text_lines(text))
        return
    for record in read_records(text, source, format):
        value, label = record.values.get(args.text_column), record.values.get(args.label_column)
        if not isinstance(value, str) or not value.strip():
            raise InputError(
                f'{source} line {record.line}: no text under "{args.text_column}"; see --text-column',
                f'{source} {record.line}행: "{args.text_column}" 열이 없거나 비었습니다 (--text-column)',
            )
        yield Item(value, record.line, None if label is None else str(label))


def read_whole(path: str, encoding: str) -> str:
    """The text of a file, or of standard input (-), as a whole; InputError where there is none."""
    if path == "-" and sys.stdin is not None and sys.stdin.isatty():
        raise InputError(
            "there is no text: name a file or pipe it in", "글이 없습니다. 파일이나 표준 입력으로 주세요"
        )
    text = decode(read_bytes(path), source_of(path), encoding)
    if not text.strip():
        source = source_of(path)
        raise InputError(f"{source} holds no text", f"{source}: 글이 없습니다")
    return text
