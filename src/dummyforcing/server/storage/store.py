"""What outlives the server: a database of jobs and uploads, and their files beside it.

    store = Store("/var/lib/dummyforcing")   # server.db, videos/, uploads/; None: a temporary folder
    await store.add_video(video, most=1000, most_of_owner=200)

A file has a temporary name until it is whole, and its row says `completed` only after that.
"""

import asyncio
import fcntl
import json
import os
import re
import secrets
import sqlite3
import tempfile
from collections.abc import Callable, Coroutine, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, fields
from functools import wraps
from pathlib import Path
from typing import Any, Concatenate, Literal, ParamSpec, TypeVar

from dummyforcing.errors import BadFile
from dummyforcing.files.records import to_json
from dummyforcing.server.web.problems import Problem

P = ParamSpec("P")
Result = TypeVar("Result")
Status = Literal["queued", "in_progress", "completed", "failed"]

OWN_FILE = re.compile(r"\.?(prepared-)?(?P<id>(video_|file-)[0-9a-f]{32})(\.[\w.-]*)?")
"""Names of the files that a server makes."""
VERSION = 1
"""Of the tables."""
TABLES = """
    CREATE TABLE videos (
        number INTEGER PRIMARY KEY AUTOINCREMENT,  -- in the order in which they were asked for
        id TEXT UNIQUE NOT NULL, owner TEXT NOT NULL, status TEXT NOT NULL,
        created REAL NOT NULL, completed REAL,
        model TEXT NOT NULL, prompt TEXT NOT NULL, request TEXT NOT NULL,
        frames INTEGER NOT NULL, fps INTEGER NOT NULL, size TEXT NOT NULL,
        seed INTEGER NOT NULL, policy TEXT NOT NULL, reference TEXT, remixed_from TEXT,
        warnings TEXT NOT NULL, error TEXT, bytes INTEGER NOT NULL
    );
    CREATE INDEX videos_by_owner ON videos (owner, number);
    CREATE INDEX videos_by_status ON videos (status, number);
    CREATE TABLE files (
        number INTEGER PRIMARY KEY AUTOINCREMENT,
        id TEXT UNIQUE NOT NULL, owner TEXT NOT NULL, created REAL NOT NULL, name TEXT NOT NULL,
        purpose TEXT NOT NULL, kind TEXT NOT NULL, bytes INTEGER NOT NULL
    );
"""
JSON_COLUMNS = ("request", "warnings", "error")


@dataclass(frozen=True, kw_only=True)
class StoredVideo:
    """A job, and the video that it makes."""

    id: str
    owner: str
    status: Status = "queued"
    created: float
    completed: float | None = None
    """When it was finished, or failed."""
    model: str
    prompt: str
    request: dict[str, Any]
    """As it was asked for; see `VideoRequest`."""
    frames: int
    """Pixel frames."""
    fps: int
    size: str
    seed: int
    policy: str
    reference: str | None = None
    """Name of the file in `videos` that it begins with."""
    remixed_from: str | None = None
    warnings: list[str]
    error: dict[str, str] | None = None
    bytes: int = 0
    """Of its files."""


@dataclass(frozen=True, kw_only=True)
class StoredFile:
    """An upload."""

    id: str
    owner: str
    created: float
    name: str
    """What its owner calls it; never a path."""
    purpose: str
    kind: str
    """`image` or `clip`."""
    bytes: int


def in_its_thread(
    method: Callable[Concatenate["Store", P], Result],
) -> Callable[Concatenate["Store", P], Coroutine[Any, Any, Result]]:
    """Run a method as one transaction in the database's thread.

    Raises:
        Problem: If the database cannot be read or written.
    """

    @wraps(method)
    async def call(self: "Store", /, *args: P.args, **options: P.kwargs) -> Result:
        def transact() -> Result:
            try:
                with self._database:
                    return method(self, *args, **options)
            except sqlite3.IntegrityError:
                raise
            except sqlite3.Error as error:
                raise Problem(
                    503, "storage", f"The server's database cannot be used now ({error})."
                ) from error

        return await asyncio.get_running_loop().run_in_executor(self._thread, transact)

    return call


class Store:
    """The folder of a server; no other server can use it meanwhile."""

    def __init__(self, folder: "str | Path | None") -> None:
        """Open it; what was being made when the last server ended waits again.

        Args:
            folder: It is created if need be; None: a temporary one, which goes with the server.

        Raises:
            BadFile: If it cannot be written, is in use, or its database is damaged.
        """
        self._temporary = tempfile.TemporaryDirectory(prefix="dummyforcing-") if folder is None else None
        self.folder = Path(self._temporary.name if self._temporary else folder or "").absolute()
        self.videos, self.uploads = self.folder / "videos", self.folder / "uploads"
        try:
            for place in (self.folder, self.videos, self.uploads):
                place.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._lock = os.open(self.folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise BadFile(
                f"The folder {self.folder} cannot be used ({error.strerror})",
                "give one that can be written",
                "data",
            ) from error
        try:
            self._take_lock()
            self._database = self._open(self.folder / "server.db")
        except BaseException:
            os.close(self._lock)
            raise
        self._thread = ThreadPoolExecutor(1, "database")
        self._recover()

    @property
    def is_temporary(self) -> bool:
        """Whether all of it goes with the server."""
        return self._temporary is not None

    def _take_lock(self) -> None:
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise BadFile(
                f"The folder {self.folder} is in use by another server",
                "give this one a folder of its own",
                "data",
            ) from error

    def _open(self, path: Path) -> sqlite3.Connection:
        try:
            os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))  # prompts are nobody else's
            database = sqlite3.connect(path, check_same_thread=False)
        except (OSError, sqlite3.Error) as error:
            raise BadFile(
                f"The database {path} cannot be opened ({error})", "give another folder", "data"
            ) from error
        try:
            database.row_factory = sqlite3.Row
            database.execute("PRAGMA journal_mode = WAL")
            database.execute("PRAGMA synchronous = FULL")
            (state,) = database.execute("PRAGMA quick_check").fetchone()
            if state != "ok":
                raise sqlite3.DatabaseError(state)
            (version,) = database.execute("PRAGMA user_version").fetchone()
            self._is_new = not version
            if not version:
                database.executescript(f"BEGIN; {TABLES} PRAGMA user_version = {VERSION}; COMMIT;")
            elif version != VERSION:
                raise BadFile(
                    f"The database {path} is of version {version}", f"give one of {VERSION}", "data"
                )
            database.execute("UPDATE videos SET status = 'queued' WHERE status = 'in_progress'")
            database.commit()
        except sqlite3.OperationalError as error:  # read-only, or no space
            database.close()
            raise BadFile(
                f"The database {path} cannot be written ({error})", "mend that first", "data"
            ) from error
        except sqlite3.Error as error:
            database.close()
            raise BadFile(
                f"The database {path} is damaged ({error})",
                "move it away; the videos in the folder beside it can still be played",
                "data",
            ) from error
        except BadFile:
            database.close()
            raise
        return database

    def _recover(self) -> None:
        """Remove files of no row, and mark rows whose file is gone.

        A database that is new says nothing of files that were there before it.
        """
        if self._is_new:
            return
        lost = {"code": "file_lost", "message": "The file of this video is gone from the server's disk."}
        known = set()
        for video in self._select(StoredVideo, "SELECT * FROM videos"):
            known.add(video.id)
            if video.status == "completed" and not self.video_file(video.id).is_file():
                self._change(video.id, {"status": "failed", "error": lost})
        known |= {file.id for file in self._select(StoredFile, "SELECT * FROM files")}
        self._database.commit()
        for place in (self.videos, self.uploads):
            for path in place.iterdir():
                name = OWN_FILE.fullmatch(path.name)  # whatever else lies there is somebody's
                is_left = name and (name["id"] not in known or path.suffix == ".part")
                if is_left and path.is_file():
                    path.unlink(missing_ok=True)

    def close(self) -> None:
        """Close the database, and let other servers in."""
        self._thread.shutdown()
        self._database.close()
        os.close(self._lock)
        if self._temporary is not None:
            self._temporary.cleanup()

    # --- files ----------------------------------------------------------------------------------------------

    def video_file(self, id: str, what: str = "mp4") -> Path:
        """A file of a video: `mp4`, `thumbnail.webp` or `sheet.png`."""
        return self.videos / f"{id}.{what}"

    def upload_file(self, id: str) -> Path:
        """The file of an upload."""
        return self.uploads / id

    def remove_files(self, id: str, but: str | None = None) -> None:
        """Remove all files of a video, but for one of that name."""
        for path in self.videos.glob(f"{id}.*"):
            if path.name != but:
                path.unlink(missing_ok=True)

    def bytes_of(self, id: str) -> int:
        """Size of all files of a video."""
        return sum(path.stat().st_size for path in self.videos.glob(f"{id}.*"))

    # --- videos ---------------------------------------------------------------------------------------------

    @in_its_thread
    def add_video(self, video: StoredVideo, *, most: int, most_of_owner: int) -> None:
        """Add a job to the queue.

        Args:
            video: It.
            most: Jobs that may wait or run.
            most_of_owner: The same for one owner.

        Raises:
            Problem: If there are too many.
        """
        is_active = "status IN ('queued', 'in_progress')"
        (count,) = self._one(f"SELECT count(*) FROM videos WHERE {is_active}")
        (own,) = self._one(f"SELECT count(*) FROM videos WHERE {is_active} AND owner = ?", video.owner)
        if count >= most or own >= most_of_owner:
            whose = f"you have {own}" if own >= most_of_owner else f"there are {count}"
            raise Problem(
                429,
                "queue_full",
                f"The queue is full: {whose} videos in it; ask again when one is finished.",
                **{"Retry-After": "10"},
            )
        self._insert("videos", video)

    @in_its_thread
    def video(self, owner: str, id: str) -> StoredVideo | None:
        """A video by its id, if it is the owner's."""
        return self._first(StoredVideo, "SELECT * FROM videos WHERE owner = ? AND id = ?", owner, id)

    @in_its_thread
    def page(
        self, owner: str, after: str | None, limit: int, *, newest_first: bool
    ) -> list[StoredVideo] | None:
        """The owner's videos that come after one of them, in their order; None: there is no such one."""
        compare, order = ("<", "DESC") if newest_first else (">", "ASC")
        number = 0 if not newest_first else 2**62
        if after is not None:
            found = self._one("SELECT number FROM videos WHERE owner = ? AND id = ?", owner, after)
            if found is None:
                return None
            (number,) = found
        return self._select(
            StoredVideo,
            f"SELECT * FROM videos WHERE owner = ? AND number {compare} ? ORDER BY number {order} LIMIT ?",
            owner,
            number,
            limit,
        )

    @in_its_thread
    def next_queued(self) -> StoredVideo | None:
        """The job that has waited longest."""
        return self._first(
            StoredVideo, "SELECT * FROM videos WHERE status = 'queued' ORDER BY number LIMIT 1"
        )

    @in_its_thread
    def queued(self) -> int:
        """How many jobs wait."""
        count: int = self._one("SELECT count(*) FROM videos WHERE status = 'queued'")[0]
        return count

    @in_its_thread
    def change_video(self, id: str, values: Mapping[str, Any]) -> bool:
        """Set columns of a video; whether there is one."""
        return self._change(id, values)

    @in_its_thread
    def remove_video(self, owner: str, id: str) -> bool:
        """Forget a video; whether there was one."""
        return (
            self._database.execute("DELETE FROM videos WHERE owner = ? AND id = ?", (owner, id)).rowcount > 0
        )

    # --- uploads --------------------------------------------------------------------------------------------

    @in_its_thread
    def add_file(self, file: StoredFile) -> None:
        """Add an upload."""
        self._insert("files", file)

    @in_its_thread
    def file(self, owner: str, id: str) -> StoredFile | None:
        """An upload by its id, if it is the owner's."""
        return self._first(StoredFile, "SELECT * FROM files WHERE owner = ? AND id = ?", owner, id)

    @in_its_thread
    def remove_file(self, owner: str, id: str) -> bool:
        """Forget an upload; whether there was one."""
        return (
            self._database.execute("DELETE FROM files WHERE owner = ? AND id = ?", (owner, id)).rowcount > 0
        )

    # --- space ----------------------------------------------------------------------------------------------

    @in_its_thread
    def clean(self, before: float, most: int) -> None:
        """Remove finished videos and uploads: old ones, and the oldest while all take too much space.

        Args:
            before: Older ones go.
            most: Bytes for all of them.
        """
        rows = self._database.execute(
            "SELECT 'videos' AS kind, id, completed AS time, bytes FROM videos WHERE completed IS NOT NULL "
            "UNION ALL SELECT 'files', id, created, bytes FROM files ORDER BY time"
        ).fetchall()
        (total,) = self._one("SELECT (SELECT total(bytes) FROM videos) + (SELECT total(bytes) FROM files)")
        for row in rows:
            if row["time"] >= before and total <= most:
                break
            total -= row["bytes"]
            self._database.execute(f"DELETE FROM {row['kind']} WHERE id = ?", (row["id"],))
            if row["kind"] == "videos":
                self.remove_files(row["id"])
            else:
                self.upload_file(row["id"]).unlink(missing_ok=True)

    # --- SQL ------------------------------------------------------------------------------------------------

    def _one(self, query: str, *values: Any) -> Any:
        return self._database.execute(query, values).fetchone()

    def _select(self, kind: type[Result], query: str, *values: Any) -> list[Result]:
        names = [one.name for one in fields(kind)]  # type: ignore[arg-type]
        rows = self._database.execute(query, values).fetchall()
        return [kind(**{name: _read(name, row[name]) for name in names}) for row in rows]

    def _first(self, kind: type[Result], query: str, *values: Any) -> Result | None:
        return next(iter(self._select(kind, query, *values)), None)

    def _insert(self, table: str, row: StoredVideo | StoredFile) -> None:
        values = {name: _written(name, value) for name, value in asdict(row).items()}
        places = ", ".join(f":{name}" for name in values)
        self._database.execute(f"INSERT INTO {table} ({', '.join(values)}) VALUES ({places})", values)

    def _change(self, id: str, values: Mapping[str, Any]) -> bool:
        written = {name: _written(name, value) for name, value in values.items()}
        setters = ", ".join(f"{name} = :{name}" for name in written)
        query = f"UPDATE videos SET {setters} WHERE id = :id"
        return self._database.execute(query, {**written, "id": id}).rowcount > 0


def new_id(kind: Literal["video_", "file-"]) -> str:
    """An id that nobody can guess."""
    return kind + secrets.token_hex(16)


def _written(name: str, value: Any) -> Any:
    return to_json(value) if name in JSON_COLUMNS and value is not None else value


def _read(name: str, value: Any) -> Any:
    return json.loads(value) if name in JSON_COLUMNS and value is not None else value
