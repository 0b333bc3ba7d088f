"""Cost of the fleet service: 100 services with a heartbeat a second, and 10,000 dead letters.

Run with `uv run --frozen python bench/fleet.py`, which needs Mosquitto and Chromium. It prints a
Markdown table.
"""

from __future__ import annotations

import json
import os
import sqlite3
import statistics
import sys
import threading
import time
from pathlib import Path

from paho.mqtt.client import Client

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from tests.fleet_stack import PREFIX, FleetStack, chromium, log_in, new_repository  # noqa: E402
from tests.stack import until  # noqa: E402

SERVICES, LETTERS, BATCH = 100, 10_000, 500
SECONDS, VIEWS = 20.0, 5


def send_heartbeats(client: Client, stopped: threading.Event) -> None:
    """One heartbeat of each service a second, spread evenly."""
    number = 0
    while not stopped.wait(1 / SERVICES):
        name = f"service-{number % SERVICES:03}"
        memory = 40 + number // SERVICES % 7
        beat = {"status": "online", "uptime_seconds": number, "memory_mb": memory}
        client.publish(f"{PREFIX}/{name}/heartbeat", json.dumps({**beat, "trace_id": str(number)}))
        number += 1


def send_letters(client: Client, stack: FleetStack) -> None:
    """In batches, because the broker queues 1,000 messages for a subscriber."""
    for start in range(0, LETTERS, BATCH):
        for number in range(start, start + BATCH):
            letter = {
                "service": f"service-{number % 10:03}",
                "trace_id": str(number),
                "original_topic": f"{PREFIX}/meter/{number % 10}/reading",
                "payload": json.dumps({"value": number, "text": "x" * 300}),
                "error_type": "ValueError",
                "error": f"no value in {number}",
            }
            client.publish(f"{PREFIX}/errors/meter", json.dumps(letter), qos=1)
        until(lambda reached=start + BATCH: kept(stack) >= reached, "the letters")  # type: ignore[misc]


def kept(stack: FleetStack) -> int:
    path = stack.project.file(".data/fleet/letters.sqlite3")
    with sqlite3.connect(path) as database:
        count: int = database.execute("SELECT count(*) FROM letters").fetchone()[0]
    return count


def cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def memory_mb(pid: int) -> float:
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.partition("VmRSS:")[2].split()[0]) / 1024


def core_share(pid: int) -> float:
    """Percent of one core over some seconds."""
    before, started = cpu_seconds(pid), time.monotonic()
    time.sleep(SECONDS)
    return 100 * (cpu_seconds(pid) - before) / (time.monotonic() - started)


def main() -> None:
    """Measure with and without an open page."""
    with new_repository() as project:
        stack = FleetStack(project)
        try:
            measure(stack)
        finally:
            stack.close()


def measure(stack: FleetStack) -> None:
    stack.start_broker()
    stack.start("fleet")
    until(lambda: "mqtt_connected" in stack.log("fleet"), "the fleet service")
    pid, stopped = stack.processes["fleet"].pid, threading.Event()
    with stack.client() as client, chromium() as browser:
        started = time.monotonic()
        send_letters(client, stack)
        letters_per_second = LETTERS / (time.monotonic() - started)
        beats = threading.Thread(target=send_heartbeats, args=(client, stopped))
        beats.start()
        time.sleep(3)
        closed = core_share(pid)
        page = browser.new_page()
        log_in(page, stack)
        opened = core_share(pid)
        times: dict[str, list[float]] = {"services": [], "dead-letters": []}
        for view, row in (("services", "#rows > li"), ("dead-letters", "#letters > li time")):
            for _ in range(VIEWS):
                page.goto("about:blank")
                started = time.monotonic()
                page.goto(f"{stack.url}#{view}")
                page.locator(row).nth(49).wait_for()
                times[view].append(1000 * (time.monotonic() - started))
        stopped.set()
        beats.join()
    print("| | measured | goal |\n|---|---:|---:|")
    print(f"| CPU without a page (% of one core) | {closed:.1f} | < 10 |")
    print(f"| CPU with a page (% of one core) | {opened:.1f} | < 10 |")
    print(f"| memory (MiB) | {memory_mb(pid):.0f} | < 80 |")
    for view, milliseconds in times.items():
        print(f"| first view of {view} (ms) | {statistics.median(milliseconds):.0f} | < 300 |")
    print(f"| letters kept a second | {letters_per_second:.0f} | |")


if __name__ == "__main__":
    main()
