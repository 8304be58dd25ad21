"""The chat page at /: three files, which load nothing from other servers."""

from __future__ import annotations

from pathlib import Path

from fastapi import APIRouter
from fastapi.responses import FileResponse
from starlette.exceptions import HTTPException

FOLDER = Path(__file__).parent / "page"
FILES = {"style.css": "text/css", "chat.js": "text/javascript"}

POLICY = "default-src 'self'; img-src data:; frame-ancestors 'none'"
"""The page loads nothing from other servers, and no other page can embed it."""


def page_router() -> APIRouter:
    """Add the page and its files to the application."""
    router = APIRouter(include_in_schema=False)

    @router.get("/")
    async def page() -> FileResponse:
        headers = {"Content-Security-Policy": POLICY, "Cache-Control": "no-cache"}
        return FileResponse(FOLDER / "index.html", media_type="text/html", headers=headers)

    @router.get("/page/{name}")
    async def part(name: str) -> FileResponse:
        if name not in FILES:
            raise HTTPException(404, "Not Found")
        return FileResponse(FOLDER / name, media_type=FILES[name], headers={"Cache-Control": "no-cache"})

    return router
