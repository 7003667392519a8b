"""Names of the baselines for people: a title for tables and figures, a phrase for sentences."""

from __future__ import annotations

from typing import NamedTuple


class BaselineName(NamedTuple):
    """How a baseline is called in a table and in a sentence."""

    title: str
    phrase: str


BASELINE_NAMES = {
    "majority": BaselineName("majority", "the majority class"),
    "category_only": BaselineName("category only", "the category alone"),
    "file_facts": BaselineName("file facts", "the file's facts alone"),
    "linear_probe": BaselineName("linear probe", "the linear probe"),
    "lda": BaselineName("LDA", "Fisher's discriminant"),
    "pca_svm": BaselineName("PCA + SVM", "principal components with an SVM"),
    "random_svm": BaselineName("random + SVM", "a random projection with an SVM"),
    "rbf_svm": BaselineName("SVM on vectors", "an RBF SVM on the raw vectors"),
}


def baseline_name(baseline: str) -> BaselineName:
    """Return the names of a baseline; of an unknown one, such as an older report's, its key.

    >>> baseline_name("pca_svm").title, baseline_name("nearest_9")
    ('PCA + SVM', BaselineName(title='nearest 9', phrase='the nearest-neighbour rule (k = 9)'))
    """
    _, is_nearest, k = baseline.partition("nearest_")
    if is_nearest:
        return BaselineName(f"nearest {k}", f"the nearest-neighbour rule (k = {k})")
    return BASELINE_NAMES.get(baseline, BaselineName(baseline.replace("_", " "), baseline))
