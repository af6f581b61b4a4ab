// An answer on the page, growing while it arrives.

import { patch } from "./dom.js";
import { parse } from "./markdown.js";

const SHARE = 4; // at most a fifth of the time goes into drawing, however long a block gets
const LONGEST_PAUSE = 1_000; // ms

/**
 * Draws Markdown into an element, at most once per frame. Only the block that is still being written is read
 * and drawn again; those before it are done, and `onBlock` is told of each as its text.
 */
export class MarkdownView {
  constructor(element, onBlock = () => {}) {
    this.element = element;
    this.onBlock = onBlock;
    this.pieces = []; // arrived, not yet drawn
    this.tail = ""; // the source of the last block
    this.done = 0; // how many blocks, and so children of the element, will not change any more
    this.frame = 0;
    this.pause = 0;
  }

  append(text) {
    this.pieces.push(text);
    this.frame ||= requestAnimationFrame((now) => this.tick(now));
  }

  /** Draw what is there as the whole of it. */
  end() {
    cancelAnimationFrame(this.frame);
    this.frame = 0;
    this.draw(false);
  }

  tick(now) {
    this.frame = 0;
    if (now < this.pause) {
      this.frame = requestAnimationFrame((later) => this.tick(later));
      return;
    }
    const began = performance.now();
    this.draw(true);
    const took = performance.now() - began;
    this.pause = began + Math.min(took * (1 + SHARE), LONGEST_PAUSE);
  }

  draw(open) {
    this.tail += this.pieces.join("").replaceAll("\r", "").replaceAll("\0", "\ufffd");
    this.pieces = [];
    const blocks = parse(this.tail, open);
    patch(this.element, blocks.map((block) => block.node), this.done);
    const finished = open ? this.finished(blocks) : blocks.length;
    for (let number = 0; number < finished; number++) this.onBlock(this.element.children[this.done + number]);
    this.done += finished;
    this.tail = open ? this.tail.slice(blocks[finished]?.offset ?? 0) : "";
  }

  /** How many of the blocks nothing that arrives can change: all before the last one that has a whole line. */
  finished(blocks) {
    const lastLine = this.tail.lastIndexOf("\n") + 1;
    return Math.max(0, blocks.findLastIndex((block) => block.offset < lastLine));
  }
}
