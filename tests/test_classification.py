"""Classification: batches with a shared prefix against one prompt at a time."""

from __future__ import annotations

import numpy as np
import pytest
from korean import PROSE

from kogpt import KoGPT, KoGPTError
from kogpt.classification import WITHOUT_CONTENT, Wording, calibrated

TEXTS = [line for line in PROSE if line.strip()][:5]
SHOTS = Wording(
    ("좋음", "나쁨"),
    instruction="글을 나눕니다.",
    examples=(("하늘이 맑다", 0), ("비가 온다", 1)),
)


def shares(scores: list[float]) -> np.ndarray:
    powers = np.exp(np.array(scores) - max(scores))
    return np.asarray(powers / powers.sum())


def alone(model: KoGPT, text: str, wording: Wording) -> np.ndarray:
    """The whole prompt of one text, read from its beginning."""
    return shares(model.score(wording.shared() + wording.ask(text), list(wording.answers)))


@pytest.mark.parametrize("calibrated", [False, True])
def test_as_each_text_with_its_whole_prompt(model: KoGPT, calibrated: bool) -> None:
    wording = Wording(SHOTS.labels, instruction="나눕니다.", examples=SHOTS.examples, calibrated=calibrated)
    found = model.classify([text[:20] for text in TEXTS], wording)
    free = np.mean([alone(model, text, wording) for text in WITHOUT_CONTENT], axis=0)
    for text, answer in zip(TEXTS, found, strict=True):
        expected = alone(model, text[:20], wording) / (free if calibrated else 1)
        expected /= expected.sum()
        np.testing.assert_allclose(list(answer.probabilities.values()), expected, atol=1e-5)
        assert answer.label == wording.labels[int(expected.argmax())]


def test_calibration_cancels_what_the_model_prefers(model: KoGPT) -> None:
    """Content-free texts come out even: the mean of their corrected shares is 1/C for one such text."""
    one = Wording(("가", "나", "다"))
    raw = np.mean(
        [
            list(model.classify(t, Wording(one.labels, calibrated=False)).probabilities.values())
            for t in WITHOUT_CONTENT
        ],
        axis=0,
    )
    corrected = model.classify(WITHOUT_CONTENT[0], one)
    first = alone(model, WITHOUT_CONTENT[0], one) / raw
    np.testing.assert_allclose(list(corrected.probabilities.values()), first / first.sum(), atol=1e-5)


def test_a_long_text_is_cut_and_said_to_be(model: KoGPT) -> None:
    found = model.classify(["가나다 " * 200, "짧다"], ["좋음", "나쁨"])
    assert [item.cut for item in found] == [True, False]
    assert found[0].text == "가나다 " * 200


def test_the_prefix_is_freed(model: KoGPT) -> None:
    before = len(model.engine._store._prefixes)
    model.classify("하늘", SHOTS)
    assert len(model.engine._store._prefixes) == before


@pytest.mark.parametrize("labels", [["하나"], [], ["같음", "같음"], ["", "둘"]])
def test_labels_that_cannot_be_meant(model: KoGPT, labels: list[str]) -> None:
    with pytest.raises(KoGPTError, match="label"):
        model.classify("글", labels)


def test_a_template_without_a_place() -> None:
    with pytest.raises(KoGPTError, match="text"):
        Wording(("가", "나"), template="감정:")


def test_nothing_to_classify(model: KoGPT) -> None:
    with pytest.raises(KoGPTError, match="empty"):
        model.classify("  ", ["가", "나"])


def test_a_model_without_adapter_needs_labels(model: KoGPT) -> None:
    with pytest.raises(KoGPTError, match="no labels"):
        model.classify("글")


def test_a_label_far_less_likely_than_another_has_a_probability() -> None:
    """e^-745 is 0 in float64, and its logarithm made every probability NaN."""
    likelihoods, free = np.array([[-2.0, -1500.0], [-3.0, -1600.0]]), np.array([[-2.0, -1550.0]])
    found = calibrated(likelihoods, free)
    np.testing.assert_allclose(found, [[1 / (1 + np.exp(50)), 1], [1, np.exp(-49)]], atol=1e-12)
