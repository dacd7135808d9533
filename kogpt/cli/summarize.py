"""`kogpt summarize`: the sentences that carry a text, a title, or a line that the model writes."""

from __future__ import annotations

import argparse
import json
import sys

from kogpt.cli.options import drop_unfit_adapter, load_model, read_count
from kogpt.cli.texts import add_text_options, read_whole
from kogpt.cli.without_model import refuse_model_options, screened
from kogpt.errors import InputError, localized
from kogpt.texts import for_terminal


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `kogpt summarize`."""
    parser.add_argument(
        "path", nargs="?", default="-", metavar="PATH", help="file to read; - reads standard input"
    )
    parser.add_argument(
        "--sentences",
        type=read_count,
        default=3,
        metavar="N",
        help="how many sentences to pick (default: %(default)s)",
    )
    kind = parser.add_mutually_exclusive_group()
    kind.add_argument(
        "--title",
        action="store_true",
        help="make a title of words of the text instead; with --adapter title the model writes one",
    )
    kind.add_argument(
        "--abstract", action="store_true", help="have the model write one line instead; it may be wrong"
    )
    add_text_options(parser)


def run(args: argparse.Namespace) -> int:
    """Print the summary of one text."""
    if args.title or args.abstract:
        drop_unfit_adapter(args, lambda origin: origin.writes)
    _check(args)
    text = read_whole(args.path, args.encoding)
    if args.title:
        kind, lines = "title", [_title(args, text)]
    elif args.abstract:
        kind, lines = "abstract", [_abstract(args, text)]
    else:
        from kogpt.tasks.summaries import summarize

        kind, lines = "sentences", [sentence.text for sentence in summarize(text, args.sentences)]
    lines = [screened(args, line) for line in lines]
    if args.json:
        print(json.dumps({"kind": kind, "summary": lines}, ensure_ascii=False))
    else:
        print(for_terminal("\n".join(lines)))
    return 0


def _check(args: argparse.Namespace) -> None:
    """Refuse typed options that the kind of summary does not read."""
    if "sentences" in args.typed and (args.title or args.abstract):
        kind = "--title" if args.title else "--abstract"
        raise InputError(
            f"{kind} makes one line, --sentences picks sentences of the text: leave one of them out",
            f"{kind} 옵션은 한 줄을 만들고 --sentences 옵션은 문장을 고릅니다. 둘 중 하나를 빼세요",
        )
    if args.title and args.adapter is None:
        refuse_model_options(
            args,
            "--title loads a model for --adapter only: add --adapter title",
            "--title은 --adapter가 있을 때만 모델을 씁니다. --adapter title을 더하거나",
        )
    elif not args.title and not args.abstract:
        refuse_model_options(
            args,
            "sentences are picked without a model: add --abstract",
            "문장을 고를 때는 모델을 쓰지 않습니다. --abstract를 더하거나",
        )


def _title(args: argparse.Namespace, text: str) -> str:
    """A title of words of the text, which comes nearer to people's; by an adapter only where one is named."""
    from kogpt.tasks.summaries import Writer, make_title

    if args.adapter is None:
        return make_title(text)
    with load_model(args) as model:
        template = model.origin.template
        return Writer(model, template).title(text) if template else Writer(model).write(text)


def _abstract(args: argparse.Namespace, text: str) -> str:
    from kogpt.tasks.summaries import Writer

    if args.model == "kogpt-mini":
        en = "kogpt-mini is small: what it writes often has little to do with the text"
        ko = "kogpt-mini는 작은 모델이라 글과 다른 내용을 쓰는 일이 많습니다"
        print(f"kogpt: {localized(en, ko)}", file=sys.stderr)
    with load_model(args) as model:
        return Writer(model).write(text)
