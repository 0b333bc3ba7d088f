"""Endpoints of the charger, for the api.py of a service of type http-api."""

from typing import Annotated, Literal

from fastapi import APIRouter, Depends, Request
from pydantic import BaseModel, Field

from shared.config import Settings
from shared.service import BaseService

router = APIRouter(prefix="/api/v1/charger")


class Charge(BaseModel):
    mode: Literal["solar", "always", "never"]
    min_surplus_watts: float = Field(default=1400.0, ge=0)


class Charging(BaseModel):
    mode: str
    is_charging: bool


def get_service(request: Request) -> BaseService[Settings]:
    service: BaseService[Settings] = request.app.state.service
    return service


@router.post("/charge")
async def charge(
    service: Annotated[BaseService[Settings], Depends(get_service)], body: Charge
) -> Charging:
    return await service.send_command("charger", "charge", model=Charging, **body.model_dump())
