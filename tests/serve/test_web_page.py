"""The chat page in a real headless Chromium: send, stream, stop, regenerate, reload, errors, a phone's width."""

from __future__ import annotations

import itertools
import shutil
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.runtime.conftest import VOCAB, counting_text
from tests.serve.conftest import serving
from tests.serve.test_openai import EOS, SLOW, decoded, told


def prompt_of(text: str) -> list[int]:
    return [256, *told(text), 257, *told("\n"), 258]


def tokens_after(prompt: list[int]) -> Iterator[int]:
    """The tokens that the counting program says, one by one."""
    total = sum((i + 1) * token for i, token in enumerate(prompt))
    for place in itertools.count(len(prompt) + 1):
        yield total % VOCAB
        total += place * (total % VOCAB)


def short_message() -> tuple[str, list[int]]:
    """A message with a short answer of letters and digits, and the tokens of that answer."""
    for number in range(200_000):
        text = f"message {'m' * (number % 200)} {number}"  # the counting program repeats itself for one length
        tokens = []
        for token in tokens_after(prompt_of(text)):
            tokens.append(token)
            if token == EOS or not (token < 256 and decoded([], [token]).isalnum()):
                break
        if tokens[-1] == EOS and len(tokens) > 2:
            return text, tokens
    raise AssertionError


def long_message() -> str:
    """A message whose answer pauses for a second near its beginning and goes on for long."""
    for text in (f"message {number}" for number in itertools.count()):
        tokens = list(itertools.islice(tokens_after(prompt_of(text)), 60))
        if EOS not in tokens and SLOW in tokens[6:20]:
            return text
    raise AssertionError


def test_files(address: str):
    page = urllib.request.urlopen(address)
    assert page.headers["content-security-policy"].startswith("default-src 'self'")
    text = page.read().decode()
    assert "http://" not in text and "https://" not in text
    assert urllib.request.urlopen(f"{address}/page/chat.js").headers["content-type"].startswith("text/javascript")
    for path in ("/page/other", "/page/..%2Fapp.py", "/docs"):
        with pytest.raises(urllib.error.HTTPError, match="404"):
            urllib.request.urlopen(address + path)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    playwright = pytest.importorskip("playwright.sync_api")
    program = shutil.which("chromium")
    if program is None:
        pytest.skip("chromium is not installed")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=program, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def page(browser: Any, artifact: Path) -> Iterator[Any]:
    with serving(artifact, context_length=1000) as address:
        context = browser.new_context()
        page = context.new_page()
        faults: list[str] = []
        page.on("pageerror", lambda error: faults.append(str(error)))
        page.on("console", lambda line: faults.append(line.text) if "Content Security" in line.text else None)
        page.set_default_timeout(30_000)
        page.goto(address)
        wait_until(page, "document.getElementById('meter').textContent.includes('1000')")
        yield page
        context.close()
        assert faults == []


def wait_until(page: Any, condition: str) -> None:
    """Playwright's own wait for a condition evaluates it inside the page, which the page's policy forbids."""
    end = time.monotonic() + 60
    while not page.evaluate(condition):
        assert time.monotonic() < end, condition
        page.wait_for_timeout(50)


def say(page: Any, text: str) -> None:
    page.fill("#input", text)
    page.press("#input", "Enter")


@pytest.mark.slow
def test_send_and_reload(page: Any):
    question, tokens = short_message()
    assert tokens == counting_text(prompt_of(question), len(tokens))
    say(page, question)
    page.wait_for_selector("#messages .facts")
    first = page.locator("#messages .assistant > div").first.inner_text()
    assert first.strip() == decoded(prompt_of(question), tokens[:-1])
    assert page.locator("#messages .user").inner_text() == question
    used = len(prompt_of(question)) + len(tokens)
    assert page.inner_text("#meter") == f"{used} of 1000 tokens"
    page.reload()
    page.wait_for_selector("#conversations button")
    page.locator("#conversations button").first.click()
    assert page.locator("#messages .user").inner_text() == question
    page.click("#again")
    page.wait_for_selector("#messages .facts")
    assert page.locator("#messages li").count() == 2
    page.press("body", "Control+Shift+O")
    assert page.locator("#messages li").count() == 0


@pytest.mark.slow
def test_stop(page: Any):
    say(page, long_message())
    page.wait_for_selector("#stop", state="visible")
    wait_until(page, "document.querySelector('#messages .assistant')?.innerText.length > 2")
    page.press("body", "Escape")
    page.wait_for_selector("#send", state="visible")
    assert page.locator("#messages .assistant").count() == 1
    assert page.locator("#messages .facts").count() == 0  # it never came to its end
    say(page, "go on")  # and the page still works
    wait_until(page, "document.querySelectorAll('#messages .user').length == 2")


@pytest.mark.slow
def test_errors_and_settings(page: Any):
    page.click("#settings summary")
    assert "tokens" in page.inner_text("#card")
    page.fill("#temperature", "-1")
    say(page, "x")
    page.wait_for_selector("#messages .error")
    assert "temperature is -1.0, but must be" in page.inner_text("#messages .error")
    page.fill("#temperature", "0")
    say(page, "y" * 2000)
    wait_until(page, "document.querySelectorAll('#messages .error').length == 2")
    assert "the context holds 1000" in page.locator("#messages .error").last.inner_text()


@pytest.mark.slow
def test_a_phone_and_the_theme(page: Any):
    page.set_viewport_size({"width": 360, "height": 640})
    assert not page.is_visible("#side")
    page.click("#menu")
    assert page.is_visible("#side")
    page.click("#new")
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    page.click("#theme")
    first = page.evaluate("document.documentElement.className")
    page.click("#theme")
    assert {first, page.evaluate("document.documentElement.className")} == {"light", "dark"}
