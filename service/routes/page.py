"""The page at /: one self-contained file, assembled from its HTML, CSS and JavaScript."""

from __future__ import annotations

import base64
import hashlib
from functools import cache
from importlib.resources import files

from fastapi import APIRouter, Response

router = APIRouter(include_in_schema=False)


@router.get("/")
async def page() -> Response:
    content, policy = assembled()
    return Response(content, media_type="text/html; charset=utf-8", headers={"Content-Security-Policy": policy})


@cache
def assembled() -> tuple[str, str]:
    """Return the page with inlined style and script, and a content security policy that allows only these two."""
    static = files(__package__.rpartition(".")[0]) / "static"
    parts = {name: (static / name).read_text(encoding="utf-8") for name in ("page.html", "page.css", "page.js")}
    style, script = f"\n{parts['page.css']}", f"\n{parts['page.js']}"
    content = parts["page.html"].replace("/* page.css */", style).replace("/* page.js */", script)
    policy = (
        f"default-src 'none'; style-src '{_digest(style)}'; script-src '{_digest(script)}'; "
        "img-src 'self' blob: data:; connect-src 'self'; form-action 'none'; base-uri 'none'; frame-ancestors 'none'"
    )
    return content, policy


def _digest(text: str) -> str:
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"
