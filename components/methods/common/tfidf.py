"""TF-IDF cosines of pairs of texts, each pair with a vectorizer of its own. scikit-learn is imported at the first use.

Shape letters: n texts, m stored strings, V their terms.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

import torch
from torch import Tensor

RARE = 1.0 + math.log(1.5)  # smooth inverse document frequency of a term that one of two documents has; both: 1


class PairwiseTfidf:
    """Cosines of TF-IDF vectors between given texts and m stored strings, with a vectorizer fitted on each pair alone.

    With two documents, counts x and y, an l2 norm and the smooth inverse document frequency, such a fit has the closed
    form cos = sum over shared terms of x y / (N(x, y) N(y, x)), N(x, y)^2 = S + RARE^2 (|x|^2 - S), S = the sum over
    shared terms of x^2. A pair in which one text has no term left (stop words, single letters) gets 0.
    """

    def __init__(self, stored: Sequence[str]) -> None:
        from sklearn.feature_extraction.text import CountVectorizer

        self._terms_of = CountVectorizer(stop_words="english").build_analyzer()
        terms = sorted({term for text in stored for term in self._terms_of(text)})
        self._vectorizer = CountVectorizer(stop_words="english", vocabulary=terms) if terms else None
        self._size = len(stored)
        if self._vectorizer is not None:
            y = self._vectorizer.transform(stored).astype("float64")  # sparse counts [m, V]; kept: three [V, m]
            self._counts = y.T.tocsr()
            self._present = y.sign().T.tocsr()  # type: ignore[attr-defined]
            self._counts_squared = y.multiply(y).T.tocsr()
            self._squares = self._total_squares(stored)

    def cosines(self, texts: Sequence[str]) -> Tensor:
        """[n, m] float64."""
        if self._vectorizer is None or not texts:
            return torch.zeros(len(texts), self._size, dtype=torch.float64)
        x = self._vectorizer.transform(texts).astype("float64")
        dot = _dense(x @ self._counts)
        x_shared = _dense(x.multiply(x) @ self._present)
        y_shared = _dense(x.sign() @ self._counts_squared)  # type: ignore[attr-defined]
        x_norm = x_shared + RARE**2 * (self._total_squares(texts).unsqueeze(1) - x_shared)
        y_norm = y_shared + RARE**2 * (self._squares - y_shared)
        return torch.where(dot > 0, dot / (x_norm * y_norm).sqrt(), torch.zeros_like(dot))

    def _total_squares(self, texts: Sequence[str]) -> Tensor:
        """|x|^2 over all terms of each text, also those that no stored string has [n]."""
        counts = [Counter(self._terms_of(text)) for text in texts]
        return torch.tensor([sum(n * n for n in count.values()) for count in counts], dtype=torch.float64)


def _dense(matrix: object) -> Tensor:
    return torch.from_numpy(matrix.toarray())  # type: ignore[attr-defined]
