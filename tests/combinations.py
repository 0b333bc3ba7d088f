"""The sets of answers that the tests go through."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from typing import Any

import pytest

from tests.baked import ROOT

PROMPTS: dict[str, Any] = json.loads((ROOT / "cookiecutter.json").read_text(encoding="utf-8"))

DEFAULTS = {name: value[0] if isinstance(value, list) else value for name, value in PROMPTS.items()}

# The answers that choose among files and lines. All others are free text or names.
CHOICES: dict[str, list[Any]] = {
    "include_home_assistant": [True, False],
    "include_influxdb": [True, False],
    "first_service_type": sorted(PROMPTS["first_service_type"]),
    "license": sorted(PROMPTS["license"]),
    "python_version": PROMPTS["python_version"],
}


def combinations() -> Iterator[dict[str, Any]]:
    """Every Home Assistant x InfluxDB x service type, and every pair of any two answers."""
    names = list(CHOICES)
    interacting = itertools.product(*(CHOICES[name] for name in names[:3]))
    for number, chosen in enumerate(interacting):
        licence = CHOICES["license"][(number + number // 3) % 3]
        python = CHOICES["python_version"][(number + 2 * (number // 3)) % 3]
        yield dict(zip(names, (*chosen, licence, python), strict=True))


def label(answers: dict[str, Any]) -> str:
    """Such as `ha-influx-poller-MIT-3.13`."""
    parts = [
        "ha" if answers["include_home_assistant"] else "",
        "influx" if answers["include_influxdb"] else "",
        *(answers[name] for name in ("first_service_type", "license", "python_version")),
    ]
    return "-".join(part for part in parts if part)


COMBINATIONS = [pytest.param(answers, id=label(answers)) for answers in combinations()]

# Every choice of clients, every service type and every Python version, for tests that take long.
# The first one has the version of most other tests, so that they share an environment.
_TYPES = len(CHOICES["first_service_type"])
REPRESENTATIVES = [COMBINATIONS[number * _TYPES + 2 * number % _TYPES] for number in range(4)]

# The code depends on these options. Licence and service type change other files only.
OPTIONS = [
    pytest.param(
        {"include_home_assistant": home_assistant, "include_influxdb": influxdb},
        id=f"{'ha' if home_assistant else 'no-ha'}-{'influx' if influxdb else 'no-influx'}",
    )
    for home_assistant, influxdb in itertools.product([True, False], repeat=2)
]
