"""Options that several subcommands share: which model, and how to write.

Generation options are the fields of Sampling. None has a default: what is not given comes from the model.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Collection
from functools import partial
from typing import TYPE_CHECKING, Any

from kogpt.errors import KoGPTError, localized

if TYPE_CHECKING:
    from kogpt.generation import KoGPT
    from kogpt.peft import Origin
    from kogpt.placement import Placement

# Types and texts of Sampling's fields. It imports numpy, for which a first prompt must not wait: a test
# compares them.
SETTINGS: dict[str, tuple[type, str]] = {
    "temperature": (float, "0 picks the likeliest token; higher is more varied"),
    "top_p": (float, "keep the likeliest tokens up to this total probability; 0 keeps one"),
    "top_k": (int, "keep this many likeliest tokens; 0 keeps all"),
    "min_p": (float, "drop tokens below this share of the likeliest one's probability"),
    "repetition_penalty": (float, "above 1 makes tokens already in the text less likely"),
    "presence_penalty": (float, "subtracted once from logits of tokens already written"),
    "frequency_penalty": (float, "subtracted for every time a token was written"),
    "logit_bias": (dict, "add VALUE to the logit of token ID"),
    "seed": (int, "the same seed gives the same text on the same kind of processor"),
    "stop": (str, "text that ends the answer; not shown"),
    "max_tokens": (int, "new tokens at most (128 if no length is given)"),
    "max_length": (int, "tokens of prompt and answer together at most"),
    "regex": (str, "write text that matches this regular expression as a whole"),
    "choice": (str, "write one of these texts"),
    "json_schema": (str, "write JSON that fits this JSON Schema"),
    "hangul": (bool, "write Hangul, digits, punctuation and spaces only"),
    "n": (int, "answers per prompt"),
    "logprobs": (int, "report this many likeliest tokens with each token"),
}
# Names that Placement takes. It imports numpy, for which a first prompt must not wait: a test compares them.
DTYPES = ("auto", "float32", "bfloat16", "float16", "int8", "int4")
REVISION = (  # help of --revision; a test compares it with hub.DEFAULT_REVISIONS
    "branch, tag or commit of a hub model (default: its main branch; of kakaobrain/kogpt the float16 one)"
)
FILTERS = ("off", "mask", "block")  # a test compares them with kogpt.tasks.filter
CACHE_DTYPES = ("auto", "float32", "bfloat16", "int8")


def add_model_options(parser: argparse.ArgumentParser) -> None:
    """--model, --revision, --device, --dtype, --cache-dtype, --model_parallel, --offload."""
    group = parser.add_argument_group("model")
    group.add_argument(
        "--model",
        metavar="NAME",
        default="kogpt-mini",
        help="a folder, a hub name or a built-in model (default: %(default)s)",
    )
    group.add_argument("--revision", metavar="NAME", help=REVISION)
    group.add_argument(
        "--device",
        default="auto",
        help="auto, cpu, cuda or cuda:N; cuda:0,cuda:1 splits the model over these GPUs,"
        " cuda:all over every GPU (default: %(default)s)",
    )
    group.add_argument(
        "--dtype", choices=DTYPES, default="auto", help="precision of the weights (default: %(default)s)"
    )
    group.add_argument(
        "--cache-dtype",
        "--cache_dtype",
        choices=CACHE_DTYPES,
        default="auto",
        help="precision of cached keys and values on the CPU (default: %(default)s)",
    )
    group.add_argument(
        "--model_parallel",
        "--model-parallel",
        action="store_true",
        help="the original's name for --device cuda:all",
    )
    group.add_argument(
        "--offload",
        type=partial(read_count, least=0),
        metavar="N",
        help="layers that stay in CPU memory beside one GPU (default: as many as it has no room for)",
    )


def add_adapter_option(parser: argparse.ArgumentParser) -> None:
    """--adapter, for the commands that run a model."""
    parser.add_argument(
        "--adapter",
        metavar="NAME",
        help="a LoRA, soft prompt or prefix for the model: a folder of PEFT, or a name such as sentiment",
    )


def drop_unfit_adapter(args: argparse.Namespace, fits: Callable[[Origin], bool]) -> None:
    """Pass over an adapter that is configured for all commands and was tuned for another use than this."""
    from kogpt.cli.defaults import is_for_all

    if is_for_all(args, "adapter"):
        from kogpt.peft import read_origin

        if not fits(read_origin(args.adapter)):
            args.adapter = None


def add_filter_option(parser: argparse.ArgumentParser, default: str = "off") -> None:
    """--filter, for the commands that write text."""
    parser.add_argument(
        "--filter",
        choices=FILTERS,
        default=default,
        help="cover profanity and personal data in what is written, or end the text there"
        " (default: %(default)s)",
    )


def load_model(args: argparse.Namespace) -> KoGPT:
    """The model that the options name; slow, and the first import of numpy and what is behind it."""
    from kogpt.generation import KoGPT

    adapter = getattr(args, "adapter", None)
    model = KoGPT.from_pretrained(args.model, args.revision, placement_from(args), adapter=adapter)
    mode: Any = getattr(args, "filter", "off")
    if mode != "off":
        from kogpt.tasks.filter import TextFilter

        model.use_screen(TextFilter(mode).stream)
    return model


def placement_from(args: argparse.Namespace) -> Placement:
    """The Placement that the options describe; KoGPTError if a value is impossible."""
    from kogpt.placement import Placement

    return Placement(device_from(args), args.dtype, args.cache_dtype, offload=args.offload)


def device_from(args: argparse.Namespace) -> str:
    """What --device and --model_parallel mean together; KoGPTError if they contradict each other."""
    from kogpt.cli.machine import gpus

    device: str = args.device
    if not args.model_parallel or device == "cuda:all":
        return device
    if device not in ("auto", "cuda"):
        raise KoGPTError(
            f"--model_parallel takes every GPU, --device {device} does not: leave one of them out",
            f"--model_parallel은 모든 GPU를 씁니다. 이 옵션이나 다음 옵션을 빼세요: --device {device}",
        )
    if gpus():
        return "cuda:all"
    import logging

    logging.getLogger(__name__).warning(
        localized(
            "--model_parallel has no effect: this machine has no GPU",
            "GPU가 없어 --model_parallel 옵션은 효과가 없습니다",
        )
    )
    return device


def add_generation_options(parser: argparse.ArgumentParser, names: Collection[str] = SETTINGS) -> None:
    """An option for each of `names`: `max_tokens` is --max-tokens, and --max_tokens as well."""
    group = parser.add_argument_group(
        "generation",
        "What is not given is as the model's generation_config.json says; without one, temperature is 0.8"
        " and nothing is filtered or penalised.",
    )
    for name in names:
        flags = ["-n"] if name == "n" else list(dict.fromkeys([f"--{name.replace('_', '-')}", f"--{name}"]))
        group.add_argument(*flags, dest=name, **_argument(name))


def given_settings(args: argparse.Namespace) -> dict[str, Any]:
    """The fields of Sampling that the options state; SamplingError if a value is out of range."""
    from kogpt.texts import decode_argument  # 10 ms, which --help does not need

    values = {name: getattr(args, name, None) for name in SETTINGS}
    given = {name: value for name, value in values.items() if value is not None}
    for name in ("stop", "choice"):
        if name in given:
            given[name] = tuple(decode_argument(text, f"--{name}") for text in given[name])
    if "regex" in given:
        given["regex"] = decode_argument(given["regex"], "--regex")
    if "json_schema" in given:
        given["json_schema"] = _schema(decode_argument(given["json_schema"], "--json-schema"))
    if "logit_bias" in given:
        given["logit_bias"] = dict(given["logit_bias"])
    if given:
        from kogpt.sampling import Sampling

        Sampling(**given)
    return given


def _argument(name: str) -> dict[str, Any]:
    """Build the keywords of add_argument for one setting."""
    kind, text = SETTINGS[name]
    if name in ("stop", "choice"):
        return {"action": "append", "metavar": "TEXT", "help": f"{text}; may be repeated"}
    if name == "json_schema":
        return {"metavar": "SCHEMA", "help": f"{text}; a file that holds it, or the schema itself"}
    if kind is bool:
        return {"action": "store_true", "default": None, "help": text}
    if name == "logit_bias":
        return {"action": "append", "metavar": "ID=VALUE", "type": _bias, "help": f"{text}; may be repeated"}
    return {"type": kind, "metavar": kind.__name__.upper()[:5], "help": text}


def _schema(text: str) -> str:
    """A schema that is given itself, or the file that holds it."""
    if text.lstrip().startswith("{"):
        return text
    from kogpt.texts import decode, read_bytes

    return decode(read_bytes(text), text)


def _bias(text: str) -> tuple[int, float]:
    """ID=VALUE."""
    token, _, value = text.partition("=")
    return int(token), float(value)


_bias.__name__ = "ID=VALUE"  # argparse names the converter in its complaint


def read_count(text: str, least: int = 1) -> int:
    """An argument that is a whole number from `least` to a million."""
    is_number = text.isascii() and text.isdecimal() and len(text) <= 8
    if not is_number or not least <= int(text) <= 1_000_000:
        shown = text[:40]
        raise argparse.ArgumentTypeError(
            localized(
                f"{shown!r} is not a whole number from {least} to 1,000,000",
                f"{shown!r}: {least} 이상 1,000,000 이하의 정수를 쓰세요",
            )
        )
    return int(text)


def read_counts(text: str, least: int = 1) -> tuple[int, ...]:
    """An argument that is a list of such numbers, as in 1,4,16; each is taken once."""
    return tuple(dict.fromkeys(read_count(part, least) for part in text.split(",")))


def read_counts_from_0(text: str) -> tuple[int, ...]:
    """An argument that is a list of whole numbers, as in 0,5,70."""
    return read_counts(text, 0)


def read_amount(text: str) -> float:
    """An argument that is a finite number from 0 on."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value < math.inf:
        shown = text[:40]
        raise argparse.ArgumentTypeError(
            localized(f"{shown!r} is not a number from 0 on", f"{shown!r}: 0 이상의 수를 쓰세요")
        )
    return value


def read_share(text: str) -> float:
    """An argument above 0, up to 1."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value <= 1:
        shown = text[:40]
        raise argparse.ArgumentTypeError(
            localized(
                f"{shown!r} is not a number above 0 and at most 1",
                f"{shown!r}: 0보다 크고 1 이하인 수를 쓰세요",
            )
        )
    return value
