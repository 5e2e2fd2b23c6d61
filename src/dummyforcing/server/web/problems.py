"""What is said when a request cannot be met: one shape for HTTP, and for the live protocol.

{"error": {"message": "...", "type": "invalid_request_error", "param": "size", "code": "bad_request"}}
"""

from typing import Any

from dummyforcing.errors import NotEnoughMemory, UserError

TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    429: "rate_limit_error",
}


class Problem(Exception):
    """A request that is refused, in OpenAI's words."""

    def __init__(
        self, status: int, code: str, message: str, param: str | None = None, **headers: str
    ) -> None:
        """Say it.

        Args:
            status: Of HTTP.
            code: For programs, such as `queue_full`.
            message: For people: what is wrong and what would work.
            param: The field that is to blame.
            **headers: Of the response.
        """
        super().__init__(message)
        self.status, self.code, self.message, self.param, self.headers = status, code, message, param, headers

    def body(self) -> dict[str, Any]:
        """The JSON of an HTTP response."""
        kind = TYPES.get(self.status, "server_error" if self.status >= 500 else "invalid_request_error")
        return {
            "error": {"message": self.message, "type": kind, "param": self.param, "code": self.code},
        }


def problem_of(error: UserError, names: dict[str, str] | None = None) -> Problem:
    """A user's error as a refusal; `names` are those of options that the request calls otherwise."""
    code = "not_enough_memory" if isinstance(error, NotEnoughMemory) else "bad_request"
    param = (names or {}).get(error.option or "", error.option)
    return Problem(400, code, str(error), param)
