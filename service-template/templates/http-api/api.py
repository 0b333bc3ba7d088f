"""The HTTP interface, version 1. What is published here stays; a breaking change gets /api/v2."""

from typing import TYPE_CHECKING, Annotated

from fastapi import APIRouter, FastAPI, HTTPException, Path, Response
from schemas import CommandAnswer, CommandRequest, Status

from shared.mqtt import MQTTError, RequestTimeoutError

if TYPE_CHECKING:
    from main import {{ cookiecutter.__class }}

ServiceName = Annotated[str, Path(pattern=r"^[a-z][a-z0-9]*(-[a-z0-9]+)*$", max_length=40)]
_ENVELOPE = {"timestamp", "service", "trace_id", "request_id", "reply_to", "status", "command"}
_RESERVED = _ENVELOPE | {"self", "target", "timeout_seconds"}


def create_app(service: "{{ cookiecutter.__class }}") -> FastAPI:
    """The application; its OpenAPI page is at /docs."""
    app = FastAPI(title=service.name)
    router = APIRouter(prefix="/api/v1")

    @router.get("/status", responses={503: {"model": Status}})
    async def read_status(response: Response) -> Status:
        """Health of this service; 503 while something is wrong."""
        health = service.health
        if not health.healthy:
            response.status_code = 503
        return Status(
            service=service.name,
            status="online" if health.healthy else "degraded",
            reasons=list(health.reasons),
        )

    @router.post("/services/{name}/commands")
    async def send_command(name: ServiceName, request: CommandRequest) -> CommandAnswer:
        """Send a command to another service over MQTT and return its answer."""
        if reserved := request.arguments.keys() & _RESERVED:
            raise HTTPException(422, f"not allowed as arguments: {', '.join(sorted(reserved))}")
        try:
            reply = await service.send_command(
                name,
                request.command,
                timeout_seconds=service.settings.command_timeout_seconds,
                **request.arguments,
            )
        except RequestTimeoutError as error:
            raise HTTPException(504, f"{name} does not answer") from error
        except MQTTError as error:
            raise HTTPException(503, str(error)) from error
        return CommandAnswer(
            service=name,
            status=str(reply.get("status")),
            result={key: value for key, value in reply.items() if key not in _ENVELOPE},
        )

    app.include_router(router)
    return app
