"""`kogpt report`: a report of harmful text, as a file or a ready e-mail; nothing is sent."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from kogpt.cli.options import add_generation_options, given_settings
from kogpt.errors import InputError, localized
from kogpt.files import atomic_write, explain_disk_errors
from kogpt.texts import decode_argument, printable_path

SUFFIXES = (".eml", ".json")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `kogpt report`."""
    parser.add_argument("--prompt", required=True, metavar="TEXT", help="what the model was given")
    parser.add_argument("--text", required=True, metavar="TEXT", help="what it wrote")
    parser.add_argument(
        "--model", metavar="NAME", default="kogpt-mini", help="which model wrote it (default: %(default)s)"
    )
    parser.add_argument("--note", default="", metavar="TEXT", help="why the text is harmful")
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("kogpt-report.eml"),
        metavar="PATH",
        help="file to write: .eml is an e-mail that you may send, .json a record (default: %(default)s)",
    )
    add_generation_options(parser)


def run(args: argparse.Namespace) -> int:
    """Write the report."""
    from kogpt.tasks.report import ADDRESS, Report

    out: Path = args.out
    if out.suffix not in SUFFIXES:
        raise InputError(
            f"{out}: a report is .eml (an e-mail) or .json", f"{out}: 신고서는 .eml(전자우편)이나 .json입니다"
        )
    if out.exists():
        raise InputError(
            f"{out} is there already: name another file with --out",
            f"{out} 파일이 이미 있습니다. --out으로 다른 이름을 주세요",
        )
    if not out.parent.is_dir():
        raise InputError(
            f"{out}: there is no folder {out.parent}: make it, or name another file with --out",
            f"{out}: {out.parent} 폴더가 없습니다. 폴더를 만들거나 --out으로 다른 이름을 주세요",
        )
    report = Report(
        prompt=decode_argument(args.prompt, "--prompt"),
        text=decode_argument(args.text, "--text"),
        model=printable_path(args.model),
        settings=given_settings(args),
        note=decode_argument(args.note, "--note"),
    )
    data = report.to_email() if out.suffix == ".eml" else report.to_json().encode()
    with explain_disk_errors(out.parent), atomic_write(out) as file:
        file.write(data)
    en = f"{out} is written, nothing is sent: to report, send it to {ADDRESS} yourself"
    ko = f"신고서를 {out}에 썼습니다. 아무것도 보내지 않았습니다. 신고하려면 {ADDRESS} 앞으로 직접 보내세요"
    print(localized(en, ko), file=sys.stderr)
    return 0
