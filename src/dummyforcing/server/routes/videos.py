"""The HTTP API of videos as OpenAI's clients speak it: `/v1/videos`."""

import base64
import binascii
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from fastapi import APIRouter, Query, Request, Response
from fastapi.responses import FileResponse
from pydantic import BaseModel, ConfigDict, Field
from starlette.datastructures import Headers, MutableHeaders, UploadFile
from starlette.types import Receive, Scope, Send

from dummyforcing.server.jobs.request import VideoRequest, of_form, of_json
from dummyforcing.server.settings import parse_duration
from dummyforcing.server.storage.store import StoredVideo
from dummyforcing.server.web.access import owner_of
from dummyforcing.server.web.problems import Problem

if TYPE_CHECKING:
    from dummyforcing.server.parts import Server

router = APIRouter(tags=["videos"])

POLL = 500
"""Milliseconds after which clients are told to ask again."""
Variant = Literal["video", "thumbnail", "spritesheet"]
FILES: dict[Variant, tuple[str, str]] = {
    "video": ("mp4", "video/mp4"),
    "thumbnail": ("thumbnail.webp", "image/webp"),
    "spritesheet": ("sheet.png", "image/png"),
}
RANGE = re.compile(r"bytes=(\d{1,18})-(\d{0,18})|bytes=-(\d{1,18})")


class VideoError(BaseModel):
    """Why a video failed."""

    code: str
    message: str


class Video(BaseModel):
    """A job, and the video that it makes."""

    id: str
    object: Literal["video"] = "video"
    status: Literal["queued", "in_progress", "completed", "failed"]
    progress: int = Field(ge=0, le=100)
    model: str
    prompt: str
    created_at: int
    completed_at: int | None
    expires_at: int | None
    """When it will be deleted."""
    seconds: str
    """Its length."""
    size: str
    """Width and height in pixels."""
    error: VideoError | None
    remixed_from_video_id: str | None
    num_frames: int
    fps: int
    seed: int
    policy: str
    warnings: list[str]
    """What the model was never taught."""


class VideoList(BaseModel):
    """Videos, a page of them."""

    object: Literal["list"] = "list"
    data: list[Video]
    first_id: str | None
    last_id: str | None
    has_more: bool


class DeletedVideo(BaseModel):
    """A video that is gone."""

    id: str
    object: Literal["video.deleted"] = "video.deleted"
    deleted: Literal[True] = True


class Remix(BaseModel):
    """What a video is to show instead."""

    model_config = ConfigDict(extra="forbid")

    prompt: str = Field(min_length=1)


def _schema() -> dict[str, Any]:
    """The body of `create_video`, which is read by hand: JSON, or a form with a file."""
    schema = VideoRequest.model_json_schema()
    inner = schema.pop("$defs")

    def inlined(value: Any) -> Any:
        if isinstance(value, dict):
            if "$ref" in value:
                return inlined(inner[value["$ref"].rpartition("/")[2]])
            return {key: inlined(item) for key, item in value.items()}
        return [inlined(item) for item in value] if isinstance(value, list) else value

    body = inlined(schema)
    form = {**body, "properties": dict(body["properties"])}
    form["properties"]["input_reference"] = {
        "type": "string",
        "format": "binary",
        "description": "An image or a clip that the video begins with.",
    }
    return {"application/json": {"schema": body}, "multipart/form-data": {"schema": form}}


def _links(*operations: str) -> dict[str, Any]:
    """What can be asked for with the id of a video that was answered."""
    ids = {"video_id": "$response.body#/id"}
    links = {name: {"operationId": name, "parameters": ids} for name in operations}
    return {"responses": {"200": {"links": links}}}


LINKS = _links("retrieve_video", "download_video", "remix_video", "delete_video")
BODY = {"requestBody": {"required": True, "content": _schema()}, **LINKS}


def _server(request: Request) -> "Server":
    server: Server = request.app.state.server
    return server


def _shown(server: "Server", video: StoredVideo) -> Video:
    completed = None if video.completed is None else int(video.completed)
    return Video(
        id=video.id,
        status=video.status,
        progress=server.jobs.progress(video),
        model=video.model,
        prompt=video.prompt,
        created_at=int(video.created),
        completed_at=completed if video.status == "completed" else None,
        expires_at=completed and completed + int(parse_duration(server.settings.keep)),
        seconds=f"{video.frames / video.fps:g}",
        size=video.size,
        error=VideoError(**video.error) if video.error else None,
        remixed_from_video_id=video.remixed_from,
        num_frames=video.frames,
        fps=video.fps,
        seed=video.seed,
        policy=video.policy,
        warnings=video.warnings,
    )


async def _found(request: Request, id: str) -> StoredVideo:
    video = await _server(request).store.video(owner_of(request), id)
    if video is None:
        raise Problem(
            404, "not_found", f"There is no video '{id[:80]}'; it may have been deleted.", "video_id"
        )
    return video


@router.post("/v1/videos", openapi_extra=BODY)
async def create_video(request: Request, response: Response) -> Video:
    """Ask for a video. It waits in the queue; ask for it again until its status is `completed`."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind == "application/json":
        return await _create(request, response, of_json(await request.body()), None)
    if kind not in ("multipart/form-data", "application/x-www-form-urlencoded"):
        raise Problem(415, "unsupported_media_type", "Send the request as JSON, or as multipart/form-data.")
    async with request.form(max_files=1, max_fields=1000) as form:
        items = form.multi_items()
        files = {name: value for name, value in items if isinstance(value, UploadFile)}
        asked = of_form((name, value) for name, value in items if isinstance(value, str))
        if files and (set(files) != {"input_reference"} or asked.reference):
            raise Problem(
                400, "bad_request", "A form may have one file; call it input_reference.", next(iter(files))
            )
        return await _create(request, response, asked, files.get("input_reference"))


async def _create(
    request: Request, response: Response, asked: VideoRequest, file: UploadFile | None
) -> Video:
    server, owner = _server(request), owner_of(request)
    server.models.require(asked.model)
    if asked.input_reference and asked.image_reference:
        raise Problem(
            400,
            "bad_request",
            "input_reference and image_reference say the same; give one.",
            "image_reference",
        )
    warnings: list[str] = []
    if asked.expand:
        prompt, why_not = await server.expanded(asked.first_prompt())
        if why_not is None:
            asked = asked.with_first_prompt(prompt)
        else:
            warnings = [why_not]
    async with _reference(server, owner, asked, file) as reference:
        video = await server.jobs.add(owner, asked, reference, warnings=warnings)
    response.headers["openai-poll-after-ms"] = str(POLL)
    return _shown(server, video)


@asynccontextmanager
async def _reference(
    server: "Server", owner: str, asked: VideoRequest, file: UploadFile | None
) -> AsyncIterator[Path | None]:
    """What a video begins with, as a file of our own making; None: nothing."""
    given, uploads = asked.reference, server.uploads
    if file is None and given is None:
        yield None
        return
    source: UploadFile | bytes | str
    if file is not None:
        source = file
    elif given and given.file_id is not None and given.image_url is None:
        source = (await uploads.file(owner, given.file_id)).id
    elif given and given.image_url is not None and given.file_id is None:
        source = _of_data_url(given.image_url)
    else:
        message = "A reference has a file_id or an image_url; give one."
        raise Problem(400, "bad_request", message, "input_reference")
    checked, _ = await server.jobs.check(asked)
    wanted = server.jobs.wanted(checked)
    if isinstance(source, str):
        async with uploads.prepared(owner, source, wanted) as path:
            yield path
        return
    async with uploads.received(source) as (_, raw), uploads.prepared_file(raw, wanted) as path:
        yield path


def _of_data_url(url: str) -> bytes:
    """The bytes of `data:image/png;base64,...`; nothing is ever fetched."""
    head, comma, data = url.partition(",")
    if not (comma and head.startswith("data:") and head.endswith(";base64")):
        raise Problem(
            400,
            "bad_request",
            "An image_url must hold the image itself, as data:image/png;base64,...; or upload it.",
            "input_reference.image_url",
        )
    try:
        return base64.b64decode(data, validate=True)
    except (binascii.Error, ValueError) as error:
        raise Problem(
            400, "bad_request", "The image_url is no base64; mend it.", "input_reference.image_url"
        ) from error


@router.get("/v1/videos")
async def list_videos(
    request: Request,
    after: Annotated[str | None, Query(description="Id of the last video of the page before.")] = None,
    limit: Annotated[int, Query(ge=1, le=100)] = 20,
    order: Annotated[
        Literal["asc", "desc"], Query(description="By the time at which they were asked for.")
    ] = "desc",
) -> VideoList:
    """Your videos, the newest first."""
    server = _server(request)
    found = await server.store.page(owner_of(request), after, limit + 1, newest_first=order == "desc")
    if found is None:
        raise Problem(404, "not_found", "There is no such video to go on after; begin anew.", "after")
    data = [_shown(server, video) for video in found[:limit]]
    first, last = (data[0].id, data[-1].id) if data else (None, None)
    return VideoList(data=data, first_id=first, last_id=last, has_more=len(found) > limit)


@router.get("/v1/videos/{video_id}")
async def retrieve_video(request: Request, response: Response, video_id: str) -> Video:
    """How far a video is."""
    video = await _found(request, video_id)
    response.headers["openai-poll-after-ms"] = str(POLL)
    return _shown(_server(request), video)


@router.delete("/v1/videos/{video_id}")
async def delete_video(request: Request, video_id: str) -> DeletedVideo:
    """Delete a video; one that is being made is given up."""
    video = await _found(request, video_id)
    await _server(request).jobs.remove(video.owner, video.id)
    return DeletedVideo(id=video.id)


@router.post("/v1/videos/{video_id}/remix")
async def remix_video(request: Request, response: Response, video_id: str, remix: Remix) -> Video:
    """Make a video again with another prompt: of the same noise, settings and beginning, without scenes."""
    server, video = _server(request), await _found(request, video_id)
    asked = VideoRequest.model_validate({**video.request, "prompt": remix.prompt, "scenes": None})
    reference = server.store.videos / video.reference if video.reference else None
    again = await server.jobs.add(video.owner, asked, reference, remixed_from=video.id)
    response.headers["openai-poll-after-ms"] = str(POLL)
    return _shown(server, again)


CONTENT = {kind: {"schema": {"type": "string", "format": "binary"}} for _, kind in FILES.values()}


@router.get(
    "/v1/videos/{video_id}/content",
    response_class=FileResponse,
    responses={
        200: {"content": CONTENT, "description": "The file."},
        206: {"content": CONTENT, "description": "The part of it that was asked for."},
    },
)
async def download_video(
    request: Request,
    video_id: str,
    variant: Annotated[Variant, Query(description="The mp4, or a picture of it.")] = "video",
) -> Response:
    """Download a finished video, or a part of it by the header `Range`."""
    server, video = _server(request), await _found(request, video_id)
    if video.status == "failed":
        reason = video.error["message"] if video.error else "Nobody knows why."
        raise Problem(404, "failed", f"The video failed: {reason}", "video_id")
    if video.status != "completed":
        state = (
            f"{server.jobs.progress(video)}% of it is made" if video.status == "in_progress" else "it waits"
        )
        raise Problem(
            404,
            "not_ready",
            f"The video is not finished, {state}; ask again when it is completed.",
            "video_id",
        )
    name, kind = FILES[variant]
    path = server.store.video_file(video.id, name)
    try:
        about = path.stat()
    except FileNotFoundError:
        raise Problem(404, "file_lost", "The file is gone from the server's disk.", "video_id") from None
    response = Download(path, media_type=kind, filename=path.name, stat_result=about)
    response.require_range(request.headers, about.st_size)
    return response


class Download(FileResponse):
    """A file, or the part of it that is asked for; what is no single range of bytes is no range."""

    def require_range(self, headers: Headers, size: int) -> None:
        """Refuse a part that the file does not have.

        Raises:
            Problem: If that is asked for.
        """
        found = RANGE.fullmatch(headers.get("range", ""))
        if found and "if-range" not in headers and (found[3] == "0" or int(found[1] or 0) >= size):
            raise Problem(
                416,
                "no_such_range",
                f"The file has {size} bytes; ask for some of them.",
                **{"Content-Range": f"bytes */{size}"},
            )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send it."""
        found = RANGE.fullmatch(Headers(scope=scope).get("range", ""))
        if not found or (found[2] and int(found[2]) < int(found[1])):
            del MutableHeaders(scope=scope)["range"]
        await super().__call__(scope, receive, send)
