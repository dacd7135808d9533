"""A pretraining run as one TOML file: model, data, schedule, optimizer; closed, typed, checked when read.

seed = 1
tokenizer = "tokenizer"                      # a folder with tokenizer.json; paths are from the file's folder
[model]                                      # n_vocab comes from the tokenizer
n_layers = 6
...
                                             # or, instead of [model], init = "kogpt-mini": its weights
[sources.wiki]
shards = "shards/wiki"
weight = 2.0
[[stages]]
length = 256
rows = 32
[schedule]
steps = 1000
warmup_steps = 50
[validation]
wiki = "valid_wiki.jsonl.zst"
[optimizer], [compute], [loop], [average]    # optional; fields as in kogpt/training
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from kogpt.errors import ConfigError
from kogpt.pretraining.mixture import Source, Stage, require_order
from kogpt.training.settings import TrainingSettings, from_table, read_toml, require_seed


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelShape:
    """A model's dimensions without its vocabulary."""

    n_layers: int
    n_heads: int
    d_model: int
    n_ctx: int
    rotary_dim: int
    d_ff: int | None = None  # 4 * d_model
    tied_head: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class Recipe(TrainingSettings):
    """All settings of a pretraining run; ConfigError for values that cannot be meant."""

    tokenizer: str
    sources: Mapping[str, Source]
    stages: tuple[Stage, ...]
    model: ModelShape | None = None  # random weights of this shape
    init: str | None = None  # or a model folder or name, whose weights and shape the run starts from
    validation: Mapping[str, str] = field(default_factory=dict)
    validation_bytes: int = 100_000  # read of each validation file
    seed: int = 0
    order: str = "random"  # of the windows, see Mixture

    def __post_init__(self) -> None:
        if (self.model is None) == (self.init is None):
            raise ConfigError(
                "a recipe has either [model], the shape of random weights, or init, a model to start from",
                "[model](임의 가중치의 구조)과 init(이어서 학습할 모델) 중 하나만 적으세요",
            )
        require_seed(self.seed)
        require_order(self.order)
        if self.average and self.average.first_due > self.schedule.steps:
            raise ConfigError(
                f"the first average is due at step {self.average.first_due}, after the last, "
                f"{self.schedule.steps}: lower average.first_step or average.every, or leave [average] out",
                f"첫 평균은 {self.average.first_due}스텝인데 마지막 스텝이 {self.schedule.steps}입니다. "
                "average.first_step이나 average.every를 줄이거나 [average]를 빼세요",
            )
        if self.validation_bytes < 1:
            raise ConfigError(
                f"validation_bytes is {self.validation_bytes}: it must be a number above 0",
                f"validation_bytes 값이 {self.validation_bytes}입니다. 0보다 큰 수를 쓰세요",
            )


def read_recipe(path: Path, changes: Sequence[str] = (), init: str | None = None) -> Recipe:
    """The recipe of a TOML file, changed by lines of TOML such as `schedule.steps = 200`.

    `init` takes the place of its [model]. ConfigError for a file that is missing or not TOML, and for a key
    that is unknown, missing or of another type.
    """
    document = read_toml(path, changes)
    if init is not None:
        document.pop("model", None)
        document["init"] = init
    return from_table(Recipe, document)
