"""The search page in headless Chromium: found, explained, safe, and readable on a phone."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Locator, Page, ViewportSize, expect, sync_playwright

from tests.api_server import ApiServer

_CHROMIUM = Path("/usr/bin/chromium")
_PATIENCE = 120_000  # milliseconds
_PHONE: ViewportSize = {"width": 360, "height": 740}
_DESK: ViewportSize = {"width": 1280, "height": 900}

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


@pytest.fixture(params=["phone", "desk", "phone without scripts"])
def page(request: pytest.FixtureRequest, browser: Browser, api_server: ApiServer) -> Iterator[Page]:
    context = browser.new_context(
        viewport=_DESK if request.param == "desk" else _PHONE,
        java_script_enabled="without scripts" not in request.param,
        base_url=api_server.url,
    )
    context.set_default_timeout(_PATIENCE)
    yield context.new_page()
    context.close()


def _ask(page: Page, question: str) -> None:
    page.goto("/")
    page.get_by_role("searchbox", name="찾을 말").fill(question)
    _follow(page, page.get_by_role("button", name="찾기"))


def _follow(page: Page, link: Locator) -> None:
    """Click, and wait until the next page is there whole: a count taken before is one of half a page."""
    with page.expect_navigation():
        link.click()


def test_a_question_shows_its_answer_with_the_matches_marked(page: Page) -> None:
    _ask(page, "계좌 출금 막기")
    first = page.get_by_role("article").first
    expect(first.get_by_role("heading")).to_have_text("보이스피싱을 당했다면 30분 안에 할 일")
    expect(first.locator("mark").first).to_be_visible()
    expect(first.locator("mark", has_text="계좌")).to_have_count(1)
    expect(page.get_by_role("searchbox")).to_have_value("계좌 출금 막기")


def test_a_hit_shows_why_it_is_there(page: Page) -> None:
    _ask(page, "계좌 출금 막기")
    why = page.get_by_role("article").first.locator("details")
    why.locator("summary").click()
    expect(why.locator("dl")).to_be_visible()
    expect(why.locator(".term", has_text="계좌")).to_be_visible()
    score = float(why.locator(".score").inner_text().split()[-1])
    shares = [float(leg.split()[-1]) for leg in why.locator("summary .leg").all_inner_texts()]
    assert len(shares) == 2
    assert abs(sum(shares) - score) < 0.002


def test_one_leg_alone_explains_itself_alone(page: Page) -> None:
    page.goto("/")
    page.get_by_role("radio", name="낱말").check()
    page.get_by_role("searchbox").fill("계좌 출금")
    page.get_by_role("searchbox").press("Enter")
    summary = page.get_by_role("article").first.locator("summary")
    expect(summary.locator(".leg-lexical")).to_be_visible()
    expect(summary.locator(".leg-dense")).to_have_count(0)
    expect(page.get_by_role("radio", name="낱말")).to_be_checked()


def test_hostile_articles_stay_text(page: Page) -> None:
    asked: list[str] = []
    page.on("dialog", lambda dialog: asked.append(dialog.message))
    _ask(page, "꺾쇠 제목 <b>'\"")
    first = page.get_by_role("article").first
    expect(first.get_by_role("heading")).to_have_text("<script>document.title='당함'</script> 꺾쇠 제목")
    expect(first.get_by_role("heading").get_by_role("link")).to_have_count(0)  # its address is javascript:
    expect(page.locator("main img, main script, main b")).to_have_count(0)
    assert "당함" not in page.title()
    assert asked == []


def test_only_http_addresses_are_links(page: Page) -> None:
    _ask(page, "하루 이체 한도")
    link = page.get_by_role("article").first.get_by_role("link", name="이체 한도를 올리는 방법")
    expect(link).to_have_attribute("href", "https://example.com/transfer")


def test_nothing_is_wider_than_the_screen(page: Page) -> None:
    for address in ("/", "/?q=" + "적금" * 200, "/?q=꺾쇠", "/?q=없는낱말", "/?q=" + "x" * 400, "/?q=%20"):
        page.goto(address)
        width, wanted = page.evaluate("[innerWidth, document.documentElement.scrollWidth]")
        assert wanted <= width, address


def test_the_next_page_goes_on_where_the_first_ended(page: Page) -> None:
    page.goto("/?q=적금 금리&category=적금")
    seen = page.get_by_role("heading", level=2).all_inner_texts()
    while page.get_by_role("link", name="다음 결과").count():
        _follow(page, page.get_by_role("link", name="다음 결과"))
        expect(page.get_by_role("link", name="처음으로")).to_be_visible()
        seen += page.get_by_role("heading", level=2).all_inner_texts()
    assert len(seen) == len(set(seen)) == 25


def test_a_category_narrows_and_can_be_left(page: Page) -> None:
    page.goto("/?q=적금 지급정지")
    _follow(page, page.get_by_role("link", name="안전").first)
    expect(page.get_by_role("article")).to_have_count(1)
    _follow(page, page.get_by_role("link", name="모든 분류에서 찾기"))
    assert page.get_by_role("article").count() > 1


@pytest.mark.parametrize(
    ("address", "told"),
    [
        ("/?q=", "찾을 말을 500자 안에서 적어 주세요"),
        ("/?q=" + "가" * 501, "찾을 말을 500자 안에서 적어 주세요"),
        ("/?q=x&mode=zzz", "찾는 방법은"),
        ("/?q=x&cursor=zzz", "다른 검색의 쪽 번호"),
    ],
)
def test_what_cannot_be_searched_is_told(page: Page, address: str, told: str) -> None:
    page.goto(address)
    expect(page.get_by_role("alert")).to_contain_text(told)


def test_the_page_can_be_used_by_keyboard_alone(browser: Browser, api_server: ApiServer) -> None:
    page = browser.new_page(base_url=api_server.url)
    page.set_default_timeout(_PATIENCE)
    page.goto("/")
    expect(page.get_by_role("searchbox")).to_be_focused()
    page.keyboard.type("이체 한도")
    with page.expect_navigation():
        page.keyboard.press("Enter")
    page.wait_for_selector("article")
    page.keyboard.press("Tab")
    expect(page.get_by_role("link", name="결과로 건너뛰기")).to_be_focused()
    page.keyboard.press("Enter")
    expect(page.get_by_role("main")).to_be_focused()
    page.keyboard.press("Tab")
    expect(page.get_by_role("article").first.get_by_role("link").first).to_be_focused()
    page.close()


def test_dark_mode_follows_the_reader(browser: Browser, api_server: ApiServer) -> None:
    colours = set()
    for scheme in ("light", "dark"):
        page = browser.new_page(base_url=api_server.url, color_scheme=scheme)
        page.set_default_timeout(_PATIENCE)
        page.goto("/")
        colours.add(page.evaluate("getComputedStyle(document.body).backgroundColor"))
        page.close()
    assert len(colours) == 2
