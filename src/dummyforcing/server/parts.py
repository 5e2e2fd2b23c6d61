"""The parts of a running server, as its routes find them: `request.app.state.server`."""

from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass, field

from dummyforcing.errors import BadRequest, UserError
from dummyforcing.pipeline.expander import PromptExpander
from dummyforcing.server.fleet import Fleet
from dummyforcing.server.jobs.jobs import Jobs
from dummyforcing.server.live.sessions import Sessions
from dummyforcing.server.models import Models
from dummyforcing.server.settings import Settings
from dummyforcing.server.storage.store import Store
from dummyforcing.server.storage.uploads import Uploads
from dummyforcing.server.threads import run_in
from dummyforcing.server.web.access import Keys
from dummyforcing.server.web.metrics import Metrics


@dataclass
class Server:
    """The parts of a server."""

    settings: Settings
    fleet: Fleet
    sessions: Sessions
    store: Store
    uploads: Uploads
    jobs: Jobs
    models: Models
    keys: Keys
    metrics: Metrics
    expander: PromptExpander | None = None
    """Writes prompts out, if the server was told who can."""
    talkers: Executor = field(default_factory=lambda: ThreadPoolExecutor(4, "expansion"))
    """Wait for the language model, so that nobody else has to."""
    has_failed: bool = False
    """Whether the model's work has ended with an error: nothing will be made any more."""

    async def why_not_ready(self) -> str | None:
        """Why no new work is taken at present; None: it is."""
        if self.sessions.is_closing:
            return "The server is shutting down."
        if self.has_failed:
            return "The model's work has ended with an error."
        if not self.fleet.is_ready:
            return "The model is warming up." if self.fleet.engines else "No replica of the model is there."
        is_full = self.sessions.waiting or len(self.sessions.running) >= self.settings.max_sessions
        if is_full and len(self.sessions.waiting) >= self.settings.max_waiting:
            return "The queue of live sessions is full."
        if await self.store.queued() >= self.settings.max_jobs:
            return "The queue of jobs is full."
        return None

    async def expanded(self, prompt: str) -> tuple[str, str | None]:
        """A prompt that is written out; the short one, and why, if that fails.

        Raises:
            BadRequest: If there is nobody who can.
        """
        if self.expander is None:
            raise BadRequest("This server writes no prompts out", "leave 'expand' out", "expand")
        try:
            text = await run_in(self.talkers, self.expander.expand, prompt)
        except UserError as error:
            return prompt, f"The short prompt is used: {error}"
        return text[: self.settings.max_prompt], None

    async def begin_closing(self) -> None:
        """Take no new work, and tell those who watch."""
        if not self.sessions.is_closing:
            await self.sessions.close()
