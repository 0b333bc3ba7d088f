"""The HTTP interface, version 1. What is published here stays; a breaking change gets /api/v2."""

import json
from typing import TYPE_CHECKING, Annotated, Any

from fastapi import APIRouter, FastAPI, HTTPException, Path, Request, Response
from fastapi.exceptions import RequestValidationError
from pydantic import ValidationError
from schemas import ENVELOPE, CommandAnswer, CommandRequest, Problem, Status

from shared.mqtt import MQTTError, PayloadError, RequestTimeoutError, encode

if TYPE_CHECKING:
    from main import {{ cookiecutter.__class }}

ServiceName = Annotated[str, Path(pattern=r"^[a-z][a-z0-9]*(-[a-z0-9]+)*$", max_length=40)]
_NO_ANSWER: dict[int | str, dict[str, Any]] = {
    502: {"model": Problem, "description": "The other service's answer is not valid"},
    503: {"model": Problem, "description": "The broker cannot be reached"},
    504: {"model": Problem, "description": "The other service does not answer"},
}


def create_app(service: "{{ cookiecutter.__class }}") -> FastAPI:
    """The application; its OpenAPI page is at /docs."""
    app = FastAPI(title=service.name)
    router = APIRouter(prefix="/api/v1")

    @router.get("/status", responses={503: {"model": Status}})
    async def read_status(response: Response) -> Status:
        """Health of this service; 503 while something is wrong."""
        status = Status.model_validate({**service.health_report(), "service": service.name})
        if status.status != "online":
            response.status_code = 503
        return status

    @router.post("/services/{name}/commands", responses=_NO_ANSWER)
    async def send_command(name: ServiceName, request: CommandRequest) -> CommandAnswer:
        """Send a command to another service over MQTT and return its answer."""
        try:
            reply = await service.send_command(
                name,
                request.command,
                timeout_seconds=service.settings.command_timeout_seconds,
                **request.arguments,
            )
        except RequestTimeoutError as error:
            if not service.mqtt.connected:
                raise HTTPException(503, "no connection to the broker") from error
            raise HTTPException(504, f"{name} does not answer") from error
        except MQTTError as error:
            raise HTTPException(503, str(error)) from error
        try:
            return _answer(name, reply)
        except (PayloadError, ValidationError) as error:
            service.logger.warning("answer_not_valid", target=name, error=error)
            raise HTTPException(502, f"the answer of {name} is not valid") from error

    @app.exception_handler(RequestValidationError)
    async def refuse(_request: Request, error: RequestValidationError) -> Response:
        # FastAPI's own handler repeats the input, which may be what JSON or UTF-8 cannot hold.
        problems = [{key: found[key] for key in ("type", "loc", "msg")} for found in error.errors()]
        return Response(json.dumps({"detail": problems}), 422, media_type="application/json")

    app.include_router(router)
    return app


def _answer(name: str, reply: dict[str, Any]) -> CommandAnswer:
    """Raises PayloadError and ValidationError for a reply that cannot be passed on."""
    result = {key: value for key, value in reply.items() if key not in ENVELOPE}
    encode(result)
    fields = {"service": name, "status": reply.get("status"), "result": result}
    return CommandAnswer.model_validate(fields)
