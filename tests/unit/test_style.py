"""Win rates at equal style: against scikit-learn's regression on features made by hand."""

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from dpoflow.evaluate.style import at_equal_style, counts_of

MARKDOWN = """# Title
Some **bold** and __more bold__ words.

- one
* two
3. three

```
# no header
- no item
```
"""


def test_headers_items_and_bold_words_are_counted_outside_of_code() -> None:
    assert counts_of(MARKDOWN) == (len(MARKDOWN), 1, 3, 2)


def answers(rng: np.random.Generator, many: int) -> list[str]:
    return [
        "word " * rng.integers(5, 60) + "\n- item" * rng.integers(0, 4) + "\n# head" * (at % 2)
        for at in range(many)
    ]


def test_it_is_the_intercept_of_an_unpenalised_logistic_regression() -> None:
    rng = np.random.default_rng(3)
    ours, theirs = [text + " more" * 40 for text in answers(rng, 200)], answers(rng, 200)
    counts = [np.array([counts_of(text) for text in side], dtype=float) for side in (ours, theirs)]
    more = (counts[0] - counts[1]) / (counts[0] + counts[1] + 1)
    chance = 1 / (1 + np.exp(-(0.4 + more @ np.array([2.0, 1.0, -1.0, 0.0]))))
    won = rng.choice([0.0, 0.5, 1.0], size=200)  # ties among them
    won = np.where(rng.random(200) < 0.2, won, rng.random(200) < chance)

    # A tie is half a win and half a loss. Bold words never differ: no column for them.
    model = LogisticRegression(C=np.inf, tol=1e-12, max_iter=10_000).fit(
        np.vstack([more[:, :3]] * 2),
        np.repeat([1, 0], 200),
        sample_weight=np.concatenate([won, 1 - won]),
    )

    expected = 1 / (1 + np.exp(-model.intercept_[0]))
    assert at_equal_style(list(won), ours, theirs) == pytest.approx(expected, abs=1e-6)
    assert abs(expected - won.mean()) > 0.01  # the style has a part in it


def test_what_wins_by_headers_and_length_alone_wins_half_at_equal_style() -> None:
    plain = [f"word {'more ' * (at % 7)}" for at in range(120)]
    dressed = [f"# head\n{text}{'and more ' * 20}" for text in plain]
    # Dressed answers win three times in four, whoever wrote them: half of them are the candidate's.
    ours = [d if at % 2 else p for at, (d, p) in enumerate(zip(dressed, plain, strict=True))]
    theirs = [p if at % 2 else d for at, (d, p) in enumerate(zip(dressed, plain, strict=True))]
    won = [float((at % 2 == 1) is (at // 2 % 4 != 0)) for at in range(120)]

    assert at_equal_style(won, ours, theirs) == pytest.approx(0.5, abs=0.02)


def test_one_text_against_itself_is_its_win_rate() -> None:
    texts = [f"text {at}" for at in range(8)]

    assert at_equal_style([1, 1, 1, 0, 0.5, 0.5, 1, 1], texts, texts) == pytest.approx(0.75)
