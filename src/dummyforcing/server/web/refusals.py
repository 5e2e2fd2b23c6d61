"""Errors of HTTP in OpenAI's shape, whoever raises them: routes, options, pydantic, or the router itself."""

import logging
from collections.abc import Mapping, Sequence
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.routing import Match, Route

from dummyforcing.errors import UserError
from dummyforcing.server.web.metrics import Metrics
from dummyforcing.server.web.problems import Problem, problem_of

logger = logging.getLogger(__name__)

CODES = {404: "not_found", 405: "method_not_allowed", 413: "too_large", 415: "unsupported_media_type"}


class Reason(BaseModel):
    """Why a request is refused."""

    message: str
    """For people: what is wrong and what would work."""
    type: str
    param: str | None
    """The field that is to blame."""
    code: str | None
    """For programs."""


class Refusal(BaseModel):
    """A request that is refused."""

    error: Reason


DOCUMENTED: dict[int | str, dict[str, Any]] = {
    "4XX": {"model": Refusal, "description": "The request is refused; the message says what would work."},
    "503": {"model": Refusal, "description": "The server cannot do that now."},
}
"""Of every route: the `responses` of the application."""


def refusal_of(errors: Sequence[Mapping[str, Any]]) -> Problem:
    """What pydantic found wrong, as a refusal; the first of it."""
    error = errors[0]
    place = [str(part) for part in error["loc"] if part not in ("body", "query", "path", "header")]
    if error["type"] in ("json_invalid", "model_attributes_type", "dict_type") or not place:
        return Problem(400, "bad_request", "The body cannot be read; send a JSON object.")
    param, where = place[0], ".".join(place)
    if error["type"] == "extra_forbidden":
        return Problem(400, "bad_request", f"There is no field '{where}'; leave it out.", param)
    if error["type"] == "missing":
        return Problem(400, "bad_request", f"The field '{where}' is missing; give it.", param)
    return Problem(400, "bad_request", f"{param}: {error['msg']}.", param)


def add_refusals(app: FastAPI, metrics: Metrics) -> None:
    """Have an application answer all errors in the same shape, and count them."""

    def answer(problem: Problem) -> JSONResponse:
        metrics.errors.labels(problem.code).inc()
        return JSONResponse(problem.body(), problem.status, problem.headers)

    @app.exception_handler(Problem)
    async def refuse(_: Request, problem: Problem) -> Response:
        return answer(problem)

    @app.exception_handler(UserError)
    async def explain(_: Request, error: UserError) -> Response:
        return answer(problem_of(error))

    @app.exception_handler(RequestValidationError)
    async def invalid(_: Request, error: RequestValidationError) -> Response:
        return answer(refusal_of(error.errors()))

    @app.exception_handler(HTTPException)
    async def of_router(request: Request, error: HTTPException) -> Response:
        messages = {
            404: "There is no such address; see /openapi.json for those that there are.",
            405: f"{request.method} is not possible here; see the Allow header.",
        }
        message = messages.get(error.status_code, f"{error.detail}.")
        code, headers = CODES.get(error.status_code, "bad_request"), dict(error.headers or {})
        if error.status_code == 405:  # the router names those of the first route of this address alone
            headers["Allow"] = ", ".join(sorted(_methods(request)))
        return answer(Problem(error.status_code, code, message, **headers))

    @app.exception_handler(ClientDisconnect)
    async def gone(_: Request, __: ClientDisconnect) -> Response:
        return Response(status_code=400)  # nobody reads it

    @app.exception_handler(OSError)
    async def disk(_: Request, error: OSError) -> Response:
        logger.error("a request failed: %s", error)
        return answer(Problem(503, "storage", f"The server cannot store that now ({error.strerror})."))


def _methods(request: Request) -> set[str]:
    """The methods that an address has."""
    return {
        method
        for route in request.app.routes
        if isinstance(route, Route) and route.matches(request.scope)[0] is not Match.NONE
        for method in route.methods or ()
    }
