"""Errors as OpenAI's clients know them: a status, and a body {"error": {message, type, param, code}}."""

from __future__ import annotations

from typing import Any

from starlette.responses import JSONResponse

from paragator.core.errors import UsageError
from paragator.core.text import printable


class ApiError(Exception):
    """What a client is told instead of an answer."""

    def __init__(
        self, status: int, message: str, code: str, *, param: str | None = None, retry_after_s: int | None = None
    ) -> None:
        super().__init__(message)
        self.status, self.code, self.param, self.retry_after_s = status, code, param, retry_after_s

    @property
    def body(self) -> dict[str, Any]:
        message = printable(" ".join(str(self).split()))
        return {"error": {"message": message, "type": self.kind, "param": self.param, "code": self.code}}

    @property
    def kind(self) -> str:
        """OpenAI's `type`."""
        if self.code == "insufficient_quota":
            return self.code
        kinds = {401: "authentication_error", 404: "not_found_error", 429: "rate_limit_error"}
        return kinds.get(self.status, "server_error" if self.status >= 500 else "invalid_request_error")

    def response(self) -> JSONResponse:
        headers = {"connection": "close"} if self.status in (408, 413) else {}  # its body was not read to the end
        if self.retry_after_s is not None:
            headers["retry-after"] = str(self.retry_after_s)
        if self.status == 401:
            headers["www-authenticate"] = "Bearer"
        return JSONResponse(self.body, self.status, headers)


def refused(error: UsageError) -> ApiError:
    """A request that cannot work, said by the library."""
    long = "context" in str(error) and "token" in str(error)
    return ApiError(400, str(error), "context_length_exceeded" if long else "invalid_request")
