"""Answers as they are shown: Markdown drawn as it should be, and nothing in an answer ever run or loaded."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from playwright.async_api import expect

from tests.gateway.page.conftest import Tab
from tests.support.upstream import Upstream, saying

pytestmark = pytest.mark.e2e

DRAW = """async ({text, open}) => {
  const { MarkdownView } = await import("/assets/markdown-view.js");
  const element = document.createElement("div");
  document.body.append(element);
  const view = new MarkdownView(element);
  view.append(text);
  if (open) { cancelAnimationFrame(view.frame); view.draw(true); } else view.end();
  const html = element.innerHTML;
  element.remove();
  return html;
}"""

# Each prefix, as a stream shows it, then the whole; as pieces, it must end as it does at once.
SURVEY = """async ({text, step}) => {
  const { MarkdownView } = await import("/assets/markdown-view.js");
  const inside = new Set("A BLOCKQUOTE BR BUTTON CODE DEL DIV EM H3 H4 H5 H6 HR LI OL P PRE SPAN STRONG TABLE TBODY TD TH THEAD TR UL".split(" "));
  const attributes = new Set("aria-label class href rel role scope start tabindex target type".split(" "));
  const faults = [];
  const check = (element) => {
    for (const child of element.querySelectorAll("*")) {
      if (!inside.has(child.tagName)) faults.push(child.outerHTML);
      for (const {name, value} of child.attributes) {
        if (!attributes.has(name)) faults.push(name);
        if (name === "href" && !/^(https?|mailto):/.test(value)) faults.push(value);
      }
      if (child.tagName === "A" && (child.target !== "_blank" || child.rel !== "noopener noreferrer")) faults.push(child.outerHTML);
    }
  };
  const make = () => {
    const element = document.createElement("div");
    document.body.append(element);
    return [element, new MarkdownView(element)];
  };
  const [streamed, view] = make();
  for (let at = 0; at < text.length; at += step) {
    view.append(text.slice(at, at + step));
    cancelAnimationFrame(view.frame);
    view.draw(true);
    check(streamed);
  }
  view.end();
  check(streamed);
  const [whole, other] = make();
  other.append(text);
  other.end();
  const result = {faults, same: streamed.innerHTML === whole.innerHTML, text: whole.textContent};
  streamed.remove();
  whole.remove();
  return result;
}"""


def link(address: str, text: str) -> str:
    return f'<a href="{address}" target="_blank" rel="noopener noreferrer">{text}</a>'


def code(language: str, label: str, inner: str) -> str:
    return (
        f'<div class="code"><div class="code-bar"><span>{language}</span>'
        '<button type="button" class="copy-code">Copy</button></div>'
        f'<pre tabindex="0" role="group" aria-label="{label}"><code>{inner}</code></pre></div>'
    )


def table(head: str, body: str) -> str:
    return (
        '<div class="table" tabindex="0" role="group" aria-label="Table">'
        f"<table><thead>{head}</thead><tbody>{body}</tbody></table></div>"
    )


CASES = [
    ("plain", "<p>plain</p>"),
    ("one\ntwo\n\nthree", "<p>one\ntwo</p><p>three</p>"),
    ("one  \ntwo\\\nthree", "<p>one  <br>two<br>three</p>"),
    ("# One\n### Three ###\n####### seven", "<h3>One</h3><h5>Three</h5><p>####### seven</p>"),
    ("*a* _b_ **c** __d__ ***e*** ~~f~~ ~g~", "<p><em>a</em> <em>b</em> <strong>c</strong> <strong>d</strong> <em><strong>e</strong></em> <del>f</del> ~g~</p>"),
    ("snake_case_name and 2 * 3 * 4 and **a*b**", "<p>snake_case_name and 2 * 3 * 4 and <strong>a*b</strong></p>"),
    ("`a * b` ``c ` d`` ` e", "<p><code>a * b</code> <code>c ` d</code> ` e</p>"),
    (r"\*not\* \# \_so\_ \q", r"<p>*not* # _so_ \q</p>"),
    ("a &amp; b &lt;c&gt; &#169; &#x1F642; &bogus;", "<p>a &amp; b &lt;c&gt; © 🙂 &amp;bogus;</p>"),
    ("- a\n- b\n  - c\n\n    d\n- e", "<ul><li>a</li><li>b<ul><li>c<p>d</p></li></ul></li><li>e</li></ul>"),
    ("3. a\n4. b\n\n   text", '<ol start="3"><li>a</li><li>b<p>text</p></li></ol>'),
    ("1. a\n  - b\n2. c", "<ol><li>a<ul><li>b</li></ul></li><li>c</li></ol>"),
    ("Text:\n- a\n- b\n\nAfter", "<p>Text:</p><ul><li>a</li><li>b</li></ul><p>After</p>"),
    ("- [ ] a\n- [x] b", "<ul><li>☐ a</li><li>☑ b</li></ul>"),
    ("In 2026. 14 of them\n14. of them", "<p>In 2026. 14 of them\n14. of them</p>"),
    ("> a\nb\n> > c\n\nd", "<blockquote><p>a\nb</p><blockquote><p>c</p></blockquote></blockquote><p>d</p>"),
    ("a\n---\nb\n\n* * *", "<p>a</p><hr><p>b</p><hr>"),
    ("<https://a.example/> and https://b.example/x_(y)_z. (https://c.example)",
     f"<p>{link('https://a.example/', 'https://a.example/')} and {link('https://b.example/x_(y)_z', 'https://b.example/x_(y)_z')}. ({link('https://c.example/', 'https://c.example')})</p>"),
    ('[a **b**](https://c.example "title") [m](mailto:a@b.example)',
     f"<p>{link('https://c.example/', 'a <strong>b</strong>')} {link('mailto:a@b.example', 'm')}</p>"),
    ("**https://a.example** [https://b.example](https://b.example)",
     f"<p><strong>{link('https://a.example/', 'https://a.example')}</strong> {link('https://b.example/', 'https://b.example')}</p>"),
    ("[settings](settings.md) [1] [x][y] [ ]", "<p><span>settings</span> [1] [x][y] [ ]</p>"),
    ("![alt](https://a.example/p.png)", f"<p>{link('https://a.example/p.png', '🖼 alt')}</p>"),
    ("**a*b** **a *b* c** *a **b***",
     "<p><strong>a*b</strong> <strong>a <em>b</em> c</strong> <em>a <strong>b</strong></em></p>"),
    ("[a *b* [c](https://d.example) e", f"<p>[a <em>b</em> {link('https://d.example/', 'c')} e</p>"),
    ("| a | b |\n|:-:|--:|\n| `x` | y\\|z |\n| one<br>two |",
     table('<tr><th scope="col" class="center">a</th><th scope="col" class="right">b</th></tr>',
           '<tr><td class="center"><code>x</code></td><td class="right">y|z</td></tr>'
           '<tr><td class="center">one<br>two</td><td class="right"></td></tr>')),
    ("a | b\n- | -\nc | d",
     table('<tr><th scope="col">a</th><th scope="col">b</th></tr>', "<tr><td>c</td><td>d</td></tr>")),
    ("```\n<b>\n\n*a*\n```\nafter", code("text", "Code", "&lt;b&gt;\n\n*a*") + "<p>after</p>"),
    ("~~~~text\n~~~\n~~~~", code("text", "Code, text", "~~~")),
    ("- a\n  ```sh\n  make\n  \trun\n  ```\n- b",
     f"<ul><li>a{code('sh', 'Code, sh', 'make' + chr(10) + chr(9) + 'run')}</li><li>b</li></ul>"),
    ("```py\nx = 'a' # b\n```",
     code("py", "Code, py", 'x = <span class="t-text">\'a\'</span> <span class="t-comment"># b</span>')),
    ("<div>text</div>", "<p>&lt;div&gt;text&lt;/div&gt;</p>"),
    ("", ""),
    ("\n\n \n", ""),
]  # fmt: skip

OPEN = [
    ("**bold te", "<p><strong>bold te</strong></p>"),
    ("a **", "<p>a </p>"),
    ("a `co", "<p>a <code>co</code></p>"),
    ("see [the docs](https://a.exam", "<p>see <span>the docs</span></p>"),
    ("- a\n- **b", "<ul><li>a</li><li><strong>b</strong></li></ul>"),
    ("text\n-", "<p>text</p>"),
    ("1. a\n\n2", "<ol><li>a</li></ol>"),
    ("| a | b |", "<thead>"),
    ("| a | b |\n|--", "<thead>"),
    ("```sh\nmake run", "<code>make run</code>"),
    ("```sh\nmake run\n``", "<code>make run</code>"),
]

HOSTILE = [
    "<script>window.pwned = 1</script>",
    "<img src=x onerror='window.pwned = 1'>",
    "<svg onload=window.pwned=1><script>window.pwned=1</script></svg>",
    "<iframe srcdoc='<script>parent.pwned=1</script>'></iframe>",
    "<style>*{display:none}</style><link rel=stylesheet href=//evil.example>",
    "[a](javascript:window.pwned=1)",
    "[a](JaVaScRiPt:window.pwned=1)",
    "[a](java\tscript:window.pwned=1)",
    "[a](<java\nscript:window.pwned=1>)",
    "[a](\u0001javascript:window.pwned=1)",
    "[a](&#106;avascript:window.pwned=1)",
    "[a](javascript&colon;window.pwned=1)",
    "[a](&#x6A&#x61&#x76&#x61&#x73&#x63&#x72&#x69&#x70&#x74&#x3A;window.pwned=1)",
    "[a](vbscript:msgbox) [b](data:text/html;base64,PHNjcmlwdD4=) [c](file:///etc/passwd) [d](blob:x)",
    "[a](//evil.example) [b](/docs) [c](?x) [d](#y) [e](https:evil.example) [f](http:///evil)",
    '[a](https://x.example/"onmouseover="window.pwned=1)',
    "[a](https://x.example/'><script>window.pwned=1</script>)",
    "![a](javascript:window.pwned=1) ![b](data:image/svg+xml,<svg/onload=window.pwned=1>)",
    "![x](https://evil.example/pixel.png) <https://ok.example> <javascript:window.pwned=1>",
    "https://x.example/<script>window.pwned=1</script>",
    '```js"><script>window.pwned=1</script>\ncode\n```',
    "```html\n<script>window.pwned=1</script>",
    "| <script>window.pwned=1</script> | b |\n|---|---|\n| <img src=x onerror=window.pwned=1> | c |",
    "# <script>window.pwned=1</script>\n- <script>\n> <script>",
    "`<script>window.pwned=1</script>` **<b onclick=window.pwned=1>**",
    "&lt;script&gt;window.pwned=1&lt;/script&gt; &#60;script&#62;",
    "__proto__ constructor [__proto__](constructor) ```__proto__\nx",
    "a\0b \ud800 \u202e \ufeff &#0; &#xD800; &#x110000;",
    "{{constructor.constructor('window.pwned=1')()}} ${window.pwned=1}",
]  # fmt: skip

N = 20_000
HUGE = {
    "stars": "*" * N,
    "openers": "*a " * N,
    "closers": "a* " * N,
    "mixed": "*a **b _c __d " * N,
    "alternating": "*a_" * N,
    "brackets": "[" * N + "]" * N,
    "links": "[a](" * N,
    "closed-links": "](" * N + ")",
    "images": "![" * N,
    "backticks": "".join("`" * (1 + number % 97) + "a" for number in range(N)),
    "quotes": ">" * N,
    "quoted-lines": "> a\n" * N,
    "list": "- a\n" * N,
    "nested-list": "".join(" " * (2 * (number % 200)) + "- a\n" for number in range(N // 4)),
    "markers": "- " * N,
    "numbers": "1. " * N,
    "table": "|a|b|\n|-|-|\n" + "|c|d|\n" * (N // 4),
    "pipes": "|" * N + "\n" + "|-" * N,
    "pipe-lines": "|a\n" * N,
    "fences": "```\n" * N,
    "fence": "```python\n" + "x = 1 # y\n" * N,
    "entities": "&" * N + "&#1" * N,
    "angles": "<" * N + "<https://" * N,
    "addresses": "https://a.example/" * N,
    "parentheses": "https://a.example/" + "(" * N + ")" * N,
    "target": "[a](" + "(" * N + ")" * N,
    "titles": '[a](b "' * N,
    "escapes": "\\" * N,
    "spaces": " " * N + "a" + " " * N,
    "hashes": "# " + "#" * N + " a",
    "rules": "- " * N + "a",
    "one-line": "word " * N,
    "lines": "word\n" * N,
    "paragraphs": "word\n\n" * N,
}  # fmt: skip


async def test_markdown_is_drawn(tab: Tab) -> None:
    """All in one page: what a page costs to open is far more than what a text costs to draw."""
    drawn = {text: await tab.page.evaluate(DRAW, {"text": text, "open": False}) for text, _ in CASES}
    wrong = {text: drawn[text] for text, expected in CASES if drawn[text] != expected}
    assert wrong == {}


async def test_what_is_not_closed_yet_looks_as_it_will(tab: Tab) -> None:
    drawn = {text: await tab.page.evaluate(DRAW, {"text": text, "open": True}) for text, _ in OPEN}
    wrong = {text: drawn[text] for text, expected in OPEN if expected not in drawn[text]}
    assert wrong == {}


async def test_nothing_hostile_is_more_than_text(tab: Tab) -> None:
    for text in HOSTILE:
        result = await tab.page.evaluate(SURVEY, {"text": text, "step": 1})
        assert result["faults"] == [], text
        assert result["same"], text
    assert await tab.page.evaluate("window.pwned") is None


async def test_pieces_end_as_the_whole_does(tab: Tab) -> None:
    everything = "\n\n".join(text for text, _ in CASES)
    for step in (1, 2, 7, 100):
        result = await tab.page.evaluate(SURVEY, {"text": everything, "step": step})
        assert result["faults"] == []
        assert result["same"], step


async def test_nothing_huge_takes_long(tab: Tab) -> None:
    """Twenty thousand of anything: what took the square of that would not end within the guard against hanging."""
    for name, text in HUGE.items():
        for is_open in (False, True):
            async with asyncio.timeout(20):
                html: str = await tab.page.evaluate(DRAW, {"text": text, "open": is_open})
            assert len(html) < 60 * len(text) + 100, name


async def test_an_answer_full_of_html_and_script_shows_as_text(tab: Tab, model: Upstream) -> None:
    answer = "\n\n".join(HOSTILE[:6])
    model.answer = saying(*[answer[at : at + 7] for at in range(0, len(answer), 7)])
    dialogs: list[Any] = []
    tab.page.on("dialog", lambda dialog: dialogs.append(dialog.message))
    await tab.ask("<img src=x onerror='window.pwned = 1'>")
    await expect(tab.ending).to_be_visible()
    for text in HOSTILE[:5]:
        await expect(tab.answer.get_by_text(text)).to_be_visible()
    await expect(tab.page.locator(".question")).to_have_text("<img src=x onerror='window.pwned = 1'>")
    assert await tab.page.locator(".turn :is(script, img, iframe, style, link, object, a)").count() == 0
    await tab.page.reload()
    await expect(tab.answer.get_by_text(HOSTILE[0])).to_be_visible()
    assert await tab.page.evaluate("window.pwned") is None
    assert dialogs == []


async def test_passages_are_text_too(tab: Tab, model: Upstream, memory: Any) -> None:
    memory.passages = (("<b>Title</b>", "<script>window.pwned = 1</script> **not bold**"),)
    await tab.ask("How?")
    await tab.page.locator("summary").click()
    await expect(tab.page.locator(".passage-text")).to_have_text("<script>window.pwned = 1</script> **not bold**")
    assert await tab.page.evaluate("window.pwned") is None


async def test_the_policy_stands_behind_the_page(tab: Tab) -> None:
    """Were the page to make a mistake, the browser would refuse it."""
    tab.expected = ("Content Security Policy", "TrustedHTML", "TrustedScript", "Refused to", "violates the following")
    assert (
        await tab.page.evaluate("""() => {
      try { document.createElement("div").innerHTML = "<b>x</b>"; } catch (error) { return error.name; }
    }""")
        == "TypeError"
    )
    assert (
        await tab.page.evaluate("""() => {
      try { trustedTypes.createPolicy("default", {}); } catch (error) { return error.name; }
    }""")
        == "TypeError"
    )
    assert (
        await tab.page.evaluate("""() => fetch("http://127.0.0.2:9/").then(() => "sent", (error) => error.name)""")
        == "TypeError"
    )
    assert all("127.0.0.2" not in url for url in tab.requests)
