// Markdown to a tree: what stands within a line. See markdown.js.
//
// One pass over the text. What has been opened (* _ ~~ [) is a stack of frames, each holding the nodes since;
// a mark that closes takes its frame, and frames above it become the text that they were.

import { safeAddress } from "./dom.js";

const MAX_FRAMES = 64; // more would be no emphasis but an attempt to be slow
const MAX_RUN = 6;
const ESCAPABLE = /[!-/:-@[-`{-~]/;
const ENTITY = /&(?:#(\d{1,7})|#[xX]([\da-fA-F]{1,6})|(amp|lt|gt|quot|apos|nbsp|mdash|ndash|hellip));/y;
const ENTITIES = {
  amp: "&", lt: "<", gt: ">", quot: '"', apos: "'", nbsp: "\u00a0", mdash: "—", ndash: "–", hellip: "…",
};
const ANGLE_LINK = /<((?:https?:\/\/|mailto:)[^\s<>]{1,2000})>/iy;
const BREAK = /<br ?\/?>/iy;
const BARE_LINK = /https?:\/\/[^\s<>[\]`"]{1,2000}/iy;
// (address "title"), the address in <> or with balanced brackets
const TARGET =
  /\(\s{0,9}(?:<([^<>\n]{0,2000})>|([^\s()<>]{0,2000}(?:\([^\s()<>]{0,200}\)[^\s()<>]{0,200}){0,9}))(?:\s{1,9}(?:"[^"]{0,200}"|'[^']{0,200}'))?\s{0,9}\)/y;
const UNFINISHED_TARGET = /\([^)\n]{0,2000}$/y;
const PLAIN = /[^\\`<&![\]*_~\nhH]+/y;

/** Return the nodes of a text; `open` tells that more will come, `breaks` that <br> may break lines. */
export function parseInline(text, { open = false, breaks = false } = {}) {
  // What may be the first half of a mark is not shown before it is known.
  return new Inline(open ? text.replace(/(?:[*_~`]+|!?\[|\\)$/, "") : text, open, breaks).parse();
}

class Inline {
  constructor(text, open, breaks) {
    this.text = text;
    this.open = open;
    this.breaks = breaks;
    this.at = 0;
    this.frames = [{ mark: "", count: 0, nodes: [] }];
    this.opened = { "*": 0, _: 0, "~": 0, "[": 0 };
    this.ticks = null;
  }

  parse() {
    while (this.at < this.text.length) {
      const plain = this.match(PLAIN);
      if (plain) this.push(plain[0]);
      else if (!this.special(this.text[this.at])) this.push(this.text[this.at++]);
    }
    return join(this.finish());
  }

  match(pattern) {
    pattern.lastIndex = this.at;
    const found = pattern.exec(this.text);
    if (found) this.at = pattern.lastIndex;
    return found;
  }

  push(node) {
    this.frames.at(-1).nodes.push(node);
  }

  /** Read what a special character begins; false if it is nothing but itself. */
  special(character) {
    switch (character) {
      case "\\":
        return this.escape();
      case "`":
        return this.codeSpan();
      case "<":
        return this.angle();
      case "&":
        return this.entity();
      case "!":
        return this.text[this.at + 1] === "[" && this.openBracket("![");
      case "[":
        return this.openBracket("[");
      case "]":
        return this.closeBracket();
      case "\n":
        return this.lineEnd();
      case "h":
      case "H":
        return this.bareLink();
      default:
        return this.delimiters(character);
    }
  }

  escape() {
    const next = this.text[this.at + 1];
    if (next === "\n") this.push({ tag: "br" });
    else if (next && ESCAPABLE.test(next)) this.push(next);
    else return false;
    this.at += 2;
    return true;
  }

  lineEnd() {
    const before = this.frames.at(-1).nodes;
    const hard = typeof before.at(-1) === "string" && before.at(-1).endsWith("  ");
    this.push(hard ? { tag: "br" } : "\n");
    this.at++;
    return true;
  }

  codeSpan() {
    const length = /`+/y;
    length.lastIndex = this.at;
    const run = length.exec(this.text)[0].length;
    const inside = this.at + run;
    let end = this.nextTicks(run, inside);
    if (end < 0) {
      if (!this.open) {
        this.push("`".repeat(run));
        this.at = inside;
        return true;
      }
      end = this.text.length;
    }
    let code = this.text.slice(inside, end).replaceAll("\n", " ");
    if (/^ .*[^ ].* $/.test(code)) code = code.slice(1, -1);
    this.push({ tag: "code", children: [code] });
    this.at = Math.min(end + run, this.text.length);
    return true;
  }

  /** Return where the next run of so many backticks begins, or -1. All runs are looked up once. */
  nextTicks(run, from) {
    if (!this.ticks) {
      this.ticks = new Map();
      for (const { 0: found, index } of this.text.matchAll(/`+/g)) {
        if (!this.ticks.has(found.length)) this.ticks.set(found.length, { places: [], next: 0 });
        this.ticks.get(found.length).places.push(index);
      }
    }
    const known = this.ticks.get(run);
    if (!known) return -1;
    while (known.next < known.places.length && known.places[known.next] < from) known.next++;
    return known.places[known.next] ?? -1;
  }

  angle() {
    let found;
    if (this.breaks && this.match(BREAK)) this.push({ tag: "br" });
    else if ((found = this.match(ANGLE_LINK))) this.push(link(found[1], [found[1].replace(/^mailto:/i, "")]));
    else return false;
    return true;
  }

  entity() {
    const found = this.match(ENTITY);
    if (!found) return false;
    const [, decimal, hexadecimal, name] = found;
    const point = decimal ? parseInt(decimal, 10) : parseInt(hexadecimal, 16);
    const isCharacter = point > 0 && point <= 0x10ffff && !(point >= 0xd800 && point <= 0xdfff);
    this.push(name ? ENTITIES[name] : isCharacter ? String.fromCodePoint(point) : "\ufffd");
    return true;
  }

  bareLink() {
    if (this.at && /\w/.test(this.text[this.at - 1])) return false;
    const start = this.at;
    const found = this.match(BARE_LINK);
    if (!found) return false;
    // Punctuation at its end belongs to the sentence, and a bracket that it does not open to what is around it.
    let address = found[0];
    let brackets = count(address, ")") - count(address, "(");
    for (;;) {
      if (/[?!.,:;'*_~|]$/.test(address)) address = address.slice(0, -1);
      else if (address.endsWith(")") && brackets-- > 0) address = address.slice(0, -1);
      else break;
    }
    this.at = start + address.length;
    this.push(link(address, [address]));
    return true;
  }

  openBracket(mark) {
    if (this.frames.length > MAX_FRAMES) return false;
    this.at += mark.length;
    this.frames.push({ mark, count: 1, nodes: [] });
    this.opened["["]++;
    return true;
  }

  closeBracket() {
    if (!this.opened["["]) return false;
    const start = this.at++;
    const target = this.match(TARGET) ?? (this.open && this.match(UNFINISHED_TARGET));
    if (!target) this.at = start;
    while (!this.frames.at(-1).mark.endsWith("[")) this.fold();
    if (!target) {
      // Brackets that are only brackets.
      this.fold();
      return false;
    }
    const { mark, nodes } = this.frames.pop();
    this.opened["["]--;
    const address = target[1] ?? target[2] ?? "";
    const label = nodes.length ? withoutLinks(nodes) : [address];
    // A picture is not loaded: that would tell another host that this answer was read.
    this.push(link(decode(address), mark === "![" ? ["🖼 ", ...label] : label));
    return true;
  }

  delimiters(character) {
    let end = this.at;
    while (this.text[end] === character) end++;
    const run = end - this.at;
    const before = this.text[this.at - 1] ?? " ";
    const after = this.text[end] ?? " ";
    const left = !isSpace(after) && (!isPunctuation(after) || isSpace(before) || isPunctuation(before));
    const right = !isSpace(before) && (!isPunctuation(before) || isSpace(after) || isPunctuation(after));
    const within = character === "_"; // snake_case is no emphasis
    let canOpen = left && (!within || !right || isPunctuation(before));
    let canClose = right && (!within || !left || isPunctuation(after));
    if (run > MAX_RUN || (character === "~" && run !== 2)) canOpen = canClose = false;
    this.at = end;
    let rest = run;
    const both = canOpen && canClose;
    for (let frame; canClose && rest && (frame = this.openerFor(character, run, both)); ) rest = this.close(frame, rest);
    if (!rest) return true;
    if (canOpen && this.frames.length <= MAX_FRAMES) {
      this.frames.push({ mark: character, count: rest, run, both, nodes: [] });
      this.opened[character]++;
    } else this.push(character.repeat(rest));
    return true;
  }

  /** Return the innermost frame that a run of marks may close. */
  openerFor(character, run, both) {
    if (!this.opened[character]) return undefined;
    return this.frames.findLast((frame) => {
      if (frame.mark !== character) return false;
      // CommonMark's rule of three, by which **a*b** is one strong text: see its section on emphasis.
      return !((both || frame.both) && (run + frame.run) % 3 === 0 && (run % 3 || frame.run % 3));
    });
  }

  /** Close a frame by as much as there is of its mark; return how much of that is left. */
  close(frame, rest) {
    const character = frame.mark;
    while (this.frames.at(-1) !== frame) this.fold();
    const taken = Math.min(2, rest, frame.count);
    frame.nodes = [emphasis(character, taken, frame.nodes)];
    frame.count -= taken;
    if (!frame.count) {
      this.frames.pop();
      this.opened[character]--;
      this.frames.at(-1).nodes.push(...frame.nodes);
    }
    return rest - taken;
  }

  /** Turn the innermost frame into the text that it was. */
  fold() {
    const { mark, count: marks, nodes } = this.frames.pop();
    this.opened[mark.at(-1)]--;
    const below = this.frames.at(-1).nodes;
    below.push(mark.repeat(marks));
    for (const node of nodes) below.push(node);
  }

  finish() {
    while (this.frames.length > 1) {
      const frame = this.frames.at(-1);
      if (this.open && frame.mark in { "*": 1, _: 1, "~": 1 } && frame.nodes.length) this.close(frame, frame.count);
      else this.fold();
    }
    return this.frames[0].nodes;
  }
}

function emphasis(character, marks, children) {
  const tag = character === "~" ? "del" : marks === 2 ? "strong" : "em";
  return { tag, children: join(children) };
}

/** A link, or its text where the address is not one that may be followed. */
function link(address, children) {
  const href = safeAddress(address);
  if (href === null) return { tag: "span", children: join(children) };
  return { tag: "a", attributes: { href, target: "_blank", rel: "noopener noreferrer" }, children: join(children) };
}

function withoutLinks(nodes) {
  return nodes.flatMap((node) => {
    if (typeof node === "string") return [node];
    const children = withoutLinks(node.children ?? []);
    return node.tag === "a" ? children : [{ ...node, children }];
  });
}

function decode(address) {
  return address.replace(/\\([!-/:-@[-`{-~])/g, "$1").replaceAll("&amp;", "&");
}

/** Join neighbouring texts into one. */
function join(nodes) {
  const joined = [];
  let text = [];
  const flush = () => {
    const whole = text.join("");
    if (whole) joined.push(whole);
    text = [];
  };
  for (const node of nodes) {
    if (typeof node === "string") text.push(node);
    else {
      flush();
      joined.push(node);
    }
  }
  flush();
  return joined;
}

function count(text, character) {
  return text.split(character).length - 1;
}

function isSpace(character) {
  return /\s/.test(character);
}

function isPunctuation(character) {
  return /[\p{P}\p{S}]/u.test(character);
}
