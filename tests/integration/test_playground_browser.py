"""The playground in a real headless Chromium, used by mouse and keyboard. Screenshots go to the test's folder."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from running_server import RunningServer, ServerFactory

pytestmark = [pytest.mark.browsers, pytest.mark.timeout(180)]  # a browser, a server and real weights on few cores

CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")


@pytest.fixture
def running(server: ServerFactory, smollm2: Path, llmecho: Path) -> RunningServer:
    llama = {"path": str(smollm2), "options": {"engine": "llamacpp", "context_tokens": 2048}}
    return server({"llama": llama, "echo": {"path": str(llmecho), "options": {"delay_s": 0.01}}})


@pytest.fixture
async def page(running: RunningServer) -> AsyncIterator[Any]:
    if CHROMIUM is None:
        pytest.skip("no Chromium on PATH; CHROMIUM names one")
    playwright = pytest.importorskip("playwright.async_api", reason="pip install playwright")
    async with playwright.async_playwright() as driver:
        browser = await driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        page = await browser.new_page(viewport={"width": 1280, "height": 860})
        complaints: list[str] = []
        page.on(
            "console",
            lambda told: (
                complaints.append(told.text) if told.type == "error" and "status of 400" not in told.text else None
            ),
        )
        page.on("pageerror", lambda error: complaints.append(str(error)))
        await page.goto(running.http + "/")
        await playwright.expect(page.locator("#state")).to_have_text("2 models")
        yield page
        await browser.close()
        assert complaints == []


async def test_chat_streams_compares_and_keeps_to_a_schema(page: Any, tmp_path: Path) -> None:
    from playwright.async_api import expect

    assert page.url.endswith("/playground")  # what / shows where there is a language model
    await page.select_option(".column select", "llama")
    await page.fill("#system", "You are brief.")
    await page.fill("#temperature", "0")
    await page.fill("#max_tokens", "24")
    await page.fill("#say", "What is the capital of France?")
    await page.press("#say", "Enter")
    await expect(page.locator(".turn.assistant")).to_have_count(1)
    await expect(page.locator("#send")).to_have_text("Send", timeout=60_000)
    await expect(page.locator(".figures")).to_contain_text("tokens/s")
    await expect(page.locator(".figures")).to_contain_text("first token after")
    assert await page.locator(".turn.assistant .content").inner_text()
    await page.screenshot(path=tmp_path / "chat.png")
    # A second model beside the first, by keyboard; both keep to the schema or say why not.
    await page.keyboard.press("Control+b")
    await expect(page.locator(".column")).to_have_count(2)
    await page.select_option("#format", "json_schema")
    await page.fill("#max_tokens", "200")
    await page.fill("#say", "Tell me about a person.")
    await page.press("#say", "Enter")
    await expect(page.locator(".turn.assistant")).to_have_count(3)
    await expect(page.locator("#send")).to_have_text("Send", timeout=60_000)
    told = await page.locator(".column:first-child .turn.assistant .content").last.inner_text()
    assert set(json.loads(told)) == {"name", "age"}
    await expect(page.locator(".column:last-child .turn.assistant .end.bad")).to_contain_text("grammar")
    await page.screenshot(path=tmp_path / "compared.png")
    await page.select_option("#language", "python")
    await expect(page.locator("#code")).to_contain_text("client.chat.completions.create")
    await page.set_viewport_size({"width": 420, "height": 900})
    await page.emulate_media(color_scheme="dark")
    assert await page.evaluate("document.documentElement.scrollWidth") <= 420
    await page.screenshot(path=tmp_path / "narrow.png", full_page=True)


async def test_escape_stops_and_the_next_message_works(page: Any) -> None:
    from playwright.async_api import expect

    await page.select_option(".column select", "echo")
    await page.fill("#say", "say:" + "x" * 200)
    await page.press("#say", "Enter")
    await expect(page.locator(".turn.assistant .content")).to_contain_text("xx")
    await page.keyboard.press("Escape")
    await expect(page.locator(".turn.assistant .end")).to_have_text("stopped")
    await page.fill("#say", "say:hello")
    await page.press("#say", "Enter")
    await expect(page.locator(".turn.assistant .content").last).to_have_text("hello")
    await page.keyboard.press("Control+k")
    await expect(page.locator(".turn")).to_have_count(0)


async def test_a_new_conversation_holds_nothing_of_the_one_before(page: Any) -> None:
    from playwright.async_api import expect

    await page.select_option(".column select", "echo")
    asked: list[Any] = []
    page.on("request", lambda request: asked.append(request.post_data_json) if request.method == "POST" else None)
    await page.fill("#say", "say:" + "x" * 200)
    await page.press("#say", "Enter")
    await expect(page.locator(".turn.assistant .content")).to_contain_text("xx")
    await page.keyboard.press("Control+k")
    await expect(page.locator("#send")).to_have_text("Send")
    await page.fill("#say", "say:" + "y" * 200)
    await page.press("#say", "Enter")
    await expect(page.locator(".turn.assistant .content")).to_contain_text("y")
    assert [turn["role"] for turn in asked[-1]["messages"]] == ["user"]
    # A column that goes while it answers stops, and the other one goes on.
    await page.keyboard.press("Escape")
    await page.keyboard.press("Control+b")
    await page.select_option(".column:last-child select", "echo")
    await page.fill("#say", "say:" + "z" * 250)
    await page.press("#say", "Enter")
    await expect(page.locator(".column:last-child .turn.assistant .content")).to_contain_text("z")
    await page.keyboard.press("Control+b")
    await expect(page.locator(".column")).to_have_count(1)
    await page.keyboard.press("Escape")
    await expect(page.locator("#send")).to_have_text("Send")


async def test_the_code_it_shows_is_the_request(page: Any, running: RunningServer) -> None:
    from playwright.async_api import expect

    await page.select_option(".column select", "echo")
    await page.fill("#say", 'say:it\'s "quoted"')
    await expect(page.locator("#code")).to_contain_text("quoted")
    shown = await page.locator("#code").inner_text()
    asked = await asyncio.create_subprocess_exec(
        "bash", "-c", shown.replace("curl ", "curl -s ", 1), stdout=asyncio.subprocess.PIPE
    )
    out, _ = await asyncio.wait_for(asked.communicate(), 30)
    assert 'it\'s \\"quoted\\"' in out.decode()
