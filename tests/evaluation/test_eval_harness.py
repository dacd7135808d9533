"""kogpt inside lm-evaluation-harness: the same answers as our own evaluator, and few tokens."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import random_tensors
from korean import PROSE
from runners import stored
from small import CONFIG, make_model, merging_tokenizer, small_copa, small_nsmc

from kogpt import checkpoint
from kogpt.datasets import Example
from kogpt.engine import Engine
from kogpt.errors import KoGPTError, PromptError
from kogpt.evaluation import harness, scoring, tasks
from kogpt.evaluation.evaluate import EvaluatedModel, Settings, evaluate, read_data
from kogpt.evaluation.task import Task
from kogpt.generation import KoGPT
from kogpt.numpy_runner import NumpyRunner
from kogpt.runner import Chunk
from kogpt.sampling import Chosen, Sampling, Wanted

pytest.importorskip("lm_eval")
pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # the harness' own, and of what it imports
    pytest.mark.filterwarnings("ignore::UserWarning"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The harness asks the hub for a metric that it then does not use; here that fails at once."""
    for name in ("HF_HUB_OFFLINE", "HF_EVALUATE_OFFLINE", "HF_DATASETS_OFFLINE"):
        monkeypatch.setenv(name, "1")
    yield


@pytest.fixture
def subject(tiny_tokenizer: Path) -> EvaluatedModel:
    return make_model(tiny_tokenizer, "float64")


@pytest.fixture
def model(subject: EvaluatedModel) -> KoGPT:
    return KoGPT(subject.tokenizer, Engine(subject.runner))


@pytest.mark.parametrize("shots", [0, 3])
@pytest.mark.parametrize(
    ("name", "make", "prompt"), [("kobest_copa", small_copa, "harness"), ("nsmc", small_nsmc, "question")]
)
def test_both_ways_agree_to_the_last_item(
    tmp_path: Path,
    subject: EvaluatedModel,
    model: KoGPT,
    name: str,
    make: Callable[[Path], Task],
    prompt: str,
    shots: int,
) -> None:
    from kogpt.evaluation.harness import rows

    task = make(tmp_path)
    settings = Settings(shots=shots, seeds=(1,), folder=tmp_path)
    ours = evaluate(subject, task, task.prompt(prompt), settings).seeds[0]
    scored = read_data(task, settings).scored
    lm = harness.language_model(model)
    load = partial(rows.of_examples, name, ours.encoded.shots or scored, scored)
    results = harness.evaluate([name], lm, {name: load}, num_fewshot=shots, bootstrap_iters=0)
    samples = sorted(results["samples"][name], key=lambda sample: sample["doc_id"])
    theirs = np.array([[answer[0][0] for answer in sample["resps"]] for sample in samples])
    assert theirs == pytest.approx(np.array(ours.scores), abs=1e-9)
    said = scoring.decide(theirs.tolist(), ours.encoded.items, task.scoring)[0]
    assert list(said) == list(scoring.decide(ours.scores, ours.encoded.items, task.scoring)[0])
    assert results["results"][name]["acc,none"] == pytest.approx(ours.values["accuracy"])
    ideal = len(ours.encoded.prefix) + sum(item.n_tokens for item in ours.encoded.items)
    assert lm.n_tokens_run <= 1.2 * ideal


def test_all_our_tasks_load_and_run(tmp_path: Path, model: KoGPT, monkeypatch: pytest.MonkeyPatch) -> None:
    small = {"nsmc": small_nsmc(tmp_path)}
    monkeypatch.setattr(tasks, "get", small.__getitem__)
    monkeypatch.setenv("KOGPT_DATA", str(tmp_path))
    results = harness.evaluate(["nsmc"], model, num_fewshot=2, bootstrap_iters=0)
    assert 0 <= results["results"]["nsmc"]["acc,none"] <= 1
    assert set(harness.TASKS) <= set(harness.task_manager().all_subtasks)


def test_graded_tasks_of_the_harness(tmp_path: Path, model: KoGPT) -> None:
    from small import small_sts

    from kogpt.evaluation.harness import rows

    task = small_sts(tmp_path)
    settings = Settings(folder=tmp_path)
    read = read_data(task, settings)
    load = {name: partial(rows.of_examples, name, read.pool, read.scored) for name in ("klue_sts", "korsts")}
    results = harness.evaluate(list(load), model, load, num_fewshot=1, bootstrap_iters=0)["results"]
    subject = EvaluatedModel("small", model, {})
    for name, prompt, metric, key in (
        ("klue_sts", "question", "pearson", "pearson,none"),
        ("korsts", "grade", "pearson", "pearson,none"),
    ):
        pool = [*read.pool]
        own = evaluate_with(subject, task, prompt, pool[:1], settings)
        assert results[name][key] == pytest.approx(own[metric]), name
    assert results["klue_sts"]["f1,none"] == pytest.approx(
        evaluate_with(subject, task, "question", [*read.pool][:1], settings)["binary_f1"]
    )


def evaluate_with(
    subject: EvaluatedModel, task: Task, prompt: str, shots: list[Example], settings: Settings
) -> dict[str, float]:
    """Our own evaluator with given shots."""
    from kogpt.evaluation import fewshot

    chosen = pytest.MonkeyPatch()
    chosen.setattr(fewshot, "draw", lambda *_: shots)
    try:
        one = Settings(shots=1, seeds=(1,), folder=settings.folder)
        return evaluate(subject, task, task.prompt(prompt), one).seeds[0].values
    finally:
        chosen.undo()


def test_greedy_is_told_exactly(subject: EvaluatedModel, model: KoGPT) -> None:
    lm = harness.language_model(model)
    context = tuple(model.tokenizer.encode("오늘 서울의 날씨는"))
    written: list[int] = []
    for _ in range(3):  # the greedy continuation, one whole reading at a time
        row = subject.runner.open()
        logits = subject.runner.forward([Chunk(row, np.array([*context, *written]))])[0][-1]
        subject.runner.close(row)
        written.append(int(logits.argmax()))
    other = (written[0], (written[1] + 1) % CONFIG.n_vocab)
    answers = lm.score([(context, tuple(written)), (context, other), (context, tuple(written[:1]))])
    assert [greedy for _, greedy in answers] == [True, False, True]


def test_rolling_and_generation(subject: EvaluatedModel, model: KoGPT) -> None:
    from lm_eval.api.instance import Instance

    lm = harness.language_model(model)
    text = "아침에 일어나 창문을 열면 골목 끝에서 빵 굽는 냄새가 올라온다."
    request = Instance("loglikelihood_rolling", {}, (text,), 0)
    ids = model.tokenizer.encode(text)
    expected = lm.score([((model.tokenizer.eos_token_id,), tuple(ids))])[0][0]
    assert lm.loglikelihood_rolling([request])[0] == pytest.approx(expected)
    settings = {"until": ["\n"], "max_gen_toks": 12, "do_sample": False, "temperature": 0.0}
    asked = Instance("generate_until", {}, ("오늘 서울의", settings), 0)
    own = model.generate("오늘 서울의", Sampling(temperature=0.0, max_tokens=12, stop=("\n",))).text
    assert lm.generate_until([asked]) == [own]


def test_n_shared() -> None:
    from kogpt.evaluation.harness.model import n_shared

    assert n_shared([1, 2, 3], [1, 2, 4]) == n_shared([1, 2, 3], [1, 2]) == 2
    assert n_shared([5], [6]) == 0


def test_a_token_across_the_border_and_an_impossible_continuation(tmp_path: Path) -> None:
    """The harness' own cut leaves nothing of a continuation that merges with its context."""
    from lm_eval.api.instance import Instance

    tokenizer = merging_tokenizer(tmp_path, [("a", "b")])
    tensors = {name: stored(array) for name, array in random_tensors(CONFIG, seed=5).items()}
    model = KoGPT(tokenizer, Engine(NumpyRunner(CONFIG, tensors, "float64")))
    lm = harness.language_model(model)
    texts = [("da", "b"), ("da", "c"), ("", "ab"), ("d", "a")]
    found = lm.loglikelihood([Instance("loglikelihood", {}, pair, 0) for pair in texts])
    expected: list[float] = []
    for context, choices in (("da", ["b", "c"]), ("", ["ab"]), ("d", ["a"])):
        expected += model.score(context, choices)
    assert [value for value, _ in found] == pytest.approx(expected)
    for text in ("", "c" * (CONFIG.n_ctx + 1)):
        with pytest.raises(PromptError):
            lm.loglikelihood([Instance("loglikelihood", {}, ("da", text), 0)])


def test_texts_are_written_in_one_batch_and_fit_the_context(
    subject: EvaluatedModel, model: KoGPT, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lm_eval.api.instance import Instance

    lm = harness.language_model(model)
    settings: dict[str, Any] = {
        "until": "",
        "max_gen_toks": 5,
    }  # no stop string, not one that is always there
    long = " ".join(PROSE)
    asked = [
        ("오늘 서울의", settings),
        (long, settings),
        ("", settings),
        ("봄", {"until": None, "max_gen_toks": 5}),
    ]
    for most in (CONFIG.n_ctx - 1, CONFIG.n_ctx, 100_000):
        asked.append((long, {"until": ["\n", ""], "max_gen_toks": most}))
    rows = 0
    draw = NumpyRunner.draw

    def watch(self: NumpyRunner, chunks: Sequence[Chunk], wanted: Sequence[Wanted]) -> list[Chosen]:
        nonlocal rows
        rows = max(rows, len(chunks))
        return draw(self, chunks, wanted)

    monkeypatch.setattr(NumpyRunner, "draw", watch)
    requests = [lm._writing(*pair) for pair in asked]
    texts = lm.generate_until([Instance("generate_until", {}, pair, 0) for pair in asked])
    assert rows > 1, "several texts are written at once"
    assert (
        texts[0] == model.generate("오늘 서울의", temperature=0.0, max_tokens=5, repetition_penalty=1.0).text
    )
    ids = model.tokenizer.encode(long)
    for request, (_, chosen) in zip(requests, asked, strict=True):
        assert request.writing is not None
        limit = request.writing.limit
        assert len(request.inputs) + limit <= CONFIG.n_ctx and limit <= chosen["max_gen_toks"]
        assert "" not in request.writing.sampling.stop
    assert list(requests[2].inputs) == [model.tokenizer.eos_token_id]
    assert list(requests[1].inputs) == ids[-(CONFIG.n_ctx - 5) :]
    for request in requests[4:]:
        assert (
            list(request.inputs) == ids[-(CONFIG.n_ctx // 2) :] and request.writing.limit == CONFIG.n_ctx // 2
        )


def test_the_tokens_that_are_reported_are_those_that_were_run(
    model: KoGPT, monkeypatch: pytest.MonkeyPatch
) -> None:
    counted, draw = 0, NumpyRunner.draw

    def count(self: NumpyRunner, chunks: Sequence[Chunk], wanted: Sequence[Wanted]) -> list[Chosen]:
        nonlocal counted
        counted += sum(len(chunk.inputs) for chunk in chunks)
        return draw(self, chunks, wanted)

    monkeypatch.setattr(NumpyRunner, "draw", count)
    lm = harness.language_model(model)
    contexts = [(5, 6, 7, 8), (5, 6, 7, 9), (5, 6), (30, 31, 32)]
    lm.score([(context, choice) for context in contexts for choice in ((9,), (10, 11), (12, 13, 14))])
    assert lm.n_tokens_run == counted > 0


def test_groups_share_the_most() -> None:
    from kogpt.evaluation.harness.model import groups

    long, other = tuple(range(50)), tuple(range(100, 140))
    contexts = sorted([(*long, i) for i in range(5)] + [(*other, i) for i in range(4)] + [(7,)])
    found = groups(contexts)
    assert sorted(c for group in found for c in group) == contexts
    assert sorted(map(len, found)) == [1, 4, 5]
    assert groups([(1, 2), (1, 3)]) == [[(1, 2), (1, 3)]]


def test_the_harness_command_knows_kogpt(tmp_path: Path, tiny_tokenizer: Path) -> None:
    from conftest import random_tensors

    checkpoint.save(tmp_path / "m", CONFIG, random_tensors(CONFIG), dtype="float32", tokenizer=tiny_tokenizer)
    code = (
        "from kogpt.evaluation import harness; harness.register();"
        "from lm_eval.api.registry import get_model;"
        f"lm = get_model('kogpt').create_from_arg_string('pretrained={tmp_path / 'm'},device=cpu');"
        "print(lm.score([((5, 6), (7,))])[0][0] < 0)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=os.environ
    )
    assert done.stdout.strip() == "True"


def test_model_arguments_reach_the_model_or_are_refused(
    model: KoGPT, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As lm_eval.simple_evaluate gives them: with settings of its own, as text or as a dict."""
    from kogpt.evaluation.harness.model import KoGPTLM

    asked: list[tuple[Any, ...]] = []

    def load(*given: Any) -> KoGPT:
        asked.append(given)
        return model

    monkeypatch.setattr(KoGPT, "from_pretrained", load)
    settings = {"batch_size": 8, "max_batch_size": 64, "device": None}
    text = "pretrained=m,revision=r,device=cpu,dtype=bfloat16,cache_dtype=int8,adapter=tuned,batch_size=2"
    KoGPTLM.create_from_arg_string(text, settings)
    KoGPTLM.create_from_arg_obj(
        {"pretrained": "m", "trust_remote_code": True}, {**settings, "device": "cuda"}
    )
    assert asked == [
        ("m", "r", "cpu", "bfloat16", "int8", "tuned"),
        ("m", None, "cuda", "auto", "auto", None),
    ]
    for wrong in ("dtyp=int8", "pretrained=m,peft=x"):
        with pytest.raises(KoGPTError, match=r"no model argument .*cache_dtype, adapter"):
            KoGPTLM.create_from_arg_string(wrong, settings)
    mistyped: dict[str, Any] = {"dtyp": "int8"}
    with pytest.raises(TypeError, match="dtyp"):
        KoGPTLM(model, **mistyped)


def test_the_harness_own_models_stay_known_beside_kogpt() -> None:
    """The harness fills its registry only while it is empty; in a process of its own it is."""
    code = (
        "from kogpt.evaluation import harness; harness.register();"
        "from lm_eval.api.registry import model_registry;"
        "print({'kogpt', 'hf', 'local-completions'} <= set(model_registry))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=os.environ
    )
    assert done.stdout.strip() == "True"
