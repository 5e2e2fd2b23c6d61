"""Videos that are made in the background, one after the other, in the time that live ones leave.

    video = await jobs.add(owner, VideoRequest(prompt="a red ball bounces"))
    await jobs.run()    # until it is cancelled

A job is in the database before its client knows of it, and is made again from its seed if the server ends
while it is at it.
"""

import asyncio
import logging
import shutil
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

from dummyforcing.errors import BadFile, BadRequest, NotEnoughMemory, NotFinite, UserError
from dummyforcing.pipeline.remarks import remarks
from dummyforcing.pipeline.request import Request
from dummyforcing.presets.preset import Preset
from dummyforcing.server.allowed import require_allowed
from dummyforcing.server.costs import Claim
from dummyforcing.server.engine import Engine
from dummyforcing.server.fleet import TRIES, Fleet
from dummyforcing.server.jobs.film import Film
from dummyforcing.server.jobs.job import Job, Running
from dummyforcing.server.jobs.request import VideoRequest
from dummyforcing.server.replicas.facts import Facts
from dummyforcing.server.replicas.replica import ReplicaLost
from dummyforcing.server.settings import Settings, parse_bytes, parse_duration
from dummyforcing.server.storage.decoding import Kind, Wanted
from dummyforcing.server.storage.store import Store, StoredVideo, new_id
from dummyforcing.server.threads import run_in
from dummyforcing.server.web.logs import log_prompt
from dummyforcing.server.web.problems import Problem, problem_of

logger = logging.getLogger(__name__)

P = ParamSpec("P")
Result = TypeVar("Result")

PAUSE = 1.0
"""Seconds until the memory, or a database that failed, is tried again."""
CLEANING = 60.0
"""Seconds between two looks for what is too old."""
NAMES = {"image": "input_reference", "video": "input_reference", "switches": "scenes"}
"""What requests call options."""


class Jobs:
    """The queue of jobs, and those that run: one on each replica."""

    def __init__(self, settings: Settings, fleet: Fleet, store: Store) -> None:
        """Begin with what the store has.

        Args:
            settings: Limits.
            fleet: Makes the videos.
            store: Keeps them.
        """
        self._settings, self._fleet, self._store = settings, fleet, store
        self._keep, self._space = parse_duration(settings.keep), parse_bytes(settings.max_disk)
        self._wake = asyncio.Event()
        self._running: dict[str, Running] = {}
        self._losses: Counter[str] = Counter()
        fleet.when_lost.append(self._lost)
        fleet.when_changed.append(self._wake.set)
        fleet.demands.append(self._demand)

    @property
    def preset(self) -> Preset:
        """Of the model."""
        return self._fleet.facts.preset

    # --- what clients ask for -------------------------------------------------------------------------------

    async def check(self, request: VideoRequest) -> tuple[Request, list[str]]:
        """Find out whether a video can be made, whatever it begins with, and what is to be said of it.

        Raises:
            Problem: If it exceeds a limit, or cannot be made.
        """
        settings, rate = self._settings, request.rate(self.preset)
        if any(len(text) > settings.max_prompt for text in request.texts()):
            raise Problem(
                400, "too_long", f"A prompt may have {settings.max_prompt} characters; shorten it.", "prompt"
            )
        seconds = float(request.seconds or 0)
        if (request.num_frames or 0) > settings.max_frames or seconds * rate > settings.max_frames:
            raise self._too_long("num_frames" if request.num_frames else "seconds")
        checked, said = await self._checked(request, None)
        require_allowed(settings, self._fleet.costs, checked)
        try:
            self._fleet.costs.claim(checked, is_live=False)
        except UserError as error:
            raise problem_of(error, NAMES) from error
        return checked, said

    async def _checked(self, asked: VideoRequest, reference: Path | None) -> tuple[Request, list[str]]:
        """What the model is asked for, and what it was never taught of that."""
        try:
            facts = self._fleet.facts
            request = await asyncio.to_thread(_request_of, facts, asked, reference)
            return request, [str(one) for one in remarks(facts, request)]
        except UserError as error:
            raise problem_of(error, NAMES) from error

    def wanted(self, checked: Request, kind: Kind | None = None) -> Wanted:
        """What a video begins with, or is made from, of an upload.

        Args:
            checked: The video.
            kind: What the upload must be; None: an image or a clip.

        Raises:
            Problem: If the model begins with nothing.
        """
        preset = self.preset
        if preset.start is None:
            raise Problem(
                400,
                "bad_request",
                f"Model '{preset.name}' starts from a prompt alone; leave the reference out.",
                "input_reference",
            )
        is_whole = preset.start == "chunk"
        count = preset.pixel_frames(checked.length if is_whole else preset.chunk_frames)
        return Wanted(checked.size, kind, count, from_end=not is_whole, fps=preset.fps)

    async def add(
        self,
        owner: str,
        request: VideoRequest,
        reference: Path | None = None,
        remixed_from: str | None = None,
        warnings: Sequence[str] = (),
    ) -> StoredVideo:
        """Put a video into the queue.

        Args:
            owner: Whose it is.
            request: What it shall be.
            reference: File of our own making that it begins with; a copy is kept.
            remixed_from: The video whose request this was.
            warnings: What is to be said of it besides.

        Raises:
            Problem: If it exceeds a limit, cannot be made, or the queue is full.
        """
        checked, said = await self.check(request)
        id, preset = new_id("video_"), self.preset
        kept = None
        try:
            if reference is not None:
                kept = f"{id}.reference{reference.suffix}"
                await asyncio.to_thread(shutil.copyfile, reference, self._store.videos / kept)
                await self._checked(request, self._store.videos / kept)
            elif request.strength is not None:
                raise Problem(
                    400, "bad_request", "A strength goes with an input_reference; leave it out.", "strength"
                )
            video = StoredVideo(
                id=id,
                owner=owner,
                created=time.time(),
                model=preset.name,
                prompt=checked.prompts[0],
                request=request.model_dump(
                    mode="json", exclude_none=True, exclude={"input_reference", "image_reference", "expand"}
                ),
                frames=preset.pixel_frames(checked.length),
                fps=request.rate(preset),
                size=f"{checked.size[1]}x{checked.size[0]}",
                seed=checked.seed,
                policy=request.policy or checked.policy.name,
                reference=kept,
                remixed_from=remixed_from,
                warnings=[*warnings, *said],
            )
            limits = self._settings.max_jobs, self._settings.max_jobs_per_key
            await self._store.add_video(video, most=limits[0], most_of_owner=limits[1])
        except BaseException:
            self._store.remove_files(id)
            raise
        self._wake.set()
        for text in request.texts():
            log_prompt(self._settings, owner, text)
        return video

    def progress(self, video: StoredVideo) -> int:
        """How much of a video is made, in percent."""
        if video.status == "completed":
            return 100
        return self._running[video.id].progress if video.id in self._running else 0

    async def remove(self, owner: str, id: str) -> bool:
        """Delete a video, finished or not; whether there was one."""
        if not await self._store.remove_video(owner, id):
            return False
        if id in self._running:
            task = self._running[id].task
            task.cancel()
            await asyncio.wait([task])
        await asyncio.to_thread(self._store.remove_files, id)
        return True

    def _too_long(self, param: str) -> Problem:
        most = self._settings.max_frames
        return Problem(400, "too_long", f"A video may have {most} frames; ask for fewer.", param)

    async def _demand(self) -> int:
        """How many further replicas those that wait would use: none, as long as the queue cannot be read."""
        try:
            return await self._store.queued()
        except Problem:  # `run` says so
            return 0

    # --- making them ----------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Make them in their order, as many at once as there are replicas, until this is cancelled."""
        cleaning = asyncio.create_task(self._keep_clean(), name="cleaning")
        try:
            while True:
                self._wake.clear()
                try:
                    is_begun = await self._begin_next()
                except Problem as problem:
                    logger.error("the queue cannot be read: %s", problem.message)
                    await asyncio.sleep(PAUSE)
                    continue
                if not is_begun:
                    await self._wake.wait()
        finally:
            cleaning.cancel()
            tasks = [one.task for one in self._running.values()]
            for task in tasks:
                task.cancel()
            if tasks:
                await asyncio.wait(tasks)

    async def _begin_next(self) -> bool:
        """Begin the job that has waited longest, if somebody is free; whether there may be another one."""
        if len(self._running) >= len(self._fleet.engines):
            return False
        video = await self._store.next_queued()
        if video is None:
            return False
        if await self._store.change_video(video.id, {"status": "in_progress"}):  # else: deleted meanwhile
            # Not awaited itself: one that is deleted is cancelled.
            task = asyncio.create_task(self._make(video), name=video.id)
            self._running[video.id] = Running(task)
            task.add_done_callback(lambda _: self._ended(video.id))
        return True

    def _ended(self, id: str) -> None:
        del self._running[id]
        self._wake.set()

    def _lost(self, engine: Engine) -> None:
        for one in self._running.values():
            if one.engine is engine and one.job is not None:
                one.job.failed(ReplicaLost())

    async def _make(self, video: StoredVideo) -> None:
        """Make one, and note what became of it."""
        values: dict[str, Any]
        try:
            await self._film(video)
            size = await asyncio.to_thread(self._store.bytes_of, video.id)
            values = {"status": "completed", "bytes": size, "completed": time.time()}
        except Exception as error:
            if isinstance(error, ReplicaLost):
                self._losses[video.id] += 1
            if isinstance(error, ReplicaLost) and self._losses[video.id] < TRIES:
                logger.warning("%s lost its replica, and waits for another one", video.id)
                values = {"status": "queued"}
            else:
                reason = _reason(error)
                logger.error(
                    "%s failed: %s", video.id, reason["message"], exc_info=reason["code"] == "server_error"
                )
                values = {"status": "failed", "error": reason, "completed": time.time()}
            await asyncio.to_thread(self._store.remove_files, video.id, video.reference)
        while True:
            try:
                await self._store.change_video(video.id, values)
                break
            except Problem as problem:
                logger.error(
                    "%s is %s, and waits to be noted: %s", video.id, values["status"], problem.message
                )
                await asyncio.sleep(PAUSE)
        await self._clean()

    async def _film(self, video: StoredVideo) -> None:
        """Make the frames, and write them."""
        if video.model != self.preset.name:
            raise BadRequest(f"The model '{video.model}' is loaded no longer", "ask for the video again")
        reference = self._store.videos / video.reference if video.reference else None
        if reference is not None and not reference.is_file():
            raise BadRequest("The file that the video begins with is gone", "ask for the video again")
        asked = VideoRequest.model_validate(video.request)
        request, _ = await self._checked(asked, reference)
        claim, running = self._fleet.costs.claim(request, is_live=False), self._running[video.id]
        while (engine := self._place(claim)) is None:
            await asyncio.sleep(PAUSE)
        engine.reserve(video.id, claim)
        running.engine = engine
        # Scenes begin with chunks of the model, whose frames the file shows at its own rate.
        film = Film(self._store, video.id, request.scenes, video.frames, video.fps)
        writer = ThreadPoolExecutor(1, "writer")  # one thing at a time, whenever this is cancelled
        try:
            track, _ = await engine.begin(request)
            running.job = job = Job(self._fleet, engine, video.id, request, track)
            engine.add(job)
            try:
                await run_in(writer, film.begin)
                frames = 0
                while frames < video.frames:
                    made, pixels = await job.next()
                    await run_in(writer, film.write, pixels)
                    frames += made.frames
                    running.progress = min(100 * frames // video.frames, 99)
                await run_in(writer, film.finish)
                if made.plan.chunk is not None:
                    self._fleet.newest_plan = made.plan
            finally:
                engine.remove(job)
                engine.drop([track])
        finally:
            engine.release(video.id)
            await run_in(writer, film.abandon)
            writer.shutdown(wait=False)

    def _place(self, claim: Claim) -> Engine | None:
        """The replica with the least to do that has no job yet; None: there is none with room."""
        at_work = {one.engine for one in self._running.values() if one.engine is not None}
        return self._fleet.place(claim, without=at_work)

    # --- space ----------------------------------------------------------------------------------------------

    async def _clean(self) -> None:
        """Remove what is too old or too much, if that can be done now."""
        try:
            await self._store.clean(time.time() - self._keep, self._space)
        except (Problem, OSError) as error:
            logger.error("old videos cannot be removed: %s", error)

    async def _keep_clean(self) -> None:
        while True:
            await self._clean()
            await asyncio.sleep(CLEANING)


def _request_of(facts: Facts, asked: VideoRequest, reference: Path | None) -> Request:
    """The same, in a thread: files are read. The model's own may be busy for seconds."""
    options = asked.options(facts.preset)
    if reference is None:
        options.pop("strength", None)
    else:
        options["image" if reference.suffix == ".png" else "video"] = reference
    return facts.request(asked.first_prompt(), options)


def _reason(error: Exception) -> dict[str, str]:
    """Why a job failed, without anything of the server in it."""
    if isinstance(error, BadFile):
        cause = getattr(error.__cause__, "strerror", None)
        because = f" ({cause})" if cause else ""
        return {"code": "storage", "message": f"The server could not write the video{because}."}
    if isinstance(error, ReplicaLost):
        message = f"{TRIES} processes ended while they made it; the server's log says why."
        return {"code": "replica_lost", "message": message}
    if isinstance(error, Problem):
        return {"code": error.code, "message": error.message}
    if isinstance(error, UserError):
        codes = {NotEnoughMemory: "not_enough_memory", NotFinite: "not_finite"}
        return {"code": codes.get(type(error), "bad_request"), "message": str(error)}
    return {"code": "server_error", "message": "Something went wrong in the server; its log says what."}
