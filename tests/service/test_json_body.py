"""JSON bodies: the parsed value is the one that was sent, and parsing does not block other requests."""

import base64
import json
import threading
from typing import Any

import pytest

pytest.importorskip("fastapi", reason="the extra `serve` is not installed")
from clipfake.service import json_body
from clipfake.service.json_body import count_backslashes, find_strings, parse_json
from clipfake.service.limits import Limits
from clipfake.service.problems import HttpProblem
from clipfake.service.uploads import PIECE, upload_from_base64
from hypothesis import example, given
from hypothesis import strategies as st
from starlette.testclient import TestClient

TEXT = st.text(max_size=12) | st.text('"\\/a', max_size=12)
PLAIN = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | TEXT
FIELDS = st.dictionaries(TEXT, PLAIN | st.lists(PLAIN, max_size=4), max_size=4)


@pytest.fixture(autouse=True, scope="module")
def nothing_is_too_short() -> Any:
    """Treat every string as long, so that small examples are cut and restored too."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(json_body, "INLINE_BYTES", 0)
        patch.setattr(json_body, "LONG_STRING", 1)
        yield


@given(FIELDS, st.booleans(), st.sampled_from([None, 1]))
@example({'"': "\\", "\\": ['"', "\\\\"]}, True, None)
def test_json_round_trip(sent: Any, ascii_alone: bool, indent: int | None) -> None:
    content = json.dumps(sent, ensure_ascii=ascii_alone, indent=indent).encode(errors="surrogatepass")
    try:
        expected = json.loads(content.decode())
    except UnicodeDecodeError:  # half a character
        return
    parsed = parse_json(content, Limits())  # names are long strings too, and are replaced
    assert list(parsed.values()) == list(expected.values())


@given(st.lists(TEXT, max_size=6))
def test_string_bounds_match_the_json_parser(sent: list[str]) -> None:
    content = json.dumps(sent).encode()
    assert [json.loads(content[begin - 1 : end + 1]) for begin, end in find_strings(content, 100)] == sent


@given(st.binary(max_size=40), st.text('"{}[]:,\\ 1e', max_size=40))
def test_invalid_json_fails_as_in_the_json_parser(junk: bytes, nearly: str) -> None:
    for content in (junk, nearly.encode()):
        try:
            expected = json.loads(content.decode(), strict=False)
        except (ValueError, RecursionError):
            with pytest.raises((ValueError, RecursionError)):
                parse_json(content, Limits())
        else:
            assert type(parse_json(content, Limits())) is type(expected)


@given(st.integers(0, 100), st.integers(0, 3))
def test_count_backslashes(many: int, before: int) -> None:
    text = b"x" * before + b"\\" * many
    assert count_backslashes(text, before, len(text)) == many


@pytest.mark.parametrize(
    "content",
    [
        b'{"vector":[' + b"0.1," * 300 + b"1]}",
        b'{"labels":[' + b"[]," * 400 + b"1]}",
        b'{"input":[' + b'"",' * 400 + b'""]}',
        b'{"input":"' + b'\\"' * 1001 + b'"}',
        b'{"input":"' + b"A" * 2000,  # and never ends
        b'{"image":"AAAA"}' + b" " * 1000,
    ],
    ids=["numbers", "lists", "short texts", "quotes", "no end", "spaces"],
)
def test_large_json_without_images_is_not_parsed(content: bytes, monkeypatch: Any) -> None:
    monkeypatch.setattr(json_body, "LONG_STRING", 100)
    monkeypatch.setattr(json_body.json, "loads", lambda *_, **__: pytest.fail("it is parsed"))  # type: ignore[attr-defined]
    with pytest.raises(HttpProblem, match="more than 1,000 bytes of JSON") as refused:
        parse_json(content, Limits(json_bytes=1000))
    assert refused.value.kind == "too-large"


def test_too_long_string_is_refused_before_it_is_copied(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json_body, "LONG_STRING", 100)
    with pytest.raises(HttpProblem, match="a string of 2,000 bytes is too long for an image of 1,000 bytes"):
        parse_json(b'{"image":"' + b"A" * 2000 + b'"}', Limits(image_bytes=1000))
    assert parse_json(b'{"image":"' + b"A" * 1332 + b'"}', Limits(image_bytes=1000)) == {"image": "A" * 1332}


def test_object_with_many_fields_is_refused() -> None:
    with pytest.raises(HttpProblem, match="101 fields"):
        parse_json(json.dumps({str(i): 1 for i in range(101)}).encode(), Limits())


def test_validation_errors_are_limited_in_number(toy: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json_body, "LONG_STRING", 100)
    with TestClient(toy.app(), base_url="http://127.0.0.1") as client:
        for path, wrong in (
            ("/v1/embeddings", {"input": [1] * 1000}),
            ("/v1/search", {"vector": ["a"] * 1000}),
            ("/v1/search", {"key": "a", "labels": ["fale"] * 90}),
            ("/knn-service", {"embedding_input": ["a"] * 1000}),
        ):
            refused = client.post(path, json=wrong)
            assert refused.status_code == 422
            assert 1 <= len(refused.json()["errors"]) <= 20


def test_parsing_a_body_does_not_block_other_requests(toy: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Parsing waits for another request, which would never be answered if parsing blocked the event loop."""
    answered = threading.Event()

    def reading(content: Any, limits: Limits) -> Any:
        assert answered.wait(60)
        return parse_json(content, limits)

    monkeypatch.setattr(json_body, "LONG_STRING", 100)
    monkeypatch.setattr(json_body, "parse_json", reading)
    content = base64.b64encode(toy.draw_image("gan_a", 7)).decode()
    with TestClient(toy.app(), base_url="http://127.0.0.1") as client:
        got: list[Any] = []
        asking = threading.Thread(target=lambda: got.append(client.post("/v1/search", json={"image": content, "k": 1})))
        asking.start()
        assert client.get("/healthz").status_code == 200
        answered.set()
        asking.join()
    assert got[0].json()["rows"][0]["key"] == "gan_a/img 7.png"


def test_base64_in_pieces() -> None:
    content = bytes(range(256)) * (PIECE // 200)
    text = base64.b64encode(content).decode()
    assert len(text) > PIECE
    lines = base64.encodebytes(content).decode()
    for accepted in (text, text[:-1], text.rstrip("="), text[:PIECE] + "\n" + text[PIECE:], lines, f"\n {lines}"):
        assert upload_from_base64(accepted).content == content
    for wrong in (text[: PIECE - 2] + "==" + text, f"{text}=", text.rstrip("=")[:-1], f"{text}{text}"):
        with pytest.raises(HttpProblem, match="not an image in base64"):
            upload_from_base64(wrong)


@given(
    st.binary(min_size=1, max_size=40), st.sampled_from(["", "\n", "\r\n", " ", "\t"]), st.integers(1, 9), st.booleans()
)
def test_base64_of_any_writer(content: bytes, between: str, width: int, url_safe: bool) -> None:
    text = (base64.urlsafe_b64encode if url_safe else base64.b64encode)(content).decode()
    for padded in (text, text.rstrip("=")):
        broken = between.join(padded[i : i + width] for i in range(0, len(padded), width))
        for prefix in ("", "data:;base64,", "data:image/jpeg;base64,", "DATA:image/x; charset=utf-8; base64, "):
            assert upload_from_base64(prefix + broken).content == content


def test_percent_encoded_data_url() -> None:
    text = base64.b64encode(bytes(range(248, 256)) * 5).decode()
    assert {"+", "/", "="} <= set(text)
    encoded = text.replace("+", "%2B").replace("/", "%2f").replace("=", "%3D")
    assert upload_from_base64(f"data:image/png;base64,{encoded}").content == base64.b64decode(text)
