"""Enumerations of the values that options accept."""

from __future__ import annotations

from enum import StrEnum


class Precision(StrEnum):
    """Numeric precision of an encoder."""

    auto = "auto"
    float32 = "float32"
    bf16 = "bf16"
    fp16 = "fp16"
    int8 = "int8"


class Decoder(StrEnum):
    """Decoder of large JPEGs."""

    auto = "auto"
    cpu = "cpu"
    nvimagecodec = "nvimagecodec"


class Engine(StrEnum):
    """Where images are embedded: in workers on this machine or on a Ray cluster."""

    local = "local"
    ray = "ray"


class ClassifierName(StrEnum):
    """Classifier of a head."""

    auto = "auto"
    triplet_svm = "triplet-svm"
    rbf_svm = "rbf-svm"
    pca_svm = "pca-svm"
    logistic = "logistic"


class ProjectionKind(StrEnum):
    """Formula of the projection."""

    linear = "linear"
    mlp = "mlp"
    sum = "sum"
    product = "product"
    concat = "concat"
    triple = "triple"


class Anchor(StrEnum):
    """Class of the anchors of triplets."""

    real = "real"
    fake = "fake"
    both = "both"


class Match(StrEnum):
    """Attribute that the rows of a triplet share."""

    none = "none"
    category = "category"
    source = "source"


class Mining(StrEnum):
    """Strategy for choosing triplets."""

    random = "random"
    semihard = "semihard"
    batch_hard = "batch-hard"


class SplitRecipe(StrEnum):
    """Recipe for assigning rows to train, validation and test."""

    paper = "paper"
    paper_text = "paper-text"
    grouped = "grouped"


class HeadFormatName(StrEnum):
    """Format of a head that others have trained."""

    univfd = "univfd"
    clip_cues = "clip-cues"
    linear = "linear"
    rine = "rine"


class LeftOut(StrEnum):
    """Attribute whose values are left out in turn."""

    source = "source"


class KnownLabel(StrEnum):
    """Label of images whose origin is known."""

    real = "real"
    fake = "fake"


class RowLabel(StrEnum):
    """Label of a row."""

    real = "real"
    fake = "fake"
    unknown = "unknown"


class IndexKind(StrEnum):
    """Kind of a k-NN index."""

    auto = "auto"
    exact = "exact"
    plain = "plain"
    quantized = "quantized"


class ExportLayout(StrEnum):
    """File layout of an export."""

    clip_retrieval = "clip-retrieval"
    numpy = "numpy"
    parquet = "parquet"


class Quantization(StrEnum):
    """Compression of the copy that a search back end keeps in memory."""

    int8 = "int8"
    binary = "binary"
