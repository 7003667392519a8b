"""JSON models of the service's responses, for OpenAPI. detector/verdict.py explains the parts of a verdict."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, Field


class ProblemDetails(BaseModel):
    """An error response (RFC 9457)."""

    type: str = Field(examples=["urn:clipfake:problem:bad-image"])
    title: str = Field(examples=["The image cannot be read"])
    status: int = Field(examples=[422])
    detail: str = Field(examples=["not an image (12 bytes starting with b'hello wo')"])


class NeighborJson(BaseModel):
    """A stored row that is evidence."""

    key: str = Field(examples=["sim_nearest/images/plain/img000046.jpg"])
    similarity: float = Field(description="Cosine similarity, higher is nearer.", examples=[0.98])
    source: str
    generator: str
    category: str
    path: str = Field(description="Path of the file when it was indexed.")
    split: str = Field(description="Part of the head's split (train, validation or test), or empty.")


class StoredJson(BaseModel):
    """A stored row of the same picture as the queried one."""

    key: str = Field(examples=["newgan/c.png"])
    label: Literal["real", "fake", "unknown"]
    source: str
    generator: str
    match: Literal["file", "picture", "vector"] = Field(
        description="The same bytes, the same picture by its thumbnail, or only a near vector, which is unconfirmed."
    )
    mirrored: bool = Field(description="Whether left and right are exchanged.")


class NeighborsJson(BaseModel):
    real: list[NeighborJson]
    fake: list[NeighborJson]


class SignalsJson(BaseModel):
    svm: float = Field(description="Log-likelihood ratio of the classifier alone.")
    neighbors: float = Field(description="Log-likelihood ratio of the nearest neighbours alone.")
    added: float | None = Field(
        None, description="By how much sources that were added after training move the score; absent if there are none."
    )


class ChangeJson(BaseModel):
    """Verdict for the same image under a changed condition."""

    what: str = Field(examples=["without the rows of sim_nearest"])
    verdict: Literal["real", "fake", "unsure"]
    score: float


class PatchMapJson(BaseModel):
    """Where in the image: how each patch leans. A hint; the verdict does not use it."""

    rows: int
    columns: int
    values: list[list[float]] = Field(
        description="Natural log-odds of each patch, row by row, above 0 leans fake; empty if none may be shown."
    )
    area: list[float] = Field(
        description="Left, top, right and bottom of the part that the patches cover, as shares of width and height.",
        examples=[[0.125, 0.0, 0.875, 1.0]],
    )
    auc: float | None = Field(
        description="AUC of the planted test: of the mean of fake halves against that of real ones, in swapped images."
    )
    note: str = Field(description="That it is a hint and how good, or why there are no values.")


class VerdictJson(BaseModel):
    """Verdict on one image with its evidence; the same object that `clipfake query --json` prints."""

    image: str = Field(examples=["suspicious.jpg"])
    copy_: str = Field(
        alias="copy",
        description="Sentence on the stored copies of the image, or empty. Confirmed ones decide the verdict.",
        examples=["A copy of a known real image, ffhq/1.png"],
    )
    verdict: Literal["real", "fake", "unsure"]
    score: float = Field(description="Natural log-likelihood ratio; above 0 leans fake.", examples=[2.68])
    probability: float = Field(
        ge=0,
        le=1,
        description="Probability that the image is fake, given `prior`; bounded by the number of calibration rows.",
        examples=[0.94],
    )
    prior: float
    signals: SignalsJson
    conflict: bool
    possible: list[Literal["real", "fake"]]
    error_rate: float = Field(description="Error rate at which `possible` was determined.")
    reasons: list[str] = Field(examples=[["real is ruled out at an error rate of 5%"]])
    percentile: float = Field(description="Percentage of known images that are farther from their nearest neighbour.")
    generator: str
    known: str = Field(description="Key of the first confirmed copy, or empty.")
    stored: list[StoredJson] = Field(
        description="Copies of the image, at most nine, identical files first; confirmed ones are not evidence."
    )
    neighbors: NeighborsJson
    changes: list[ChangeJson]
    notice: str = Field(description="What the error rate does not cover, or empty.")
    views: list[ChangeJson] = Field(description="Verdicts on degraded copies if `steady` is set; empty otherwise.")
    map: PatchMapJson | None = Field(description="Where in the image; null if the head scores no patches.")


class RefusalJson(BaseModel):
    """An image that could not be judged. The other images of the request are not affected."""

    image: str
    error: str


class AnswersJson(BaseModel):
    """One answer per image, in the order of the request."""

    snapshot: int = Field(description="Number of the store's snapshot that was used.")
    answers: list[VerdictJson | RefusalJson]
    places: list[list[float] | None] | None = Field(
        None, description="Coordinates of each image on /v1/map if `map` is set; null for an image without a verdict."
    )


class StoreJson(BaseModel):
    rows: int
    labels: dict[str, int]
    sources: list[dict[str, Any]]
    snapshot: int
    space: SpaceJson = Field(description="The encoder whose vectors are stored.")
    ready: bool = Field(description="Whether images can be judged.")
    why: str = Field(description="Why images cannot be judged, and what to do; empty if `ready`.")
    notice: str = Field(description="Notice to show with every verdict, or empty.")
    writes: bool = Field(description="Whether the service has a token, so that /v1/bank can be used.")
    limits: dict[str, float]


class MapJson(BaseModel):
    """A sample of the bank on its first two principal components; the lists are parallel."""

    points: list[list[float]]
    labels: list[int] = Field(description="0 real, 1 fake.")
    sources: list[int] = Field(description="Index into `names`.")
    names: list[str]
    explained: list[float] = Field(description="Share of the variance along each axis.")


class HealthJson(BaseModel):
    status: str = Field(examples=["ok"])


class SpaceJson(BaseModel):
    """An embedding space. Vectors with the same fingerprint and dimension can be compared."""

    encoder: str = Field(examples=["openai/clip-vit-base-patch32"])
    fingerprint: str = Field(description="Digest over the encoder's weights and preprocessing.")
    dim: int
    normalised: bool


class VectorJson(BaseModel):
    image: str
    vector: list[float] = Field(description="Unit vector of `dim` numbers.")


class VectorsJson(BaseModel):
    """One answer per image, in the order of the request."""

    space: SpaceJson
    answers: list[VectorJson | RefusalJson]


class EmbeddingJson(BaseModel):
    object: Literal["embedding"]
    index: int
    embedding: list[float] | str


class EmbeddingsJson(BaseModel):
    """Response of OpenAI's embeddings API."""

    object: Literal["list"]
    data: list[EmbeddingJson]
    model: str
    usage: dict[str, int] = Field(description="Always zero, since images have no tokens.")


class RowJson(BaseModel):
    """A stored row found by a search."""

    key: str = Field(examples=["sim_nearest/images/plain/img000046.jpg"])
    similarity: float = Field(description="Cosine similarity, higher is nearer.", examples=[0.98])
    label: Literal["real", "fake", "unknown"]
    source: str
    generator: str
    category: str
    path: str = Field(description="Path of the file when it was indexed.")


class SearchResponseJson(BaseModel):
    snapshot: int = Field(description="Number of the store's snapshot that was used.")
    rows: list[RowJson] = Field(description="Nearest first; fewer than k if the filter allows fewer.")


class KnnRowJson(BaseModel):
    """A row in clip-retrieval's format with metadata. Rows beyond `num_images` have only the first two fields."""

    id: int = Field(examples=[4294967338])
    similarity: float
    url: str = Field("", description="URL of the thumbnail on this service.")
    caption: str = Field("", examples=["fake, stylegan2, dogs"])
    key: str = ""
    label: str = ""
    source: str = ""
    generator: str = ""
    category: str = ""
    path: str = ""


class AddedJson(BaseModel):
    """Outcome for the images of a request."""

    source: str
    label: Literal["real", "fake"]
    added: int
    known: int = Field(description="Number of images already stored under the same name.")
    replaced: int = Field(description="Number of images that replaced another one of the same name.")
    relabelled: int = Field(description="Number of images already stored whose label was corrected.")
    refused: list[RefusalJson]
    snapshot: int
    before: int = Field(description="Snapshot number for `clipfake store undo` to return to the state before.")


class RemovedJson(BaseModel):
    source: str
    removed: int = Field(description="Number of rows removed.")
    snapshot: int
    before: int = Field(description="Snapshot number for `clipfake store undo` to restore the rows.")


def refusals(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Describe the error responses of an operation for OpenAPI."""
    schema = {"schema": ProblemDetails.model_json_schema()}
    common = (401, 403, 408, 413, 421, 500, 502, 503, 504)
    return {
        status: {"description": "A problem", "content": {"application/problem+json": schema}}
        for status in sorted({*common, *statuses})
    }
