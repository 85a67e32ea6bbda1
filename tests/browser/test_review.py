"""What a reviewer and an engineer see in MLflow's own pages, in a real browser.

One server and one version for all: ada is the engineer who submitted it. Pictures of each stage
lie in build/screenshots.
"""

import os
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, Response, expect, sync_playwright
from tests.forked import dpoflow_command
from tests.gate import ADMIN, API, ROOT, GateServer, password_of, record
from tests.waiting import AT_MOST_S

from dpoflow.contracts.results import Gate
from dpoflow.pages import document, table

pytestmark = pytest.mark.full

PICTURES = ROOT / "build" / "screenshots"
MODEL = "small"
HEADINGS = {
    "report.html": "Answers beside those of the base",
    "merge.html": "36 of 36 rows kept",
    "validate.html": "48 of 48 rows kept",
}
PATIENCE_MS = 1000 * AT_MOST_S
"""For a page of MLflow."""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GateServer]:
    server = GateServer(tmp_path_factory.mktemp("gate"))
    try:
        yield server.start()
    finally:
        server.kill()


def environment_of(server: GateServer, user: str) -> dict[str, str]:
    return {
        **server.environment,
        "MLFLOW_TRACKING_URI": server.url,
        "MLFLOW_TRACKING_USERNAME": user,
        "MLFLOW_TRACKING_PASSWORD": password_of(user),
        "NO_PROXY": "127.0.0.1",
    }


@pytest.fixture(scope="module")
def candidate(server: GateServer, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A version that ada submitted, with pages such as the steps write."""
    ada, folder = server.person("ada"), tmp_path_factory.mktemp("job")
    pages = {
        name: document(heading, f"<h1>{heading}</h1>" + table(("prompt", "answer"), [("a", "b")]))
        for name, heading in HEADINGS.items()
    }
    gates = [
        Gate(name="win_rate", asked="lower bound > 0.5", seen="0.705 [0.590, 0.811]", passed=True),
        Gate(
            name="no_contamination",
            asked="nothing asked here was trained on",
            seen="0",
            passed=True,
        ),
    ]
    pages["MLmodel"] = "flavors: {}\n"  # MLflow's page looks for it
    submission = ada.submit(MODEL)
    made = record(ada, folder / "v", MODEL, submission=submission, pages=pages, gates=gates)
    return made.version


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    chromium = shutil.which("chromium")
    assert chromium, "these tests drive Debian's chromium: apt-get install chromium"
    PICTURES.mkdir(parents=True, exist_ok=True)
    with sync_playwright() as playwright:
        as_root = ["--no-sandbox"] if os.geteuid() == 0 else []  # chromium's sandbox refuses root
        started = playwright.chromium.launch(executable_path=chromium, args=as_root)
        yield started
        started.close()


@dataclass
class Visitor:
    """One user in front of a browser."""

    server: GateServer
    user: str
    page: Page
    refused: list[str] = field(default_factory=list)
    """What the server answered with an error of its own, or of the gate's: JSON.

    Basic-auth refuses in plain text, a search for traces that MLflow's page sends before it knows
    the experiment, for one.
    """

    def open(self, route: str) -> Page:
        self.page.goto(f"{self.server.url}/#/{route}")
        return self.page

    def open_version(self, version: str) -> Page:
        page = self.open(f"models/{MODEL}/versions/{version}")
        expect(page.get_by_text("To decide:")).to_be_visible()
        return page

    def add_tag(self, name: str, value: str) -> None:
        """As the page's own Tags section does it."""
        self.page.get_by_placeholder("Name", exact=True).fill(name)
        self.page.get_by_placeholder("Value", exact=True).fill(value)
        self.page.get_by_test_id("add-tag-button").click()

    def heard(self, response: Response) -> None:
        if response.status >= 400 and "json" in response.headers.get("content-type", ""):
            self.refused.append(f"{response.status} {response.request.method} {response.url}")


@pytest.fixture
def visit(browser: Browser, server: GateServer) -> Iterator["Visits"]:
    visits = Visits(browser, server)
    yield visits
    visits.end()


class Visits:
    """A context of its own for each user, who logs in once."""

    def __init__(self, browser: Browser, server: GateServer) -> None:
        self._browser, self._server = browser, server
        self._ends: list[Callable[[], None]] = []

    def by(self, user: str) -> Visitor:
        context = self._browser.new_context(
            http_credentials={"username": user, "password": password_of(user)},
            viewport={"width": 1440, "height": 1000},
        )
        context.set_default_timeout(PATIENCE_MS)
        expect.set_options(timeout=PATIENCE_MS)
        self._ends.append(context.close)
        visitor = Visitor(self._server, user, context.new_page())
        context.on("response", visitor.heard)
        return visitor

    def end(self) -> None:
        for end in self._ends:
            end()


def take(page: Page, name: str) -> None:
    page.screenshot(path=PICTURES / f"{name}.png")


def champion(server: GateServer) -> str | None:
    """By another way than the browser."""
    told = server.person(ADMIN).get(f"{API}/registered-models/get", name=MODEL).json()
    aliases = told["registered_model"].get("aliases", [])
    return next((each["version"] for each in aliases if each["alias"] == "champion"), None)


def test_an_engineer_who_approves_is_refused_and_reads_why_on_the_page(
    server: GateServer, candidate: str, visit: Visits
) -> None:
    ada = visit.by("ada")
    page = ada.open_version(candidate)

    ada.add_tag("approval", "approve: reads well")

    told = page.get_by_text("Only reviewers approve or reject, and ada is none")
    expect(told.first).to_be_visible()
    take(page, "engineer-refused")
    rows = server.rows(action="tag-version", outcome="denied", subject=f"{MODEL}/{candidate}")
    assert [row["actor"] for row in rows] == ["ada"]
    page.reload()
    expect(page.get_by_text("dpoflow.verdict", exact=True)).to_be_visible()
    assert page.get_by_text("approve: reads well").count() == 0


def test_promote_model_of_the_page_is_refused_in_its_own_dialog(
    server: GateServer, candidate: str, visit: Visits
) -> None:
    server.person("ada").post(f"{API}/registered-models/create", name="elsewhere")
    ada = visit.by("ada")
    page = ada.open_version(candidate)
    page.get_by_role("button", name="Promote model").click()
    dialog = page.get_by_role("dialog")
    dialog.get_by_role("combobox").click()
    page.get_by_text("elsewhere", exact=True).click()

    dialog.get_by_role("button", name="Promote", exact=True).click()

    expect(page.get_by_text("A version is not promoted by copying it").first).to_be_visible()
    take(page, "engineer-promote-model")
    assert champion(server) is None


def test_a_reviewer_reads_approves_and_sees_champion_move(
    server: GateServer, candidate: str, visit: Visits
) -> None:
    rita = visit.by("rita")
    page = rita.open("")
    page.get_by_text("Model training", exact=True).first.click()
    page.get_by_role("link", name="Model registry").click()
    expect(page.get_by_role("link", name=MODEL, exact=True)).to_be_attached()
    page = rita.open_version(candidate)
    words = page.locator("body").inner_text()
    assert re.search(
        r"Description[^:]*\npromote: It won on 61 prompts.*\n+To decide: open Tags", words
    )
    take(page, "reviewer-version")

    with page.expect_popup() as opened:
        page.get_by_role("link", name="the files of this version").click()
    for file, heading in HEADINGS.items():
        _read(opened.value, file, heading)
    opened.value.close()
    rita.add_tag("approval", "approve: reads well")
    expect(page.get_by_role("cell", name="approve: reads well")).to_be_visible()
    take(page, "reviewer-approved")
    assert champion(server) is None  # an approval by itself moves nothing

    _promote(server)

    page.reload()
    expect(page.get_by_role("status", name="champion")).to_be_visible()
    page.get_by_role("status", name="champion").scroll_into_view_if_needed()
    take(page, "reviewer-champion")
    assert champion(server) == candidate
    assert rita.refused == []


def _read(page: Page, file: str, heading: str) -> None:
    """A report in MLflow's own viewer."""
    page.get_by_text(file, exact=True).click()
    inside = page.frame_locator("iframe")
    expect(inside.get_by_role("heading", name=heading).first).to_be_visible()
    take(page, f"reviewer-{Path(file).stem}")


def _promote(server: GateServer) -> None:
    done = subprocess.run(
        [*dpoflow_command(), "review", "promote"],
        env=environment_of(server, "prom"),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_nothing_that_a_reviewer_looks_at_is_refused(
    server: GateServer, candidate: str, visit: Visits
) -> None:
    before = len(server.rows(outcome="denied"))
    rita = server.person("rita")
    source = rita.get(f"{API}/model-versions/get", name=MODEL, version=candidate).json()
    run = source["model_version"]["run_id"]
    routes = [
        *("", "experiments", "models", f"models/{MODEL}", "prompts", "settings/general"),
        *(f"experiments/1/{tab}" for tab in ("runs", "traces", "models", "datasets", "judges")),
        *(f"experiments/1/runs/{run}{tab}" for tab in ("", "/model-metrics", "/artifacts")),
    ]
    looking = visit.by("rita")
    for route in routes:
        with looking.page.expect_response(re.compile(r"/(ajax-api|graphql)"), timeout=PATIENCE_MS):
            looking.open(route)
            looking.page.reload()
        looking.page.wait_for_timeout(1500)  # a page asks for more once it has its first answer
        take(
            looking.page,
            f"looking-{route.replace('/', '-').replace(run, 'run') or 'home'}",
        )

    assert looking.refused == []
    assert len(server.rows(outcome="denied")) == before
