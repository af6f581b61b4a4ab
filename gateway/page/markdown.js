// Markdown to a tree: blocks. Inline text is markdown-inline.js, the tree becomes elements in dom.js.
//
// Why our own: the well-kept renderers (marked, markdown-it) make HTML text, which needs a sanitiser and
// innerHTML, and come as JavaScript packages, which need a build step or a copy to look after. This one makes
// a tree of nodes that can't hold markup, so there is nothing to sanitise, and it knows what they don't: that
// an answer is still being written. `open` says so, and makes that what is not closed yet looks as it will
// (bold text is bold before its closing ** is there), so that nothing flickers.
//
// It is CommonMark with GitHub's tables, strike-through and task lists as models write them, but for: HTML,
// which is shown as text; images, which become links, because loading one would tell another host; underlined
// headings and indented code, which models do not mean; reference links. Every loop here moves forward in the
// text, and depth is bounded, so that no answer can make it slow.

import { parseInline } from "./markdown-inline.js";
import { highlight } from "./highlight.js";

const MAX_DEPTH = 12;
const FENCE = /^ {0,3}(`{3,}(?=[^`]*$)|~{3,})[ \t]*(.*)$/;
const HEADING = /^ {0,3}(#{1,6})(?:[ \t]+(.*))?$/;
const RULE = /^ {0,3}(?:(?:-[ \t]*){3,}|(?:\*[ \t]*){3,}|(?:_[ \t]*){3,})$/;
const QUOTE = /^ {0,3}>/;
// The beginning of a line that may become an item, a heading, a quote or a fence; it is shown once that is known.
const UNKNOWN = /^ *(?:\d{1,3}[.)]?|[-+*]|#{1,6}|>|`{1,2}|~{1,2}) ?$/;
const ITEM = /^( *)([-+*]|\d{1,9}[.)])(?:([ \t]+)(.*))?$/;

/** Return the blocks of a text in their order: [{node, offset}], offset being where the block begins. */
export function parse(text, open = false) {
  const lines = text.split("\n");
  if (open && UNKNOWN.test(lines.at(-1))) lines.pop();
  let offset = 0;
  let line = 0;
  return parseLines(expandTabs(lines), open, 0).map(({ node, line: first }) => {
    for (; line < first; line++) offset += lines[line].length + 1;
    return { node, offset };
  });
}

/** Make columns countable: tabs before a line's text become spaces, but not in code. */
function expandTabs(lines) {
  let fence = "";
  return lines.map((line) => {
    const [, mark = ""] = /^\s*(`{3,}|~{3,})/.exec(line) ?? [];
    if (fence) {
      if (mark.startsWith(fence)) fence = "";
      return line;
    }
    fence = mark;
    return line.replace(/^[ \t]+/, (space) => space.replaceAll("\t", "    "));
  });
}

/** Return the blocks of some lines: [{node, line}]; when `open`, the last one may go on. */
function parseLines(lines, open, depth) {
  const blocks = [];
  const written = lines.findLastIndex((line) => !isBlank(line)) + 1;
  let at = 0;
  while (at < written) {
    if (isBlank(lines[at])) {
      at++;
      continue;
    }
    const [end, make] = readBlock(lines, at, open, depth);
    blocks.push({ node: make(open && end >= written), line: at });
    at = end;
  }
  return blocks;
}

/** Return where the block that begins at a line ends, and what makes its node (told whether it may go on). */
function readBlock(lines, at, open, depth) {
  const line = lines[at];
  let found;
  if ((found = FENCE.exec(line))) return readFence(lines, at, found);
  if ((found = HEADING.exec(line))) {
    const [, marks, text = ""] = found;
    return [at + 1, (isOpen) => heading(marks.length, text.replace(/(?:^|[ \t])#+[ \t]*$/, ""), isOpen)];
  }
  if (RULE.test(line)) return [at + 1, () => ({ tag: "hr" })];
  if (depth < MAX_DEPTH) {
    if (QUOTE.test(line)) return readQuote(lines, at, depth);
    if ((found = ITEM.exec(line))) return readList(lines, at, found, depth);
  }
  if (startsTable(lines, at, open)) return readTable(lines, at);
  let end = at + 1;
  while (end < lines.length && !isBlank(lines[end]) && !interrupts(lines, end)) end++;
  return [end, (isOpen) => paragraph(lines.slice(at, end), isOpen)];
}

function heading(level, text, open) {
  // The page has h1, a turn has h2.
  return { tag: `h${Math.min(6, level + 2)}`, children: parseInline(text, { open }) };
}

function paragraph(lines, open) {
  // Two spaces at the end of a line break it, but not at the end of all.
  const text = lines.map((line) => line.trimStart()).join("\n").trimEnd();
  return { tag: "p", children: parseInline(text, { open }) };
}

function readFence(lines, at, [, fence, info]) {
  const indent = lines[at].search(/\S/);
  const isEnd = (line) => {
    const text = line.trim();
    return text.length >= fence.length && line.search(/\S/) < 4 && text === fence[0].repeat(text.length);
  };
  let end = at + 1;
  while (end < lines.length && !isEnd(lines[end])) end++;
  const closed = end < lines.length;
  const make = (open) => {
    const inside = lines.slice(at + 1, end);
    const last = inside.at(-1)?.trim() ?? "";
    // The first of the marks that will end it.
    if (open && last && last === fence[0].repeat(last.length)) inside.pop();
    const language = /^[\w+#.-]{1,20}/.exec(info)?.[0] ?? "";
    return code(inside.map((line) => line.slice(Math.min(indent, leading(line)))).join("\n"), language);
  };
  return [closed ? end + 1 : end, make];
}

function code(text, language) {
  return {
    tag: "div",
    attributes: { class: "code" },
    children: [
      {
        tag: "div",
        attributes: { class: "code-bar" },
        children: [
          { tag: "span", children: [language || "text"] },
          { tag: "button", attributes: { type: "button", class: "copy-code" }, children: ["Copy"] },
        ],
      },
      {
        tag: "pre",
        attributes: { tabindex: "0", role: "group", "aria-label": language ? `Code, ${language}` : "Code" },
        children: [{ tag: "code", children: highlight(text, language) }],
      },
    ],
  };
}

function readQuote(lines, at, depth) {
  const inside = [];
  let end = at;
  for (; end < lines.length; end++) {
    const line = lines[end];
    if (QUOTE.test(line)) inside.push(line.replace(/^ {0,3}> ?/, ""));
    else if (!isBlank(line) && !isBlank(inside.at(-1)) && !interrupts(lines, end)) inside.push(line);
    else break;
  }
  return [end, (open) => ({ tag: "blockquote", children: nodes(parseLines(inside, open, depth + 1)) })];
}

function readList(lines, at, first, depth) {
  const base = first[1].length;
  const kind = first[2].at(-1); // one of - + * . )
  const items = [];
  let width = 0; // of the indentation that belongs to an item
  let end = at;
  for (; end < lines.length; end++) {
    const line = lines[end];
    const indent = leading(line);
    const item = ITEM.exec(line);
    if (isBlank(line)) {
      if (!items.length) break;
      items.at(-1).push("");
    } else if (item && indent < base + 2 && (indent < width || !items.length)) {
      if (item[2].at(-1) !== kind || RULE.test(line)) break;
      const gap = item[3]?.length ?? 1;
      width = indent + item[2].length + (gap > 4 ? 1 : gap);
      items.push([line.slice(width)]);
    } else if (indent >= width || (item && indent >= base + 2)) {
      items.at(-1).push(line.slice(Math.min(indent, width)));
    } else if (!isBlank(items.at(-1).at(-1)) && !interrupts(lines, end)) {
      items.at(-1).push(line.trimStart()); // a paragraph that goes on without being indented
    } else break;
  }
  const ordered = kind === "." || kind === ")";
  const make = (open) => ({
    tag: ordered ? "ol" : "ul",
    attributes: ordered && parseInt(first[2], 10) !== 1 ? { start: String(parseInt(first[2], 10)) } : {},
    children: items.map((inside, number) => listItem(inside, open && number === items.length - 1, depth)),
  });
  return [end, make];
}

function listItem(lines, open, depth) {
  const task = /^\[([ xX])\](?= )/.exec(lines[0]);
  if (task) lines[0] = lines[0].slice(3).trimStart();
  const blocks = nodes(parseLines(lines, open, depth + 1));
  // Whether the items stand apart is not told from the empty lines between them: the list would move when one comes.
  const children = blocks[0]?.tag === "p" ? [...blocks[0].children, ...blocks.slice(1)] : blocks;
  return { tag: "li", children: task ? [task[1] === " " ? "☐ " : "☑ ", ...children] : children };
}

function startsTable(lines, at, open) {
  const line = lines[at];
  if (!line.includes("|")) return false;
  const next = lines[at + 1];
  if (next === undefined) return open && /^ {0,3}\|/.test(line);
  // The line that makes it a table is on its way.
  if (open && at + 2 === lines.length && /^ {0,3}\|/.test(line) && /^[ |:-]*$/.test(next)) return true;
  const marks = cells(next);
  return next.includes("|") && marks.every((mark) => /^:?-+:?$/.test(mark)) && marks.length === cells(line).length;
}

function readTable(lines, at) {
  let end = at + 1;
  while (end < lines.length && !isBlank(lines[end]) && (end === at + 1 || !interrupts(lines, end))) end++;
  const make = (open) => {
    const header = cells(lines[at]);
    const aligned = cells(lines[at + 1] ?? "").map((mark) => {
      if (/^:-*:$/.test(mark)) return "center";
      return mark.endsWith(":") ? "right" : "";
    });
    const row = (texts, tag, isOpen) => ({
      tag: "tr",
      children: header.map((_, column) => ({
        tag,
        attributes: {
          ...(tag === "th" ? { scope: "col" } : {}),
          ...(aligned[column] ? { class: aligned[column] } : {}),
        },
        children: parseInline(texts[column] ?? "", { open: isOpen, breaks: true }),
      })),
    });
    const rows = lines.slice(at + 2, end);
    const body = rows.map((line, number) => row(cells(line), "td", open && number === rows.length - 1));
    const table = {
      tag: "table",
      children: [
        { tag: "thead", children: [row(header, "th", open && !rows.length)] },
        ...(body.length ? [{ tag: "tbody", children: body }] : []),
      ],
    };
    return {
      tag: "div",
      attributes: { class: "table", tabindex: "0", role: "group", "aria-label": "Table" },
      children: [table],
    };
  };
  return [end, make];
}

function cells(line) {
  const row = line.trim().replace(/^\|/, "");
  const found = [];
  let cell = "";
  for (let at = 0; at < row.length; at++) {
    if (row[at] === "\\" && row[at + 1] === "|") cell += row[++at];
    else if (row[at] === "|") {
      found.push(cell.trim());
      cell = "";
    } else cell += row[at];
  }
  if (cell.trim() || !row.endsWith("|")) found.push(cell.trim());
  return found;
}

/** Tell whether a line ends the paragraph before it. */
function interrupts(lines, at) {
  const line = lines[at];
  if (FENCE.test(line) || HEADING.test(line) || RULE.test(line) || QUOTE.test(line)) return true;
  const item = ITEM.exec(line);
  // A number at the start of a line is more often a number than a list, but for 1.
  if (item) return Boolean(item[4]) && (!/\d/.test(item[2]) || parseInt(item[2], 10) === 1);
  return startsTable(lines, at, false);
}

function isBlank(line) {
  return line.trim() === "";
}

function leading(line) {
  const at = line.search(/[^ ]/);
  return at < 0 ? line.length : at;
}

function nodes(blocks) {
  return blocks.map((block) => block.node);
}
