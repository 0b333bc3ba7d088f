"""Take the newest versions into everything that is pinned, and prove the result.

    make refresh [ARGS="--no-upgrade --no-prove"]

- both locks and exports in templates/locks/, and the requirements of the service types
- the documents in templates/documents/
- this repository's own lock, and the version of uv in scripts/uv
- the commits of pinned actions and the digests of images, if GitHub and a registry are reachable
"""

from __future__ import annotations

import functools
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from cli import make_parser
from cookiecutter.main import cookiecutter
from refresh_documents import refresh_documents

ROOT = Path(__file__).resolve().parent.parent
TEMPLATE = ROOT / "{{cookiecutter.project_slug}}"
LOCKS = ROOT / "templates" / "locks"
SERVICE_TYPES = ROOT / "service-template" / "templates"
IMAGES = ROOT / "templates" / "images.jinja"
UV = str(TEMPLATE / "scripts" / "uv")
SLUG = "mqtt-services"
PINNED_ACTION = re.compile(r"uses: ([\w.-]+/[\w.-]+)(\S*)@([0-9a-f]{40}) # v([\d.]+)")

IMAGE = re.compile(r"(?<=: \")([\w./-]+:[\w.-]+)(@sha256:[0-9a-f]{64})?(?=\")")


def run(*command: str, cwd: Path = ROOT) -> str:
    """Run a command and return its output. Exit with its output when it fails."""
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        sys.exit(f"{' '.join(command)}: exit {done.returncode}\n{done.stdout}{done.stderr}")
    return done.stdout


def render(folder: Path, *, influxdb: bool) -> Path:
    """The generated repository without its hooks."""
    answers = {"project_slug": SLUG, "include_influxdb": influxdb}
    path = cookiecutter(
        str(ROOT), no_input=True, output_dir=str(folder), accept_hooks=False, extra_context=answers
    )
    return Path(path)


def export(project: Path, *arguments: str) -> str:
    """Requirements with hashes, the same way as the generated scripts/lock.sh exports them."""
    options = ["--quiet", "--frozen", "--no-emit-project", "--no-header", "--no-annotate"]
    return run(UV, "export", *options, *arguments, cwd=project)


def refresh_locks(*, upgrade: bool) -> None:
    """Lock with InfluxDB first, so that the lock without it keeps the same versions."""
    full = (LOCKS / "influxdb" / "uv.lock").read_text(encoding="utf-8")
    for name, influxdb in (("influxdb", True), ("core", False)):
        with tempfile.TemporaryDirectory() as folder:
            project = render(Path(folder), influxdb=influxdb)
            (project / "uv.lock").write_text(full, encoding="utf-8")
            run(
                UV, "lock", "--quiet", *(["--upgrade"] if upgrade and influxdb else []), cwd=project
            )
            if influxdb:
                full = (project / "uv.lock").read_text(encoding="utf-8")
                for group in ("http-api", "fleet"):
                    requirements = export(project, "--only-group", group)
                    path = SERVICE_TYPES / group / "requirements.txt"
                    path.write_text(requirements, encoding="utf-8")
            for file in ("uv.lock", "pyproject.toml"):
                shutil.copyfile(project / file, LOCKS / name / file)
            requirements = export(project, "--no-default-groups", "--group", "debug")
            (LOCKS / name / "requirements.txt").write_text(requirements, encoding="utf-8")


def refresh_uv() -> None:
    """Pin the version of uv that did all this, with the hashes of its wheels."""
    options = ["--no-deps", "--only-binary", ":all:", "--generate-hashes"]
    version = run(UV, "--version").split()[1]
    with tempfile.NamedTemporaryFile("w", suffix=".in") as file:
        file.write(f"uv=={version}\n")
        file.flush()
        pinned = run(UV, "pip", "compile", "--no-header", "--no-annotate", *options, file.name)
    script = TEMPLATE / "scripts" / "uv"
    text = re.sub("pinned='[^']*'", lambda _: f"pinned='{pinned.rstrip()}'", script.read_text())
    script.write_text(text)


def refresh_actions() -> None:
    """Pin each action to the commit of its newest release tag."""
    for workflow in sorted(
        [*ROOT.glob(".github/workflows/*.yml"), *TEMPLATE.glob(".github/workflows/*.yml")]
    ):
        text = workflow.read_text(encoding="utf-8")
        new = PINNED_ACTION.sub(lambda found: newest_action(*found.groups()), text)
        if new != text:
            workflow.write_text(new, encoding="utf-8")


@functools.cache
def newest_action(name: str, path: str, commit: str, version: str) -> str:
    """Return the `uses:` of the newest version, or print a note and return the old one offline."""
    listed = subprocess.run(
        ["git", "ls-remote", "--tags", f"https://github.com/{name}", "v*"],
        capture_output=True,
        text=True,
        check=False,
    )
    if listed.returncode != 0:
        print(f"{name} stays at v{version}: its tags cannot be read")
        return f"uses: {name}{path}@{commit} # v{version}"
    tags = {
        match[2]: match[1]
        for match in re.finditer(
            r"(\w{40})\trefs/tags/v(\d+\.\d+\.\d+)(?:\^\{\})?$", listed.stdout, re.M
        )
    }
    newest = max(tags, key=lambda tag: [int(part) for part in tag.split(".")], default=version)
    return f"uses: {name}{path}@{tags.get(newest, commit)} # v{newest}"


def refresh_images() -> None:
    """Pin each image to the digest that its tag has now."""
    text = IMAGES.read_text(encoding="utf-8")
    IMAGES.write_text(IMAGE.sub(newest_image, text), encoding="utf-8")


def newest_image(found: re.Match[str]) -> str:
    """Return the image with its newest digest, or the present text if no registry is in reach."""
    inspect = ["docker", "buildx", "imagetools", "inspect", "--format", "{{.Manifest.Digest}}"]
    try:
        result = subprocess.run([*inspect, found[1]], capture_output=True, text=True, check=False)
    except FileNotFoundError as error:
        sys.exit(f"{error}. Install Docker, which reads the digests of images.")
    digest = result.stdout.strip()
    if result.returncode != 0 or not re.fullmatch("sha256:[0-9a-f]{64}", digest):
        print(f"{found[0]} stays: its digest cannot be read: {result.stderr.strip()}")
        return found[0]
    return f"{found[1]}@{digest}"


def prove() -> None:
    """Both variants lint themselves and pass their tests."""
    for influxdb in ("true", "false"):
        with tempfile.TemporaryDirectory() as folder:
            run(
                *(sys.executable, "-m", "cookiecutter", "--no-input", "-o", folder, str(ROOT)),
                *(f"project_slug={SLUG}", f"include_influxdb={influxdb}"),
            )
            for target in ("lint", "test"):
                print(f"include_influxdb={influxdb}: make {target}", flush=True)
                run("make", target, cwd=Path(folder, SLUG))


def main() -> int:
    """Command line."""
    parser = make_parser(__doc__)
    parser.add_argument("--no-upgrade", action="store_true", help="keep the locked versions")
    parser.add_argument("--no-prove", action="store_true", help="do not run the result")
    options = parser.parse_args()
    refresh_locks(upgrade=not options.no_upgrade)
    refresh_documents()
    if not options.no_upgrade:
        run(UV, "lock", "--quiet", "--upgrade")
        refresh_uv()
        refresh_actions()
        refresh_images()
    if not options.no_prove:
        prove()
    print(run("git", "--no-pager", "diff", "--stat") or "Everything was current.")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
