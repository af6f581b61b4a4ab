// Copying to the clipboard, also where the page is not served over TLS and browsers offer no clipboard.

import { announce } from "./announce.js";
import { h } from "./dom.js";

/** Copy a text and say so on the button that was pressed. */
export async function copy(text, button) {
  const copied = await write(text);
  const word = copied ? "Copied" : "Can't copy";
  const label = button.querySelector(".label") ?? button;
  const before = button.dataset.label ?? label.textContent;
  button.dataset.label = before;
  label.textContent = word;
  button.classList.toggle("did", copied);
  announce(word);
  clearTimeout(Number(button.dataset.timer));
  button.dataset.timer = setTimeout(() => {
    label.textContent = before;
    button.classList.remove("did");
  }, 1_800);
}

async function write(text) {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    return writeBySelection(text);
  }
}

function writeBySelection(text) {
  const field = h("textarea", { class: "visually-hidden", "aria-hidden": "true", tabindex: "-1" });
  field.value = text;
  const focused = document.activeElement;
  document.body.append(field);
  field.select();
  try {
    return document.execCommand("copy");
  } finally {
    field.remove();
    focused?.focus();
  }
}
