"""Metrics for Prometheus, computed when they are read."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, get_args, override

from prometheus_client import CollectorRegistry
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector
from schemas import State

if TYPE_CHECKING:
    from main import {{ cookiecutter.__class }}


class FleetCollector(Collector):
    """State of each service, and the dead letters."""

    def __init__(self, service: "{{ cookiecutter.__class }}") -> None:
        self._service = service

    @override
    def collect(self) -> Iterator[Metric]:
        fleet = self._service.fleet
        state = GaugeMetricFamily(
            "fleet_service_state", "1 for the state of the service", labels=["service", "state"]
        )
        memory = GaugeMetricFamily(
            "fleet_service_memory_bytes", "Resident memory", labels=["service"]
        )
        uptime = GaugeMetricFamily(
            "fleet_service_uptime_seconds", "Time since the start", labels=["service"]
        )
        seen = GaugeMetricFamily(
            "fleet_service_last_seen_timestamp_seconds", "Last message", labels=["service"]
        )
        for row in fleet.rows():
            for name in get_args(State):
                state.add_metric([row.name, name], float(row.state == name))
            if row.memory_mb is not None:
                memory.add_metric([row.name], row.memory_mb * 2**20)
            if row.uptime_seconds is not None:
                uptime.add_metric([row.name], row.uptime_seconds)
            if row.last_seen is not None:
                seen.add_metric([row.name], row.last_seen.timestamp())
        letters = GaugeMetricFamily("fleet_dead_letters", "Kept dead letters", labels=["kind"])
        for kind in self._service.letters.counts():
            letters.add_metric([kind.kind], kind.count)
        connected = GaugeMetricFamily("fleet_connected", "1 while the broker can be reached")
        connected.add_metric([], float(fleet.connected))
        yield from (state, memory, uptime, seen, letters, connected)


def make_registry(service: "{{ cookiecutter.__class }}") -> CollectorRegistry:
    """Return a registry without the metrics of this process."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(FleetCollector(service))
    return registry
