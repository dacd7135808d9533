"""`kogpt ask`: the sentences of a text or an index that answer a question, then what the model says."""

from __future__ import annotations

import argparse
import json
import sys
from typing import TYPE_CHECKING

from kogpt.cli.defaults import pass_over
from kogpt.cli.options import load_model, read_count
from kogpt.cli.texts import add_text_options, read_whole
from kogpt.cli.without_model import refuse_model_options, screened, typed_model_options
from kogpt.errors import InputError, localized
from kogpt.texts import decode_argument, for_terminal

if TYPE_CHECKING:
    from kogpt.tasks.answers import Evidence, Source


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `kogpt ask`."""
    parser.add_argument("question", metavar="QUESTION", help="what to ask")
    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument("--file", metavar="PATH", help="text to answer from; - reads standard input")
    where.add_argument("--index", metavar="INDEX", help="index of kogpt search to answer from")
    parser.add_argument(
        "-k", type=read_count, default=3, metavar="N", help="sentences to show (default: %(default)s)"
    )
    parser.add_argument("--no-answer", action="store_true", help="show the sentences only; needs no model")
    add_text_options(parser)


def run(args: argparse.Namespace) -> int:
    """Print the evidence, then the model's answer."""
    from kogpt.tasks.answers import answer, find_evidence

    _check(args)
    question = decode_argument(args.question, "QUESTION")
    evidence = find_evidence(question, _sources(args, question), args.k)
    if not args.json:
        _show(args, evidence)
        sys.stdout.flush()
    said = None
    if not args.no_answer:
        with load_model(args) as model:
            said = answer(model, question, evidence)
    if args.json:
        found = [
            {"sentence": screened(args, e.sentence), "source": e.source, "score": round(e.score, 4)}
            for e in evidence
        ]
        print(json.dumps({"question": question, "evidence": found, "answer": said}, ensure_ascii=False))
    elif said is not None:
        _warn(args.model)
        nothing = localized("(nothing)", "(쓴 것이 없습니다)")
        print(for_terminal(f"\n{localized('Answer', '답')} ({args.model}): {said or nothing}"))
    return 0


def _check(args: argparse.Namespace) -> None:
    """Refuse typed options that nothing would read."""
    if typed_model_options(args):
        pass_over(args, "no_answer")
    if args.no_answer:
        refuse_model_options(
            args,
            "--no-answer loads no model: leave it out",
            "--no-answer는 모델을 쓰지 않습니다. 이 옵션이나",
        )
    if args.index is not None and "encoding" in args.typed:
        raise InputError(
            "--encoding serves --file only, an index holds decoded text: leave --encoding out",
            "--encoding은 --file에만 쓰입니다. 색인에는 이미 해석한 글이 있으니 --encoding을 빼세요",
        )


def _sources(args: argparse.Namespace, question: str) -> list[Source]:
    from kogpt.tasks.answers import Source, find_sources

    if args.file is not None:
        return [Source(read_whole(args.file, args.encoding))]
    from kogpt.search.index import Index

    with Index.open(args.index) as index:
        return find_sources(question, index)


def _show(args: argparse.Namespace, evidence: list[Evidence]) -> None:
    print(localized("Evidence", "근거"))
    for number, item in enumerate(evidence, 1):
        source = f"  ({item.source})" if item.source else ""
        sentence = screened(args, " ".join(item.sentence.split()))
        print(for_terminal(f"{number}. {sentence}{source}"))


def _warn(model: str) -> None:
    if model == "kogpt-mini":
        en = "kogpt-mini is small: its answers are mostly wrong; trust the sentences above"
        ko = "kogpt-mini는 작은 모델이라 답이 대부분 틀립니다. 위의 근거를 보세요"
    else:
        en = "the answer is generated and may be wrong: compare it with the sentences above"
        ko = "답은 모델이 만든 글이라 틀릴 수 있습니다. 위의 근거와 견주어 보세요"
    print(f"kogpt: {localized(en, ko)}", file=sys.stderr)
