"""`kogpt classify`: label texts with words of one's own, or as a tuned adapter does."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

from kogpt.cli.defaults import pass_over
from kogpt.cli.options import add_adapter_option, add_model_options, load_model
from kogpt.cli.texts import Item, add_text_arguments, read_items, rows_of
from kogpt.cli.workers import add_worker_options, cut, require_workers, spread
from kogpt.errors import InputError, localized
from kogpt.texts import for_terminal

if TYPE_CHECKING:
    from pathlib import Path

    from kogpt.classification import Classification, Wording
    from kogpt.comparison import Comparison
    from kogpt.generation import KoGPT
    from kogpt.tasks.named import Labeller

NAMES = ("sentiment", "intent", "profanity")
FORMATS = ("text", "json", "tsv")
_WORDING = ("named", "labels", "examples", "instruction", "template", "no_calibration")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `kogpt classify`."""
    add_text_arguments(parser)
    group = parser.add_argument_group("labels")
    group.add_argument("--as", dest="named", choices=NAMES, help="a classification that comes with KoGPT")
    group.add_argument("--labels", metavar="A,B", help="your own labels, separated by commas")
    group.add_argument(
        "--examples",
        metavar="PATH",
        help='examples for --labels: a table or JSON Lines with "text" and "label"',
    )
    group.add_argument("--instruction", metavar="TEXT", help="what to tell the model before the examples")
    group.add_argument("--template", metavar="TEXT", help="how a text is asked about (default: {text}=)")
    group.add_argument(
        "--no-calibration",
        action="store_true",
        help="do not correct for labels that the model prefers whatever the text",
    )
    parser.add_argument(
        "--format", choices=FORMATS, default="text", help="how results are printed (default: %(default)s)"
    )
    parser.add_argument(
        "--compare",
        metavar="MODEL",
        help='a second model: both label a file with "label" and are compared by McNemar\'s test',
    )
    add_model_options(parser)
    add_adapter_option(parser)
    add_worker_options(parser)


def run(args: argparse.Namespace) -> int:
    """Label every text."""
    _check(args)
    items = read_items(args)
    _require_answers(args, items)
    if "label_column" in args.typed:
        _require_a_label(args, items)
    parts = cut([item.text for item in items], 256)
    if args.workers is not None:
        names = ("model", "revision", "dtype", "cache_dtype", "adapter", *_WORDING)
        run = {name: str(getattr(args, name)) for name in names}
        if args.labels is not None:
            run["examples"] = repr(_examples(args.examples, _labels(args)))  # its name does not say which
        if args.parts is not None:
            run |= _digests(args)
        labels, found = _show_all(spread(args, partial(_worker, args), parts, run), args.format)
    else:
        labels, found = _show_all(map(_worker(args), parts), args.format)
    answers = _right_answers(items, labels)
    if args.compare is None:
        _say_accuracy(answers, found)
        return 0
    other = _load(argparse.Namespace(**{**vars(args), "model": args.compare, "revision": None}))
    with other.model:
        second = other.label([item.text for item in items])
    from kogpt.comparison import compare

    _show_comparison(args, compare(answers, [x.label for x in found], [x.label for x in second]))
    return 0


def _check(args: argparse.Namespace) -> None:
    """Refuse what contradicts itself, before anything is read."""
    require_workers(args)
    given = [name for name in ("named", "labels", "adapter") if getattr(args, name) is not None]
    if not given:
        raise InputError(
            "there are no labels: --as sentiment, --labels 긍정,부정 or --adapter DIR",
            "레이블이 없습니다. --as sentiment, --labels 긍정,부정, --adapter DIR 중 하나를 쓰세요",
        )
    if args.named is not None and len(given) > 1:
        other = given[1]
        raise InputError(
            f"--as brings its own labels: leave out --{other}",
            f"--as에는 레이블이 정해져 있습니다. --{other} 옵션을 빼세요",
        )
    if args.labels is None and args.typed.keys() & {"examples", "instruction", "template"}:
        raise InputError(
            "--examples, --instruction and --template go with --labels: add it, or leave them out",
            "--examples, --instruction, --template은 --labels와 함께 써야 합니다. --labels를 더하세요",
        )
    if "no_calibration" in args.typed and not _asks_by_prompt(args):
        raise InputError(
            "--no-calibration is for answers by a prompt, here an adapter answers: leave it out",
            "여기서는 어댑터가 답합니다. 프롬프트로 묻는 답에만 쓰는 --no-calibration을 빼세요",
        )


def _asks_by_prompt(args: argparse.Namespace) -> bool:
    """Whether labels are likelihoods after a prompt, not what an adapter was tuned to answer."""
    return args.labels is not None or (args.named is not None and _own_adapter(args) is None)


def _own_adapter(args: argparse.Namespace) -> Path | None:
    """The adapter in the package that answers --as, which is kogpt-mini's."""
    from kogpt.tasks.named import adapter_folder

    return adapter_folder(args.named) if args.model == "kogpt-mini" else None


def _require_answers(args: argparse.Namespace, items: Sequence[Item]) -> None:
    """InputError for texts without labels, which cannot be compared; a configured --compare is for others."""
    if all(item.label is not None for item in items):
        return
    pass_over(args, "compare")
    if args.compare is not None:
        raise InputError(
            '--compare needs the right answers: a table or JSON Lines with "text" and "label"',
            '--compare에는 정답이 필요합니다. "text"와 "label"이 있는 표나 JSON Lines를 주세요',
        )


def _require_a_label(args: argparse.Namespace, items: Sequence[Item]) -> None:
    if all(item.label is None for item in items):
        raise InputError(
            f"--label-column {args.label_column}: no row has this column, name another one or leave it out",
            f"--label-column {args.label_column}: 이 열이 있는 행이 없습니다. 다른 열을 지정하거나 옵션을"
            " 빼세요",
        )


def _digests(args: argparse.Namespace) -> dict[str, str]:
    """Hashes of the model and the adapter that answer: new weights in the same folder are another run."""
    from kogpt import hub, peft
    from kogpt.tasks.named import adapter_folder

    of_model = args.model == "kogpt-mini" and args.named is not None
    adapter = adapter_folder(args.named) if of_model else args.adapter
    return peft.digests(hub.find_folder(args.model, args.revision), adapter, with_labels=True)


def _load(args: argparse.Namespace) -> Labeller:
    """The model, with the adapter that the labels ask for, and how it is asked."""
    from kogpt.tasks.named import NAMED, Labeller

    if args.named is None:
        model = load_model(args)
        return Labeller(model, _own_wording(args, model))
    folder = _own_adapter(args)
    if folder is not None:
        return Labeller.by_adapter(load_model(argparse.Namespace(**{**vars(args), "adapter": str(folder)})))
    en = f"{args.model} has no adapter for {args.named}: it is asked by a prompt, which is less accurate"
    ko = f"{args.model}에는 {args.named} 어댑터가 없어 프롬프트로 묻습니다. 정확도가 낮을 수 있습니다"
    print(f"kogpt: {localized(en, ko)}", file=sys.stderr)
    wording = replace(NAMED[args.named], calibrated=not args.no_calibration)
    return Labeller(load_model(args), wording)


def _own_wording(args: argparse.Namespace, model: KoGPT) -> Wording | None:
    """How the model is asked: for --labels, or as its adapter was tuned; None where a head answers."""
    from kogpt.classification import Wording

    if args.labels is None:
        if not model.has_head:
            return model.wording()
        _require_labels_of_head(args, model)
        return None
    labels = _labels(args)
    return Wording(
        labels,
        template=args.template or "{text}=",
        instruction=args.instruction or "",
        examples=_examples(args.examples, labels),
        calibrated=not args.no_calibration,
    )


def _labels(args: argparse.Namespace) -> tuple[str, ...]:
    """The labels of --labels."""
    return tuple(label.strip() for label in args.labels.split(","))


def _require_labels_of_head(args: argparse.Namespace, model: KoGPT) -> None:
    if not model.origin.labels:
        raise InputError(
            f"--adapter {args.adapter} grades texts and has no labels: add --labels A,B, or take one that"
            " was tuned on labels",
            f"--adapter {args.adapter}: 점수를 매기는 어댑터라 레이블이 없습니다. --labels A,B를 더하거나"
            " 레이블로 튜닝한 어댑터를 쓰세요",
        )


def _examples(path: str | None, labels: Sequence[str]) -> tuple[tuple[str, int], ...]:
    """(text, index of the label) of each row of a file."""
    if path is None:
        return ()
    found = []
    for item in rows_of(path):
        if item.label not in labels:
            raise InputError(
                f"{path} line {item.line}: the label {item.label!r} is none of {', '.join(labels)}",
                f"{path} {item.line}행: 없는 레이블 {item.label!r} (가능: {', '.join(labels)})",
            )
        found.append((item.text, labels.index(item.label)))
    return tuple(found)


def _worker(args: argparse.Namespace) -> Callable[[Sequence[str]], dict[str, Any]]:
    """A function that classifies a batch of texts with a model of its own."""
    labeller = _load(args)

    def work(texts: Sequence[str]) -> dict[str, Any]:
        found = [asdict(classification) for classification in labeller.label(texts)]
        return {"labels": labeller.labels, "found": found}

    return work


def _show_all(
    batches: Iterable[Mapping[str, Any]], format: str
) -> tuple[Sequence[str], list[Classification]]:
    """Print classifications as they come; the labels, and all classifications."""
    from kogpt.classification import Classification

    labels: Sequence[str] = ()
    show: _Writer | None = None
    found: list[Classification] = []
    for batch in batches:
        labels = batch["labels"]
        show = show or _WRITERS[format](labels)
        for fields in batch["found"]:
            found.append(Classification(**fields))
            show.write(found[-1])
        sys.stdout.flush()
    n_cut = sum(classification.cut for classification in found)
    if n_cut:
        en = f"{n_cut} texts were longer than the model reads: only their beginnings counted"
        ko = f"글 {n_cut}개가 모델이 읽을 수 있는 길이를 넘어 앞부분만 보았습니다"
        print(f"kogpt: {localized(en, ko)}", file=sys.stderr)
    return labels, found


class _Writer(Protocol):
    def write(self, found: Classification) -> None:
        """Print one result."""


@dataclass(frozen=True, slots=True)
class _Text:
    labels: Sequence[str]

    def write(self, found: Classification) -> None:
        """Label, probability and text in a line."""
        text = for_terminal(" ".join(found.text.split()))
        print(f"{found.label}\t{found.probabilities[found.label]:.3f}\t{text}")


@dataclass(frozen=True, slots=True)
class _Json:
    labels: Sequence[str]

    def write(self, found: Classification) -> None:
        """One object a line; the names are stable."""
        shares = {label: round(share, 6) for label, share in found.probabilities.items()}
        record = {"text": found.text, "label": found.label, "probabilities": shares}
        print(json.dumps(record, ensure_ascii=False))


class _Tsv:
    def __init__(self, labels: Sequence[str]) -> None:
        self._labels = labels
        print("\t".join(["text", "label", *labels]))

    def write(self, found: Classification) -> None:
        """Text, label, and the probability of each label."""
        shares = [f"{found.probabilities[label]:.6f}" for label in self._labels]
        print("\t".join([" ".join(found.text.split()), found.label, *shares]))


_WRITERS: Mapping[str, Callable[[Sequence[str]], _Writer]] = {"text": _Text, "json": _Json, "tsv": _Tsv}


def _right_answers(items: Sequence[Item], labels: Sequence[str]) -> list[str]:
    """The labels of a file as the model names them: by name, or by their place among the labels."""
    given = [item.label for item in items]
    if any(label is None for label in given):
        return []
    found = []
    for item in items:
        label = item.label or ""
        if label in labels:
            found.append(label)
        elif label.isascii() and label.isdecimal() and len(label) < 9 and int(label) < len(labels):
            found.append(labels[int(label)])
        else:
            raise InputError(
                f"line {item.line}: the label {label[:40]!r} is none of {', '.join(labels)}, and no number"
                f" below {len(labels)}",
                f"{item.line}행: 없는 레이블 {label[:40]!r} (가능: {', '.join(labels)}, 또는 번호)",
            )
    return found


def _say_accuracy(answers: Sequence[str], found: Sequence[Classification]) -> None:
    if not answers:
        return
    right = sum(x.label == answer for x, answer in zip(found, answers, strict=True))
    share = 100 * right / len(answers)
    en = f"{right} of {len(answers)} as the file says ({share:.1f} %)"
    ko = f"{len(answers)}개 중 {right}개가 파일의 레이블과 같습니다 ({share:.1f} %)"
    print(f"kogpt: {localized(en, ko)}", file=sys.stderr)


def _show_comparison(args: argparse.Namespace, result: Comparison) -> None:
    record: Mapping[str, object] = {
        "models": [args.model, args.compare],
        "n": result.n,
        "accuracy": [result.right_first / result.n, result.right_second / result.n],
        "only_right": [result.only_first, result.only_second],
        "p": result.p,
    }
    if args.format == "json":
        print(json.dumps(record, ensure_ascii=False))
        return
    for line in _comparison_lines(args, result):
        print(line)


def _comparison_lines(args: argparse.Namespace, result: Comparison) -> Iterator[str]:
    for model, right in ((args.model, result.right_first), (args.compare, result.right_second)):
        yield f"{model}\t{right}/{result.n}\t{100 * right / result.n:.1f} %"
    en = f"only one is right: {result.only_first} and {result.only_second} texts; McNemar p = {result.p:.3g}"
    ko = f"한쪽만 맞힌 글: {result.only_first}개, {result.only_second}개; 맥니마 검정 p = {result.p:.3g}"
    yield localized(en, ko)
