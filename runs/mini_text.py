"""The tokenizer and the shards that a recipe of kogpt-mini names; what is there already stays.

    python runs/mini_text.py RECIPE CORPUS WORK

Says how often the recipe reads each source, and refuses one that is read more than MOST_EPOCHS times.
"""

from __future__ import annotations

import sys
from pathlib import Path

from mini_tokenizer import write_tokenizer

from kogpt import cli
from kogpt.pretraining.mixture import stage_at
from kogpt.pretraining.recipe import Recipe, read_recipe
from kogpt.pretraining.shards import read_index

VOCABULARIES = {"tokenizer": 8192, "tokenizer16k": 16384, "tokenizer2k": 2048}  # by the folder's name
MOST_EPOCHS = 16  # the second edition read its small sources so often and was still learning from them


def main(path: Path, corpus: Path, work: Path) -> int:
    """Make what is missing; 0, or the exit code of the packing that failed."""
    recipe = read_recipe(path)
    tokenizer = work / recipe.tokenizer
    if not (tokenizer / "tokenizer.json").is_file():
        write_tokenizer(corpus, tokenizer, VOCABULARIES[recipe.tokenizer])
    for name, source in recipe.sources.items():
        out = work / source.shards
        files = sorted(map(str, corpus.glob(f"train_{name}_*.jsonl.zst")))
        words = ["pretrain", "pack", *files, "--tokenizer", str(tokenizer), "--out", str(out)]
        words += ["--without-filter", "all", "--keep-duplicates"]  # the corpus is clean
        if not (out / "index.json").is_file() and (code := cli.main(words)):
            return code
    readings = epochs(recipe, work)
    for name, times in readings.items():
        print(f"{name}: read {times:.1f} times")
    if over := [name for name, times in readings.items() if times > MOST_EPOCHS]:
        raise SystemExit(f"{', '.join(over)}: read more than {MOST_EPOCHS} times; lower the weight in {path}")
    return 0


def tokens_of(recipe: Recipe) -> int:
    """Tokens that all steps of a recipe read."""
    stages = sorted(recipe.stages, key=lambda stage: stage.first_step)
    return sum(stage_at(stages, n).length * stage_at(stages, n).rows for n in range(recipe.schedule.steps))


def epochs(recipe: Recipe, work: Path) -> dict[str, float]:
    """How often the recipe reads each source; work: the folder with its shards."""
    tokens, total = tokens_of(recipe), sum(source.weight for source in recipe.sources.values())
    return {
        name: tokens * source.weight / total / read_index(work / source.shards).n_tokens
        for name, source in recipe.sources.items()
    }


if __name__ == "__main__":
    sys.exit(main(*map(Path, sys.argv[1:4])))
