"""The service's JSON, as its documentation tells it. What a verdict means is told in detector/verdict.py."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, Field


class ProblemDetails(BaseModel):
    """A refusal (RFC 9457)."""

    type: str = Field(examples=["urn:clipfake:problem:bad-image"])
    title: str = Field(examples=["The image cannot be read"])
    status: int = Field(examples=[422])
    detail: str = Field(examples=["not an image (12 bytes starting with b'hello wo')"])


class NeighborJson(BaseModel):
    """A stored row that testifies."""

    key: str = Field(examples=["sim_nearest/images/plain/img000046.jpg"])
    similarity: float = Field(description="Cosine, higher is nearer.", examples=[0.98])
    source: str
    generator: str
    category: str
    path: str = Field(description="Where the file was when it was indexed.")
    split: str = Field(description="Part of the head's training it was in, or empty.")


class StoredJson(BaseModel):
    """A stored row with the very bytes that are asked about."""

    key: str = Field(examples=["newgan/c.png"])
    label: Literal["real", "fake", "unknown"]
    source: str
    generator: str


class NeighborsJson(BaseModel):
    real: list[NeighborJson]
    fake: list[NeighborJson]


class SignalsJson(BaseModel):
    svm: float = Field(description="Log-likelihood ratio of the classifier by itself.")
    neighbors: float = Field(description="Log-likelihood ratio of the nearest neighbours by themselves.")


class ChangeJson(BaseModel):
    """Verdict for the same image under a changed condition."""

    what: str = Field(examples=["without the rows of sim_nearest"])
    verdict: Literal["real", "fake", "unsure"]
    score: float


class VerdictJson(BaseModel):
    """The answer for one image, with its evidence; the same object `clipfake query --json` prints."""

    image: str = Field(examples=["suspicious.jpg"])
    verdict: Literal["real", "fake", "unsure"]
    score: float = Field(description="Natural log-likelihood ratio; above 0 leans fake.", examples=[2.68])
    probability: float = Field(
        ge=0, le=1, description="Of fake, for `prior`; no surer than the rows calibrated on allow.", examples=[0.94]
    )
    prior: float
    signals: SignalsJson
    conflict: bool
    possible: list[Literal["real", "fake"]]
    error_rate: float = Field(description="Rate of error at which `possible` was found.")
    reasons: list[str] = Field(examples=[["real is ruled out at an error rate of 5%"]])
    percentile: float = Field(description="Per cent of known images less near to their nearest than this one.")
    generator: str
    known: str = Field(description="Key of the first of `stored`, or empty.")
    stored: list[StoredJson] = Field(description="The rows with the very same bytes, nine at most; none testifies.")
    neighbors: NeighborsJson
    changes: list[ChangeJson]
    views: list[ChangeJson] = Field(description="Of degraded copies, where one asked for them; empty otherwise.")


class RefusalJson(BaseModel):
    """An image that could not be judged; the others of its request were."""

    image: str
    error: str


class AnswersJson(BaseModel):
    """One answer an image, in the order of the request."""

    snapshot: int = Field(description="Number of the store's snapshot that answered.")
    answers: list[VerdictJson | RefusalJson]
    places: list[list[float] | None] | None = Field(None, description="Where each image lies on /v1/map, if asked for.")


class StoreJson(BaseModel):
    rows: int
    labels: dict[str, int]
    sources: list[dict[str, Any]]
    snapshot: int
    space: SpaceJson = Field(description="The encoder whose vectors are stored.")
    ready: bool = Field(description="Whether images can be judged.")
    why: str = Field(description="Why not, and what to do; empty if they can.")
    notice: str = Field(description="What must be known to read the verdicts, or empty.")
    writes: bool = Field(description="Whether the service has a token, so that /v1/bank can be used.")
    limits: dict[str, float]


class MapJson(BaseModel):
    """Some rows of the bank on their two main axes; the lists are parallel."""

    points: list[list[float]]
    labels: list[int] = Field(description="0 real, 1 fake.")
    sources: list[int] = Field(description="Index into `names`.")
    names: list[str]
    explained: list[float] = Field(description="Share of the variance along each axis.")


class HealthJson(BaseModel):
    status: str = Field(examples=["ok"])


class SpaceJson(BaseModel):
    """Vectors of one fingerprint and dimension may be compared."""

    encoder: str = Field(examples=["openai/clip-vit-base-patch32"])
    fingerprint: str = Field(description="Digest over the encoder's weights and preprocessing.")
    dim: int
    normalised: bool


class VectorJson(BaseModel):
    image: str
    vector: list[float] = Field(description="`dim` numbers, of unit length together.")


class VectorsJson(BaseModel):
    """One answer an image, in the order of the request."""

    space: SpaceJson
    answers: list[VectorJson | RefusalJson]


class EmbeddingJson(BaseModel):
    object: Literal["embedding"]
    index: int
    embedding: list[float] | str


class EmbeddingsJson(BaseModel):
    """OpenAI's answer."""

    object: Literal["list"]
    data: list[EmbeddingJson]
    model: str
    usage: dict[str, int] = Field(description="Images have no tokens: zero.")


class RowJson(BaseModel):
    """A stored row that was found."""

    key: str = Field(examples=["sim_nearest/images/plain/img000046.jpg"])
    similarity: float = Field(description="Cosine, higher is nearer.", examples=[0.98])
    label: Literal["real", "fake", "unknown"]
    source: str
    generator: str
    category: str
    path: str = Field(description="Where the file was when it was indexed.")


class FoundJson(BaseModel):
    snapshot: int = Field(description="Number of the store's snapshot that answered.")
    rows: list[RowJson] = Field(description="Nearest first; fewer than k where fewer are allowed.")


class KnnRowJson(BaseModel):
    """A row as clip-retrieval tells it, and what else is known of it; beyond `num_images` the first two alone."""

    id: int = Field(examples=[4294967338])
    similarity: float
    url: str = Field("", description="Of its small picture, on this service.")
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
    known: int = Field(description="Were there already under the same name.")
    replaced: int = Field(description="Took the place of another image of the same name.")
    refused: list[RefusalJson]
    snapshot: int
    before: int = Field(description="`clipfake store undo` with this number goes back to before.")


class RemovedJson(BaseModel):
    source: str
    removed: int = Field(description="Rows.")
    snapshot: int
    before: int = Field(description="`clipfake store undo` with this number brings them back.")


def refusals(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Describe the error responses of an operation for the documentation."""
    schema = {"schema": ProblemDetails.model_json_schema()}
    everywhere = (401, 408, 413, 421, 500, 502, 503, 504)
    return {
        status: {"description": "A problem", "content": {"application/problem+json": schema}}
        for status in sorted({*everywhere, *statuses})
    }
