"""The page of the fleet service in a real browser, with services that run on this machine."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import pytest
from filelock import FileLock
from playwright.sync_api import Browser, Page, expect

from tests.baked import ROOT, BakedProject, run
from tests.conftest import Bake
from tests.fleet_stack import FleetStack, chromium, log_in, running_stack
from tests.tools import needs

# One stack and one browser, in one process.
pytestmark = [
    pytest.mark.real,
    pytest.mark.slow,
    pytest.mark.xdist_group("fleet"),
    needs("chromium", "mosquitto", "npm"),
]
AXE = "axe-core@4.14.1"
HOSTILE = '<img src=x onerror="window.hacked=1"><script>window.hacked=1</script><b>bold</b>'
PATIENCE_MILLISECONDS = 30_000
expect.set_options(timeout=PATIENCE_MILLISECONDS)
VIEWS = ("services", "service=example-service", "dead-letters", "trace=t")


@pytest.fixture(scope="module")
def stack(bake: Bake, tmp_path_factory: pytest.TempPathFactory) -> Iterator[FleetStack]:
    original = bake(include_home_assistant=False, include_influxdb=False)
    path = tmp_path_factory.mktemp("fleet") / original.path.name
    run("cp", "--archive", original.path, path)
    project = BakedProject(path, original.answers, original.environments)
    with running_stack(project) as stack:
        yield stack


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as browser:
        yield browser


@pytest.fixture
def page(browser: Browser, stack: FleetStack) -> Iterator[Page]:
    """The page after the login. Every request it makes goes to the service itself."""
    context = browser.new_context()
    page = context.new_page()
    page.set_default_timeout(PATIENCE_MILLISECONDS)
    requests: list[str] = []
    errors: list[str] = []
    page.on("request", lambda request: requests.append(request.url))
    page.on("pageerror", lambda error: errors.append(str(error)))
    log_in(page, stack)
    yield page
    context.close()
    assert all(url.startswith(stack.url) for url in requests)
    assert errors == []


def row(page: Page, name: str) -> Any:
    return page.locator("#rows > li").filter(has=page.get_by_role("link", name=name, exact=True))


def publish(stack: FleetStack, topic: str, **fields: Any) -> None:
    with stack.client() as client:
        client.publish(f"homelab-services/{topic}", json.dumps(fields), qos=1).wait_for_publish(10)


def beat(stack: FleetStack, name: str, **fields: Any) -> None:
    content = {"status": "online", "uptime_seconds": 5, "memory_mb": 40, **fields}
    publish(stack, f"{name}/heartbeat", **content)


def fail(stack: FleetStack, name: str, **fields: Any) -> None:
    letter = {
        "service": name,
        "original_topic": f"homelab-services/{name}/reading",
        "payload": "{}",
        "error_type": "ValueError",
        "error": "no value",
        **fields,
    }
    publish(stack, f"errors/{name}", **letter)


def choose_kind(page: Page, name: str) -> None:
    kind = page.locator("#filter option").filter(has_text=re.compile(f"^{name}: ")).first
    page.get_by_label("Kind").select_option(value=kind.get_attribute("value"))


def test_the_failure_is_seen_fixed_and_replayed(stack: FleetStack, page: Page) -> None:
    """Act as a new user, with one of three services failing on purpose."""
    stack.break_listener()
    for name in ("example-service", "fleet", "listener"):
        expect(row(page, name)).to_contain_text("online")
    expect(page.locator("#count")).not_to_have_text("0")
    page.get_by_role("link", name="Dead letters").click()
    letter = page.locator("#letters > li").first
    expect(letter).to_contain_text("ValueError: the scale is missing")
    # The readings go on while the code is fixed.
    page.get_by_role("link", name="Services").click()
    stack.stop("listener")
    expect(row(page, "listener")).to_contain_text("stopped")
    stack.fix_listener()
    stack.start("listener")
    expect(row(page, "listener")).to_contain_text("online")
    page.get_by_role("link", name="Dead letters").click()
    letter.get_by_role("button", name="Replay to every subscriber").click()
    expect(page.locator("#result")).to_contain_text("The broker has it")
    choose_kind(page, "listener")
    page.get_by_role("button", name="Replay all of this kind").click()
    expect(page.locator("#result")).to_contain_text(re.compile(r"Replayed \d+\."))
    expect(page.locator("#count")).to_have_text("0")
    expect(page.locator("#letters")).to_contain_text("There are none.")
    # The fixed handler got the replays: it counts the readings.
    page.goto(f"{stack.url}#service=listener")
    page.get_by_role("button", name="Send statistics").click()
    expect(page.locator("#result")).to_contain_text("listener replied to statistics: ok")


def test_rows_appear_and_change_live(stack: FleetStack, page: Page) -> None:
    beat(stack, "meter")
    expect(row(page, "meter")).to_contain_text("online")
    beat(stack, "meter", status="degraded", reasons=["the disk is full"], version="1.2.3")
    expect(row(page, "meter")).to_contain_text("the disk is full")
    expect(row(page, "meter")).to_contain_text("version 1.2.3")
    # Nobody sends its heartbeats any more.
    expect(row(page, "meter")).to_contain_text("no heartbeat")
    publish(stack, "meter/availability", status="offline", reason="connection_lost")
    expect(row(page, "meter")).to_contain_text("connection_lost")


def test_html_and_script_stay_text(stack: FleetStack, page: Page) -> None:
    beat(stack, "hostile", status=HOSTILE, reasons=[HOSTILE], version=HOSTILE)
    expect(row(page, "hostile")).to_contain_text(HOSTILE)
    publish(stack, f"hostile/{HOSTILE.replace('/', '')}", trace_id=HOSTILE)
    fields = ("service", "original_topic", "payload", "error_type", "error", "trace_id")
    fail(stack, "hostile", **dict.fromkeys(fields, HOSTILE))
    # The service has seen all messages before this one.
    beat(stack, "hostile")
    expect(row(page, "hostile")).to_contain_text("online")
    page.goto(f"{stack.url}#service=hostile")
    page.locator("#topics summary").filter(has_text="<img").click()
    page.get_by_role("link", name="Follow the trace").first.click()
    expect(page.locator("#messages")).to_contain_text("<img")
    page.get_by_role("link", name="Dead letters").click()
    letter = page.locator("#letters > li").filter(has_text=f"{HOSTILE}: {HOSTILE}")
    expect(letter).to_be_visible()
    for element in ("img", "b", "main script"):
        expect(page.locator(element)).to_have_count(0)
    assert page.evaluate("window.hacked") is None
    letter.get_by_role("button", name="Discard").click()
    expect(page.locator("#result")).to_have_text("Discarded.")


def test_what_is_redrawn_can_be_clicked(stack: FleetStack, page: Page) -> None:
    fail(stack, "meter", payload="first")
    page.get_by_role("link", name="Dead letters").click()
    first = page.locator("#letters > li").filter(has_text="first").element_handle()
    for number in range(20):
        beat(stack, "meter")
        fail(stack, "meter", payload=f"letter {number}")
    expect(page.locator("#letters > li").filter(has_text="letter 19")).to_be_visible()
    assert first is not None
    button = first.query_selector("button:has-text('Discard')")
    assert button is not None
    button.click()
    expect(page.locator("#result")).to_have_text("Discarded.")
    choose_kind(page, "meter")
    page.get_by_role("button", name="Discard all of this kind").click()
    expect(page.locator("#result")).to_have_text("Discarded 20. ")
    page.get_by_role("link", name="Services").click()
    handle = row(page, "example-service").get_by_role("link").element_handle()
    before = row(page, "example-service").inner_text()
    expect(row(page, "example-service")).not_to_have_text(before)
    handle.click()
    expect(page.locator("#service-title")).to_have_text("example-service")


def test_a_stopped_broker_shows_and_heals(stack: FleetStack, page: Page) -> None:
    stack.stop("broker")
    expect(page.get_by_text("No connection to the broker")).to_be_visible()
    stack.start_broker()
    expect(page.get_by_text("Live", exact=True)).to_be_visible()
    expect(row(page, "example-service")).to_contain_text("online")


def test_the_page_heals_after_a_restart(stack: FleetStack, page: Page) -> None:
    stack.stop("fleet")
    expect(page.get_by_text("No connection to this service")).to_be_visible()
    assert "Traceback" not in stack.log("fleet")
    # The stop has ended the open stream of the page, and has not waited for its timeout.
    assert "graceful shutdown exceeded" not in stack.log("fleet")
    # A letter of its downtime arrives as well, because the broker keeps the session.
    fail(stack, "meter", payload="meanwhile")
    stack.start("fleet")
    expect(page.get_by_text("Live", exact=True)).to_be_visible()
    page.get_by_role("link", name="Dead letters").click()
    expect(page.locator("#letters")).to_contain_text("meanwhile")


def test_everything_works_with_the_keyboard_alone(stack: FleetStack, page: Page) -> None:
    fail(stack, "meter", payload="by keyboard")
    page.locator("nav a").first.focus()
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    expect(page.locator("#letters-title")).to_be_focused()
    expect(page.locator("#letters")).to_contain_text("by keyboard")
    press_tab_until(page, "Discard")
    page.keyboard.press("Enter")
    expect(page.locator("#result")).to_have_text("Discarded.")
    expect(page.locator("#letters")).not_to_contain_text("by keyboard")
    page.locator("nav a").first.focus()
    page.keyboard.press("Enter")
    expect(page.locator("#services-title")).to_be_focused()
    press_tab_until(page, "example-service")
    page.keyboard.press("Enter")
    expect(page.locator("#service-title")).to_be_focused()
    press_tab_until(page, "Send refresh")
    page.keyboard.press("Enter")
    expect(page.locator("#result")).to_contain_text("replied to refresh: ok")


def press_tab_until(page: Page, text: str) -> None:
    for _ in range(60):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.textContent") == text:
            return
    raise AssertionError(f"no key leads to {text}")


def test_it_fits_360_pixels(stack: FleetStack, page: Page) -> None:
    page.set_viewport_size({"width": 360, "height": 740})
    fail(stack, "meter", payload="x" * 500, error="y" * 500)
    for view in VIEWS:
        page.goto(f"{stack.url}#{view}")
        expect(page.locator("main > section:visible")).to_have_count(1)
        assert page.evaluate("document.documentElement.scrollWidth") <= 360, view


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing_serious(stack: FleetStack, page: Page, scheme: Any) -> None:
    page.emulate_media(color_scheme=scheme)
    fail(stack, "meter")
    beat(stack, "meter", status="degraded", reasons=["no disk"])
    for view in VIEWS:
        page.goto(f"{stack.url}#{view}")
        expect(page.locator("main > section:visible")).to_have_count(1)
        page.evaluate(axe_script())
        found = page.evaluate("axe.run().then((results) => results.violations)")
        serious = [one for one in found if one["impact"] in {"serious", "critical"}]
        assert [(one["id"], one["nodes"][0]["html"]) for one in serious] == [], view


def axe_script() -> str:
    """Return the script, which npm installs once, into .tools/."""
    place = ROOT / ".tools/axe"
    place.mkdir(parents=True, exist_ok=True)
    script = place / "node_modules/axe-core/axe.min.js"
    with FileLock(place / "lock"):
        if not script.exists():
            run("npm", "install", "--silent", "--no-audit", "--no-fund", AXE, cwd=place)
    return script.read_text(encoding="utf-8")
