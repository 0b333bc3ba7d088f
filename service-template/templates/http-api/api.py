"""The HTTP interface, version 1: a function per endpoint. A breaking change gets /api/v2."""

from html import escape
from typing import TYPE_CHECKING, Annotated, Any

from fastapi import APIRouter, Depends, FastAPI, HTTPException, Path, Request, Response
from fastapi.responses import HTMLResponse
from pydantic import ValidationError
from schemas import ENVELOPE, CommandResponse, Status
from server import CommandRequest, Problem, RequestLayer, add_error_handlers
from starlette.middleware.trustedhost import TrustedHostMiddleware

from shared.mqtt import PayloadError, encode

if TYPE_CHECKING:
    from main import {{ cookiecutter.__class }}

router = APIRouter(prefix="/api/v1")


def create_app(service: "{{ cookiecutter.__class }}") -> FastAPI:
    """Return the application. Its documentation is at /, and at /openapi.json for programs."""
    # The pages /docs and /redoc would load scripts from the internet.
    app = FastAPI(title=service.name, docs_url=None, redoc_url=None)
    app.state.service = service
    add_error_handlers(app)
    # A page of another site must not reach this service through a name that it controls.
    app.add_middleware(
        TrustedHostMiddleware,
        allowed_hosts=[service.name, *service.settings.http_allowed_hosts],
        www_redirect=False,
    )
    app.add_middleware(RequestLayer, logger=service.logger)
    app.include_router(router)
    app.get("/", include_in_schema=False)(show_documentation)
    return app


async def show_documentation(request: Request) -> HTMLResponse:
    """Return a page with all endpoints."""
    description = request.app.openapi()
    rows = [
        f"<tr><td>{method.upper()}<td><code>{escape(path)}</code><td>{escape(text)}"
        for path, methods in description["paths"].items()
        for method, endpoint in methods.items()
        for text in [endpoint.get("description", endpoint["summary"])]
    ]
    title = escape(description["info"]["title"])
    return HTMLResponse(
        f'<!doctype html><html lang="en"><meta name="color-scheme" content="light dark">'
        f"<title>{title}</title><h1>{title}</h1><table>{''.join(rows)}</table>"
        '<p>Fields and responses: <a href="/openapi.json">OpenAPI description</a>'
    )


async def get_service(request: Request) -> "{{ cookiecutter.__class }}":
    """Return the service, for the endpoints."""
    service: {{ cookiecutter.__class }} = request.app.state.service
    return service


Service = Annotated["{{ cookiecutter.__class }}", Depends(get_service)]
ServiceName = Annotated[str, Path(pattern=r"^[a-z][a-z0-9]*(-[a-z0-9]+)*$", max_length=40)]


@router.get("/status", responses={503: {"model": Status}})
async def read_status(service: Service, response: Response) -> Status:
    """Health of this service. 503 while something is wrong."""
    status = Status.model_validate({**service.health_report(), "service": service.name})
    if status.status != "online":
        response.status_code = 503
    return status


@router.post(
    "/services/{name}/commands",
    responses={
        502: {"model": Problem, "description": "The reply of the other service is not valid"},
        503: {"model": Problem, "description": "The broker cannot be reached"},
        504: {"model": Problem, "description": "The other service is offline or does not reply"},
    },
)
async def send_command(
    service: Service, name: ServiceName, request: CommandRequest
) -> CommandResponse:
    """Send a command to another service over MQTT and return its reply."""
    reply = await service.send_command(
        name,
        request.command,
        timeout_seconds=service.settings.command_timeout_seconds,
        **request.arguments,
    )
    try:
        return to_response(name, reply)
    except (PayloadError, ValidationError) as error:
        service.logger.warning("reply_not_valid", target=name, error=error)
        raise HTTPException(502, f"the reply of {name} is not valid") from error


def to_response(name: str, reply: dict[str, Any]) -> CommandResponse:
    """Take the result out of a reply.

    Raises:
        PayloadError, ValidationError: The reply cannot be passed on.
    """
    result = {key: value for key, value in reply.items() if key not in ENVELOPE}
    encode(result)
    fields = {"service": name, "status": reply.get("status"), "result": result}
    return CommandResponse.model_validate(fields)
