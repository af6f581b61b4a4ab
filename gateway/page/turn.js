// One question and its answer on the page.

import { announce } from "./announce.js";
import { copy } from "./copy.js";
import { h, icon } from "./dom.js";
import * as endings from "./endings.js";
import { MarkdownView } from "./markdown-view.js";
import { passageList } from "./passages.js";

const BAD_REQUEST = 400;

export class Turn {
  /**
   * `onAgain` is called with the turn when the reader asks for the question to be answered again, `onEdit` when
   * it is to be written anew.
   */
  constructor(question, { onAgain, onEdit }) {
    this.question = question;
    this.onAgain = onAgain;
    this.onEdit = onEdit;
    this.text = [];
    this.began = false; // whether the server told of passages: from then on it keeps the question
    this.passages = [];
    this.state = h("p", { class: "waiting" });
    this.prose = h("div", { class: "prose" });
    this.answer = h("div", { class: "answer" }, this.state, this.prose);
    this.element = h(
      "article",
      { class: "turn", tabindex: "-1" },
      h("h2", { class: "visually-hidden" }, "You"),
      h("div", { class: "question" }, h("p", {}, question)),
      h("h2", { class: "visually-hidden" }, "Answer"),
      this.answer,
    );
    this.view = new MarkdownView(this.prose, (block) => this.live && announce(spoken(block)));
    this.live = false;
  }

  /** Make a turn of a message of the history. */
  static ofHistory(message, actions) {
    const turn = new Turn(message.message, actions);
    if (message.passages.length) turn.showPassages(message.passages);
    turn.append(message.answer);
    turn.finish(endings.ofHistory(message));
    if (message.status === "pending") turn.wait("Still being written");
    return turn;
  }

  /** Show that the answer is on its way. */
  start() {
    this.live = true;
    this.element.classList.add("live");
    this.wait("Searching the memory");
  }

  wait(words) {
    this.state.replaceChildren(h("span", { class: "dots", "aria-hidden": "true" }, h("i"), h("i"), h("i")), words);
    this.state.hidden = false;
  }

  showPassages(passages) {
    this.began = true;
    this.passages = passages;
    if (passages.length) this.answer.prepend(passageList(passages));
    this.wait(passages.length ? "Reading what was found" : "Thinking");
  }

  append(text) {
    if (!text) return;
    this.state.hidden = true;
    this.text.push(text);
    this.view.append(text);
  }

  /** The whole answer is there, or all of it that there will be. */
  finish(ending) {
    this.settle();
    const { warnings, notes, facts, again, calm } = ending;
    const text = this.text.join("");
    this.answer.append(
      h(
        "footer",
        { class: "ending" },
        ...warnings.map((words) =>
          h("p", { class: calm ? "warning calm" : "warning" }, icon(calm ? "stop" : "warning"), h("span", {}, words)),
        ),
        h(
          "div",
          { class: "ending-row" },
          text ? this.button("copy", "Copy", (button) => copy(text, button)) : null,
          again ? this.button("again", "Ask again", () => this.onAgain(this)) : null,
          ...notes.map((words) => h("span", { class: "note" }, words)),
          facts.length ? h("span", { class: "facts" }, facts.join(" · ")) : null,
        ),
      ),
    );
    return [...warnings, ...notes];
  }

  /** The answer failed; what had arrived of it stays. */
  fail(error) {
    this.settle();
    // What the server does not take will not be taken the second time.
    const again =
      error.status === BAD_REQUEST
        ? this.button("edit", "Edit the question", () => this.onEdit(this))
        : this.button("again", "Try again", () => this.onAgain(this));
    const text = this.text.join("");
    this.answer.append(
      h(
        "div",
        { class: "problem", role: "alert" },
        h("p", {}, icon("warning"), h("span", {}, text ? `The answer broke off. ${error.message}` : error.message)),
        h(
          "div",
          { class: "ending-row" },
          again,
          text ? this.button("copy", "Copy", (button) => copy(text, button)) : null,
          error.requestId ? h("span", { class: "facts" }, "Request ", h("code", {}, error.requestId)) : null,
        ),
      ),
    );
    if (error.retryAfter) this.countDown(again, error.retryAfter);
  }

  settle() {
    this.view.end();
    this.live = false;
    this.state.hidden = true;
    this.element.classList.remove("live");
  }

  /** Hold a button back for so many seconds, and say how many are left. */
  countDown(button, seconds) {
    const label = button.querySelector(".label");
    const end = Date.now() + seconds * 1000;
    button.disabled = true;
    const tick = () => {
      const left = Math.ceil((end - Date.now()) / 1000);
      label.textContent = left > 0 ? `Try again in ${left} s` : "Try again";
      if (left > 0) return;
      clearInterval(timer);
      button.disabled = false;
      announce("You can try again now");
    };
    const timer = setInterval(tick, 250);
    tick();
  }

  button(name, label, onClick) {
    const button = h("button", { type: "button", class: "quiet" }, icon(name), h("span", { class: "label" }, label));
    button.addEventListener("click", () => onClick(button));
    return button;
  }
}

/** What is said of a block: its text, but of code only what it is. */
function spoken(block) {
  const code = block.querySelector(":scope > pre");
  return code ? `${code.getAttribute("aria-label")}, ${code.textContent.split("\n").length} lines` : block.innerText;
}
