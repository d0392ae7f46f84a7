"""The web pages as files: HTML, plain ES modules and one style sheet from `web/`, and the script that draws charts from plotly's package.

No build step and no request to any other machine: what a page may load is said by its content security policy, so even a text that
found its way into a page as markup could load and run nothing. Only files that are listed here when the router is made are served, by
their exact names; a name from a request never becomes a path.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

from fastapi import APIRouter, HTTPException, Response
from fastapi.responses import FileResponse

from fledge.core import __version__
from fledge.core.errors import MachineError

Page = Literal["chat", "runs"]

WEB = Path(__file__).parent / "web"
PLOTLY = "plotly.min.js"

MEDIA_TYPES = {".js": "text/javascript; charset=utf-8", ".css": "text/css; charset=utf-8", ".svg": "image/svg+xml"}
SECURITY_HEADERS = {
    # plotly writes its own styles into the page and draws pictures to save from data: and blob: addresses.
    "Content-Security-Policy": "default-src 'self'; script-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data: blob:; "
    "connect-src 'self'; object-src 'none'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'",
    "Cross-Origin-Opener-Policy": "same-origin",
}
_ALWAYS_ASK = {"Cache-Control": "no-cache"}
_KEEP_A_DAY = {"Cache-Control": "private, max-age=86400"}


def pages_router(pages: Sequence[Page] = ("chat", "runs")) -> APIRouter:
    """The routes of these pages and of the files they load, which need no key; the first page also answers at `/`.

    Raises MachineError if a file of the package is not there.
    """
    router = APIRouter(include_in_schema=False)
    for number, page in enumerate(pages):
        content = _read(WEB / f"{page}.html")
        for path in (["/"] if number == 0 else []) + [f"/{page}"]:
            router.add_api_route(path, _answer(content, "text/html; charset=utf-8"), methods=["GET", "HEAD"])
    files = {path.name: path for path in sorted(WEB.iterdir()) if path.suffix in MEDIA_TYPES}
    plotly = _plotly()

    @router.get("/static/site.json")
    def site() -> dict[str, object]:
        """Which pages this server has, for the bar at their top."""
        return {"pages": list(pages), "version": __version__}

    @router.api_route("/static/{name}", methods=["GET", "HEAD"])
    def static(name: str) -> Response:
        if name == PLOTLY:
            return FileResponse(plotly, media_type=MEDIA_TYPES[".js"], headers={**SECURITY_HEADERS, **_KEEP_A_DAY})
        if name not in files:
            raise HTTPException(404, "there is no such file")
        return FileResponse(files[name], media_type=MEDIA_TYPES[files[name].suffix], headers={**SECURITY_HEADERS, **_ALWAYS_ASK})

    return router


def _answer(content: str, media_type: str) -> Callable[[], Response]:
    def answer() -> Response:
        return Response(content, media_type=media_type, headers={**SECURITY_HEADERS, **_ALWAYS_ASK})

    return answer


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise MachineError(f"{path} cannot be read: {error.strerror}", "install Fledge again") from error


def _plotly() -> Path:
    """plotly's script in its package, which is found without importing it."""
    found = find_spec("plotly")
    path = Path(found.origin or "").parent / "package_data" / PLOTLY if found else Path(PLOTLY)
    if not path.is_file():
        raise MachineError("plotly's script for charts is not installed", "pip install plotly")
    return path
