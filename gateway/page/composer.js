// The field that messages are written in, with its button: send, or stop while an answer is written.

const MAX = 2_000; // characters that the route takes
const COUNTED = 1_600; // from here on the field says how many there are

export class Composer {
  constructor(form, { onSend, onStop }) {
    this.form = form;
    this.field = form.querySelector("textarea");
    this.send = form.querySelector("#send");
    this.stop = form.querySelector("#stop");
    this.count = document.getElementById("count");
    this.busy = false;
    this.onSend = onSend;
    form.addEventListener("submit", (event) => {
      event.preventDefault();
      this.submit();
    });
    this.stop.addEventListener("click", onStop);
    this.field.addEventListener("input", () => this.update());
    this.field.addEventListener("keydown", (event) => {
      // While an input method is composing, Enter is its own.
      if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
      event.preventDefault();
      this.submit();
    });
    this.update();
  }

  submit() {
    const text = this.field.value.trim();
    if (this.busy || !text || length(text) > MAX) return;
    this.field.value = "";
    this.update();
    this.onSend(text);
  }

  /** Put a text back, to be written anew. */
  edit(text) {
    this.field.value = text;
    this.update();
    this.focus();
  }

  setBusy(busy) {
    // The button that has the focus goes; the keyboard must not end up nowhere.
    if ([this.send, this.stop].includes(document.activeElement)) this.focus();
    this.busy = busy;
    this.send.hidden = busy;
    this.stop.hidden = !busy;
  }

  focus() {
    this.field.focus();
  }

  /** Take the focus if nobody has it, but not where that brings up a keyboard; `otherwise` takes it there. */
  invite(otherwise = null) {
    // The focus of what was just taken away is noticed by the browser only later.
    if (document.activeElement !== document.body && document.activeElement.checkVisibility()) return;
    if (matchMedia("(hover: hover) and (pointer: fine)").matches) this.focus();
    else otherwise?.focus({ preventScroll: true });
  }

  update() {
    const count = length(this.field.value.trim());
    const left = MAX - count;
    this.send.disabled = count === 0 || left < 0;
    this.count.hidden = count < COUNTED;
    this.count.classList.toggle("over", left < 0);
    const number = Math.abs(left).toLocaleString("en");
    this.count.textContent = `${number} ${number === "1" ? "character" : "characters"} ${left < 0 ? "too many" : "left"}`;
    if (CSS.supports("field-sizing", "content")) return;
    this.field.style.height = "auto";
    this.field.style.height = `${this.field.scrollHeight}px`;
  }
}

/** Characters as the server counts them: code points. */
function length(text) {
  return [...text].length;
}
