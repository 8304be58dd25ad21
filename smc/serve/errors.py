"""Errors as HTTP answers: a status code, and a body in the form of OpenAI's API."""

from __future__ import annotations

import math
import re
from typing import Any

from fastapi import Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel
from starlette.exceptions import HTTPException

from smc.errors import InputError
from smc.runtime.binding import CancelledError, ClosedError
from smc.serve.scheduler import QueueFullError, StoppingError

_FIELD = re.compile(r"([a-z_]+): ")
"""What a sentence about a field of a request begins with."""


class ErrorBody(BaseModel):
    """What went wrong, in OpenAI's form."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorAnswer(BaseModel):
    """The body of every error, except those of Ollama's endpoints."""

    error: ErrorBody


class OllamaErrorAnswer(BaseModel):
    """The same of Ollama's endpoints."""

    error: str


def documented(answer: type[BaseModel]) -> dict[int | str, dict[str, Any]]:
    """The failures of an endpoint, for the server's OpenAPI description."""
    return {
        "4XX": {"model": answer, "description": "The request can't be right, or can't be served now"},
        "5XX": {"model": answer, "description": "The server failed, or is being shut down"},
    }


def also_streams(media_type: str) -> dict[int | str, dict[str, Any]]:
    """The answer of an endpoint that streams where a request says so."""
    return {200: {"description": "The answer, or a stream of its pieces", "content": {media_type: {}}}}


class ApiError(Exception):
    """A request that can't be answered. parameter: the field that is wrong, if there is one."""

    def __init__(self, status: int, message: str, parameter: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.parameter = parameter
        self.code = code


def as_api_error(error: BaseException) -> ApiError:
    """The answer for an exception; a bug in smc has status 500."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, RequestValidationError):
        return _of_validation(error)
    if isinstance(error, InputError):
        field = _FIELD.match(str(error))
        return ApiError(400, str(error), field[1] if field else None)
    if isinstance(error, QueueFullError):
        return ApiError(429, "the server has too many requests: try again later", code="rate_limit_exceeded")
    if isinstance(error, (StoppingError, CancelledError, ClosedError)):
        return ApiError(503, "the server is shutting down: try again later")
    if isinstance(error, HTTPException):
        return ApiError(error.status_code, str(error.detail))
    if isinstance(error, RecursionError):
        return ApiError(400, "the request is nested too deeply: send a flatter one")
    return ApiError(500, "the server failed: its log says why")


def body_of(error: ApiError) -> dict[str, Any]:
    """The error in OpenAI's form."""
    kinds = {401: "authentication_error", 404: "not_found_error", 429: "rate_limit_error"}
    kind = kinds.get(error.status, "invalid_request_error" if error.status < 500 else "server_error")
    return {"error": {"message": error.message, "type": kind, "param": error.parameter, "code": error.code}}


async def answer_error(request: Request, error: Exception) -> JSONResponse:
    """The response for an exception; Ollama's endpoints have another form than OpenAI's."""
    known = as_api_error(error)
    headers = {"Retry-After": str(math.ceil(error.retry_after))} if isinstance(error, QueueFullError) else {}
    if isinstance(error, HTTPException):
        headers |= error.headers or {}  # which methods there are
    if known.status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    body = {"error": known.message} if request.url.path.startswith("/api/") else body_of(known)
    return JSONResponse(body, status_code=known.status, headers=headers)


def _of_validation(error: RequestValidationError) -> ApiError:
    first = error.errors()[0]
    place = ".".join(str(part) for part in first["loc"] if part not in ("body", "query", "path"))
    if first["type"] == "json_invalid":
        return ApiError(400, f"the body is not JSON: {first.get('ctx', {}).get('error', first['msg'])}")
    message = first["msg"][:1].lower() + first["msg"][1:]
    return ApiError(400, f"{place}: {message}" if place else message, place or None)
