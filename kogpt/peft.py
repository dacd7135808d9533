"""An adapter <-> a folder as PEFT writes it: adapter_config.json and adapter_model.safetensors.

KoGPT writes kogpt_adapter.json beside them: hashes of the model and the tokenizer that the adapter was tuned
on, its task, labels and template, and the SHA-256 of its weights. PEFT's own folders lack it and are held to
the model's shapes only.

Files are taken for hostile: sizes, names, shapes and values are checked before use, nothing is executed.
Shapes: as in adapter.py.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Self, TypeGuard

import numpy as np

from kogpt.adapter import Adapter, Floats, KeyValuePrefix, Lora, LowRank, SoftPrompt, require_lora_fits
from kogpt.checkpoint import Checkpoint
from kogpt.checkpoint import digest as digest_model
from kogpt.config import ModelConfig
from kogpt.errors import CheckpointError, josa
from kogpt.files import damaged, open_inside, read_json, read_limited, replace_all, safe_join, share_folder
from kogpt.hub import find_adapter
from kogpt.patterns import n_ways
from kogpt.weights import Stored, open_safetensors, write_safetensors

CONFIG, WEIGHTS, OWN = "adapter_config.json", "adapter_model.safetensors", "kogpt_adapter.json"
VERSION = 1  # of OWN
MAX_TOKENIZER_BYTES = 32 << 20  # as tokenizer.py
MAX_JSON_BYTES = 1 << 20  # PEFT's settings take 2 kB; labels and templates are short
MAX_PATTERNS = 1024
SIMPLE = re.compile(r"[\w.\\|()\[\]^$?*+{},-]{1,200}", re.ASCII)  # a pattern of names of modules
MAX_NAME = 48  # characters of a module's name
MAX_WAYS = 1 << 14  # in which all patterns of a setting may match a name; a plain name has one

# PEFT's name of a tensor <-> module and factor; HEAD is a classifier that was tuned beside the adapter.
LORA_NAME = "base_model.model.{module}.lora_{factor}.weight"
LORA_TENSOR = re.compile(
    r"base_model\.model\.(transformer\.h\.\d{1,4}\.(?:attn\.[qkv]_proj|attn\.out_proj|mlp\.fc_in|mlp\.fc_out))"
    r"\.lora_([AB])\.weight"
)
HEAD = "base_model.model.score.weight"
PROMPT = "prompt_embeddings"

# Settings of PEFT that say how an adapter was made, or that are read here. Any other one has to be empty.
COMMON = (
    *("auto_mapping", "base_model_name_or_path", "inference_mode", "modules_to_save", "peft_type"),
    *("peft_version", "revision", "runtime_config", "task_type"),
)
OF_LORA = (
    *("alpha_pattern", "corda_config", "eva_config", "exclude_modules", "layers_pattern"),
    *("layers_to_transform", "loftq_config", "lora_alpha", "lora_dropout", "lora_ga_config", "megatron_core"),
    *("qalora_group_size", "r", "rank_pattern", "target_modules", "use_rslora"),
)
OF_PROMPTS = (
    *("encoder_dropout", "encoder_hidden_size", "encoder_num_layers", "encoder_reparameterization_type"),
    *("num_attention_heads", "num_layers", "num_virtual_tokens", "prefix_projection", "prompt_tuning_init"),
    *("prompt_tuning_init_text", "token_dim", "tokenizer_kwargs", "tokenizer_name_or_path"),
)
KNOWN = frozenset((*COMMON, *OF_LORA, *OF_PROMPTS))
# Settings with values that compute what is computed here. Other ways to begin change the model's own weights.
ALLOWED: Mapping[str, tuple[Any, ...]] = {
    "bias": ("none",),
    "init_lora_weights": (True, False, None, "gaussian", "eva"),
    "num_transformer_submodules": (1, None),
    "init_weights": (None, "zero"),
}


@dataclass(frozen=True, slots=True)
class Origin:
    """What an adapter was tuned on and for; None and () where its folder does not say."""

    model: tuple[str, str] | None = None  # model_hashes
    tokenizer: str | None = None  # tokenizer_hash
    task: str | None = None
    labels: tuple[str, ...] = ()
    template: str | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)  # how it was tuned; JSON

    @classmethod
    def of(
        cls,
        stored: Checkpoint,
        task: str | None = None,
        labels: Sequence[str] = (),
        template: str | None = None,
    ) -> Self:
        """The origin of an adapter that was tuned on `stored`."""
        return cls(model_hashes(stored), tokenizer_hash(stored.folder), task, tuple(labels), template)

    @property
    def writes(self) -> bool:
        """Whether the adapter was tuned to write text, not to answer by labels or a head, nor to embed."""
        judges = self.labels or self.settings.get("head")
        return not judges and self.settings.get("method") != "embed"

    def prompt(self, *texts: str) -> str:
        """The template with one text, or with two; CheckpointError if there is none for so many texts."""
        names = ("text",) if len(texts) == 1 else tuple(f"text{n}" for n in range(1, len(texts) + 1))
        template = self.template or ""
        if not all(f"{{{name}}}" in template for name in names):
            raise CheckpointError(
                f"the adapter's template is {template!r}: it has no place for {len(texts)} texts",
                f"어댑터의 템플릿이 {template!r}입니다. 글 {len(texts)}개가 들어갈 자리가 없습니다",
            )
        fields = dict(zip(names, texts, strict=True))
        return re.sub(r"\{(\w+)\}", lambda place: fields.get(place[1], place[0]), template)


@dataclass(frozen=True, slots=True)
class SavedAdapter:
    """An adapter as its folder holds it."""

    adapter: Adapter
    head: Floats | None = None  # (labels, E): a classifier on the last position
    origin: Origin = field(default_factory=Origin)

    @property
    def writes(self) -> bool:
        """Whether it was tuned to write text, not to answer by labels or to embed."""
        return self.head is None and self.origin.writes


def load(folder: str | Path, stored: Checkpoint) -> SavedAdapter:
    """Read an adapter for a model: a folder, or the name of one that ships.

    CheckpointError where it is damaged, of another kind or another model's.

    A folder without kogpt_adapter.json, as PEFT writes it, is held to the model's shapes only.
    """
    folder = find_adapter(folder)
    try:
        if not os.path.lexists(folder / CONFIG):
            raise CheckpointError(
                f"{folder} holds no adapter: there is no {CONFIG}; give a folder that KoGPT or PEFT wrote",
                f"{folder}: {CONFIG} 파일이 없어 어댑터가 아닙니다. KoGPT나 PEFT가 만든 폴더를 지정하세요",
            )
        with share_folder(folder):
            return _load_folder(folder, stored)
    except OSError as error:
        reason = error.strerror or str(error)
        raise CheckpointError(
            f"cannot read the adapter {folder}: {reason}", f"어댑터를 읽을 수 없습니다: {folder} ({reason})"
        ) from error


def read_origin(folder: str | Path) -> Origin:
    """Model, task and labels of an adapter. Reads no weights; folder and errors as in `load`."""
    return _read_own(find_adapter(folder))[0]


def _load_folder(folder: Path, stored: Checkpoint) -> SavedAdapter:
    origin, digest = _read_own(folder)
    _require_origin(folder, origin, stored)
    settings = read_json(safe_join(folder, CONFIG), MAX_JSON_BYTES)
    read = _reader(folder / CONFIG, settings)
    tensors = _read_tensors(folder, stored.config, digest)
    head = _head(folder / WEIGHTS, tensors.pop(HEAD, None), stored.config, origin)
    return SavedAdapter(read(_Source(folder, settings, tensors, stored.config)), head, origin)


@dataclass(frozen=True, slots=True)
class _Source:
    """A folder whose settings are checked and whose tensors are read."""

    folder: Path
    settings: Mapping[str, Any]
    tensors: Mapping[str, Floats]
    config: ModelConfig

    def number(self, name: str, kinds: tuple[type, ...] = (int,)) -> Any:
        """A setting that is a number above zero."""
        value = self.settings.get(name)
        if not _is_count(value, kinds):
            raise damaged(self.folder / CONFIG, f"{name} is {str(value)[:40]}, not a number above zero")
        return value

    def refused(self, name: str) -> CheckpointError:
        """The error for a tensor that has no place here."""
        return CheckpointError(
            f"{self.folder / WEIGHTS} holds {name[:100]!r}, which KoGPT cannot use: LoRA on the matrices of "
            "the blocks (q_proj, k_proj, v_proj, out_proj, fc_in, fc_out) and a head named score are read",
            f"{self.folder / WEIGHTS}: {name[:100]!r} 텐서는 쓸 수 없습니다. 블록의 행렬(q_proj, k_proj, "
            "v_proj, out_proj, fc_in, fc_out)에 대한 LoRA와 score라는 헤드만 읽습니다",
        )


def _reader(path: Path, settings: Mapping[str, Any]) -> Callable[[_Source], Adapter]:
    """How to read the method that the settings name; CheckpointError for what is not computed here."""
    method = settings.get("peft_type")
    if type(method) is not str or method not in READERS:
        shown, known = repr(method)[:60], ", ".join(READERS)
        raise CheckpointError(
            f"{path} names the method {shown}, KoGPT knows {known}",
            f"{path}: 방법 {shown} (지원: {known})",
        )
    for name, value in settings.items():
        allowed = ALLOWED.get(name, ())
        empty = value is None or value is False or value in ("", [], {})
        if name not in KNOWN and not empty and not any(value is only or value == only for only in allowed):
            shown = str(value)[:60]
            raise CheckpointError(
                f"{path} has {name[:60]!r} = {shown}, which KoGPT does not compute: tune without it, or "
                "merge the adapter with PEFT and load the merged model",
                f"{path}: {name[:60]!r} = {shown} 설정은 지원하지 않습니다. 이 설정 없이 튜닝하거나 "
                "PEFT로 병합한 모델을 불러오세요",
            )
    return READERS[method]


def _read_tensors(folder: Path, config: ModelConfig, digest: str | None) -> dict[str, Floats]:
    """Every tensor as float32, copied from the file; CheckpointError for a pickle, integers, float64, NaN."""
    if not os.path.lexists(folder / WEIGHTS) and os.path.lexists(folder / "adapter_model.bin"):
        raise CheckpointError(
            f"{folder} holds its weights in a pickle, adapter_model.bin, which can execute code: load it "
            "with PEFT where it was made and save it again with safe_serialization=True",
            f"{folder}: 가중치가 코드를 실행할 수 있는 pickle(adapter_model.bin)에 있습니다. 만든 곳에서 "
            "PEFT로 불러와 safe_serialization=True로 다시 저장하세요",
        )
    with open_inside(folder, WEIGHTS) as opened:
        n_bytes, limit = os.fstat(opened.fileno()).st_size, 4 * config.n_parameters
        if n_bytes > limit:
            raise damaged(folder / WEIGHTS, f"it has {n_bytes:,} bytes, the whole model has {limit:,}")
        max_header = (64 << 10) + 256 * 12 * config.n_layers  # two factors of six matrices
        file = open_safetensors(folder / WEIGHTS, opened, max_header, copy=True)
        found = file.scan(digest is not None)
        if found != digest:
            raise CheckpointError(
                f"{folder / WEIGHTS} is not the file that {OWN} describes: get the folder again, or delete "
                f"{OWN} if PEFT wrote the weights anew",
                f"{folder / WEIGHTS}: {OWN}의 내용과 다릅니다. 폴더를 다시 받거나, PEFT로 가중치를 다시 "
                f"저장했다면 {OWN} 파일을 지우세요",
            )
        for name, tensor in file.tensors.items():
            if not tensor.shape:
                raise damaged(file.path, f"{name} is a single number, adapters hold matrices")
            if tensor.dtype == "float64":
                raise damaged(file.path, f"{name} is float64, adapters are float32, float16 or bfloat16")
        return {name: np.array(tensor.load().to("float32")) for name, tensor in file.tensors.items()}


def _lora(source: _Source) -> Lora:
    factors: dict[str, dict[str, Floats]] = {}
    for name, tensor in source.tensors.items():
        match = LORA_TENSOR.fullmatch(name)
        if match is None:
            raise source.refused(name)
        factors.setdefault(match[1], {})[match[2]] = tensor
    if not factors:
        raise damaged(source.folder / WEIGHTS, "it holds no LoRA")
    scale = _scales(source)
    updates = {}
    for module, pair in factors.items():
        if pair.keys() != {"A", "B"}:
            raise damaged(source.folder / WEIGHTS, f"{module} has one factor, a LoRA has lora_A and lora_B")
        updates[module] = LowRank(pair["A"], pair["B"], scale(module, len(pair["A"])))
    lora = Lora(updates)
    require_lora_fits(lora, source.config)
    return lora


def _scales(source: _Source) -> Callable[[str, int], float]:
    """The scale of a module's update, from alpha and rank and their patterns, as PEFT finds them.

    A pattern stands for modules that end in it; the first that matches counts.
    """
    path = source.folder / CONFIG
    alphas, ranks = (_patterns(source, name) for name in ("alpha_pattern", "rank_pattern"))
    alpha, rank = source.number("lora_alpha", (int, float)), source.number("r")

    def scale(module: str, found: int) -> float:
        expected = next((value for pattern, value in ranks if pattern.fullmatch(module)), rank)
        if found != expected:
            raise damaged(path, f"the rank of {module} is {expected}, its factors have {found}")
        own = next((value for pattern, value in alphas if pattern.fullmatch(module)), alpha)
        return float(own / (math.sqrt(found) if source.settings.get("use_rslora") else found))

    return scale


def _is_count(value: Any, kinds: tuple[type, ...]) -> bool:
    """Whether a JSON value is a number above zero of one of the types; true is none."""
    return type(value) in kinds and bool(0 < value < 2**31)


def _patterns(source: _Source, name: str) -> list[tuple[re.Pattern[str], float]]:
    """A setting that maps patterns of modules to numbers; only patterns that end soon on any name."""
    given, path = source.settings.get(name) or {}, source.folder / CONFIG
    if type(given) is not dict or len(given) > MAX_PATTERNS:
        raise damaged(path, f"{name} is not an object of at most {MAX_PATTERNS:,} numbers")
    found = []
    room: float = MAX_WAYS
    for key, value in given.items():
        if not _is_count(value, (int, float)):
            raise damaged(path, f"{name} has {str(value)[:40]}, not a number above zero")
        room -= n_ways(key, MAX_NAME)
        if not SIMPLE.fullmatch(key) or room < 0:
            raise damaged(path, f"{name} has the pattern {key[:60]!r}: write names of modules instead")
        try:
            found.append((re.compile(rf"(?:.*\.)?(?:{key})"), value))
        except re.error as error:
            raise damaged(path, f"{name} has the pattern {key[:60]!r}: {error}") from error
    return found


def _soft_prompt(source: _Source) -> SoftPrompt:
    return SoftPrompt(_virtual_tokens(source, source.config.d_model))


def _key_value_prefix(source: _Source) -> KeyValuePrefix:
    config = source.config
    flat = _virtual_tokens(source, 2 * config.n_layers * config.d_model)
    # PEFT: (P, 2 L E) = (P, L, key and value, H, D)
    both = flat.reshape(len(flat), config.n_layers, 2, config.n_heads, config.d_head).transpose(2, 1, 0, 3, 4)
    return KeyValuePrefix(np.ascontiguousarray(both[0]), np.ascontiguousarray(both[1]))


def _virtual_tokens(source: _Source, width: int) -> Floats:
    """(P, width), the only tensor of its file; it leaves room for a text."""
    if extra := next((name for name in source.tensors if name != PROMPT), None):
        raise source.refused(extra)
    n, limit = source.number("num_virtual_tokens"), source.config.n_ctx
    if PROMPT not in source.tensors:
        raise damaged(source.folder / WEIGHTS, f"it holds no {PROMPT}")
    _require_shape(source.folder, PROMPT, (n, width), source.tensors[PROMPT])
    if n >= limit:
        raise CheckpointError(
            f"{source.folder} has {n} virtual tokens, the model reads {limit} in all: use a shorter one",
            f"{source.folder}: 가상 토큰이 {n}개인데 모델은 모두 {limit}토큰까지 읽습니다. "
            "더 짧은 어댑터를 쓰세요",
        )
    return source.tensors[PROMPT]


def _head(path: Path, tensor: Floats | None, config: ModelConfig, origin: Origin) -> Floats | None:
    if tensor is None:
        return None
    n_labels = len(origin.labels) or len(tensor)
    _require_shape(path.parent, HEAD, (n_labels, config.d_model), tensor)
    return tensor


def _require_shape(folder: Path, name: str, expected: tuple[int, ...], tensor: Floats) -> None:
    if tensor.shape != expected:
        raise CheckpointError(
            f"{folder / WEIGHTS}: {name} has shape {list(tensor.shape)}, this model needs {list(expected)}: "
            "use an adapter that was tuned on this model",
            f"{folder / WEIGHTS}: {name} 크기 {list(tensor.shape)}, 이 모델에 필요한 크기 {list(expected)}. "
            "이 모델에서 튜닝한 어댑터를 쓰세요",
        )


READERS: Mapping[str, Callable[[_Source], Adapter]] = {
    "LORA": _lora,
    "PROMPT_TUNING": _soft_prompt,
    "P_TUNING": _soft_prompt,
    "PREFIX_TUNING": _key_value_prefix,
}


def model_hashes(stored: Checkpoint) -> tuple[str, str]:
    """SHA-256 over a model's vectors in float16 and in bfloat16, and over what no shape says.

    An export to another precision keeps at least one of the two: quantised folders keep their vectors.
    """
    config = stored.config
    arithmetic = f"{config.n_heads} {config.rotary_dim} {config.layer_norm_epsilon}".encode()
    names = [name for name, shape in config.tensor_shapes().items() if len(shape) == 1]
    hashes = []
    for dtype in ("float16", "bfloat16"):
        total = hashlib.sha256(arithmetic)
        for name in names:
            vector = stored.tensors[name]
            assert isinstance(vector, Stored), name
            with np.errstate(over="ignore"):  # infinity is a value like any other here
                total.update(np.ascontiguousarray(vector.to(dtype)).tobytes())
        hashes.append(total.hexdigest())
    return hashes[0], hashes[1]


def tokenizer_hash(folder: Path) -> str:
    """SHA-256 over what a tokenizer.json says, whatever its layout."""
    document = read_json(safe_join(folder, "tokenizer.json"), MAX_TOKENIZER_BYTES)
    return hashlib.sha256(json.dumps(document, sort_keys=True).encode()).hexdigest()


def digests(folder: Path, adapter: str | Path | None = None, with_labels: bool = False) -> dict[str, str]:
    """SHA-256 of the files of a model, and of an adapter, that decide what they answer; every byte is read.

    with_labels: an adapter's labels and template too, which decide what it is asked.
    """
    tokenizer = read_limited(safe_join(folder, "tokenizer.json"), MAX_TOKENIZER_BYTES)
    found = {
        "model_sha256": digest_model(folder),
        "tokenizer_sha256": hashlib.sha256(tokenizer).hexdigest(),
    }
    if adapter is None:
        return found
    place, total = find_adapter(adapter), hashlib.sha256()
    own = (OWN,) if with_labels and os.path.lexists(place / OWN) else ()
    for name in (CONFIG, WEIGHTS, *own):
        with open_inside(place, name) as file:
            total.update(hashlib.file_digest(file, "sha256").digest())
    return found | {"adapter_sha256": total.hexdigest()}


def _require_origin(folder: Path, origin: Origin, stored: Checkpoint) -> None:
    """CheckpointError if the adapter says that it was tuned on another model or with another tokenizer."""
    other = None
    if origin.model is not None and not set(origin.model) & set(model_hashes(stored)):
        other = ("on another model than", "모델")
    elif origin.tokenizer is not None and origin.tokenizer != tokenizer_hash(stored.folder):
        other = ("with another tokenizer than that of", "토크나이저")
    if other is not None:
        raise CheckpointError(
            f"the adapter {folder} was tuned {other[0]} {stored.folder}: use the model that it was tuned on",
            f"어댑터 {folder}: {stored.folder}의 {josa(other[1], '과/와')} 다른 {josa(other[1], '으로/로')} "
            "튜닝되었습니다. 튜닝할 때 쓴 모델을 지정하세요",
        )


def _read_own(folder: Path) -> tuple[Origin, str | None]:
    """The origin and the SHA-256 of the weights that kogpt_adapter.json states; None if it is absent."""
    if not os.path.lexists(folder / OWN):
        return Origin(), None
    path = safe_join(folder, OWN)
    document = read_json(path, MAX_JSON_BYTES)
    if document.get("version") != VERSION:
        shown = repr(document.get("version"))[:40]
        raise CheckpointError(
            f"{path} has version {shown}, this KoGPT reads version {VERSION}: upgrade kogpt",
            f"{path}: 버전 {shown} (지원: {VERSION}). kogpt를 업그레이드하세요",
        )
    texts = [document.get(name) for name in ("tokenizer", "task", "template")]
    model, labels, digest = document.get("model"), document.get("labels"), document.get("sha256")
    settings = document.get("settings", {})
    sound = all(value is None or type(value) is str for value in texts) and type(digest) is str
    sound = sound and type(settings) is dict
    if not sound or not _are_texts(labels) or not (model is None or (_are_texts(model) and len(model) == 2)):
        raise damaged(path, "model, tokenizer, task, labels, template, settings or sha256 is not KoGPT's")
    tokenizer, task, template = texts
    return Origin(
        None if model is None else (model[0], model[1]), tokenizer, task, tuple(labels), template, settings
    ), digest


def _are_texts(value: Any) -> TypeGuard[list[str]]:
    return type(value) is list and all(type(text) is str for text in value)


def save(
    folder: Path, saved: SavedAdapter, config: ModelConfig, base: str | None = None, dtype: str = "float32"
) -> None:
    """Write an adapter as PEFT reads it, and what it was tuned on; all files together or none.

    base: the model's name or folder, for other programs. CheckpointError for NaN and infinity, KoGPTError for
    a LoRA that does not fit the model.
    """
    settings, tensors = _settings(saved.adapter, config), _tensors(saved.adapter)
    if saved.head is not None:
        tensors[HEAD] = saved.head
        settings |= {"task_type": "SEQ_CLS", "modules_to_save": ["score"]}
    parts = {name: (dtype, tensor.shape) for name, tensor in tensors.items()}
    pairs = ((name, Stored("float32", tensor)) for name, tensor in tensors.items())
    folder.mkdir(parents=True, exist_ok=True)
    with replace_all(folder, (WEIGHTS, CONFIG, OWN)) as files:
        _, digest = write_safetensors(files[WEIGHTS], parts, pairs)
        files[CONFIG].write(_dump(settings | {"base_model_name_or_path": base}))
        files[OWN].write(_dump({"version": VERSION, **asdict(saved.origin), "sha256": digest}))


def save_lora(folder: Path, lora: Lora, base: str | None = None) -> None:
    """Write a LoRA for a model of another layout, whose modules it names: PEFT's two files only."""
    settings = {"task_type": "CAUSAL_LM", "inference_mode": True} | _lora_settings(lora.updates)
    tensors = _tensors(lora)
    parts = {name: ("float32", tensor.shape) for name, tensor in tensors.items()}
    folder.mkdir(parents=True, exist_ok=True)
    with replace_all(folder, (WEIGHTS, CONFIG)) as files:
        write_safetensors(files[WEIGHTS], parts, ((n, Stored("float32", t)) for n, t in tensors.items()))
        files[CONFIG].write(_dump(settings | {"base_model_name_or_path": base}))


def _dump(document: Mapping[str, Any]) -> bytes:
    return (json.dumps(document, ensure_ascii=False, indent=2) + "\n").encode()


def _tensors(adapter: Adapter) -> dict[str, Floats]:
    """The tensors of an adapter by PEFT's names."""
    if isinstance(adapter, Lora):
        return {
            LORA_NAME.format(module=module, factor=factor): matrix
            for module, update in adapter.updates.items()
            for factor, matrix in (("A", update.a), ("B", update.b))
        }
    if isinstance(adapter, SoftPrompt):
        return {PROMPT: adapter.embeddings}
    both = np.stack([adapter.keys, adapter.values]).transpose(2, 1, 0, 3, 4)  # (P, L, 2, H, D)
    return {PROMPT: np.ascontiguousarray(both).reshape(len(both), -1)}


def _settings(adapter: Adapter, config: ModelConfig) -> dict[str, Any]:
    """The object of adapter_config.json."""
    settings: dict[str, Any] = {"task_type": "CAUSAL_LM", "inference_mode": True}
    if isinstance(adapter, Lora):
        require_lora_fits(adapter, config)
        return settings | _lora_settings(adapter.updates)
    is_prompt = isinstance(adapter, SoftPrompt)
    settings["peft_type"] = "PROMPT_TUNING" if is_prompt else "PREFIX_TUNING"
    n = len(adapter.embeddings) if isinstance(adapter, SoftPrompt) else adapter.keys.shape[1]
    settings |= {"num_virtual_tokens": n, "token_dim": config.d_model, "num_transformer_submodules": 1}
    settings |= {"num_attention_heads": config.n_heads, "num_layers": config.n_layers}
    return settings | ({"prompt_tuning_init": "RANDOM"} if is_prompt else {"prefix_projection": False})


def _lora_settings(updates: Mapping[str, LowRank]) -> dict[str, Any]:
    """Rank and alpha that most modules have, and patterns for the others; alpha = scale x rank."""
    ranks = {module: len(update.a) for module, update in updates.items()}
    alphas = {module: update.scale * len(update.a) for module, update in updates.items()}
    (rank, _), *_ = Counter(ranks.values()).most_common(1)
    (alpha, _), *_ = Counter(alphas.values()).most_common(1)
    return {
        "peft_type": "LORA",
        "r": rank,
        "lora_alpha": alpha,
        "rank_pattern": {module: n for module, n in ranks.items() if n != rank},
        "alpha_pattern": {module: n for module, n in alphas.items() if n != alpha},
        "target_modules": list(updates),
        "lora_dropout": 0.0,
        "use_rslora": False,
        "fan_in_fan_out": False,
        "bias": "none",
    }
