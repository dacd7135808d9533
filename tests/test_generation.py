"""Text in, text out: streamed equals final, stop strings never leak, bad prompts are refused."""

from __future__ import annotations

import gc
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kogpt import KoGPT, Sampling, native_runner
from kogpt.errors import CheckpointError, KoGPTError, PromptError, SamplingError
from kogpt.generation import _Job
from kogpt.runner import Chunk

GREEDY = Sampling(temperature=0, max_tokens=24)


@pytest.fixture(scope="module")
def kogpt(tiny_folder: Path) -> KoGPT:
    return KoGPT.from_pretrained(tiny_folder, device="cpu", dtype="float32")


def test_streamed_text_is_the_final_text(kogpt: KoGPT) -> None:
    for seed in range(8):
        sampling = Sampling(temperature=1.5, seed=seed, max_tokens=40, stop=(" ", "다"))
        pieces = list(kogpt.stream("옛날 옛적에", sampling))
        result = kogpt.generate("옛날 옛적에", sampling)
        assert "".join(piece.text for piece in pieces) == result.text
        assert [p.finish_reason for p in pieces[:-1]] == [None] * (len(pieces) - 1)
        assert pieces[-1].finish_reason == result.finish_reason
        assert not any(stop in result.text for stop in sampling.stop)


def test_text_held_back_for_a_stop_string_is_shown_at_the_end(kogpt: KoGPT) -> None:
    whole = kogpt.generate("옛날 옛적에", GREEDY)
    almost = whole.text[-2:] + "결코 오지 않는 끝"
    stopped = kogpt.generate("옛날 옛적에", Sampling(temperature=0, max_tokens=24, stop=(almost,)))
    assert stopped.text == whole.text and stopped.finish_reason == whole.finish_reason


def test_a_result_counts_what_it_says(kogpt: KoGPT) -> None:
    result = kogpt.generate("오늘 서울의 날씨는", GREEDY)
    assert result.prompt_tokens == len(kogpt.tokenizer.encode("오늘 서울의 날씨는"))
    assert result.completion_tokens == len(result.tokens) <= 24
    assert result.text == kogpt.tokenizer.decode(result.tokens)
    assert result.finish_reason in ("stop", "length") and result.logprobs is None and result.seconds > 0


def test_max_length_counts_the_prompt_too(kogpt: KoGPT) -> None:
    n = len(kogpt.tokenizer.encode("오늘 서울의 날씨는"))
    result = kogpt.generate("오늘 서울의 날씨는", Sampling(temperature=0, max_length=n + 3))
    assert result.completion_tokens == 3 and result.finish_reason == "length"


def test_generation_ends_where_the_context_ends(kogpt: KoGPT) -> None:
    result = kogpt.generate("가", Sampling(temperature=0, max_tokens=10_000, logit_bias={1: -100}))
    assert result.prompt_tokens + result.completion_tokens == kogpt.config.n_ctx


def test_many_prompts_come_back_in_order_and_equal_to_each_alone(kogpt: KoGPT) -> None:
    prompts = [f"{'가나다라 ' * (i % 5)}질문 {i}" for i in range(40)]
    sampling = Sampling(temperature=1, seed=5, max_tokens=12)
    together = kogpt.generate(prompts, sampling)
    assert [result.prompt for result in together] == prompts
    assert [result.tokens for result in together[:6]] == [
        kogpt.generate(p, sampling).tokens for p in prompts[:6]
    ]


def test_n_samples_of_one_prompt(kogpt: KoGPT) -> None:
    sampling = Sampling(temperature=1, seed=5, max_tokens=12, n=3)
    results = kogpt.generate(["가나다", "라마바"], sampling)
    assert [(r.prompt, r.sample) for r in results] == [(p, i) for p in ("가나다", "라마바") for i in range(3)]
    with pytest.raises(SamplingError, match="n is 3"):
        kogpt.generate("가나다", sampling)


def test_prompts_are_taken_only_as_room_appears(kogpt: KoGPT) -> None:
    taken = []

    def endless() -> object:
        for i in range(10**9):
            taken.append(i)
            yield f"프롬프트 {i}"

    results = kogpt.results(endless(), GREEDY)  # type: ignore[arg-type]
    next(results)
    results.close()  # type: ignore[attr-defined]
    assert len(taken) <= 3 * kogpt.engine.max_rows and kogpt.engine.idle


def test_finished_prompts_are_forgotten(kogpt: KoGPT) -> None:
    """Among them one that is refused; `results` and `generate` of many prompts go the same way."""
    n, rows = 160, kogpt.engine.max_rows
    sampling = Sampling(temperature=1, seed=1, max_tokens=2, n=2)
    n_answers, most = 0, 0
    for _ in kogpt.answers((f"질문 {i}" if i else "", sampling) for i in range(n)):
        n_answers += 1
        if n_answers % rows == 0:
            most = max(most, sum(type(found) is _Job for found in gc.get_objects()))
    assert n_answers == 2 * n - 1 and 0 < most <= 4 * rows < n


def test_a_closed_stream_leaves_nothing_behind(kogpt: KoGPT) -> None:
    pieces = kogpt.stream("옛날 옛적에", GREEDY)
    next(pieces)
    pieces.close()
    assert kogpt.engine.idle


@pytest.mark.parametrize("prompt", ["", "가" * 5000])
def test_prompts_that_cannot_be_read_are_refused(kogpt: KoGPT, prompt: str) -> None:
    with pytest.raises(PromptError):
        kogpt.generate(prompt)
    assert kogpt.engine.idle


def test_a_text_far_too_long_is_refused_without_being_encoded(
    kogpt: KoGPT, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kogpt.tokenizer, "encode", lambda text: pytest.fail("encoded"))
    with pytest.raises(PromptError, match="reads at most"):
        kogpt.generate("가" * (5 * kogpt.config.n_ctx * kogpt.tokenizer.longest))


def test_a_bias_for_a_token_that_does_not_exist_is_refused(kogpt: KoGPT) -> None:
    with pytest.raises(SamplingError, match="logit_bias has token id 99999"):
        kogpt.generate("가", Sampling(logit_bias={99999: 3.0}))


def test_a_prompt_longer_than_max_length_is_refused_with_both_numbers(kogpt: KoGPT) -> None:
    n = len(kogpt.tokenizer.encode("오늘 서울의 날씨는"))
    with pytest.raises(PromptError, match=rf"{n} tokens, max_length is 2"):
        kogpt.generate("오늘 서울의 날씨는", Sampling(max_length=2))


def test_scores_are_the_models_own_logprobs(kogpt: KoGPT) -> None:
    greedy = kogpt.generate("오늘", Sampling(temperature=0, max_tokens=1, logprobs=5))
    assert greedy.logprobs is not None
    top = greedy.logprobs[0].top_logprobs[0]
    token, logprob = top.token, top.logprob
    assert greedy.logprobs[0].text == greedy.text == top.text
    context = np.array(kogpt.tokenizer.encode("오늘"))
    [[score]] = kogpt.engine.score([(context, [np.array([token])])])
    assert float(score.sum()) == pytest.approx(logprob, abs=1e-4)


def test_scores_of_several_continuations_equal_those_of_each_alone(kogpt: KoGPT) -> None:
    continuations = [" 재미있다", " 지루하다", "!"]
    scores = kogpt.score("이 영화는", continuations)
    assert scores == pytest.approx([kogpt.score("이 영화는", [c])[0] for c in continuations], abs=1e-4)
    assert all(score < 0 for score in scores) and kogpt.score("이 영화는", []) == []
    with pytest.raises(PromptError, match="choice 1"):
        kogpt.score("이 영화는", [""])


def test_the_last_state_is_what_the_means_of_two_lengths_differ_by(kogpt: KoGPT) -> None:
    ids = np.random.default_rng(0).integers(5, 512, size=100)  # several parts of a prompt
    requests = [kogpt.embedding_request(ids), kogpt.embedding_request(ids[:-1])]
    requests.append(kogpt.embedding_request(ids, last_only=True))
    whole, shorter, last = (event.pooled for event in kogpt.session.ask(requests))
    assert whole is not None and shorter is not None and last is not None
    np.testing.assert_allclose(last, 100 * whole - 99 * shorter, atol=1e-3)


def test_embeddings_have_the_models_width_and_ignore_their_neighbours(kogpt: KoGPT) -> None:
    vectors = kogpt.embed(["문장 하나", "아주 다른 문장 둘"])
    assert vectors.shape == (2, kogpt.config.d_model) and vectors.dtype == np.float32
    assert vectors[0] == pytest.approx(kogpt.embed(["문장 하나"])[0], abs=1e-4)
    assert kogpt.embed([]).shape == (0, kogpt.config.d_model)


def test_an_embedding_is_the_mean_over_the_tokens(kogpt: KoGPT) -> None:
    ids = np.array(kogpt.tokenizer.encode("문장 하나"))
    row = kogpt.engine.runner.open()
    [hidden] = kogpt.engine.runner.hidden([Chunk(row, ids, len(ids))])
    kogpt.engine.runner.close(row)
    assert kogpt.embed(["문장 하나"])[0] == pytest.approx(hidden.sum(axis=0) / len(hidden), abs=1e-6)
    assert len(hidden) > 1


def test_the_end_of_text_is_neither_text_nor_token(kogpt: KoGPT) -> None:
    eos = kogpt.config.eos_token_id
    result = kogpt.generate("문장 하나", Sampling(temperature=0, logit_bias={eos: 1000}))
    assert (result.text, result.tokens, result.finish_reason) == ("", (), "stop")


def test_the_cache_has_the_dtype_that_was_asked_for(
    tiny_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if native_runner.available():
        kogpt = KoGPT.from_pretrained(tiny_folder, device="cpu", cache_dtype="int8")
        assert isinstance(kogpt.engine.runner, native_runner.NativeRunner)
        assert kogpt.engine.runner.cache_dtype == "int8"
    monkeypatch.setattr(native_runner, "available", lambda: False)
    with pytest.raises(KoGPTError, match=r"numpy runner.*int8.*--cache-dtype") as error:
        KoGPT.from_pretrained(tiny_folder, device="cpu", cache_dtype="int8")
    assert "--cache-dtype" in error.value.ko and "int8" in error.value.ko


def test_settings_may_be_keywords_or_a_dict(kogpt: KoGPT) -> None:
    whole = kogpt.generate("가", Sampling(temperature=0, max_tokens=3))
    for result in (
        kogpt.generate("가", temperature=0, max_tokens=3),
        kogpt.generate("가", {"temperature": 0, "max_tokens": 3}),
        kogpt.generate("가", {"temperature": 0}, max_tokens=3),
    ):
        assert (result.text, result.tokens) == (whole.text, whole.tokens)
    assert len(list(kogpt.stream("가", temperature=0, max_tokens=3))) == len(
        list(kogpt.stream("가", Sampling(temperature=0, max_tokens=3)))
    )
    with pytest.raises(SamplingError, match="no setting 'max_token'"):
        kogpt.generate("가", max_token=3)
    with pytest.raises(SamplingError, match="Sampling beside max_tokens"):
        kogpt.generate("가", Sampling(), max_tokens=3)
    with pytest.raises(SamplingError, match="int"):
        kogpt.generate("가", 3)  # type: ignore[call-overload]


@pytest.mark.parametrize("prompts", [None, 3, b"abc", ["봄", None], ["봄", b"abc"], [["봄"]]])
def test_what_is_no_text_is_refused_with_its_type(kogpt: KoGPT, prompts: Any) -> None:
    for call in (kogpt.generate, kogpt.embed):
        with pytest.raises(PromptError, match=r"text \(str\), not (NoneType|int|bytes|list)"):
            call(prompts)
    with pytest.raises(PromptError, match="not"):
        kogpt.score("가", prompts)
    with pytest.raises(PromptError, match="not"):
        kogpt.classify(prompts, ["가", "나"])
    assert kogpt.session.idle


@pytest.mark.parametrize("labels", [3, b"ab", ["가", None], ["가", 3], "긍정"])
def test_labels_that_are_no_words_are_refused(kogpt: KoGPT, labels: Any) -> None:
    with pytest.raises(PromptError, match=r"text \(str\), not|one text"):
        kogpt.classify("봄", labels)


@pytest.mark.parametrize("name", [None, 5, b"x", ""])
def test_what_names_no_folder_is_refused(name: Any, tiny_folder: Path) -> None:
    with pytest.raises(CheckpointError, match="no model folder"):
        KoGPT.from_pretrained(name)
    if name is not None:
        with pytest.raises(CheckpointError, match="no adapter"):
            KoGPT.from_pretrained(tiny_folder, adapter=name)


def test_one_text_gives_one_value(kogpt: KoGPT) -> None:
    assert kogpt.embed("문장").shape == (kogpt.config.d_model,)
    one = kogpt.score("이 영화는", " 재미있다")
    assert isinstance(one, float) and kogpt.score("이 영화는", [" 재미있다"]) == [one]


def test_texts_may_come_in_any_collection(kogpt: KoGPT) -> None:
    texts = [" 재미있다", " 지루하다"]
    scores, vectors = kogpt.score("이 영화는", texts), kogpt.embed(texts)
    collections: tuple[Callable[[list[str]], Any], ...] = (tuple, np.array, iter)
    for collection in collections:
        assert kogpt.score("이 영화는", collection(texts)) == scores
        assert kogpt.score(collection(["이 영화는"] * 2), collection(texts)) == scores
        assert kogpt.embed(collection(texts)) == pytest.approx(vectors, abs=1e-5)


def test_many_questions_are_scored_as_each_alone(kogpt: KoGPT) -> None:
    questions = ["이 영화는", "", "오늘 서울의 날씨는"]
    choices = [[" 재미있다", " 지루하다"], ["가", "나다"], [" 맑다", " 흐리다", " 춥다"]]
    scores = kogpt.score(questions, choices)
    for question, texts, found in zip(questions, choices, scores, strict=True):
        assert found == pytest.approx(kogpt.score(question, texts), abs=1e-4)
    pairs = kogpt.score(questions, [texts[0] for texts in choices])
    assert pairs == pytest.approx(
        [kogpt.score(question, texts[0]) for question, texts in zip(questions, choices, strict=True)],
        abs=1e-4,
    )
    with pytest.raises(PromptError, match="a list of 3 prompts are a list of 1: give a list of 3"):
        kogpt.score(questions, [" 하나"])
    with pytest.raises(PromptError, match="a list of 3 prompts are one text"):
        kogpt.score(questions, " 하나")  # type: ignore[arg-type]
    with pytest.raises(PromptError, match="reads at most"):
        kogpt.score("가나다", "라마바사 " * 200)


def test_an_empty_prompt_scores_what_begins_a_document(kogpt: KoGPT) -> None:
    ids = np.array(kogpt.tokenizer.encode("가나다"))
    [[expected]] = kogpt.engine.score([(np.array([kogpt.config.eos_token_id]), [ids])])
    assert kogpt.score("", "가나다") == pytest.approx(expected.sum(), abs=1e-4)


def test_log_probabilities_say_each_tokens_text(kogpt: KoGPT) -> None:
    result = kogpt.generate("오늘", temperature=1, seed=2, max_tokens=12, logprobs=3)
    assert result.logprobs is not None and len(result.logprobs) == len(result.tokens)
    for entry, token in zip(result.logprobs, result.tokens, strict=True):
        assert entry.token == token and len(entry.top_logprobs) == 3
        for named in (entry, *entry.top_logprobs):
            assert named.text == kogpt.tokenizer.token_bytes(named.token).decode("utf-8", "replace")
    stopped = kogpt.generate("오늘", temperature=0, logprobs=1, logit_bias={kogpt.config.eos_token_id: 1000})
    assert stopped.logprobs == ()


def test_the_models_own_settings_are_below_the_users(tmp_path: Path, tiny_folder: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(tiny_folder, folder)
    (folder / "kogpt.manifest.json").unlink(missing_ok=True)
    tokens = KoGPT.from_pretrained(tiny_folder, device="cpu").generate("가", temperature=0).tokens
    second = tokens[1]
    (folder / "generation_config.json").write_text(
        json.dumps(
            {"eos_token_id": [1, second], "temperature": 0.001, "max_new_tokens": 5, "do_sample": True}
        )
    )
    model = KoGPT.from_pretrained(folder, device="cpu")
    ended = model.generate("가")
    assert (ended.finish_reason, len(ended.tokens)) == ("stop", tokens.index(second)), (
        "the second end token ends it too"
    )
    assert model.generate("가", logit_bias={1: -1000, second: -1000}).completion_tokens == 5
    assert model.sampling(max_tokens=7) == Sampling(temperature=0.001, max_tokens=7)
    assert model.sampling(Sampling(max_tokens=7)) == Sampling(max_tokens=7)


def test_loading_and_requests_are_logged_without_prompts(
    tiny_folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("DEBUG", "kogpt"):
        KoGPT.from_pretrained(tiny_folder, device="cpu").generate("비밀스러운 글", max_tokens=3)
    assert "loaded KoGPT(" in caplog.text and "inputs" in caplog.text and "finished" in caplog.text
    assert "비밀" not in caplog.text


def test_a_model_says_what_it_is(kogpt: KoGPT) -> None:
    assert f"{kogpt.config.n_parameters:,} parameters" in repr(kogpt) and "float32" in repr(kogpt)
