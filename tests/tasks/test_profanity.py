"""Words, n-grams and the odds of an adapter are joined into one judgement."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from kogpt.classification import Classification
from kogpt.errors import InputError
from kogpt.tasks import profanity
from kogpt.tasks.ngrams import Joint, NgramClassifier
from kogpt.tasks.profanity import CLASSIFIER, MAX_ODDS, judge, log_odds


def test_an_adapter_is_weighed_beside_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shipped = NgramClassifier.load(CLASSIFIER)
    coefficients, texts = shipped.joint.coefficients, ("오늘 날씨가 참 좋네요", "야 이 미친놈아")
    # Before the last column, which is that of 1, stand the log-odds: here twice and not at all.
    wide = np.insert(coefficients, -1, np.array([2.0, 0.0], np.float32), axis=1)
    made = replace(shipped, joint_with_adapter=Joint(wide, shipped.joint.thresholds))
    made.save(tmp_path / "both.npz")
    monkeypatch.setattr(profanity, "_classifier", lambda: NgramClassifier.load(tmp_path / "both.npz"))
    for text in texts:
        plain, above, below = judge(text), judge(text, 1.5), judge(text, -1.5)
        assert below.profanity < plain.profanity < above.profanity
        assert above.insult == pytest.approx(plain.insult)
        p, q = plain.profanity, above.profanity
        assert np.log(q / (1 - q)) - np.log(p / (1 - p)) == pytest.approx(3.0, abs=1e-3)
    monkeypatch.setattr(profanity, "_classifier", lambda: shipped)
    if shipped.joint_with_adapter is None:
        with pytest.raises(InputError, match="without an adapter"):
            judge(texts[0], 0.0)


def test_odds_are_those_of_the_profane_label_and_finite() -> None:
    found = Classification("글", "욕설", {"깨끗함": 0.2, "욕설": 0.8})
    assert log_odds(found) == pytest.approx(np.log(4), abs=1e-6)
    sure = Classification("글", "욕설", {"깨끗함": 0.0, "욕설": 1.0})
    assert log_odds(sure) == MAX_ODDS
