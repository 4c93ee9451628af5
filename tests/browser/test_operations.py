"""The page of operations in headless Chromium: seen with a key or on this machine, its buttons do what they say."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Locator, Page, ViewportSize, expect, sync_playwright
from sqlalchemy import update

from pipeline.encoding.encoder import Encoder
from pipeline.korean.morphemes import Analyser
from pipeline.storage import jobs, tables
from tests.api_server import ARTICLES, KEY, READ_KEY, ApiServer, running, settings_in

_CHROMIUM = Path("/usr/bin/chromium")
_PATIENCE = 120_000  # milliseconds
_PHONE: ViewportSize = {"width": 360, "height": 740}
_DESK: ViewportSize = {"width": 1280, "height": 900}
_HOSTILE = "<script>document.title='당함'</script> <img src=x onerror=alert(1)> " + "긴오류" * 200
NEWS, BLOG = "source:news", "source:블로그"

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(not _CHROMIUM.exists(), reason="needs Chromium: apt-get install chromium"),
]


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    arguments = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=str(_CHROMIUM), args=arguments, timeout=_PATIENCE)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def open_server(tmp_path_factory: pytest.TempPathFactory, analyser: Analyser, encoder: Encoder) -> Iterator[ApiServer]:
    """A service without keys."""
    settings = settings_in(tmp_path_factory.mktemp("operations"), api={"keys": []})
    with running(settings, analyser, encoder) as server:
        server.publish(ARTICLES[:2])
        yield server


@pytest.fixture(params=["with keys, phone, no scripts", "without keys, desk"])
def server(request: pytest.FixtureRequest) -> ApiServer:
    """A service with two jobs, of which one failed, and two articles that failed."""
    found: ApiServer = request.getfixturevalue("api_server" if "with keys" in request.param else "open_server")
    database = found.assembly.database
    jobs.ensure(database, [])
    jobs.ensure(database, [NEWS, BLOG])
    jobs.started(database, NEWS)
    jobs.finished(database, NEWS, {"accepted": 12}, _HOSTILE)
    failing = update(tables.articles).where(tables.articles.c.id.in_(["transfer", "phishing"]))
    with database.write() as connection:
        connection.execute(failing.values(status="failed", error=_HOSTILE))
    return found


@pytest.fixture
def page(request: pytest.FixtureRequest, browser: Browser, server: ApiServer) -> Iterator[Page]:
    context = browser.new_context(
        viewport=_DESK if "desk" in request.node.callspec.params["server"] else _PHONE,
        java_script_enabled="desk" in request.node.callspec.params["server"],
        base_url=server.url,
        http_credentials={"username": "anyone", "password": KEY},
    )
    context.set_default_timeout(_PATIENCE)
    page = context.new_page()
    page.goto("/operations")
    yield page
    context.close()


def _row(page: Page, job: str) -> Locator:
    return page.get_by_role("row").filter(has=page.get_by_role("rowheader", name=job))


def test_the_page_tells_where_everything_stands(server: ApiServer, page: Page) -> None:
    (reader,) = page.get_by_role("region", name="답하는 프로세스").locator("tbody tr").all()
    (collection,) = page.get_by_role("region", name="컬렉션").locator("tbody tr").all()
    expect(reader).to_contain_text(server.assembly.newest)
    expect(collection).to_contain_text("쓰는 중")
    figures = page.locator(".figures")
    expect(figures).to_contain_text("2,000 ms")
    expect(figures).to_contain_text(f"{server.assembly.store.settled_up_to():,}까지")
    row = _row(page, NEWS)
    expect(row).to_contain_text("실패")
    expect(row).to_contain_text("accepted 12")
    expect(_row(page, BLOG)).to_contain_text("아직 안 함")


def test_the_page_tells_how_fast_pushes_are_seen(server: ApiServer, page: Page) -> None:
    with server.client() as client:
        assert client.put("/v1/articles/seen?wait=true", json={"title": "느시", "body": "느시"}).status_code == 200
        assert client.delete("/v1/articles/seen?wait=true").status_code == 200
    page.reload()
    region = page.get_by_role("region", name="얼마나 빨리 보이나")
    expect(region.locator("thead")).to_contain_text("2.5초 안")
    published, deleted, *_ = region.locator("tbody tr").all()
    for row, change in ((published, "검색되기까지 보낸 글"), (deleted, "사라지기까지 보낸 글")):
        expect(row).to_contain_text(change)
        expect(row).to_contain_text(re.compile(r"[1-9][\d,]*건"))
        expect(row).to_contain_text(re.compile(r"\d+\.\d%"))


def test_buttons_run_pause_and_resume_a_job(server: ApiServer, page: Page) -> None:
    database = server.assembly.database
    row = _row(page, BLOG)
    row.get_by_role("button", name="멈추기").click()
    expect(row).to_contain_text("멈춤")
    assert jobs.find(database, BLOG).paused
    row.get_by_role("button", name="다시 잇기").click()
    expect(row.get_by_role("button", name="멈추기")).to_be_visible()
    assert not jobs.find(database, BLOG).paused
    row.get_by_role("button", name="지금 하기").click()
    expect(row).to_contain_text("곧")
    assert jobs.requests(database) == [BLOG]
    assert page.url == f"{server.url}/operations"


def test_buttons_try_again_what_failed(server: ApiServer, page: Page) -> None:
    failed = page.locator(".failed li")
    expect(failed).to_have_count(2)
    failed.filter(has_text="phishing").get_by_role("button", name="다시 하기").click()
    expect(failed).to_have_count(1)
    page.get_by_role("button", name="모두 다시 하기").click()
    expect(failed).to_have_count(0)
    store = server.assembly.store
    assert {store.state(one).status for one in ("transfer", "phishing")} <= {"queued", "indexed"}


def test_hostile_errors_stay_text(page: Page) -> None:
    asked: list[str] = []
    page.on("dialog", lambda dialog: asked.append(dialog.message))
    page.reload()
    expect(page.get_by_text("<script>document.title='당함'</script>")).to_have_count(3)
    expect(page.locator("main img, main script")).to_have_count(0)
    assert page.title() == "운영 · 여울"
    assert asked == []


def test_nothing_is_wider_than_the_screen(page: Page) -> None:
    width, wanted = page.evaluate("[innerWidth, document.documentElement.scrollWidth]")
    assert wanted <= width


def test_a_form_of_another_site_changes_nothing(server: ApiServer, page: Page) -> None:
    address = f"{server.url}/operations/jobs/{NEWS}/pause"
    other = page.context.new_page()
    other.route(
        "http://localhost:1/**",
        lambda route: route.fulfill(
            content_type="text/html", body=f'<form method="post" action="{address}"><button>x</button></form>'
        ),
    )
    other.goto("http://localhost:1/")
    with other.expect_response(address) as answer:
        other.get_by_role("button").click()
    assert answer.value.status == 403
    assert not jobs.find(server.assembly.database, NEWS).paused


def test_a_key_that_may_not_administer_is_told_what_is_needed(browser: Browser, api_server: ApiServer) -> None:
    context = browser.new_context(
        base_url=api_server.url, http_credentials={"username": "anyone", "password": READ_KEY}
    )
    context.set_default_timeout(_PATIENCE)
    page = context.new_page()
    answer = page.goto("/operations")
    assert answer is not None
    assert answer.status == 401
    expect(page.get_by_role("alert")).to_contain_text("범위 admin")
    expect(page.get_by_role("button")).to_have_count(0)
    context.close()


def test_the_search_page_leads_here(browser: Browser, open_server: ApiServer) -> None:
    page = browser.new_page(base_url=open_server.url)
    page.set_default_timeout(_PATIENCE)
    page.goto("/")
    page.get_by_role("link", name="운영").click()
    expect(page.get_by_role("heading", level=1)).to_have_text("운영")
    page.close()


def test_dark_mode_follows_the_reader(browser: Browser, open_server: ApiServer) -> None:
    colours = set()
    for scheme in ("light", "dark"):
        page = browser.new_page(base_url=open_server.url, color_scheme=scheme)
        page.set_default_timeout(_PATIENCE)
        page.goto("/operations")
        colours.add(page.evaluate("getComputedStyle(document.querySelector('.figures div')).backgroundColor"))
        page.close()
    assert len(colours) == 2
