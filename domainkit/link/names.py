"""All names of a graph: looked up in any spelling, and found by how alike they are written."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from math import log
from typing import Any

import numpy as np

from domainkit.graph import ConceptGraph
from domainkit.ontology.names import spellings, words

OWN, ANY = 12, 4  # names nearest to a mention that are candidates: of its label, and of any
BATCH = 200  # queries at once: about 50 MB

Near = list[tuple[int, float]]  # (number of a name, cosine), the nearest first


class Names:
    """The names of a graph, each once, by the `words` it is made of."""

    def __init__(self, graph: ConceptGraph) -> None:
        self.graph = graph
        owners: dict[str, tuple[str, ...]] = {}
        self._spelled: dict[str, tuple[str, ...]] = {}
        self.preferred: dict[str, str] = {}  # concept → its preferred name, as words
        for name, id_ in graph.aliases():
            parts = words(name)
            form = " ".join(parts)
            self.preferred.setdefault(id_, form)
            for table, key in (owners, form), *((self._spelled, key) for key in dict.fromkeys(spellings(parts))):
                ids = table.get(key, ())
                if key and id_ not in ids:
                    table[key] = (*ids, id_)
        self.forms = list(owners)
        self.owners = list(owners.values())  # of each form, in the order of `ConceptGraph.aliases`
        self._used = Counter(word for form in self.forms for word in set(form.split()))
        self._masks: dict[str, np.ndarray] = {}
        self._fit()

    def _fit(self) -> None:
        from sklearn.feature_extraction.text import TfidfVectorizer

        self._vectorizer = TfidfVectorizer(
            analyzer="char_wb", ngram_range=(3, 3), sublinear_tf=True, lowercase=False, dtype=np.float32
        )
        if self.forms:
            self._vectors = self._vectorizer.fit_transform(self.forms).T.tocsr()  # (n-grams, names)

    def find(self, parts: tuple[str, ...]) -> tuple[str, ...]:
        """The concepts that have a name with these words, in another order or written as one, too."""
        return tuple(dict.fromkeys(id_ for key in spellings(parts) for id_ in self._spelled.get(key, ())))

    def rarity(self, word: str) -> float:
        """The inverse document frequency of a word among the names."""
        return log((len(self.forms) + 1) / (self._used[word] + 1))

    def vectors(self, forms: Sequence[str]) -> Any:  # scipy has no types
        """Forms as TF-IDF over character trigrams: sparse, (forms, n-grams), rows of length 1."""
        return self._vectorizer.transform(forms)

    def near(self, asked: Iterable[tuple[str, str]]) -> dict[tuple[str, str], Near]:
        """The names written most like each (form, label): some of that label, and a few of any."""
        found: dict[tuple[str, str], Near] = {}
        labels: dict[str, list[str]] = {}
        for form, label in dict.fromkeys(asked):
            labels.setdefault(form, []).append(label)
        forms = list(labels) if self.forms else []
        for start in range(0, len(forms), BATCH):
            rows = self.vectors(forms[start : start + BATCH]) @ self._vectors
            for form, columns, cosines in zip(forms[start:], *_rows(rows), strict=False):
                for label in labels[form]:
                    own = self._mask(label)[columns]
                    both = dict(nearest(columns[own], cosines[own], OWN)) | dict(nearest(columns, cosines, ANY))
                    found[form, label] = sorted(both.items(), key=lambda pair: (-pair[1], pair[0]))
        return found

    def agrees(self, id_: str, label: str) -> bool:
        """Whether a corpus would give this label to the concept; any concept agrees with no label."""
        return not label or label in self.graph.entities(id_)

    def _mask(self, label: str) -> np.ndarray:
        """Which names belong to a concept of this label: (names,), bool."""
        if label not in self._masks:
            ids = {id_ for id_ in self.graph.concepts if self.agrees(id_, label)}
            self._masks[label] = np.array([any(id_ in ids for id_ in owners) for owners in self.owners])
        return self._masks[label]


@lru_cache(maxsize=2)
def names_of(graph: ConceptGraph) -> Names:
    """The names of a graph, prepared once."""
    return Names(graph)


def nearest(columns: np.ndarray, cosines: np.ndarray, count: int) -> Near:
    """The `count` columns with the highest cosine, the highest first, equal ones in order."""
    if len(cosines) > count:
        kept = cosines >= np.partition(cosines, -count)[-count]
        columns, cosines = columns[kept], cosines[kept]
    order = np.lexsort((columns, -cosines))[:count]
    return list(zip(columns[order].tolist(), cosines[order].tolist(), strict=True))


def _rows(matrix: Any) -> tuple[Iterator[np.ndarray], Iterator[np.ndarray]]:
    """The columns and the values of each row of a sparse matrix."""
    bounds = list(zip(matrix.indptr, matrix.indptr[1:], strict=False))
    return (matrix.indices[a:b] for a, b in bounds), (matrix.data[a:b] for a, b in bounds)
