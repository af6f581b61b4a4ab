from __future__ import annotations

import json
import os
import pty
import random
import subprocess
import sys
from pathlib import Path

import pypdf
import pytest
from pypdf.generic import DecodedStreamObject, DictionaryObject, NameObject

from chat_grpc.embedded import documents, ingest, passages, sdk
from chat_grpc.embedded.memory import Conditions, Memory
from tests.embedded.processes import environment


def _pieces(path: Path) -> list[passages.Piece]:
    found = documents.find([path])
    return [piece for address, file in found.files.items() for piece in passages.split(documents.read(file, address))]


def _markdown(folder: Path, text: str, name: str = "page.md") -> list[passages.Piece]:
    file = folder / name
    file.write_text(text)
    return _pieces(file)


def _pdf(path: Path, *pages: str, title: str = "", password: str = "") -> None:
    writer = pypdf.PdfWriter()
    for text in pages:
        page = writer.add_blank_page(300, 300)
        font = {"/Type": "/Font", "/Subtype": "/Type1", "/BaseFont": "/Helvetica"}
        fonts = DictionaryObject(
            {NameObject("/F1"): DictionaryObject({NameObject(k): NameObject(v) for k, v in font.items()})}
        )
        page[NameObject("/Resources")] = DictionaryObject({NameObject("/Font"): fonts})
        content = DecodedStreamObject()
        lines = " ".join(f"({line}) Tj 0 -14 Td" for line in text.split("\n"))
        content.set_data(f"BT /F1 12 Tf 20 250 Td {lines} ET".encode())
        page[NameObject("/Contents")] = writer._add_object(content)  # pypdf offers no other way to add text
    if title:
        writer.add_metadata({"/Title": title})
    if password:
        writer.encrypt(password, algorithm="RC4-128")
    writer.write(path)


def test_a_title_is_the_path_of_headings(tmp_path: Path) -> None:
    pieces = _markdown(
        tmp_path,
        "# Storage\n\nIntro.\n\n## DynamoDB\n\nTables.\n\n### Local `ddb`\n\nOne process.\n\n## SQLite\n\nA file.\n",
    )
    assert [(piece.title, piece.text) for piece in pieces] == [
        ("Storage", "Intro."),
        ("Storage › DynamoDB", "Tables."),
        ("Storage › DynamoDB › Local ddb", "One process."),
        ("Storage › SQLite", "A file."),
    ]
    assert len({piece.uri for piece in pieces}) == 4
    assert all(piece.uri.startswith("page.md#") for piece in pieces)


@pytest.mark.parametrize("tags", ["[a, b c]", "a, b c", "\n  - a\n  - b c"])
def test_front_matter_gives_title_and_tags(tmp_path: Path, tags: str) -> None:
    (piece,) = _markdown(tmp_path, f"---\ntitle: A title\ntags: {tags}\n---\n\n# Another\n\nText.\n")
    assert (piece.title, piece.tags, piece.text) == ("A title", ("a", "b c"), "Text.")


def test_a_file_without_headings_is_titled_by_its_name(tmp_path: Path) -> None:
    assert _markdown(tmp_path, "Only text.")[0].title == "page"


def test_marks_go_and_words_stay(tmp_path: Path) -> None:
    (piece,) = _markdown(
        tmp_path,
        "Use **bold** and [a link](http://x.y) with `CHAT_X_Y`,\nover lines.<br>\n\n<!-- a comment -->\n\n---\n\n"
        "```sh\nmake run  # go\n\tindented\n```\n\n> quoted\n\n1. one\n2. two\n   - inner *word*\n\n![alt text](p.png)\n",
    )
    assert piece.text == (
        "Use bold and a link with CHAT_X_Y, over lines.\n\nmake run  # go\n\tindented\n\nquoted\n\n"
        "1. one\n2. two\n  - inner word\n\nalt text"
    )


def test_each_row_of_a_table_makes_sense_alone(tmp_path: Path) -> None:
    (piece,) = _markdown(tmp_path, "| Name | For | Default |\n|---|---|---|\n| `A` | this | 1 |\n| `B` | that | |\n")
    assert piece.text == "A: this; Default: 1.\nB: that."


def test_a_long_section_is_cut_between_paragraphs(tmp_path: Path) -> None:
    paragraphs = [f"Paragraph {number} says something. " + "It goes on. " * 25 for number in range(12)]
    pieces = _markdown(tmp_path, "# T\n\n" + "\n\n".join(paragraphs))
    assert len(pieces) > 2
    assert all(len(piece.text) <= passages.MAX_CHARS for piece in pieces)
    assert all(piece.text.startswith("Paragraph") and piece.text.endswith("goes on.") for piece in pieces)
    assert "\n\n".join(piece.text for piece in pieces) == "\n\n".join(map(str.strip, paragraphs))


def test_a_long_paragraph_is_cut_between_sentences(tmp_path: Path) -> None:
    sentences = [f"Sentence number {number} is here, and it is not short at all." for number in range(60)]
    pieces = _markdown(tmp_path, " ".join(sentences))
    assert len(pieces) > 2
    assert all(len(piece.text) <= passages.MAX_CHARS and piece.text.endswith("at all.") for piece in pieces)
    assert " ".join(piece.text for piece in pieces) == " ".join(sentences)


def test_what_has_no_place_to_cut_is_cut_all_the_same(tmp_path: Path) -> None:
    words, endless = " ".join(["word"] * 1000), "x" * 3000
    pieces = _markdown(tmp_path, f"{words}\n\n{endless}\n")
    assert all(len(piece.text) <= passages.MAX_CHARS for piece in pieces)
    assert "".join(piece.text for piece in pieces if "x" in piece.text).count("x") == 3000
    assert sum(piece.text.split().count("word") for piece in pieces) == 1000


def test_long_code_is_cut_between_lines(tmp_path: Path) -> None:
    lines = [f"line_{number} = {number}" for number in range(200)]
    pieces = _markdown(tmp_path, "```\n" + "\n".join(lines) + "\n```\n")
    assert [line for piece in pieces for line in piece.text.split("\n")] == lines


def test_text_files_are_read_by_paragraph(tmp_path: Path) -> None:
    (piece,) = _markdown(tmp_path, "One line\nand the next.\n\n- item\n- other\n", name="log.txt")
    assert piece.text == "One line and the next.\n\n- item\n- other"


def test_pdfs_are_read_by_page(tmp_path: Path) -> None:
    _pdf(tmp_path / "report.pdf", "The harbour is deep.\nShips like it.", "Rocks are a dan-\nger.", title="The report")
    assert [(piece.title, piece.text) for piece in _pieces(tmp_path)] == [
        ("The report › Page 1", "The harbour is deep. Ships like it."),
        ("The report › Page 2", "Rocks are a danger."),
    ]


def test_folders_are_read_in_order_without_hidden_files(tmp_path: Path) -> None:
    for name in ("b/two.md", "a/one.md", ".git/no.md", "a/.hidden.md", "picture.png", "c.TXT", "profile.yaml"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("Text.")
    found = documents.find([tmp_path, tmp_path / "a" / "one.md"])
    assert [address.removeprefix(tmp_path.name) for address in found.files] == ["/c.TXT", "/a/one.md", "/b/two.md"]
    assert found.skipped == 1


def test_the_file_holds_what_was_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    docs = tmp_path / "docs"
    docs.mkdir()
    (docs / "page.md").write_text("---\ntags: [x]\n---\n# Ships\n\n## Sails\n\nSails are made of canvas.\n")
    (docs / "other.bin").write_text("?")
    (docs / "profile.yaml").write_text(
        'name: n\ntitle: T\nlanguage: en\nsuggested_questions: ["One?", {question: "Two?", category: c}]\n'
    )
    out = tmp_path / "new" / "memory.mv2"
    assert ingest.run([docs], out, None) == 0
    said = capsys.readouterr()
    assert said.out == f"{out}: 1 passages from 1 files, 1 of other kinds skipped\n"
    assert list(out.parent.iterdir()) == [out]
    memory = Memory(out)
    try:
        (hit,) = memory.ask("canvas sails", top_k=5, snippet_chars=200, conditions=Conditions()).hits
        assert (hit.title, hit.snippet, hit.tags) == ("Ships › Sails", "Sails are made of canvas.", ("x",))
        state = memory.state("__profile__")
        assert state is not None
        assert json.loads(state["data"]) == {
            "name": "n",
            "title": "T",
            "language": "en",
            "suggested_questions": ["One?", "Two?"],
            "categories": {"One?": "general", "Two?": "c"},
        }
    finally:
        memory.close()


def test_an_old_file_is_replaced_only_by_a_whole_one(tmp_path: Path) -> None:
    out = tmp_path / "memory.mv2"
    out.write_text("the old one")
    page = tmp_path / "page.md"
    page.write_text("Text.")
    with out.open() as opened:
        (tmp_path / "bad.pdf").write_text("no PDF")
        assert ingest.run([page, tmp_path / "bad.pdf"], out, None) == 1
        assert out.read_text() == "the old one"
        assert ingest.run([page], out, None) == 0
        assert opened.read() == "the old one"  # whoever has it open keeps it
    assert out.read_bytes().startswith(b"MV2")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bad.pdf", "memory.mv2", "page.md"]


def test_a_failure_in_the_middle_leaves_nothing_behind(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    page = tmp_path / "page.md"
    page.write_text("Text. " * 10)
    out = tmp_path / "out" / "memory.mv2"

    def interrupt(_: passages.Piece) -> object:
        raise KeyboardInterrupt

    monkeypatch.setattr(ingest, "_request", interrupt)
    with pytest.raises(KeyboardInterrupt):
        ingest.run([page], out, None)
    assert list(out.parent.iterdir()) == []


PROFILE = "name: n\ntitle: t\nsuggested_questions: [a]\n"


@pytest.mark.parametrize(
    ("name", "content", "arguments", "says"),
    [
        ("page.md", "Text.", ["nowhere"], "there is no nowhere"),
        ("page.png", "?", ["page.png"], "page.png can't be read; the kinds are .md"),
        ("page.md", "# Only a heading\n", ["page.md"], "there is nothing to ingest in page.md"),
        ("page.md", "---\ntitle: x\ntags: [a\n---\nText.", ["page.md"], "page.md, line "),
        ("page.md", "---\ntags: {a: b}\n---\nText.", ["page.md"], "page.md: tags in the front matter"),
        ("page.md", "---\n- a\n---\nText.", ["page.md"], "page.md: the front matter"),
        ("page.md", "---\ntitle: 12\n---\nText.", ["page.md"], "page.md: title in the front matter"),
        ("page.md", b"\xff\xfe\x00", ["page.md"], "page.md is not text in UTF-8"),
        ("page.pdf", "no PDF", ["page.pdf"], "page.pdf is no PDF that can be read"),
        ("p.yaml", "name: n\n  bad: [", ["good.md", "--profile", "p.yaml"], "p.yaml, line 2"),
        ("p.yaml", "- a", ["good.md", "--profile", "p.yaml"], "p.yaml must hold name, title and suggested_questions"),
        ("p.yaml", PROFILE.replace("name: n", ""), ["good.md", "--profile", "p.yaml"], "p.yaml: name must be"),
        ("p.yaml", PROFILE.replace("[a]", "a"), ["good.md", "--profile", "p.yaml"], "p.yaml: suggested_questions"),
        (
            "p.yaml",
            PROFILE.replace("[a]", "[b, 3]"),
            ["good.md", "--profile", "p.yaml"],
            "suggested_questions, number 2",
        ),
        ("p.yaml", PROFILE + "day: 2024-01-02\n", ["good.md", "--profile", "p.yaml"], "put it in quotes"),
        ("x.yaml", "", ["good.md", "--profile", "absent.yaml"], "absent.yaml can't be read"),
    ],
)
def test_faults_are_one_sentence(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    content: str | bytes,
    arguments: list[str],
    says: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "good.md").write_text("Text.")
    (tmp_path / name).write_bytes(content.encode() if isinstance(content, str) else content)
    paths, _, profile = arguments[0], *(arguments[1:] or ["", ""])
    code = ingest.run([Path(paths)], tmp_path / "memory.mv2", Path(profile) if profile else None)
    *_, last = capsys.readouterr().err.splitlines()
    assert code == 1
    assert last.startswith("chat-grpc ingest: ")
    assert says in last
    assert not (tmp_path / "memory.mv2").exists()


def test_a_pdf_that_needs_a_password_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _pdf(tmp_path / "secret.pdf", "Text.", password="open sesame")  # noqa: S106 (that is the point)
    assert ingest.run([tmp_path], tmp_path / "memory.mv2", None) == 1
    assert "secret.pdf is no PDF that can be read; it may be damaged, or need a password." in capsys.readouterr().err


@pytest.mark.parametrize("out", ["memory.txt", "folder.mv2", "page.md/memory.mv2"])
def test_a_target_that_can_not_be_written_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], out: str
) -> None:
    (tmp_path / "page.md").write_text("Text.")
    (tmp_path / "folder.mv2").mkdir()
    assert ingest.run([tmp_path / "page.md"], tmp_path / out, None) == 1
    assert "--out" in capsys.readouterr().err.splitlines()[-1]


def test_the_free_tier_is_named_when_it_is_full(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    # Filling 50 MiB takes memvid minutes, so its refusal is brought about; the error is its own.
    memvid = sdk.load()

    def refuse(*_: object, **__: object) -> None:
        raise memvid.CapacityExceededError("MV001: Capacity exceeded")

    monkeypatch.setattr(memvid.Memvid, "put_many", refuse)
    (tmp_path / "page.md").write_text("Text.")
    assert ingest.run([tmp_path / "page.md"], tmp_path / "memory.mv2", None) == 1
    assert "memvid's free tier holds 50 MiB a file" in capsys.readouterr().err.splitlines()[-1]
    assert [path.name for path in tmp_path.iterdir()] == ["page.md"]


@pytest.mark.parametrize(("count", "words"), [(64, 144), (160, 130)])
def test_no_passage_is_lost_where_memvids_log_is_full(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], count: int, words: int
) -> None:
    # Sizes that were found by trying: memvid 2.0.160 loses all but one of a batch of 16, or some, and returns 16 ids.
    chance = random.Random(words)  # noqa: S311 (only the length of the text matters)
    texts = [" ".join("".join(chance.choices("abcdefghijklmnop", k=6)) for _ in range(words)) for _ in range(count)]
    pages = tmp_path / "pages"
    pages.mkdir()
    for number, text in enumerate(texts):
        (pages / f"Title {number:03}.md").write_text(text)
    out = tmp_path / "memory.mv2"
    assert ingest.run([pages], out, None) == 0
    assert capsys.readouterr().out == f"{out}: {count} passages from {count} files\n"
    memory = Memory(out)
    try:
        assert memory.frame_count == count
        for number, text in enumerate(texts):
            best, *_ = memory.ask(text[:55], top_k=1, snippet_chars=2000, conditions=Conditions()).hits
            assert (best.title, best.snippet) == (f"Title {number:03}", text)
    finally:
        memory.close()


def test_a_loss_that_lasts_is_told_and_changes_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    # memvid itself keeps a passage that is put alone; one that it never keeps is brought about.
    memvid = sdk.load()
    put_many = memvid.Memvid.put_many

    def lose_one(memory: object, requests: list[dict[str, object]]) -> list[str]:
        put_many(memory, [request for request in requests if request["title"] != "two"])
        return ["1"] * len(requests)

    monkeypatch.setattr(memvid.Memvid, "put_many", lose_one)
    pages = [tmp_path / f"{name}.md" for name in ("one", "two", "three")]
    for page in pages:
        page.write_text("Text.")
    out = tmp_path / "memory.mv2"
    out.write_text("the old one")
    assert ingest.run(pages, out, None) == 1
    said = capsys.readouterr()
    assert said.out == ""
    assert "of 3 passages memvid kept 2" in said.err.splitlines()[-1]
    assert out.read_text() == "the old one"


def test_a_terminal_gets_a_bar_and_a_pipe_gets_lines(tmp_path: Path) -> None:
    (tmp_path / "page.md").write_text("Text.")
    command = [sys.executable, "-m", "chat_grpc", "ingest", str(tmp_path), "--out", str(tmp_path / "memory.mv2")]
    piped = subprocess.run(command, env=environment(), capture_output=True, text=True, check=True)
    assert piped.stderr.splitlines() == ["reading 1", "writing 1"]
    terminal, inside = pty.openpty()
    try:
        subprocess.run(command, env=environment(TERM="xterm"), stdout=subprocess.DEVNULL, stderr=inside, check=True)
        shown = os.read(terminal, 100_000).decode()
    finally:
        os.close(inside)
        os.close(terminal)
    assert "writing" in shown
    assert "1/1" in shown
    assert "\x1b[" in shown
