"""Validate announcements with the schemas of Home Assistant, whose Python runs this program.

`python validate_discovery.py FILE...` prints one line for each problem. With `--units` it prints
the units of each device class as JSON instead.
"""

import asyncio
import importlib
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from homeassistant.components.mqtt.discovery import TOPIC_MATCHER, _merge_common_device_options
from homeassistant.components.mqtt.schemas import DEVICE_DISCOVERY_SCHEMA
from homeassistant.components.sensor import const as sensor
from homeassistant.components.sensor.const import DEVICE_CLASS_STATE_CLASSES, DEVICE_CLASS_UNITS
from homeassistant.core import HomeAssistant
from homeassistant.helpers import frame
from voluptuous import Invalid


def find_problems(config: dict[str, Any]) -> list[str]:
    try:
        DEVICE_DISCOVERY_SCHEMA(config)
    except Invalid as error:
        return [str(error)]
    problems = []
    (identifier,) = config["device"]["identifiers"]
    if not TOPIC_MATCHER.fullmatch(f"device/{identifier}/config"):
        problems.append(f"{identifier}: not valid in a topic")
    for key, component in config["components"].items():
        options = dict(component)
        platform = importlib.import_module(
            f"homeassistant.components.mqtt.{options.pop('platform')}"
        )
        wanted = set(options)
        options |= {"device": config["device"], "origin": config["origin"]}
        _merge_common_device_options(options, config)
        try:
            checked = platform.DISCOVERY_SCHEMA(options)
        except Invalid as error:
            problems.append(f"{key}: {error}")
            continue
        problems += [f"{key}: {option} is unknown" for option in sorted(wanted - set(checked))]
        device_class = checked.get("device_class")
        if platform.__name__.endswith(".sensor") and device_class in DEVICE_CLASS_UNITS:
            if checked.get("unit_of_measurement") not in DEVICE_CLASS_UNITS[device_class]:
                problems.append(f"{key}: unit of {device_class}")
            state_class = checked.get("state_class")
            if state_class and state_class not in DEVICE_CLASS_STATE_CLASSES[device_class]:
                problems.append(f"{key}: state class of {device_class}")
    return problems


async def main(arguments: list[str]) -> int:
    # Templates are checked by an instance.
    frame.async_setup(HomeAssistant(tempfile.gettempdir()))
    if arguments == ["--units"]:
        units = {
            str(each): sorted(str(unit or "") for unit in DEVICE_CLASS_UNITS.get(each, [""]))
            for each in sensor.SensorDeviceClass
        }
        print(json.dumps(units))
        return 0
    problems = [
        f"{name}: {problem}"
        for name in arguments
        for problem in find_problems(json.loads(Path(name).read_text(encoding="utf-8")))
    ]
    print(*problems, sep="\n")
    return int(bool(problems))


if __name__ == "__main__":
    raise SystemExit(asyncio.run(main(sys.argv[1:])))
