"""Write docs/images/first-messages.svg, a recording of the first commands of the README.

It runs them in a new repository below the temporary directory, from the last commit of this one.
Pauses are shortened. It needs Mosquitto and the port 1883.
"""

from __future__ import annotations

import io
import os
import pty
import re
import shutil
import subprocess
import tempfile
import time
from pathlib import Path

from cli import make_parser
from rich.console import Console
from rich.text import Text

ROOT = Path(__file__).resolve().parent.parent
RECORDING = ROOT / "docs/images/first-messages.svg"
HOME = Path(tempfile.gettempdir(), "demo")
NEW = ("make new NO_INPUT=1 ARGS=include_influxdb=false", "template")
RUN = ("make run SERVICE=example-service", "homelab-services")
WATCH = ("make watch", "homelab-services")
COLUMNS = 94
LONGEST_PAUSE_SECONDS = 0.8
STYLE = """text { animation: show 1ms both; }
@keyframes show { from { visibility: hidden; } }
@media (prefers-reduced-motion: reduce) { text { animation: none; } }"""


class Terminal:
    """A command in a terminal of its own."""

    def __init__(self, command: str, directory: str) -> None:
        now = time.monotonic()
        self.lines = [(now, ""), (now, f"\033[1;32m$\033[0m {command}")]
        environment = {**os.environ, "TERM": "xterm", "COLUMNS": str(COLUMNS)}
        environment.pop("VIRTUAL_ENV", None)
        self._output, side = pty.openpty()
        self._process = subprocess.Popen(
            command.split(), cwd=HOME / directory, env=environment, stdout=side, stderr=side
        )
        os.close(side)

    def read(self, until: str = "") -> None:
        """Read lines up to one that has the text, or to the end."""
        rest = b""
        while not (until and any(until in line for _, line in self.lines)):
            try:
                rest += os.read(self._output, 1 << 16)
            except OSError:
                # Linux reports the end of a terminal in this way.
                return
            *whole, rest = rest.split(b"\r\n")
            self.lines += [(time.monotonic(), line.decode()) for line in whole]

    def stop(self) -> None:
        """End the command as Ctrl-C does."""
        self._process.terminate()
        self._process.wait()


def record() -> list[tuple[float, str]]:
    """Run the commands and return their lines."""
    shutil.rmtree(HOME, ignore_errors=True)
    for source, target in ((ROOT, "template.git"), (HOME / "template.git", "template")):
        bare = ["--bare"] if target.endswith(".git") else []
        subprocess.run(["git", "clone", "--quiet", *bare, source, HOME / target], check=True)
    new = Terminal(*NEW)
    new.read()
    service = Terminal(*RUN)
    service.read(until="reading_published")
    watcher = Terminal(*WATCH)
    watcher.read(until="/reading")
    watcher.stop()
    service.stop()
    shown = []
    for terminal in (new, service, watcher):
        shown += terminal.lines
    return [(moment, line) for moment, line in shown if "Installing uv" not in line]


def draw(lines: list[tuple[float, str]]) -> str:
    """Return the picture. Each of its lines appears when its time has come."""
    console = Console(record=True, width=COLUMNS, file=io.StringIO(), force_terminal=True)
    delays: list[float] = []
    now, before = 0.0, lines[0][0]
    for moment, line in lines:
        now += min(max(moment - before, 0.03), LONGEST_PAUSE_SECONDS)
        before = moment
        text = Text.from_ansi(line)
        delays += [now] * len(text.wrap(console, COLUMNS))
        console.print(text)
    picture = console.export_svg(title="The first messages", unique_id="r")
    picture = re.sub(r"@font-face \{.*?\}", "", picture, flags=re.DOTALL)
    picture = picture.replace("<style>", f"<style>{STYLE}", 1)

    def delayed(match: re.Match[str]) -> str:
        return f'{match[0]} style="animation-delay:{delays[int(match[1])]:.2f}s"'

    return re.sub(r'clip-path="url\(#r-line-(\d+)\)"', delayed, picture)


if __name__ == "__main__":
    make_parser(__doc__).parse_args()
    RECORDING.write_text(draw(record()), encoding="utf-8")
