"""Shots and ids: seeded, fitted, never an item that is scored, and equal to encoding the whole text."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from small import CONFIG, make_model, merging_tokenizer, small_copa, small_nsmc, small_sts

from kogpt.datasets import Example
from kogpt.errors import KoGPTError
from kogpt.evaluation import fewshot
from kogpt.evaluation.evaluate import Settings, evaluate, read_data
from kogpt.evaluation.task import Task
from kogpt.tokenizer import Tokenizer

N_CTX = 512


@pytest.fixture
def tokenizer(tiny_tokenizer: Path) -> Tokenizer:
    return Tokenizer.from_file(tiny_tokenizer)


def test_fewer_shots_are_the_first_of_more_and_seeds_differ(tmp_path: Path) -> None:
    task = small_nsmc(tmp_path, n_pool=40)
    rows = read_data(task, Settings(folder=tmp_path))
    draw = {(k, seed): [shot.id for shot in fewshot.draw(task, rows.pool, rows.scored, k, seed)]
            for k in (5, 20) for seed in (1, 2)}  # fmt: skip
    assert draw[5, 1] == draw[20, 1][:5]
    assert draw[20, 1] != draw[20, 2]
    backwards = [shot.id for shot in fewshot.draw(task, rows.pool[::-1], rows.scored, 5, 1)]
    assert backwards == draw[5, 1], "the seed decides, not the order of the file"


def test_shots_are_never_items_that_are_scored(tmp_path: Path) -> None:
    task = small_nsmc(tmp_path)
    rows = read_data(task, Settings(folder=tmp_path))
    twin = replace(rows.scored[0], id="another id, the same text")
    drawn = fewshot.draw(task, [twin, *rows.pool], rows.scored, len(rows.pool), seed=1)
    assert twin not in drawn
    with pytest.raises(KoGPTError, match=f"its pool has {len(rows.pool)}"):
        fewshot.draw(task, [twin, *rows.pool], rows.scored, len(rows.pool) + 1, seed=1)


def test_a_task_without_a_pool_sets_a_tenth_apart() -> None:
    task = replace(small_task(), pool=())
    examples = [Example(str(i), {"document": str(i)}, 0) for i in range(2000)]
    scored, pool = fewshot.split_pool(task, examples)
    assert {e.id for e in scored}.isdisjoint(e.id for e in pool)
    assert len(scored) + len(pool) == 2000 and 150 < len(pool) < 250


def test_a_subset_is_fixed_and_keeps_the_order() -> None:
    examples = [Example(str(i), {"document": str(i)}, 0) for i in range(100)]
    some = fewshot.sample(small_task(), examples, 10)
    assert some == fewshot.sample(small_task(), examples, 10)
    assert [int(e.id) for e in some] == sorted(int(e.id) for e in some) and len(some) == 10
    assert [e.id for e in some] != [str(i) for i in range(10)], "not the first ten"


@pytest.mark.parametrize("shots", [0, 1, 6])
@pytest.mark.parametrize("make", [small_nsmc, small_copa, small_sts])
def test_ids_are_those_of_the_whole_text(
    tmp_path: Path, tokenizer: Tokenizer, make: Callable[[Path], Task], shots: int
) -> None:
    """prefix + context + choice is exactly what encoding instruction, shots, question and choice gives."""
    task = make(tmp_path)
    rows = read_data(task, Settings(folder=tmp_path))
    for prompt in task.prompts:
        drawn = fewshot.draw(task, rows.pool, rows.scored, shots, seed=3)
        run = fewshot.encode_task(task, prompt, rows.scored, drawn, tokenizer, 1024)
        assert len(run.shots) == shots
        text = prompt.instruction + "".join(prompt.render(shot) + prompt.separator for shot in run.shots)
        assert run.prefix_text == text
        for example, item in zip(rows.scored, run.items, strict=True):
            for option, ids in zip(prompt.options(example), item.choices, strict=True):
                whole = tokenizer.encode(text + prompt.ask(example) + option)
                assert [*run.prefix, *item.context, *ids] == whole


def test_line_breaks_between_shots_are_encoded_as_in_the_whole_text(tmp_path: Path) -> None:
    """Alone, the end of a shot is one token of two line breaks; before a word it is two tokens."""
    tokenizer = merging_tokenizer(tmp_path, [("\n", "\n")])
    encode = tokenizer.encode
    assert len(encode("\n\n")) == 1 and encode("a\n\nb")[1:3] == [encode("\n")[0]] * 2
    task = small_nsmc(tmp_path)
    rows = read_data(task, Settings(folder=tmp_path))
    run = fewshot.encode_task(task, task.prompt("question"), rows.scored, rows.pool[:2], tokenizer, 4096)
    for example, item in zip(rows.scored, run.items, strict=True):
        text = run.prefix_text + task.prompt("question").ask(example)
        assert [*run.prefix, *item.context] == encode(text)


def test_shots_are_fitted_to_the_context(tmp_path: Path, tokenizer: Tokenizer) -> None:
    task = small_nsmc(tmp_path, n_pool=60)
    rows = read_data(task, Settings(folder=tmp_path))
    drawn = fewshot.draw(task, rows.pool, rows.scored, 60, seed=1)
    run = fewshot.encode_task(task, task.prompts[0], rows.scored, drawn, tokenizer, N_CTX)
    longest = max(item.n_positions for item in (*run.items, *run.content_free))
    assert 0 < len(run.shots) < 60 and run.n_cut == 0
    assert len(run.prefix) + longest <= N_CTX
    more = fewshot.encode_task(
        task, task.prompts[0], rows.scored, drawn[: len(run.shots) + 1], tokenizer, 10 * N_CTX
    )
    assert len(more.prefix) + longest > N_CTX, "one more would not have fitted"


def test_an_item_that_is_too_long_loses_its_beginning(tmp_path: Path, tokenizer: Tokenizer) -> None:
    task = small_nsmc(tmp_path)
    long = [Example("long", {"document": "아주 긴 글 " * 60}, 0)]
    run = fewshot.encode_task(task, task.prompt("brackets"), long, [], tokenizer, 64)
    assert run.n_cut == 1 and run.items[0].n_positions == 64
    whole = tokenizer.encode("아주 긴 글 " * 60)
    assert list(run.items[0].context) == whole[-len(run.items[0].context) :]


def test_a_label_that_merges_with_the_question_begins_earlier(tmp_path: Path) -> None:
    """The token that spans the border belongs to the label; what all labels share is the question."""
    tokenizer = merging_tokenizer(tmp_path, [("a", "b")])
    a, c, d, merged = (tokenizer.encode(text)[0] for text in ("a", "c", "d", "ab"))
    task = small_nsmc(tmp_path)
    prompt = replace(task.prompts[0], instruction="", question="{document}", choices=("b", "c"))
    examples = [Example("1", {"document": "da"}, 0), Example("2", {"document": "dd"}, 0)]
    run = fewshot.encode_task(task, prompt, examples, [], tokenizer, 64)
    assert run.n_moved == 1
    assert list(run.items[0].context) == [d]
    assert [list(ids) for ids in run.items[0].choices] == [[merged], [a, c]]


def test_a_tokenizer_that_merges_over_the_shots_border_is_refused(tmp_path: Path) -> None:
    task = small_nsmc(tmp_path)
    prompt = replace(task.prompts[0], instruction="a", question="{document}")
    tokenizer = merging_tokenizer(tmp_path, [("a", "b")])
    with pytest.raises(KoGPTError, match=r"prompt equals, item 1: .* no token begins after") as caught:
        fewshot.encode_task(task, prompt, [Example("1", {"document": "b"}, 0)], [], tokenizer, 64)
    assert "항목 1" in caught.value.ko


def test_an_empty_question_is_asked_after_the_first_token_of_a_document(
    tmp_path: Path, tokenizer: Tokenizer
) -> None:
    task = small_nsmc(tmp_path)
    empty = [Example("1", {"document": ""}, 0)]
    prompt = replace(task.prompts[0], instruction="", question="{document}")
    run = fewshot.encode_task(task, prompt, empty, [], tokenizer, 64)
    assert list(run.items[0].context) == [tokenizer.eos_token_id] and run.n_moved == 0


def test_an_empty_label_is_named(tmp_path: Path, tokenizer: Tokenizer) -> None:
    task = small_nsmc(tmp_path)
    prompt = replace(task.prompts[0], choices=("예", ""))
    with pytest.raises(KoGPTError, match=r"item 1: choice 2 \(''\) adds no token"):
        fewshot.encode_task(task, prompt, [Example("1", {"document": "가"}, 0)], [], tokenizer, 64)


@pytest.mark.parametrize("shots", [0, 3])
@pytest.mark.parametrize("make", [small_nsmc, small_copa, small_sts])
def test_a_question_has_the_score_of_kogpt_score(
    tmp_path: Path, tiny_tokenizer: Path, make: Callable[[Path], Task], shots: int
) -> None:
    measured = make_model(tiny_tokenizer, "float64", replace(CONFIG, n_ctx=1024))
    task = make(tmp_path)
    for prompt in task.prompts:
        settings = Settings(folder=tmp_path, shots=shots, seeds=(1,), limit=3)
        seed = evaluate(measured, task, prompt, settings).seeds[0]
        assert len(seed.encoded.shots) == shots
        examples = read_data(task, settings).scored
        for example, row in zip(examples, seed.scores, strict=True):
            question = seed.encoded.prefix_text + prompt.ask(example)
            assert measured.model.score(question, prompt.options(example)) == pytest.approx(row, abs=1e-9)


def test_content_free_items_only_where_choices_are_fixed(tmp_path: Path, tokenizer: Tokenizer) -> None:
    nsmc, copa = small_nsmc(tmp_path), small_copa(tmp_path)
    for task, count in ((nsmc, 3), (copa, 0)):
        rows = read_data(task, Settings(folder=tmp_path))
        run = fewshot.encode_task(task, task.prompts[0], rows.scored, [], tokenizer, N_CTX)
        assert len(run.content_free) == count


def small_task() -> Task:
    from kogpt.evaluation import tasks

    return tasks.get("nsmc")
