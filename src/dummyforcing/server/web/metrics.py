"""What the server counts and measures, for Prometheus at `/metrics`."""

from collections.abc import Sequence

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

PREFIX = "dummyforcing_"
SECONDS = (0.05, 0.1, 0.2, 0.3, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 5.0, 10.0, 30.0)
"""Bounds of the histograms of a chunk's latency."""
REQUEST_SECONDS = (0.005, 0.02, 0.1, 0.5, 2.0, 10.0, 60.0)
METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "WEBSOCKET")


class Metrics:
    """The metrics of one server. Parts of it count as things happen; gauges are read when somebody asks.

    metrics.sessions.set_function(lambda: len(sessions))
    """

    def __init__(self) -> None:
        """Begin with nothing counted."""
        self.registry = CollectorRegistry()
        self.sessions = self._gauge("sessions", "Live sessions that are let in.")
        self.waiting = self._gauge("waiting_sessions", "Live sessions that wait for a place.")
        self.waiting_jobs = self._gauge("waiting_jobs", "Jobs that wait.")
        self.replicas = self._gauge("replicas", "Loaded models, and those that are being loaded.", ["state"])
        self.replica_videos = self._gauge("replica_videos", "Sessions and jobs of a replica.", ["replica"])
        self.lost_replicas = Counter(
            f"{PREFIX}lost_replicas", "Replicas whose process ended by itself.", registry=self.registry
        )
        self.fps = self._gauge("fps", "Pixel frames per second of the device at its last chunk.")
        self.cache_bytes = self._gauge("cache_bytes", "KV caches of the live videos.")
        self.held_bytes = self._gauge("held_bytes", "Chunks that sessions can go back to.")
        self.claimed_bytes = self._gauge("claimed_bytes", "Memory of the device that was promised to videos.")
        self.device_bytes = self._gauge("device_memory_bytes", "Memory of the GPUs in use; 0 on a CPU.")
        self.chunks = Counter(
            f"{PREFIX}chunks", "Chunks made.", ["kind"], registry=self.registry
        )  # its name ends in _total
        self.chunk_seconds = self._histogram("chunk_seconds", "The device's time for a chunk.", ["kind"])
        self.first_chunk_seconds = self._histogram(
            "first_chunk_seconds", "From the start of a live video to its first chunk."
        )
        self.steer_seconds = self._histogram(
            "steer_seconds", "From a new prompt to the first chunk that shows it."
        )
        self.errors = Counter(
            f"{PREFIX}errors", "Requests and messages refused or failed.", ["code"], registry=self.registry
        )
        self.requests = Counter(
            f"{PREFIX}http_requests", "Requests.", ["method", "route", "status"], registry=self.registry
        )
        self.request_seconds = Histogram(
            f"{PREFIX}http_request_seconds",
            "Time until a response was sent.",
            ["route"],
            buckets=REQUEST_SECONDS,
            registry=self.registry,
        )

    def chunk_made(self, frames: int, seconds: float, *, is_live: bool) -> None:
        """Count a chunk.

        Args:
            frames: Pixel frames of it.
            seconds: The device's time for it.
            is_live: Whether it is of a live session.
        """
        kind = "live" if is_live else "job"
        self.chunks.labels(kind).inc()
        self.chunk_seconds.labels(kind).observe(seconds)
        self.fps.set(frames / seconds if seconds else 0)

    def request_done(self, method: str, route: str, status: int, seconds: float) -> None:
        """Count a request.

        Args:
            method: Of HTTP, or WEBSOCKET.
            route: The template of its path: a bounded number of texts.
            status: Of the response.
            seconds: From the first byte of the request to the last of the response.
        """
        self.requests.labels(method if method in METHODS else "other", route, str(status)).inc()
        if method != "WEBSOCKET":  # those last as long as somebody watches
            self.request_seconds.labels(route).observe(seconds)

    def text(self) -> bytes:
        """All of them in Prometheus' text format."""
        return generate_latest(self.registry)

    def _gauge(self, name: str, about: str, labels: Sequence[str] = ()) -> Gauge:
        return Gauge(PREFIX + name, about, labels, registry=self.registry)

    def _histogram(self, name: str, about: str, labels: list[str] | None = None) -> Histogram:
        return Histogram(PREFIX + name, about, labels or [], buckets=SECONDS, registry=self.registry)
