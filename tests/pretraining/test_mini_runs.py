"""The scripts around kogpt-mini: what they plan, compare and write."""

from __future__ import annotations

import json
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from kogpt.config import ModelConfig
from kogpt.pretraining.recipe import read_recipe
from kogpt.pretraining.shards import Index, Shard, write_index

RUNS = Path(__file__).parents[2] / "runs"
LINE = {"bits_per_byte": dict.fromkeys(("kowiki", "law", "nsmc", "msdocs", "chat"), 1.0), "mean": 1.0}


@pytest.fixture
def scripts(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[ModuleType, ModuleType]]:
    monkeypatch.syspath_prepend(str(RUNS))
    import mini_ablations
    import mini_card

    yield mini_ablations, mini_card
    for name in [name for name in sys.modules if name.startswith("mini_")]:
        del sys.modules[name]


@pytest.mark.parametrize("name", ["mini3", "mini", "mini_cpu", "mini_tiny"])
def test_every_ablation_is_a_recipe_that_differs_from_all_others(
    scripts: tuple[ModuleType, ModuleType], name: str
) -> None:
    ablations, _ = scripts
    import mini_text

    path = RUNS / f"{name}.toml"
    planned = ablations.Ablations(path, 1_000_000, 8192).all()
    recipes = {run: read_recipe(path, ablations.settings(changes)) for run, changes in planned.items()}
    different = {repr(recipe): run for run, recipe in recipes.items()}
    same = recipes.keys() - different.values()  # each recipe is plain but for its order
    assert same == {"recipe", "seed 2"}
    assert len(recipes) >= 26
    for run, recipe in recipes.items():
        assert mini_text.tokens_of(recipe) == pytest.approx(1_000_000, rel=0.05), run
        assert recipe.sources.keys() == recipes["recipe"].sources.keys()
        assert recipe.model is not None
        assert all(stage.length <= recipe.model.n_ctx for stage in recipe.stages), run
    (flat, even, steep) = (
        recipes[run].sources["kowiki"].weight / sum(source.weight for source in recipes[run].sources.values())
        for run in ("mix flatter", "recipe", "mix steeper")
    )
    assert flat < even < steep


def test_figures_of_another_recipe_length_or_batch_are_not_known(
    scripts: tuple[ModuleType, ModuleType], tmp_path: Path
) -> None:
    ablations, _ = scripts
    recipe = tmp_path / "own" / "mini.toml"
    recipe.parent.mkdir()
    recipe.write_text("a = 1", encoding="utf-8")
    series = ablations.Series(tmp_path, recipe, 100, 10)
    (tmp_path / "ablations.jsonl").write_text(json.dumps({"name": "recipe", **series.key, **LINE}) + "\n")
    assert list(series.known()) == ["recipe"]
    assert "| recipe | 1.000 |" in "\n".join(ablations.table(series.known().values()))
    assert not ablations.Series(tmp_path, recipe, 200, 10).known()
    assert not ablations.Series(tmp_path, recipe, 100, 20).known()
    recipe.write_text("a = 2", encoding="utf-8")
    other = ablations.Series(tmp_path, recipe, 100, 10)
    assert not other.known() and other.folder != series.folder


def test_an_ablation_that_fails_does_not_stop_the_others_and_says_why(
    scripts: tuple[ModuleType, ModuleType], tmp_path: Path
) -> None:
    ablations, _ = scripts
    recipe = tmp_path / "own.toml"
    recipe.write_text("nothing = 1", encoding="utf-8")
    failures = ablations.Series(tmp_path, recipe, 100, 10).run({"one": {}, "two, three": {}}, 2)
    assert [failure.split(":")[0] for failure in failures] == ["one", "two, three"]
    assert all("ends with: kogpt: unknown setting nothing" in failure for failure in failures)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere"], "nowhere is no folder"),
        ([".", "nonsense"], "there is no 'nonsense', but 'recipe', 'seed 2'"),
        (
            [".", "--recipe", "own.toml"],
            "own.toml: there are runs/mini.toml, runs/mini_cpu.toml, runs/mini3.toml",
        ),
        ([".", "--tokens", "8000"], "schedule.steps is 0"),
    ],
)
def test_mistakes_of_use_are_one_line(
    scripts: tuple[ModuleType, ModuleType],
    arguments: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["mini_ablations.py", *arguments])
    with pytest.raises(SystemExit, match="2"):
        scripts[0].main()
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_the_card_tells_the_recipe(scripts: tuple[ModuleType, ModuleType]) -> None:
    _, card = scripts
    path = RUNS / "mini.toml"
    facts: dict[str, Any] = card.course_of(read_recipe(path))
    assert facts["course"] == (
        "Muon (matrices of the blocks, 0.03) and AdamW (the rest, 0.0045); "
        "warm-up over 100 steps, 1900 at the peak, linear decay over 3000"
    )
    assert facts["windows"] == "512, then 2,048"
    assert "| Naver movie reviews (nsmc) | CC0 1.0 | 17 % |" in facts["data"].splitlines()
    sources = tomllib.loads(path.read_text(encoding="utf-8"))["sources"]
    assert len(facts["data"].splitlines()) == len(sources)
    techniques = ['order = "epochs"', "average.first_step = 9"]
    assert card.course_of(read_recipe(path, techniques))["course"] == (
        f"{facts['course']}, each window once an epoch, weights averaged from step 9"
    )
    other = ['optimizer.name = "adamw"', 'schedule.shape = "cosine"', "schedule.decay_steps = 0"]
    assert (
        card.course_of(read_recipe(path, other))["course"] == "AdamW (0.0045); warm-up over 100 steps, cosine"
    )


def test_the_third_edition_fits_and_reads_no_source_too_often(
    scripts: tuple[ModuleType, ModuleType], tmp_path: Path
) -> None:
    import mini_text

    recipe = read_recipe(RUNS / "mini3.toml")
    assert 690e6 < mini_text.tokens_of(recipe) < 700e6
    assert mini_text.tokens_of(read_recipe(RUNS / "mini.toml")) == 5000 * 131_072
    shape = recipe.model
    assert shape is not None and shape.tied_head and shape.n_ctx == 2048
    config = ModelConfig(**{**asdict(shape), "n_vocab": mini_text.VOCABULARIES[recipe.tokenizer]})
    assert 2 * config.n_parameters < 62.5 * 2**20  # and 1.2 MiB of tokenizer and card
    for number, (name, source) in enumerate(recipe.sources.items()):
        folder = tmp_path / source.shards
        folder.mkdir(parents=True)
        n_tokens = 10_000_000 if name != "law" else 1_000_000
        write_index(folder, Index("uint16", "t", (Shard(f"{number}.bin", n_tokens, 1, "s"),)))
    times = mini_text.epochs(recipe, tmp_path)
    assert times["kowiki"] == pytest.approx(0.35 * mini_text.tokens_of(recipe) / 0.9943 / 10e6)
    assert [name for name in times if times[name] > 30] == ["law"]


@pytest.mark.parametrize(
    ("mean", "n_bytes", "why"),
    [
        (0.8600, 64 * 2**20, None),
        (0.8601, 10, "above 0.86: the edition before stays"),
        (float("nan"), 10, "above 0.86"),
        (0.85, 64 * 2**20 + 1, "are more than 64"),
    ],
)
def test_only_a_mean_of_at_most_860_replaces_the_edition_before(
    scripts: tuple[ModuleType, ModuleType], mean: float, n_bytes: int, why: str | None
) -> None:
    import mini_edition

    found = mini_edition.refusal({"mean": mean, "beside": 0.887}, n_bytes)
    assert (found is None) if why is None else why in str(found)
    assert "not below" in str(mini_edition.refusal({"mean": 0.85, "beside": 0.85}, 10))


def test_the_model_is_given_its_settings_for_writing(
    scripts: tuple[ModuleType, ModuleType], tmp_path: Path
) -> None:
    """They are those of the model in the package, beside what the export wrote."""
    own = Path(__file__).parents[2] / "kogpt" / "mini" / "generation_config.json"
    wanted = json.loads(own.read_text(encoding="utf-8"))
    written = {key: value for key, value in wanted.items() if key.endswith("_id")}
    (tmp_path / own.name).write_text(json.dumps(written), encoding="utf-8")
    scripts[1].write_defaults(tmp_path)
    assert json.loads((tmp_path / own.name).read_text(encoding="utf-8")) == wanted
