"""Text in, text out: streamed equals final, stop strings never leak, bad prompts are refused."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kogpt import KoGPT, Sampling, native_runner
from kogpt.errors import KoGPTError, PromptError, SamplingError
from kogpt.generation import StopStrings
from kogpt.runner import Chunk

GREEDY = Sampling(temperature=0, max_tokens=24)


@pytest.fixture(scope="module")
def kogpt(tiny_folder: Path) -> KoGPT:
    return KoGPT.from_pretrained(tiny_folder, device="cpu", dtype="float32")


def reference_stop(text: str, stops: Sequence[str]) -> tuple[str, bool]:
    """The match that is completed first, of several the longest, found in the whole text."""
    for end in range(len(text) + 1):
        ending = [stop for stop in stops if text[:end].endswith(stop)]
        if ending:
            return text[: end - max(map(len, ending))], True
    return text, False


@settings(max_examples=2000, deadline=None)
@given(
    pieces=st.lists(st.text("가나 a\n", max_size=4), max_size=8),
    stops=st.lists(st.text("가나 a\n", min_size=1, max_size=4), max_size=3),
)
def test_stop_strings_find_the_earliest_completion_then_the_longest(
    pieces: list[str], stops: list[str]
) -> None:
    finder, shown, stopped = StopStrings(stops), "", False
    for piece in pieces:
        text, stopped = finder.push(piece)
        shown += text
        whole = reference_stop("".join(pieces), stops)[0]
        assert whole.startswith(shown)  # nothing is shown that is taken back later
        if stopped:
            break
    if not stopped:
        shown += finder.flush()
    assert (shown, stopped) == reference_stop("".join(pieces), stops)


def test_no_more_is_held_back_than_may_become_a_stop_string() -> None:
    finder = StopStrings(["사용자:"])
    assert finder.push("안녕 사용") == ("안녕 ", False)
    assert finder.push("법") == ("사용법", False)


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
    token, logprob = greedy.logprobs[0].top_logprobs[0]
    context = np.array(kogpt.tokenizer.encode("오늘"))
    [[score]] = kogpt.engine.score([(context, [np.array([token])])])
    assert float(score.sum()) == pytest.approx(logprob, abs=1e-4)


def test_scores_of_several_continuations_equal_those_of_each_alone(kogpt: KoGPT) -> None:
    continuations = [" 재미있다", " 지루하다", "!"]
    scores = kogpt.score("이 영화는", continuations)
    assert scores == pytest.approx([kogpt.score("이 영화는", [c])[0] for c in continuations], abs=1e-4)
    assert all(score < 0 for score in scores) and kogpt.score("이 영화는", []) == []
    with pytest.raises(PromptError, match="continuation"):
        kogpt.score("이 영화는", [""])


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
