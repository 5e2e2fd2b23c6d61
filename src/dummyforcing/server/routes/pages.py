"""The page that one watches and steers videos on: `/`, and what belongs to it under `/page/`."""

import hashlib
from dataclasses import dataclass
from pathlib import Path

from fastapi import APIRouter, HTTPException, Request
from fastapi.responses import Response

FOLDER = Path(__file__).parents[1] / "page"
TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
"""By suffix; what the system thinks of suffixes differs from machine to machine."""

router = APIRouter(include_in_schema=False)


@dataclass(frozen=True)
class PageFile:
    """A file of the page, as it is sent."""

    content: bytes
    type: str

    @property
    def etag(self) -> str:
        """Another one whenever the content is another."""
        return f'"{hashlib.sha256(self.content).hexdigest()[:32]}"'


def _read(folder: Path) -> dict[str, PageFile]:
    return {
        path.relative_to(folder).as_posix(): PageFile(path.read_bytes(), TYPES[path.suffix])
        for path in folder.rglob("*")
        if path.suffix in TYPES
    }


FILES = _read(FOLDER)
"""All of them by name, read once: a request's path is looked up here and never becomes one of the disk."""


@router.api_route("/", methods=["GET", "HEAD"])
async def front(request: Request) -> Response:
    """Send the page."""
    return await part("index.html", request)


@router.api_route("/page/{name:path}", methods=["GET", "HEAD"])
async def part(name: str, request: Request) -> Response:
    """Send a file of the page.

    Browsers keep it and ask whether it is still the same, so that a new version is seen at once.
    """
    file = FILES.get(name)
    if file is None:
        raise HTTPException(404, "The page has no such file")
    headers = {"ETag": file.etag, "Cache-Control": "no-cache"}
    if request.headers.get("If-None-Match") == file.etag:
        return Response(status_code=304, headers=headers)
    return Response(file.content, media_type=file.type, headers=headers)
