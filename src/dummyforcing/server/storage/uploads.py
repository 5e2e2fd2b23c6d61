"""Images and clips that clients upload, `/v1/files`, as OpenAI's clients do.

    async with uploads.prepared(owner, "file-...", Wanted(size=(480, 832), kind="image")) as path: ...

Nothing of an upload is trusted: it is decoded in a process of its own, and what a model is given is a file
that this process wrote.
"""

import asyncio
import json
import os
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated, Literal

from fastapi import APIRouter, Form, Request
from fastapi import UploadFile as FormFile
from pydantic import BaseModel
from starlette.datastructures import UploadFile

from dummyforcing.server.settings import Settings, parse_bytes, parse_duration
from dummyforcing.server.storage.decoding import Outcome, Wanted, Work
from dummyforcing.server.storage.store import Store, StoredFile, new_id
from dummyforcing.server.web.access import owner_of
from dummyforcing.server.web.problems import Problem

Purpose = Literal["assistants", "batch", "fine-tune", "vision", "user_data", "evals"]
AT_ONCE = 2
"""Processes that decode."""
PASSED_ON = ("PATH", "PYTHONPATH", "PYTHONHOME", "LD_LIBRARY_PATH", "LANG", "LC_ALL", "TMPDIR")
"""Variables of the environment that they see; no keys are among them."""


class Uploads:
    """The uploads of all owners."""

    def __init__(self, settings: Settings, store: Store) -> None:
        """Keep them.

        Args:
            settings: Limits of their size.
            store: Where they are kept.
        """
        self._settings, self._store = settings, store
        self._turns = asyncio.Semaphore(AT_ONCE)
        self._most = min(parse_bytes(settings.max_body), parse_bytes(settings.max_disk))

    @asynccontextmanager
    async def received(self, upload: UploadFile | bytes) -> AsyncIterator[tuple[str, Path]]:
        """Write an upload to the disk, under a new id; it is gone after the block unless it was moved.

        Raises:
            Problem: If it is empty or too large, or the disk is full.
        """
        id = new_id("file-")
        path = self._store.upload_file(id).with_suffix(".part")
        try:
            await asyncio.to_thread(_write, path, upload, self._most)
            yield id, path
        finally:
            path.unlink(missing_ok=True)

    async def add(self, owner: str, upload: UploadFile, purpose: str) -> StoredFile:
        """Keep an upload, if it is an image or a clip.

        Raises:
            Problem: If it is neither, or too large.
        """
        async with self.received(upload) as (id, path):
            outcome = await self._decoded(self._look(path))
            assert outcome.kind
            name = (upload.filename or "upload")[:255]
            size = path.stat().st_size
            file = StoredFile(
                id=id,
                owner=owner,
                created=time.time(),
                name=name,
                purpose=purpose,
                kind=outcome.kind,
                bytes=size,
            )
            path.replace(self._store.upload_file(id))
        await self._store.add_file(file)
        await self._store.clean(
            time.time() - parse_duration(self._settings.keep), parse_bytes(self._settings.max_disk)
        )
        return file

    async def file(self, owner: str, id: str) -> StoredFile:
        """An upload of an owner.

        Raises:
            Problem: If there is none of that id.
        """
        file = await self._store.file(owner, id)
        if file is None:
            raise Problem(
                404, "not_found", f"There is no file '{id[:80]}'; it may have been deleted.", "file_id"
            )
        return file

    async def remove(self, owner: str, id: str) -> None:
        """Delete an upload.

        Raises:
            Problem: If there is none of that id.
        """
        file = await self.file(owner, id)
        await self._store.remove_file(owner, file.id)
        self._store.upload_file(file.id).unlink(missing_ok=True)

    @asynccontextmanager
    async def prepared(self, owner: str, id: str, wanted: Wanted) -> AsyncIterator[Path]:
        """Make of an upload what a model can be given; it is gone after the block.

        Args:
            owner: Whose it is.
            id: Of the upload.
            wanted: What is made of it.

        Returns:
            An image (.png) or a clip (.mkv).

        Raises:
            Problem: If there is no such upload, or it cannot be read.
        """
        file = await self.file(owner, id)
        path = self._store.upload_file(file.id)
        async with self.prepared_file(path, wanted) as result:
            yield result

    @asynccontextmanager
    async def prepared_file(self, path: Path, wanted: Wanted) -> AsyncIterator[Path]:
        """The same of a file that is not kept."""
        target = self._store.uploads / f"prepared-{new_id('file-')}"
        try:
            outcome = await self._decoded(replace(self._look(path), target=str(target), wanted=wanted))
            assert outcome.path
            yield Path(outcome.path)
        finally:
            for left in self._store.uploads.glob(f"{target.name}.*"):
                left.unlink(missing_ok=True)

    def _look(self, path: Path) -> Work:
        """Find out what a file is."""
        return Work(str(path), self._settings.max_image_pixels, float(self._settings.max_clip))

    async def _decoded(self, work: Work) -> Outcome:
        """Have another process read it.

        Raises:
            Problem: If it cannot, or takes too long.
        """
        variables = {name: os.environ[name] for name in PASSED_ON if name in os.environ}
        threads = dict.fromkeys(("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"), "1")
        pipe = asyncio.subprocess.PIPE
        async with self._turns:
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "dummyforcing.server.storage.decoding"),
                stdin=pipe,
                stdout=pipe,
                stderr=asyncio.subprocess.DEVNULL,
                env={**variables, **threads},
            )
            try:
                text, _ = await asyncio.wait_for(
                    process.communicate(json.dumps(asdict(work)).encode()), 2 * work.seconds
                )
            except TimeoutError:
                text = b""
            finally:
                if process.returncode is None:
                    process.kill()
                    await process.wait()
        if not text:  # it ran into a limit, or a fault of a decoder ended it
            raise Problem(
                400,
                "bad_file",
                "The file takes too long or too much memory to be read; give a smaller one.",
                "file",
            )
        outcome = Outcome(**json.loads(text))
        if outcome.problem:
            raise Problem(400, "bad_file", f"{outcome.problem}; {outcome.remedy}.", "file")
        return outcome


def _write(path: Path, upload: UploadFile | bytes, most: int) -> None:
    size = 0
    try:
        with path.open("wb") as file:
            while piece := (upload if isinstance(upload, bytes) else upload.file.read(2**20)):
                size += len(piece)
                if size > most:
                    raise Problem(
                        413, "too_large", f"The file is too large; give one of {most} bytes at most.", "file"
                    )
                file.write(piece)
                if isinstance(upload, bytes):
                    break
    except OSError as error:
        raise Problem(503, "storage", f"The server cannot write the file ({error.strerror}).") from error
    if not size:
        raise Problem(400, "bad_file", "The file is empty; give an image or a clip.", "file")


# --- routes -------------------------------------------------------------------------------------------------

router = APIRouter(tags=["files"])


class File(BaseModel):
    """An upload."""

    id: str
    object: Literal["file"] = "file"
    bytes: int
    created_at: int
    expires_at: int
    filename: str
    purpose: str
    status: Literal["processed"] = "processed"
    kind: Literal["image", "clip"]
    """What it is."""


class DeletedFile(BaseModel):
    """An upload that is gone."""

    id: str
    object: Literal["file"] = "file"
    deleted: Literal[True] = True


def _shown(file: StoredFile, settings: Settings) -> File:
    created = int(file.created)
    return File(
        id=file.id,
        bytes=file.bytes,
        created_at=created,
        expires_at=created + int(parse_duration(settings.keep)),
        filename=file.name,
        purpose=file.purpose,
        kind="image" if file.kind == "image" else "clip",
    )


IDS = {"file_id": "$response.body#/id"}
LINKS = {name: {"operationId": name, "parameters": IDS} for name in ("retrieve_file", "delete_file")}


@router.post("/v1/files", openapi_extra={"responses": {"200": {"links": LINKS}}})
async def upload(request: Request, file: FormFile, purpose: Annotated[Purpose, Form()] = "vision") -> File:
    """Upload an image or a clip for videos to begin with."""
    server = request.app.state.server
    return _shown(await server.uploads.add(owner_of(request), file, purpose), server.settings)


@router.get("/v1/files/{file_id}")
async def retrieve_file(request: Request, file_id: str) -> File:
    """What is known of an upload."""
    server = request.app.state.server
    return _shown(await server.uploads.file(owner_of(request), file_id), server.settings)


@router.delete("/v1/files/{file_id}")
async def delete_file(request: Request, file_id: str) -> DeletedFile:
    """Delete an upload; videos that began with it stay."""
    await request.app.state.server.uploads.remove(owner_of(request), file_id)
    return DeletedFile(id=file_id)
