"""The page, its API (version 1) and the metrics."""

from collections import Counter
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path as FilePath
from typing import TYPE_CHECKING, Annotated

from access import COOKIE, HEADER, SESSION_SECONDS, SecurityHeaders
from fastapi import APIRouter, Depends, FastAPI, HTTPException, Path, Query, Request, Response
from fastapi.responses import FileResponse
from fastapi.security import HTTPBasic, HTTPBasicCredentials
from fastapi.sse import EventSourceResponse
from metrics import make_registry
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from schemas import (
    CommandResponse,
    DeadLetters,
    KeptLetter,
    KindRequest,
    Login,
    Outcome,
    SeenMessage,
    ServiceDetail,
    ServiceRow,
    Services,
    Session,
    Summary,
    TopicInfo,
    Update,
)
from server import CommandRequest, Problem, RequestLayer, add_error_handlers
from starlette.middleware.trustedhost import TrustedHostMiddleware

from shared.mqtt import encode
from shared.mqtt.topics import matches

if TYPE_CHECKING:
    from main import {{ cookiecutter.__class }}

PAGE_FILES = {"/": "page.html", "/page.js": "page.js", "/page.css": "page.css"}
UPDATE_SECONDS = 0.25
MAX_SHOWN_TOPICS = 20
# SQLite cannot compare an id with a number from 2**63 on.
MAX_LETTER_ID = 2**62


def create_app(service: "{{ cookiecutter.__class }}") -> FastAPI:
    """Return the application. Its OpenAPI description is at /openapi.json."""
    # The pages /docs and /redoc would load scripts from the internet.
    app = FastAPI(title=service.name, docs_url=None, redoc_url=None)
    app.state.service = service
    app.state.metrics = make_registry(service)
    add_error_handlers(app)
    # A page of another site must not reach this service through a name that it controls.
    app.add_middleware(
        TrustedHostMiddleware,
        allowed_hosts=[service.name, *service.settings.http_allowed_hosts],
        www_redirect=False,
    )
    app.add_middleware(SecurityHeaders)
    app.add_middleware(RequestLayer, logger=service.logger)
    app.include_router(public)
    app.include_router(router, responses={401: {"model": Problem}, 403: {"model": Problem}})
    return app


async def get_service(request: Request) -> "{{ cookiecutter.__class }}":
    """Return the service, for the endpoints."""
    service: {{ cookiecutter.__class }} = request.app.state.service
    return service


Service = Annotated["{{ cookiecutter.__class }}", Depends(get_service)]
Credentials = Annotated[HTTPBasicCredentials | None, Depends(HTTPBasic(auto_error=False))]


async def check_header(request: Request) -> None:
    """Reject a request that changes something and may come from a form of another site."""
    if request.method not in {"GET", "HEAD"} and HEADER not in request.headers:
        raise HTTPException(403, f"the header {HEADER} is missing")


async def check_access(request: Request, service: Service, credentials: Credentials) -> None:
    """Reject a request without a session and without the password (HTTP Basic, any user name)."""
    password = credentials.password if credentials else None
    if not service.access.allows(request.cookies.get(COOKIE, ""), password):
        raise HTTPException(401, "the password is missing or wrong")


public = APIRouter(dependencies=[Depends(check_header)])
router = APIRouter(dependencies=[Depends(check_header), Depends(check_access)])


async def read_page(request: Request) -> FileResponse:
    """Return the page, its script or its style."""
    return FileResponse(FilePath(__file__).with_name(PAGE_FILES[request.url.path]))


for path in PAGE_FILES:
    public.add_api_route(path, read_page, include_in_schema=False)


@public.get("/favicon.ico", status_code=204, include_in_schema=False)
async def read_icon() -> None:
    """Browsers ask for it."""


@public.post("/api/v1/session", status_code=204, responses={401: {"model": Problem}})
async def log_in(service: Service, request: Request, login: Login, response: Response) -> None:
    """Start the session of a browser."""
    if not service.access.is_password(login.password):
        raise HTTPException(401, "the password is wrong")
    response.set_cookie(
        COOKIE,
        service.access.new_session(),
        max_age=SESSION_SECONDS,
        httponly=True,
        samesite="strict",
        secure=request.url.scheme == "https",
    )


@router.get("/api/v1/session")
async def read_session(service: Service) -> Session:
    """Whether there is a password. 401 while it is missing."""
    return Session(has_password=service.access.has_password)


@router.delete("/api/v1/session", status_code=204)
async def log_out(response: Response) -> None:
    """End the session of this browser."""
    response.delete_cookie(COOKIE, httponly=True, samesite="strict")


@router.get("/api/v1/services")
async def read_services(service: Service) -> Services:
    """State of all services."""
    return Services(connected=service.fleet.connected, services=service.fleet.rows())


@router.get("/api/v1/summary")
async def read_summary(service: Service) -> Summary:
    """Numbers for a dashboard. The status is `ok` if nothing needs attention."""
    fleet = service.fleet
    rows = fleet.rows()
    count = Counter(row.state for row in rows)
    problems = [f"{row.name}: {row.state}" for row in rows if row.state != "online"]
    problems += [] if fleet.connected else ["no connection to the broker"]
    letters = service.letters.count()
    return Summary(
        status="problem" if problems or letters else "ok",
        connected=fleet.connected,
        services=len(rows),
        online=count["online"],
        degraded=count["degraded"],
        offline=count["offline"],
        stale=count["stale"],
        dead_letters=letters,
        problems=problems,
    )


@router.get("/api/v1/events", response_class=EventSourceResponse)
async def stream_events(service: Service) -> AsyncIterator[Update]:
    """Everything, then each change, as server-sent events."""
    fleet, seen = service.fleet, 0
    while not fleet.closed:
        is_full, since, seen = fleet.is_full(seen), seen, fleet.change
        yield Update(
            is_full=is_full,
            now=datetime.now(UTC),
            connected=fleet.connected,
            services=fleet.rows(0 if is_full else since),
            dead_letters=service.letters.count(),
            newest=service.letters.newest,
        )
        await service.wait_for_shutdown(UPDATE_SECONDS)
        await fleet.wait_changed(seen)


async def find_service(service: Service, name: str) -> ServiceRow:
    """Return the state of the service that the path names."""
    row = service.fleet.row(name)
    if row is None:
        raise HTTPException(404, f"no service {name} was seen")
    return row


Row = Annotated[ServiceRow, Depends(find_service)]


@router.get("/api/v1/services/{name}", responses={404: {"model": Problem}})
async def read_service(service: Service, row: Row) -> ServiceDetail:
    """State, topics and commands of one service."""
    prefix = service.settings.topic_prefix
    known = service.catalog.topics(row.name, prefix)
    # Topics that no schema describes.
    others = {
        ("send", message.topic): "Not described in its schemas"
        for message in service.fleet.latest(f"{prefix}/{row.name}/#")
        if not any(matches(pattern, message.topic) for _, pattern in known)
    }
    topics = [
        TopicInfo(
            pattern=pattern,
            direction=direction,
            description=description,
            messages=service.fleet.latest(pattern)[:MAX_SHOWN_TOPICS],
        )
        for (direction, pattern), description in (known | others).items()
    ]
    return ServiceDetail(service=row, topics=topics, commands=service.catalog.commands(row.name))


@router.post(
    "/api/v1/services/{name}/commands",
    responses={number: {"model": Problem} for number in (404, 502, 503, 504)},
)
async def send_command(service: Service, row: Row, request: CommandRequest) -> CommandResponse:
    """Send a command and return the reply. 504 if the service is offline or does not reply."""
    reply = await service.send_command(
        row.name,
        request.command,
        timeout_seconds=service.settings.command_timeout_seconds,
        **request.arguments,
    )
    # Raises PayloadError for text that a response cannot hold.
    encode(reply)
    return CommandResponse(reply=reply)


@router.get("/api/v1/messages")
async def read_messages(service: Service, trace_id: str) -> list[SeenMessage]:
    """Messages with a trace id, of those seen lately, oldest first."""
    return service.fleet.trace(trace_id)


@router.get("/api/v1/dead-letters")
async def read_letters(
    service: Service,
    kind: str = "",
    text: Annotated[str, Query(max_length=1000)] = "",
    before: Annotated[int | None, Query(ge=0, le=MAX_LETTER_ID)] = None,
    limit: Annotated[int, Query(ge=1, le=200)] = 50,
) -> DeadLetters:
    """Kept dead letters, newest first. `before` is the id of the last letter of a page."""
    letters = service.letters.find(kind=kind, text=text, before=before, limit=limit)
    return DeadLetters(
        total=service.letters.count(),
        kinds=service.letters.counts(),
        letters=[service.with_rejection(letter) for letter in letters],
    )


LetterId = Annotated[int, Path(ge=1, le=MAX_LETTER_ID)]


async def find_letter(service: Service, letter_id: LetterId) -> KeptLetter:
    """Return the letter that the path names."""
    letter = service.letters.get(letter_id)
    if letter is None:
        raise HTTPException(404, f"there is no dead letter {letter_id}")
    return service.with_rejection(letter)


Letter = Annotated[KeptLetter, Depends(find_letter)]


@router.post(
    "/api/v1/dead-letters/{letter_id}/replay",
    responses={number: {"model": Problem} for number in (404, 409, 503)},
)
async def replay(service: Service, letter: Letter) -> Outcome:
    """Send the message to every subscriber of its topic again, and delete the letter."""
    if letter.rejection:
        raise HTTPException(409, letter.rejection)
    if not (done := await service.replay(letter)):
        raise HTTPException(404, f"there is no dead letter {letter.id}")
    return service.outcome(done, letter.kind)


@router.delete("/api/v1/dead-letters/{letter_id}", responses={404: {"model": Problem}})
async def discard(service: Service, letter: Letter) -> Outcome:
    """Delete a letter."""
    return service.outcome(service.letters.discard(letter.id), letter.kind)


@router.post("/api/v1/dead-letters/replay", responses={503: {"model": Problem}})
async def replay_kind(service: Service, request: KindRequest) -> Outcome:
    """Replay up to 500 letters of a kind, oldest first."""
    return await service.replay_kind(request.kind)


@router.post("/api/v1/dead-letters/discard")
async def discard_kind(service: Service, request: KindRequest) -> Outcome:
    """Delete all letters of a kind."""
    return service.outcome(service.letters.discard_kind(request.kind), request.kind)


@router.get("/metrics")
async def read_metrics(request: Request) -> Response:
    """Metrics for Prometheus."""
    return Response(generate_latest(request.app.state.metrics), media_type=CONTENT_TYPE_LATEST)
