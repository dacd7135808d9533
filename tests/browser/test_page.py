"""The page of `kogpt serve` in a real browser."""

from __future__ import annotations

import json
import math
import re
import time
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from chromium import InputMethod, chromium, needs_chromium, opened, violations
from korean import PROSE
from playwright.sync_api import Browser, Page, Route, expect
from serving import Running, serving

from kogpt import KoGPT
from kogpt.engine import Engine
from kogpt.examples import EXAMPLES
from kogpt.server.access import Access
from kogpt.session import Piece, Session
from kogpt.tasks.filter import TextFilter

pytestmark = needs_chromium
PHONE: dict[str, Any] = {"viewport": {"width": 360, "height": 740}, "has_touch": True, "is_mobile": True}
PROMPT = "옛날 옛적에"


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as running:
        yield running


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    """kogpt-mini: its tokens are words and syllables, not the bytes that random weights draw."""
    with serving(KoGPT.from_pretrained(device="cpu")) as running:
        yield running


@pytest.fixture
def page(browser: Browser, server: Running) -> Iterator[Page]:
    with opened(browser, server.url) as shown:
        yield shown


def write(page: Page, prompt: str = PROMPT, **settings: int | float) -> None:
    """Fill in the form and wait until everything is written."""
    page.fill("#prompt", prompt)
    for name, value in ({"length": 12, "seed": 5} | settings).items():
        page.fill(f"#{name}", str(value))
    page.click("#write")
    finished(page)


def finished(page: Page) -> None:
    expect(page.locator("#stop")).to_be_hidden()


def tokens(page: Page, card: int = 0) -> list[str]:
    return page.locator(".answer").nth(card).locator(".token").all_text_contents()


def completion(server: Running, prompt: Any, **settings: Any) -> dict[str, Any]:
    body = {"prompt": prompt, "max_tokens": 12, "seed": 5, "temperature": 0.8, "top_p": 0.95, "logprobs": 5}
    body |= {"repetition_penalty": 1.2} | settings
    choice: dict[str, Any] = httpx.post(server.url + "/v1/completions", json=body, timeout=60).json()[
        "choices"
    ][0]
    return choice


# Writing


def test_it_writes_what_the_api_writes(page: Page, server: Running) -> None:
    write(page)
    answer = completion(server, PROMPT)
    assert "".join(tokens(page)) == answer["text"]
    expect(page.locator(".facts")).to_contain_text(f"{len(answer['logprobs']['content'])} 토큰")
    expect(page.locator(".given")).to_have_text(PROMPT)


def test_texts_stand_side_by_side(page: Page) -> None:
    page.check("[name=texts][value='3']", force=True)
    write(page)
    boxes = [card.bounding_box() for card in page.locator(".answer").all()]
    assert len(boxes) == 3 and len({box["y"] for box in boxes if box}) < 3
    assert len({"".join(tokens(page, card)) for card in range(3)}) == 3


def test_it_shows_text_while_it_is_written_and_stops(
    page: Page, server: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    step = Session.step

    def slow(self: Session) -> list[tuple[int, Piece]]:
        time.sleep(0.1)
        return step(self)

    monkeypatch.setattr(Session, "step", slow)
    page.fill("#prompt", PROMPT)
    page.fill("#length", "400")
    page.click("#write")
    expect(page.locator(".token").nth(2)).to_be_visible()
    expect(page.locator(".caret")).to_be_visible()
    page.locator(".token").first.click()  # candidates can be seen, and chosen once nothing is written
    assert page.locator("#choices button:enabled").count() == 0
    page.keyboard.press("Escape")
    page.click("#stop")
    expect(page.locator(".facts")).to_contain_text("멈춤")
    assert 2 < len(tokens(page)) < 100
    for _ in range(100):
        if server.service.model.session.idle:
            return
        time.sleep(0.05)
    raise AssertionError("the row is not free")


def test_a_stream_that_breaks_off_does_not_look_finished(page: Page) -> None:
    event = {"choices": [{"index": 0, "text": "가", "logprobs": None, "finish_reason": None}]}

    def cut(route: Route) -> None:
        route.fulfill(content_type="text/event-stream", body=f"data: {json.dumps(event)}\n\n")

    page.route("**/v1/completions", cut)
    write(page)
    expect(page.locator("#message")).to_contain_text("끊겼습니다")
    expect(page.locator(".facts")).to_contain_text("실패")


def test_what_the_server_refuses_is_said(page: Page) -> None:
    page.click("#write")
    expect(page.locator("#message")).to_contain_text("먼저 적어")
    write(page, "글 " * 9000)
    expect(page.locator("#message")).to_contain_text("거부했습니다")


@pytest.mark.parametrize(
    ("choice", "message", "fact"),
    [
        ({"index": 0, "text": "가", "finish_reason": "repetition"}, "", "repetition"),
        ({"index": 7, "text": "가", "finish_reason": None}, "읽지 못했습니다", "실패"),
        (None, "연결하지 못했습니다", "실패"),
    ],
    ids=["reason", "event", "network"],
)
def test_what_another_server_says_is_told_as_what_it_is(
    page: Page, choice: dict[str, Any] | None, message: str, fact: str
) -> None:
    def answer(route: Route) -> None:
        if choice is None:
            return route.abort()
        event = json.dumps({"choices": [choice]})
        route.fulfill(content_type="text/event-stream", body=f"data: {event}\n\ndata: [DONE]\n\n")

    page.route("**/v1/completions", answer)
    write(page)
    expect(page.locator("#message")).to_contain_text(message)
    expect(page.locator(".facts")).to_contain_text(fact)


def test_settings_that_do_not_fit_are_shown(browser: Browser, server: Running) -> None:
    with opened(browser, server.url, viewport={"width": 500, "height": 740}) as page:
        page.click("summary")
        page.fill("#temperature", "3")
        page.click("summary")
        page.fill("#prompt", PROMPT)
        page.click("#write")
        expect(page.locator("#temperature")).to_be_focused()
        write(page, temperature=0.83)
        assert tokens(page)
        page.press("#temperature", "ArrowUp")
        expect(page.locator("#temperature")).to_have_value("0.88")
        page.fill("#top-p", "0.97")
        page.press("#top-p", "ArrowUp")
        expect(page.locator("#top-p")).to_have_value("1")


# Probabilities and branches


def test_candidates_have_the_servers_probabilities(page: Page, server: Running) -> None:
    write(page)
    entry = completion(server, PROMPT)["logprobs"]["content"][0]
    page.locator(".token").first.hover()
    expect(page.locator("#choices")).to_be_visible()
    shares = page.locator("#choices div").first.locator(".share").all_text_contents()
    wanted = [f"{100 * math.exp(top['logprob']):.1f}%" for top in entry["top_logprobs"]]
    assert shares[: len(wanted)] == wanted
    page.mouse.move(5, 5)
    expect(page.locator("#choices")).to_be_hidden()


def test_another_token_goes_on_from_there_and_the_way_back_stays(page: Page, server: Running) -> None:
    write(page)
    before = tokens(page)
    written = completion(server, PROMPT)["logprobs"]["content"]
    assert before == [entry["token"] for entry in written]  # no character spans tokens in this text
    place, number = 3, 2
    other = written[place]["top_logprobs"][number]
    page.locator(".token").nth(place).click()
    page.locator("#choices button").nth(number).click()
    expect(page.locator(".which")).to_have_text("2 / 2")
    finished(page)
    ids = httpx.post(server.url + "/tokenize", json={"prompt": PROMPT}).json()["tokens"]
    kept = [*written[:place], other]
    rest = completion(server, ids + [entry["id"] for entry in kept])["logprobs"]["content"]
    raw = bytes(byte for entry in [*kept, *rest] for byte in entry["bytes"])
    assert "".join(tokens(page)) == raw.decode("utf-8", "ignore")
    expect(page.locator(".token.chosen")).to_have_text(other["token"])
    page.click(".older")
    assert tokens(page) == before
    page.click(".newer")
    assert tokens(page)[:place] == before[:place] and tokens(page) != before


def test_a_text_is_written_on(page: Page) -> None:
    write(page)
    first = tokens(page)
    page.click(".more")
    finished(page)
    assert tokens(page)[: len(first)] == first and len(tokens(page)) > len(first)


def test_bytes_become_characters_wherever_tokens_end(page: Page) -> None:
    text = PROSE[0][:60] + "똠방각하 뷁 🏳️‍🌈 각 \u1100\u1161\u11a8"
    raw = list(text.encode())
    script = """async ([raw, sizes]) => {
        const { append, newVersion, textOf } = await import("/versions.js");
        return sizes.map((size) => {
            const version = newVersion();
            for (let at = 0; at < raw.length; at += size) {
                append(version, [{ bytes: raw.slice(at, at + size) }]);
            }
            return textOf(version);
        });
    }"""
    assert page.evaluate(script, [raw, [1, 2, 3, 4, 5, 7]]) == [text] * 6
    broken = page.evaluate(script, [[*"가".encode(), 0xFF, *"나".encode(), 0xEA, 0xB0], [1]])
    assert broken == ["가\ufffd나"]


# Typing


def test_enter_writes_only_when_no_syllable_is_composed(page: Page) -> None:
    keyboard = InputMethod(page)
    page.fill("#length", "4")
    page.focus("#prompt")
    keyboard.compose("하")
    keyboard.compose("한")
    keyboard.press_enter()
    keyboard.press_enter(229)
    keyboard.commit("한")
    assert page.locator(".answer").count() == 0
    keyboard.compose("글")
    keyboard.commit("글")
    page.keyboard.press("Shift+Enter")
    assert page.locator(".answer").count() == 0
    page.keyboard.type("a")
    keyboard.press_enter()
    expect(page.locator(".answer")).to_have_count(1)
    assert page.input_value("#prompt") == "한글\na"
    finished(page)


def test_everything_can_be_done_by_keyboard(page: Page) -> None:
    page.fill("#length", "10")
    page.focus("#prompt")
    page.keyboard.type(PROMPT)
    page.keyboard.press("Enter")
    finished(page)
    for _ in range(30):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.classList.contains('token')"):
            break
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    assert page.evaluate("document.activeElement === document.querySelectorAll('.token')[2]")
    page.keyboard.press("Enter")
    page.keyboard.press("ArrowDown")
    page.keyboard.press("Escape")
    assert page.evaluate("document.activeElement === document.querySelectorAll('.token')[2]")
    page.keyboard.press("Enter")
    page.keyboard.press("ArrowDown")
    page.keyboard.press("Enter")
    expect(page.locator(".which")).to_have_text("2 / 2")
    finished(page)
    assert page.evaluate("document.activeElement === document.querySelectorAll('.token')[2]")


# Looks


def test_the_seven_examples_fill_in_the_form(page: Page) -> None:
    buttons = page.locator("#examples button")
    expect(buttons).to_have_count(7)
    for i, example in enumerate(EXAMPLES):
        buttons.nth(i).click()
        assert page.input_value("#prompt") == example.prompt
        assert float(page.input_value("#temperature")) == example.temperature
        assert float(page.input_value("#top-p")) == example.top_p
        assert int(page.input_value("#length")) == example.max_tokens


def test_language_and_theme_are_chosen_and_kept(page: Page) -> None:
    expect(page.locator("#write")).to_have_text("이어 쓰기")
    page.click("#language")
    page.click("#theme")
    for _ in range(2):
        expect(page.locator("#write")).to_have_text("Continue")
        expect(page.locator("html")).to_have_attribute("lang", "en")
        expect(page.locator("html")).to_have_attribute("data-theme", "dark")
        page.reload()


def test_a_browser_that_keeps_nothing_shows_the_page(page: Page) -> None:
    page.add_init_script("""for (const name of ["localStorage", "sessionStorage"]) {
        Object.defineProperty(window, name, { get() { throw new DOMException("", "SecurityError"); } });
    }""")
    page.reload()
    page.click("#language")
    page.click("#theme")
    expect(page.locator("#write")).to_have_text("Continue")
    write(page)
    assert tokens(page)


def test_both_languages_say_the_same_things(page: Page) -> None:
    keys = page.evaluate('import("/texts.js").then(({ TEXTS }) => [TEXTS.ko, TEXTS.en].map(Object.entries))')
    korean, english = dict(keys[0]), dict(keys[1])
    holes = re.compile(r"\{\w+\}")
    assert korean.keys() == english.keys()
    for key, text in korean.items():
        assert set(holes.findall(text)) == set(holes.findall(english[key])), key
        assert not re.search(r"십시오|[어아해써예]요|[을를이가은는]\([을를이가은는]\)", text), text


LOOKS = [("ko-KR", "light", {}), ("en-US", "dark", {}), ("ko-KR", "dark", PHONE), ("en-US", "light", PHONE)]


@pytest.mark.parametrize(
    ("locale", "scheme", "device"), LOOKS, ids=["desk-ko", "desk-en", "phone-ko", "phone-en"]
)
def test_nobody_is_kept_out(
    browser: Browser, server: Running, locale: str, scheme: str, device: dict[str, Any]
) -> None:
    with opened(browser, server.url, locale=locale, color_scheme=scheme, **device) as page:
        page.fill("#prompt", PROMPT)
        if device:
            page.locator("summary").tap()
        write(page)
        assert violations(page) == []
        title = page.locator("#answers-title").bounding_box()
        assert title is not None and title["height"] < 40  # one line
        page.locator(".token").nth(1).click()
        expect(page.locator("#choices")).to_be_visible()
        assert violations(page) == []
        assert page.evaluate("document.documentElement.scrollWidth <= document.documentElement.clientWidth")
        box = page.locator("#choices").bounding_box()
        assert box is not None and box["x"] >= 0 and box["x"] + box["width"] <= page.evaluate("innerWidth")


# The other uses


def use(page: Page, name: str, **fields: str) -> None:
    page.click(f"[data-use={name}]")
    for field, value in fields.items():
        page.fill(f"#use-{field}", value)
    page.click("#use-go")
    expect(page.locator("#use-go")).to_be_enabled()


def test_every_use_is_a_part_of_the_page(page: Page) -> None:
    text, found = "전화는 010-0123-4567입니다. <b>둘째</b> 문장입니다.", page.locator("#found li")
    use(page, "classify", text="좋은 영화\n나쁜 영화", labels="좋음, 나쁨")
    expect(found).to_have_count(2)
    expect(found.first.locator(".facts")).to_contain_text("나쁨")
    use(page, "summarize", text=text, sentences="1")
    expect(found).to_have_count(2)
    use(page, "filter", text=text)
    expect(found.locator(".text")).to_have_text("전화는 ***-****-****입니다. <b>둘째</b> 문장입니다.")
    expect(found.locator(".facts")).to_contain_text("휴대전화")
    use(page, "ask", question="둘째 문장은?", text=text)
    expect(found.last.locator(".head")).to_contain_text("kogpt-mini")
    expect(found.first.locator(".text")).to_contain_text("둘째")
    use(page, "search", question="전화")
    expect(page.locator("#use-message")).to_contain_text("색인이 없습니다. kogpt serve --index")
    use(page, "filter", text=" ")
    expect(page.locator("#use-message")).to_contain_text("채워")
    page.click("[data-use=write]")
    expect(page.locator("#use")).to_be_hidden()
    write(page)
    assert tokens(page)


def test_an_error_belongs_to_its_use(page: Page) -> None:
    found, message = page.locator("#found li"), page.locator("#use-message")
    held: list[Route] = []
    page.route("**/v1/summarize", lambda route: held.append(route))
    page.click("[data-use=summarize]")
    page.fill("#use-text", PROSE[0])
    page.click("#use-go")
    use(page, "filter")
    expect(found).to_have_count(1)
    held[0].fulfill(status=400, json={"error": {"code": None, "message": "늦음"}})
    page.wait_for_timeout(200)
    expect(message).to_be_hidden()
    page.route("**/v1/filter", lambda route: route.fulfill(status=400, json={"error": {"message": "아님"}}))
    page.click("#use-go")
    expect(message).to_contain_text("아님")
    expect(found).to_have_count(0)


def test_a_field_of_another_use_holds_nothing_up(page: Page) -> None:
    use(page, "summarize", text=PROSE[0], sentences="0")
    expect(page.locator("#use-sentences")).to_be_focused()
    use(page, "filter")
    expect(page.locator("#found li")).to_have_count(1)


@pytest.mark.parametrize(("locale", "device"), [("ko-KR", PHONE), ("en-US", {})], ids=["phone", "desk"])
def test_nobody_is_kept_out_of_the_other_uses(
    browser: Browser, server: Running, locale: str, device: dict[str, Any]
) -> None:
    with opened(browser, server.url, locale=locale, color_scheme="dark", **device) as page:
        for name in ("classify", "search", "summarize", "ask", "filter"):
            page.click(f"[data-use={name}]")
            assert violations(page) == []
        use(page, "filter", text="전화는 010-0123-4567입니다")
        expect(page.locator("#found li")).to_have_count(1)
        assert violations(page) == []
        assert page.evaluate("document.documentElement.scrollWidth <= document.documentElement.clientWidth")


# The key


def test_a_key_is_asked_for_once(browser: Browser, model: KoGPT) -> None:
    with (
        serving(model, access=Access(keys=("비밀 key",))) as guarded,
        opened(browser, guarded.url) as page,
    ):
        expect(page.locator("#key-dialog")).to_be_visible()
        assert violations(page) == []
        page.fill("#key", "wrong")
        page.press("#key", "Enter")
        expect(page.locator("#key-wrong")).to_be_visible()
        page.fill("#key", "비밀 key")
        page.press("#key", "Enter")
        expect(page.locator("#key-dialog")).to_be_hidden()
        write(page)
        assert len(tokens(page)) > 3
        page.reload()
        write(page)
        assert len(tokens(page)) > 3


def test_a_filter_leaves_text_without_tokens(browser: Browser, model: KoGPT) -> None:
    filtered = KoGPT(model.tokenizer, Engine(model.engine.runner))
    filtered.use_screen(TextFilter("mask").stream)
    with serving(filtered) as covered, opened(browser, covered.url) as page:
        expect(page.locator("#empty")).to_contain_text("필터")
        write(page)
        first = page.locator(".tokens").inner_text()
        assert first and page.locator(".token").count() == 0
        expect(page.locator("#shade")).to_be_hidden()
        assert violations(page) == []
        page.click(".more")
        finished(page)
        expect(page.locator("#message")).to_be_hidden()
        assert page.locator(".tokens").inner_text().startswith(first)


@pytest.mark.parametrize(("uses", "shown"), [([], []), (["filter"], ["write", "filter"]), (None, None)])
def test_tabs_without_a_route_are_not_offered(
    browser: Browser, server: Running, uses: list[str] | None, shown: list[str] | None
) -> None:
    """As in front of vLLM; where the use that is open is not there, writing is."""

    def models(route: Route) -> None:
        document = route.fetch().json()
        document["data"] = [entry | ({} if uses is None else {"uses": uses}) for entry in document["data"]]
        route.fulfill(json=document)

    with opened(browser, server.url) as page:
        page.click("[data-use=summarize]")
        page.route("**/v1/models", models)
        page.evaluate("document.getElementById('change-key').click()")
        page.fill("#key", "x")
        page.press("#key", "Enter")
        tabs = page.locator("#uses button:visible")
        expect(tabs).to_have_count(6 if shown is None else len(shown))
        assert shown is None or [tab.get_attribute("data-use") for tab in tabs.all()] == shown
        expect(page.locator("#use")).to_be_visible(visible=shown is None)
        expect(page.locator("#form")).to_be_visible(visible=shown is not None)
        assert violations(page) == []
