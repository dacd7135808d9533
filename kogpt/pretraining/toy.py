"""A whole pretraining, small enough for a laptop and a coffee: text file -> tokenizer -> shards -> model.

Every step is the one that large runs use, and the folder keeps its recipe, so that a toy can grow.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from kogpt.errors import ConfigError, InputError
from kogpt.files import atomic_write
from kogpt.pretraining import sample
from kogpt.pretraining.corpus import Reading
from kogpt.pretraining.pack import pack
from kogpt.pretraining.parts import Options

if TYPE_CHECKING:
    import tokenizers

    from kogpt.training.loop import End

CONTEXT = 256
STEPS = 300
MIN_BYTES = 20_000  # less text has too few words for even the smallest vocabulary
BYTES_PER_WORD = 100  # of text for each entry of the vocabulary, so that most are seen often
VOCABULARY = (320, 4096)  # smallest and largest

# About three million weights: two and a half minutes on two cores without bfloat16, less on a laptop.
RECIPE = """\
# A toy. Change what you like, then: kogpt pretrain run recipe.toml --out another_run
seed = 1
tokenizer = "tokenizer"

[model]
n_layers = 4
n_heads = 4
d_model = 192
n_ctx = {context}
rotary_dim = 32

[sources.text]
shards = "shards"

[[stages]]
length = {context}
rows = 8

[schedule]
steps = {steps}
warmup_steps = {warmup}
decay_steps = {decay}

[compute]  # what any laptop can do; on a GPU: dtype = "auto", compile = "blocks"
dtype = "float32"
compile = "nothing"

[loop]
log_every = 10
save_seconds = 60.0
"""


@dataclass(frozen=True, slots=True)
class Toy:
    """Folders of a toy, inside its own."""

    folder: Path

    @property
    def recipe(self) -> Path:
        return self.folder / "recipe.toml"

    @property
    def run(self) -> Path:
        return self.folder / "run"

    @property
    def model(self) -> Path:
        return self.run / "model"


def options(reading: Reading, max_bad_share: float) -> Options:
    """How a toy packs its corpus: whoever has one file means all of it, so without filters."""
    return Options(reading=reading, left_out=("all",), max_bad_share=max_bad_share)


def make_tokenizer(files: Sequence[Path], options: Options, folder: Path) -> None:
    """Train the tokenizer in `folder` unless it is there already.

    InputError for too many unreadable records, and for less text than MIN_BYTES.
    """
    from kogpt.pretraining.tokenizer_training import save_tokenizer

    texts = sample.read_texts(files, options.reading, options.max_bad_share)
    size = sum(len(text.encode()) for text in texts)
    if size < MIN_BYTES:
        raise InputError(
            f"{size:,} bytes of text are too few for a toy: give {MIN_BYTES:,} or more, a megabyte is better",
            f"텍스트 {size:,}바이트는 너무 적습니다. {MIN_BYTES:,}바이트 이상, 되도록 1메가바이트를 주세요",
        )
    tokenizer = _tokenizer_path(folder)
    if not tokenizer.exists():
        n_vocab = min(max(size // BYTES_PER_WORD // 64 * 64, VOCABULARY[0]), VOCABULARY[1])
        save_tokenizer(_trained(files, options, n_vocab), tokenizer.parent, CONTEXT)


def _tokenizer_path(folder: Path) -> Path:
    return folder / "tokenizer" / "tokenizer.json"


def prepare(
    files: Sequence[Path],
    options: Options,
    folder: Path,
    steps: int | None,
    progress: Callable[[int], None],
) -> Toy:
    """Shards and recipe in `folder`, beside the tokenizer that make_tokenizer left there.

    What is there already is kept. InputError for other `steps` than those of a recipe that is there.
    """
    pack(files, _tokenizer_path(folder), folder / "shards", options, 1, progress)
    toy = Toy(folder)
    if toy.recipe.exists():
        _require_steps(toy.recipe, steps)
        return toy
    steps = steps or STEPS
    text = RECIPE.format(context=CONTEXT, steps=steps, warmup=steps // 15, decay=steps // 3)
    with atomic_write(toy.recipe) as file:
        file.write(text.encode())
    return toy


def _require_steps(recipe: Path, steps: int | None) -> None:
    from kogpt.pretraining.recipe import read_recipe

    if steps and (planned := read_recipe(recipe).schedule.steps) != steps:
        raise InputError(
            f"{recipe} says steps = {planned}: leave --steps out, change them there, or give another --out",
            f"{recipe}의 steps 값은 {planned}입니다. --steps를 빼거나, 거기서 고치거나, "
            "다른 --out을 지정하세요",
        )


def _trained(files: Sequence[Path], options: Options, n_vocab: int) -> tokenizers.Tokenizer:
    """A tokenizer of that size, or of the first half, quarter, ... that a text of few words can fill."""
    from kogpt.pretraining.tokenizer_training import train_tokenizer

    while True:
        try:
            texts = sample.read_texts(files, options.reading, options.max_bad_share)
            return train_tokenizer(texts, n_vocab)
        except ConfigError:
            if n_vocab <= VOCABULARY[0]:
                raise
            n_vocab = max(n_vocab // 2, VOCABULARY[0])


def train(toy: Toy, live: TextIO) -> End:
    """Train, or continue a run that was stopped."""
    from kogpt.pretraining.recipe import read_recipe
    from kogpt.pretraining.run import pretrain
    from kogpt.training.processes import join

    with join() as processes:
        return pretrain(read_recipe(toy.recipe), toy.folder, toy.run, processes, live)
