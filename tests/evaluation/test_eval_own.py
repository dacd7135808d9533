"""Tasks of one's own from TOML, two models compared, and models with adapters."""

from __future__ import annotations

import gzip
import json
import math
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from conftest import random_tensors
from small import CONFIG, make_model, reviews, small_nsmc

from kogpt import KoGPT, checkpoint, cli, data_files, peft
from kogpt.adapter import Lora, LowRank, SoftPrompt, merged
from kogpt.cli.eval import _TimeLeft
from kogpt.cli.progress import Progress
from kogpt.datasets import Example
from kogpt.errors import InputError
from kogpt.evaluation import baselines, compare, perplexity, report, tasks
from kogpt.evaluation.evaluate import EvaluatedModel, Settings, evaluate, identify
from kogpt.evaluation.harness.model import KoGPTLM
from kogpt.evaluation.own import read_task
from kogpt.evaluation.report import Report
from kogpt.metrics import Outcome

TOML = """
data = "data.tsv"
label = "label"
prompt = "다음 문장은 긍정일까요 부정일까요?\\n{document}\\n정답:"
labels = { "0" = " 부정", "1" = " 긍정" }
metric = ["accuracy", "macro_f1"]
id = "id"
"""


def write(folder: Path, text: str = TOML, rows: int = 30) -> Path:
    """A description and its data."""
    lines = ["id\tdocument\tlabel", *("\t".join(map(data_files.tidy, row)) for row in reviews(rows))]
    (folder / "data.tsv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    path = folder / "own.toml"
    path.write_text(text, encoding="utf-8")
    return path


def test_an_own_task_scores_as_the_built_in_task_of_that_wording(
    tmp_path: Path, tiny_tokenizer: Path
) -> None:
    task = tasks.get(str(write(tmp_path)))
    built_in = replace(small_nsmc(tmp_path, n_test=30), pool=())
    model, settings = make_model(tiny_tokenizer), Settings(shots=2, seeds=(1,), folder=tmp_path)
    own = evaluate(model, task, task.prompts[0], settings)
    other = evaluate(model, replace(built_in, name=task.name), built_in.prompt("question"), settings)
    assert own.seeds[0].scores == other.seeds[0].scores
    assert own.seeds[0].values == other.seeds[0].values
    assert len(own.data.scored) < own.data.n_test == 30  # a tenth is apart, for shots


@pytest.mark.parametrize("name", ["data.csv", "data.jsonl", "data.json", "data.jsonl.gz", "data.tsv.gz"])
def test_data_may_have_any_form(tmp_path: Path, name: str) -> None:
    expected = [(e.id, e.fields["document"], e.answer) for e in _examples(write(tmp_path))]
    rows = [
        dict(zip(("id", "document", "label"), map(data_files.tidy, row), strict=True)) for row in reviews(30)
    ]
    text = json.dumps(rows) if ".json" in name else ""
    if ".jsonl" in name:
        text = "\n".join(json.dumps({**row, "label": int(row["label"])}) for row in rows)
    elif not text:
        sign = "," if "csv" in name else "\t"
        text = "\n".join(sign.join(row) for row in (rows[0], *(row.values() for row in rows)))
    content = text.encode()
    (tmp_path / name).write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
    path = tmp_path / "other.toml"
    path.write_text(TOML.replace("data.tsv", name), encoding="utf-8")
    assert [(e.id, e.fields["document"], e.answer) for e in _examples(path)] == expected


def _examples(path: Path) -> list[Example]:
    task = read_task(path)
    (source,) = task.test
    return [task.read(row) for row in source.read(Path(source.file).read_bytes())]


def test_choices_of_each_item_and_grades(tmp_path: Path) -> None:
    text = TOML.replace('labels = { "0" = " 부정", "1" = " 긍정" }', 'choices = [" {id}", " {document}"]')
    write(tmp_path)
    path = tmp_path / "choices.toml"
    path.write_text(text, encoding="utf-8")
    task, example = read_task(path), _examples(path)[1]
    assert task.prompts[0].options(example) == (f" {example.id}", f" {example.fields['document']}")
    assert not task.prompts[0].fixed
    text = TOML.replace('["accuracy", "macro_f1"]', '"spearman"').replace("부정", "0").replace("긍정", "1")
    path.write_text(text, encoding="utf-8")
    task = read_task(path)
    assert task.prompts[0].grades == (0.0, 1.0) and task.grade_threshold == 0.5
    assert [(e.grade, e.answer) for e in _examples(path)[:3]] == [(0.0, 0), (1.0, 1), (1.0, 1)]


@pytest.mark.parametrize(
    ("old", "new", "complaint"),
    [
        ("metric", "metrik", "no key 'metrik', try metric"),
        ('label = "label"', "", "it lacks label"),
        ('["accuracy", "macro_f1"]', '"accuracity"', "must be one of accuracy"),
        ("labels = {", "label_s = {", "no key 'label_s', try label"),
        ('labels = { "0" = " 부정", "1" = " 긍정" }', "", "give labels or choices"),
        ('labels = { "0" = " 부정", "1" = " 긍정" }', "choices = 5", "choices a list of texts"),
        ('"1" = " 긍정"', '"1" = "{x}"', "has a brace"),
        ('"0" = " 부정", "1" = " 긍정"', '"0" = " 부정"', "two or more"),
        ("{document}", "{document.x}", "no column name"),
        ("{document}", "{document", "document"),
        ("data.tsv", "data.xlsx", "cannot read"),
        ("data.tsv", "own.toml", "must be .tsv, .csv"),
        ('id = "id"', 'scoring = "best"', "must be one of raw"),
        ('label = "label"', "label = 1", "label is 1, must be a text"),
        ('id = "id"', "x = ", "is not valid TOML"),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, old: str, new: str, complaint: str) -> None:
    assert old in TOML
    with pytest.raises(InputError, match=complaint):
        read_task(write(tmp_path, TOML.replace(old, new)))


@pytest.mark.parametrize(
    ("old", "new", "complaint"),
    [
        ("{document}", "{text}", "line 2: there is no column 'text'"),
        ('label = "label"', 'label = "id"', "line 2: label '1000' is none of 0, 1"),
        ('id = "id"', 'id = "guid"', "there is no column 'guid'"),
    ],
)
def test_a_row_that_does_not_fit_is_named(tmp_path: Path, old: str, new: str, complaint: str) -> None:
    path = write(tmp_path, TOML.replace(old, new))
    with pytest.raises(InputError, match=complaint):
        _examples(path)


@pytest.mark.parametrize(
    ("metric", "value", "complaint"),
    [
        ('"accuracy"', "2", "label '2' is none of"),
        ('"pearson"', "x", "label 'x' is no number"),
        ('"pearson"', "nan", "label 'nan' is no number"),
        ('"pearson"', "inf", "label 'inf' is no number"),
    ],
)
def test_a_row_is_named_with_the_file_that_holds_it(
    tmp_path: Path, metric: str, value: str, complaint: str
) -> None:
    shots = tmp_path / "shots.tsv"
    shots.write_text(f"id\tdocument\tlabel\n1\t글\t{value}\n", encoding="utf-8")
    text = TOML.replace('["accuracy", "macro_f1"]', metric)
    task = read_task(write(tmp_path, f'{text}shots = "shots.tsv"\n'))
    (row,) = task.pool[0].read(shots.read_bytes())
    for read, file in ((task.read, "data"), (task.read_pool or task.read, "shots")):
        with pytest.raises(InputError, match=rf"{file}\.tsv, line 2: {complaint}"):
            read(row)


@pytest.mark.parametrize("name", ["", " ", ".", "..", "a/b", "a\\b", "a\0b", "a\nb", "x" * 201])
def test_a_name_that_is_no_file_s_is_refused_before_anything_is_measured(tmp_path: Path, name: str) -> None:
    with pytest.raises(InputError, match="no results can be kept under the name"):
        read_task(write(tmp_path, f"{TOML}name = {json.dumps(name)}\n"))


def test_the_name_of_a_file_is_held_to_the_same_rule(tmp_path: Path) -> None:
    path = write(tmp_path).rename(tmp_path / "..toml")
    with pytest.raises(InputError, match="give a `name`"):
        read_task(path)
    path.write_text(f'{TOML}name = "영화 리뷰"\n', encoding="utf-8")
    assert read_task(path).name == "영화 리뷰"


def test_two_tasks_of_one_name_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Also where only the case differs: some file systems know none."""
    first = write(tmp_path)
    second = tmp_path / "other.toml"
    second.write_text(f'{TOML}name = "OWN"\n', encoding="utf-8")
    for chosen in ((first, second), (first, first)):
        assert cli.main(["eval", *map(str, chosen), "--model", str(tmp_path / "none")]) == 2
        assert "`name`" in capsys.readouterr().err


SCALE = TOML.replace('{ "0" = " 부정", "1" = " 긍정" }', '{ "0" = " 하", "1" = " 중", "2" = " 상" }')


@pytest.mark.parametrize("metrics", ['["accuracy", "pearson"]', '["spearman", "macro_f1"]'])
def test_labels_are_not_counted_beside_grades_that_are_cut_in_two(tmp_path: Path, metrics: str) -> None:
    text = SCALE.replace('["accuracy", "macro_f1"]', metrics)
    with pytest.raises(InputError, match="two halves of the scale, not 3 labels"):
        read_task(write(tmp_path, text))
    two = TOML.replace('["accuracy", "macro_f1"]', metrics)
    assert len(read_task(write(tmp_path, two)).metrics) == 2, "two labels are the two halves"


def test_the_constants_of_a_scale_are_named_by_its_halves(tmp_path: Path) -> None:
    """The first label may be the highest: the answers are grades below the middle, and from it up."""
    text = SCALE.replace('["accuracy", "macro_f1"]', '["pearson", "binary_f1"]').replace('"0" =', '"3" =')
    write(tmp_path, text)
    data = (tmp_path / "data.tsv").read_text(encoding="utf-8").replace("\t0\n", "\t3\n")
    (tmp_path / "data.tsv").write_text(data, encoding="utf-8")
    task, examples = read_task(tmp_path / "own.toml"), _examples(tmp_path / "own.toml")
    values = baselines.constants(task, examples, examples)
    share = np.mean([example.grade == 3 for example in examples])
    assert list(values)[:2] == ["always below 2", "always 2 and up"]
    assert values["always 2 and up"]["binary_f1"] == pytest.approx(2 * share / (share + 1))


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('["accuracy", "macro_f1"]', '"macro_f1"'),
        ('["accuracy", "macro_f1"]', '"pearson"'),
        ('"0" = " 부정", "1" = " 긍정"', '"1" = " 긍정", "0" = " 부정"'),
        ('"1" = " 긍정"', '"1" = " 좋음"'),
        ("{document}", "{document} {id}"),
    ],
)
def test_baselines_follow_a_changed_description(
    tmp_path: Path, tiny_tokenizer: Path, old: str, new: str
) -> None:
    pytest.importorskip("sklearn")
    model, out = make_model(tiny_tokenizer), tmp_path / "out"
    for n_kept, text in enumerate((TOML, TOML.replace(old, new)), start=1):
        task = read_task(write(tmp_path, text))
        result = evaluate(model, task, task.prompts[0], Settings(limit=8))
        made = baselines.of_task(task, [result], out)
        assert made == baselines.of_task(task, [result], tmp_path / str(n_kept))
        assert len(list((out / "baselines").iterdir())) == n_kept


@pytest.mark.parametrize("change", [{"answer": 1}, {"grade": 0.5}])
def test_baselines_follow_the_answers(tmp_path: Path, tiny_tokenizer: Path, change: dict[str, Any]) -> None:
    task = read_task(write(tmp_path))
    data = evaluate(make_model(tiny_tokenizer), task, task.prompts[0], Settings(limit=8)).data
    scored = [replace(example, **change) for example in data.scored]
    pool = [replace(example, **change) for example in data.pool]
    for other in (replace(data, scored=scored), replace(data, pool=pool)):
        assert baselines._key(task, other, {}) != baselines._key(task, data, {})


def test_grades_are_no_positions_of_an_item_s_own_choices(tmp_path: Path) -> None:
    text = TOML.replace('labels = { "0" = " 부정", "1" = " 긍정" }', 'choices = [" {id}", " 중", " 상"]')
    task = read_task(write(tmp_path, text.replace('["accuracy", "macro_f1"]', '"pearson"')))
    examples = _examples(tmp_path / "own.toml")
    pytest.importorskip("sklearn")
    values = baselines.regression(baselines.Features(task, examples), examples, examples)
    assert baselines._choice_prompt(task) is None and values is not None


def test_a_name_of_a_built_in_task_is_refused(tmp_path: Path) -> None:
    for name in ("nsmc", "ppl"):
        with pytest.raises(InputError, match="choose another name"):
            tasks.get(str(write(tmp_path, f'{TOML}name = "{name}"\n')))
    with pytest.raises(InputError, match="there is no file"):
        tasks.get(str(tmp_path / "none.toml"))


def random_lora() -> Lora:
    """Rank 4 on the attention of every layer."""
    rng, shapes = np.random.default_rng(3), CONFIG.tensor_shapes()
    updates = {}
    for layer in range(CONFIG.n_layers):
        for matrix in ("q_proj", "v_proj", "out_proj"):
            module = f"transformer.h.{layer}.attn.{matrix}"
            n, k = shapes[f"{module}.weight"]
            a, b = rng.standard_normal((4, k)) / k**0.5, rng.standard_normal((n, 4)) / 4
            updates[module] = LowRank(a.astype(np.float32), b.astype(np.float32), 2.0)
    return Lora(updates)


@pytest.fixture
def model_folder(tmp_path: Path, tiny_tokenizer: Path) -> Path:
    folder = tmp_path / "model"
    checkpoint.save(folder, CONFIG, random_tensors(CONFIG, seed=5), "float32", tiny_tokenizer)
    return folder


def test_two_models_are_compared_by_command(
    tmp_path: Path, model_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A model and the same with an adapter: own task, own folders, one table, paired tests."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LC_ALL", "C")
    stored = checkpoint.load(model_folder)
    lora = random_lora()
    peft.save(Path("tuned"), peft.SavedAdapter(lora, origin=peft.Origin.of(stored)), CONFIG)
    own = str(write(tmp_path))
    words = ["eval", own, "--model", str(model_folder), "--shots", "0,1", "--seeds", "2", "--device", "cpu"]
    words.append("--no-tfidf")
    assert cli.main(words) == 0
    shown = capsys.readouterr()
    assert shown.out.startswith("| task | prompt | shots | metric |") and shown.out.count("\n") == 4
    assert "(1/3)" in shown.err and "(3/3, about" in shown.err
    assert cli.main([*words, "--adapter", "tuned"]) == 0
    both = [str(tmp_path / "eval-results" / name) for name in ("model", "model-tuned")]
    capsys.readouterr()
    assert cli.main(["eval", "compare", *both, "--out", "compared"]) == 0
    table = capsys.readouterr().out
    assert table == Path("compared/comparison.md").read_text(encoding="utf-8")
    lines = [json.loads(line) for line in Path("compared/comparison.jsonl").read_text().splitlines()]
    assert [(d["shots"], d["n_runs"]) for d in lines] == [(0, 1), (1, 2)]
    assert lines[0]["mcnemar_p"] is not None and lines[1]["mcnemar_p"] is None
    assert lines[0]["first"] != lines[0]["second"] and str(model_folder) in table
    same = compare.compare(Path(both[0]), Path(both[0])).differences[0]
    assert (same.difference, same.interval, same.bootstrap_p, same.mcnemar_p) == (0.0, None, 1.0, 1.0)
    assert cli.main(["eval", "compare", both[0]]) == 2
    assert cli.main(["eval", "compare", both[0], str(tmp_path)]) == 2
    assert "holds no report.json" in capsys.readouterr().err


def test_other_items_are_not_compared(tmp_path: Path, tiny_tokenizer: Path) -> None:
    model, folders = make_model(tiny_tokenizer), [tmp_path / "a", tmp_path / "b"]
    task = read_task(write(tmp_path))
    for folder, limit in zip(folders, (10, 11), strict=True):
        made = Report(model, "x", [evaluate(model, task, task.prompts[0], Settings(limit=limit))])
        report.write(made, folder)
    with pytest.raises(InputError, match="have other items"):
        compare.compare(*folders)


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        (("task_version",), "task version"),
        (("mean",), "metrics"),
        (("test", "digest"), "data"),
        (("prompt", "instruction"), "prompt wording"),
        (("prompt", "question"), "prompt wording"),
        (("prompt", "choices"), "prompt wording"),
        (("prompt", "separator"), "prompt wording"),
        (("scoring",), "scoring"),
        (("temperature",), "temperature"),
        (("seeds", 0, "shots"), "shots"),
    ],
)
def test_what_was_measured_otherwise_is_left_out(
    tmp_path: Path,
    tiny_tokenizer: Path,
    path: tuple[str | int, ...],
    reason: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """One of two results in common is compared; with none in common the error says why."""
    model, folders = make_model(tiny_tokenizer), [tmp_path / "a", tmp_path / "b"]
    task = read_task(write(tmp_path))
    runs = [evaluate(model, task, task.prompts[0], Settings(limit=9, shots=n, seeds=(1,))) for n in (0, 1)]
    for folder in folders:
        report.write(Report(model, "x", runs), folder)
    assert compare.compare(*folders).left_out == ([], [])
    document = json.loads((folders[1] / "report.json").read_text())
    place = document["results"][1]
    for step in path[:-1]:
        place = place[step]
    place[path[-1]] = {"pearson": 0.5} if path == ("mean",) else "another"
    (folders[1] / "report.json").write_text(json.dumps(document))
    found = compare.compare(*folders)
    assert [d.shots for d in found.differences] == [0]
    en, ko = found.left_out
    assert en == [f"own own 1 (other {reason})"]
    assert f"\nLeft out: {en[0]}\n" in compare.as_markdown(found)
    monkeypatch.setenv("LC_ALL", "ko_KR.UTF-8")
    assert f"\n뺀 것: {ko[0]}\n" in compare.as_markdown(found) and "| 과제 |" in compare.as_markdown(found)
    monkeypatch.undo()
    document["results"] = document["results"][1:]
    (folders[1] / "report.json").write_text(json.dumps(document))
    with pytest.raises(InputError, match=f"in common.*other {reason}.*: measure both alike$") as caught:
        compare.compare(*folders)
    assert compare.CONDITIONS[reason] in caught.value.ko


def test_the_interval_of_a_difference_covers_it() -> None:
    """20 of 100 items more are right: no chance. Equal models: the interval holds 0."""
    rng = np.random.default_rng(0)
    answers = rng.integers(2, size=100)
    first = np.where(rng.random(100) < 0.6, answers, 1 - answers)
    wrong = np.flatnonzero(first != answers)
    second = first.copy()
    second[wrong[:20]] = answers[wrong[:20]]
    grades = np.full(100, np.nan)
    a, b = (Outcome(answers, x, grades, x.astype(float)) for x in (first, second))
    interval, p = compare.bootstrap("accuracy", [(a, b)])
    assert interval is not None and 0.1 < interval[0] < 0.2 < interval[1] < 0.3 and p < 0.005
    # Slow twin: a share of 20 of 100, resampled, is binomial.
    assert math.isclose(interval[1] - interval[0], 2 * 1.96 * math.sqrt(0.2 * 0.8 / 100), rel_tol=0.1)
    swapped = second.copy()
    swapped[:] = first[::-1]
    interval, p = compare.bootstrap("accuracy", [(a, Outcome(answers, swapped, grades, swapped * 1.0))])
    assert p <= 1.0


def test_a_model_with_a_lora_is_measured_as_the_merged_model(tmp_path: Path, model_folder: Path) -> None:
    """Scored, sampled, by bits per byte and by the harness."""
    stored = checkpoint.load(model_folder)
    lora = random_lora()
    peft.save(tmp_path / "tuned", peft.SavedAdapter(lora, origin=peft.Origin.of(stored)), CONFIG)
    floats = merged(stored.floats(), lora)
    checkpoint.save(tmp_path / "merged", CONFIG, floats, "float32", model_folder)
    task, text = read_task(write(tmp_path)), tmp_path / "text.txt"
    text.write_text("".join(row[1] for row in reviews(9)), encoding="utf-8")
    found = []
    for folder, adapter in (
        (model_folder, None),
        (model_folder, tmp_path / "tuned"),
        (tmp_path / "merged", None),
    ):
        loaded = KoGPT.from_pretrained(folder, device="cpu", dtype="float32", adapter=adapter)
        model = EvaluatedModel("m", loaded, identify(folder, loaded.engine.runner, adapter))
        assert ("adapter_sha256" in model.identity) == (adapter is not None)
        scored = evaluate(model, task, task.prompts[0], Settings(shots=2, seeds=(1,)))
        drawn = evaluate(model, task, task.prompts[0], Settings(sample=0.0, seeds=(1,)))
        bits = perplexity.measure(model, text).bits_per_byte
        lm = KoGPTLM(loaded)
        pairs = [((9, 8, 7), (6, 5)), ((9, 8, 4), (6,)), ((9, 8, 4), (5,))]
        harness = np.array([value for value, _ in lm.score(pairs)])
        found.append((np.array(scored.seeds[0].scores), drawn.seeds[0].scores, bits, harness))
    np.testing.assert_allclose(found[1][0], found[2][0], atol=1e-3)
    np.testing.assert_allclose(found[1][3], found[2][3], atol=1e-3)
    assert abs(found[0][3] - found[1][3]).max() > 0.01
    assert found[1][1] == found[2][1] and math.isclose(found[1][2], found[2][2], rel_tol=1e-4)
    assert abs(found[0][0] - found[1][0]).max() > 0.01 and found[0][2] != found[1][2]


def test_a_soft_prompt_stands_before_every_text(tmp_path: Path, model_folder: Path) -> None:
    """Embeddings of a text's own tokens as soft prompt: scored as that text in front."""
    stored = checkpoint.load(model_folder)
    plain = KoGPT.from_pretrained(model_folder, device="cpu", dtype="float32")
    ids = plain.tokenizer.encode("한국어는 ")
    embedding = stored.floats()["transformer.wte.weight"].to("float32")
    adapter = SoftPrompt(embedding[ids])
    peft.save(tmp_path / "soft", peft.SavedAdapter(adapter, origin=peft.Origin.of(stored)), CONFIG)
    tuned = KoGPT.from_pretrained(model_folder, device="cpu", dtype="float32", adapter=tmp_path / "soft")
    task = read_task(write(tmp_path))
    models = [EvaluatedModel("m", model, {}) for model in (plain, tuned)]
    assert models[1].n_ctx == models[0].n_ctx - len(ids)
    settings = Settings(shots=0, seeds=(1,), limit=5)
    result = evaluate(models[1], task, task.prompts[0], settings).seeds[0]
    for item, scores in zip(result.encoded.items, result.scores, strict=True):
        whole = np.array([*ids, *item.context])
        [expected] = plain.engine.score([(whole, list(item.choices))])
        np.testing.assert_allclose(scores, [x.sum() for x in expected], atol=1e-3)


def test_the_time_that_is_left_follows_the_pace(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("LC_ALL", "C")
    now = iter([0.0, 60.0, 120.0])
    monkeypatch.setattr("kogpt.cli.eval.time", SimpleNamespace(monotonic=lambda: next(now)))
    left = _TimeLeft(Progress(), 4)
    for label in ("a", "a", "b", "c"):
        left.show(label, 1, 2)
    assert capsys.readouterr().err.splitlines() == [
        "kogpt: a (1/4)",
        "kogpt: b (2/4, about 3 min left)",
        "kogpt: c (3/4, about 2 min left)",
    ]
