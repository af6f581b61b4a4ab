"""Take the pictures of the chat page that docs/chat-page.md shows.

``python scripts/screenshots.py`` starts the whole of it (memvid with the documentation, the server, Envoy) on free
ports, with a scripted model, holds a conversation in Chromium, and writes docs/screenshots/*.png.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import tempfile
from pathlib import Path
from typing import Literal

from playwright.async_api import Browser, Page, async_playwright

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from tests.gateway.page.chromium import ARGUMENTS, EXECUTABLE  # noqa: E402 (found by the path set above)
from tests.support.process import chat_grpc, free_port  # noqa: E402 (likewise)
from tests.support.upstream import Exchange, upstream  # noqa: E402 (likewise)

SIZES = {"desktop": (1280, 800), "phone": (390, 844)}
Scheme = Literal["light", "dark"]
SCHEMES: tuple[Scheme, ...] = ("light", "dark")

QUESTIONS = ("Which events does the Chat call stream?", "How do I stream an answer in Python?")
ANSWERS = (
    """\
`chat.v1.ChatService/Chat` takes one message and streams **four kinds of events**, in this order:

| Event | When | What it holds |
|---|---|---|
| `started` | at once | the ids of the message and its session |
| `retrieval` | after the search | the passages, best first |
| `delta` | again and again | the next piece of the text |
| `completed` | once, at the end | the model, the tokens, how it ended |

A stream that ends without `completed` has failed, and its gRPC status says how.
""",
    """\
With the client that comes with the package; its events are plain dataclasses:

```python
from chat_grpc.client import ChatClient, Delta

async with ChatClient("localhost:50052") as client:
    async for event in client.chat("What is memvid?"):
        if isinstance(event, Delta):
            print(event.text, end="", flush=True)
```

- To **continue a conversation**, pass the `session_id` that `Started` holds.
- To *stop early*, close the generator: the server then stops the model, too.
""",
)


async def answer(exchange: Exchange) -> None:
    """Write the answer that belongs to the question."""
    question = exchange.messages[-1]["content"]
    text = next((text for asked, text in zip(QUESTIONS, ANSWERS, strict=True) if asked in question), "I don't know.")
    await exchange.start()
    for word in text.split(" "):
        await exchange.text(f"{word} ")
        await asyncio.sleep(0.01)  # a model takes its time
    await exchange.finish(usage=(612, len(text) // 4))


async def main() -> None:
    """Start everything and take the pictures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=ROOT / "docs" / "screenshots")
    folder: Path = parser.parse_args().folder
    port = free_port()
    with tempfile.TemporaryDirectory() as temporary:
        async with (
            upstream() as model,
            chat_grpc(
                "up",
                folder=Path(temporary),
                CHAT_MEMVID_GRPC_URL=f"localhost:{free_port()}",
                CHAT_GRPC_PORT=str(free_port()),
                CHAT_HTTP_PORT=str(port),
                CHAT_LLM_PROVIDER="local",
                CHAT_LLM_BASE_URL=model.url,
                CHAT_LLM_MODEL="qwen3-30b",
                CHAT_CACHE_SECONDS="0",
            ) as process,
            async_playwright() as playwright,
        ):
            model.answer = answer
            await process.printed("chat-grpc is running")
            browser = await playwright.chromium.launch(executable_path=EXECUTABLE, args=ARGUMENTS)
            for scheme in SCHEMES:
                for name, (width, height) in SIZES.items():
                    await picture(
                        browser, f"http://localhost:{port}/", folder / f"{name}-{scheme}", width, height, scheme
                    )
            await browser.close()


async def picture(browser: Browser, url: str, path: Path, width: int, height: int, scheme: Scheme) -> None:
    """Take the pictures of one size and colour scheme: the invitation, then a conversation."""
    context = await browser.new_context(
        viewport={"width": width, "height": height},
        color_scheme=scheme,
        device_scale_factor=1.5 if width < height else 1,
        has_touch=width < height,
        is_mobile=width < height,
        reduced_motion="reduce",
    )
    page = await context.new_page()
    await page.goto(url)
    await page.get_by_text("Every answer is written from").wait_for()
    await shoot(page, path.with_name(f"{path.name}-empty.png"))
    for number, question in enumerate(QUESTIONS, start=1):
        await page.get_by_label("Your message").fill(question)
        await page.keyboard.press("Enter")
        await page.locator(".ending").nth(number - 1).wait_for()
    await shoot(page, path.with_name(f"{path.name}.png"))
    if path.name in ("desktop-light", "phone-dark"):
        await page.evaluate("scrollTo(0, 0)")
        await page.locator("summary").first.click()
        await shoot(page, path.with_name(f"{path.name}-passages.png"))
    await context.close()


async def shoot(page: Page, path: Path) -> None:
    """Write what is seen now."""
    await page.screenshot(path=path)
    print(path.name, f"{path.stat().st_size / 1000:.0f} kB")  # noqa: ASYNC240 (nobody waits)


if __name__ == "__main__":
    asyncio.run(main())
