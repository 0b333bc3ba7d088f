"""Serves /api/v1 over HTTP."""

from api import create_app
from config import ServiceSettings
from server import EmbeddedServer

from shared.service import BaseService, run_service


class {{ cookiecutter.__class }}(BaseService[ServiceSettings]):
    name = "{{ cookiecutter.service_slug }}"

    def __init__(self, settings: ServiceSettings) -> None:
        super().__init__(settings)
        self.server = EmbeddedServer(create_app(self), settings.http_host, settings.http_port)

    async def run(self) -> None:
        self.mqtt.connect_background()
        self.logger.info("http_listening", host=self.settings.http_host, port=self.server.port)
        serving = self.create_task(self.server.serve(), name="http")
        await self.wait_for_shutdown()
        self.server.should_exit = True
        await serving


if __name__ == "__main__":
    raise SystemExit(run_service({{ cookiecutter.__class }}))
