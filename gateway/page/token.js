// Who the reader is, where the server asks for it: a token or API key. This tab keeps it until it is closed.

import { h } from "./dom.js";

const NAME = "chat-grpc.token";

let asking = null;

/** The header that shows the token; none without one. */
export function authorization() {
  const token = kept();
  return token ? { authorization: `Bearer ${token}` } : {};
}

/** Ask the reader for a token; true once one was given. Who asks meanwhile waits for the same. */
export function askForToken() {
  asking ??= ask().finally(() => {
    asking = null;
  });
  return asking;
}

function ask() {
  const again = Boolean(kept());
  const field = h("input", { type: "password", id: "token", autocomplete: "off", spellcheck: "false", required: true });
  const dialog = h(
    "dialog",
    {
      class: "sign-in",
      "aria-labelledby": "token-question",
      keydown: (event) => event.stopPropagation(), // Escape closes this, and stops nothing beneath it
    },
    h(
      "form",
      {
        submit: (event) => {
          event.preventDefault(); // the policy of this page allows no form to be sent
          keep(field.value.trim());
          dialog.close("given");
        },
      },
      h("h2", { id: "token-question" }, again ? "The token is not taken any more" : "This server asks who you are"),
      h("label", { for: "token" }, "Token or API key"),
      field,
      h(
        "p",
        { class: "ending-row" },
        h("button", { type: "submit", class: "quiet" }, "Go on"),
        h("button", { type: "button", class: "quiet", click: () => dialog.close() }, "Not now"),
      ),
    ),
  );
  return new Promise((resolve) => {
    dialog.addEventListener("close", () => {
      dialog.remove();
      resolve(dialog.returnValue === "given");
    });
    document.body.append(dialog);
    dialog.showModal();
  });
}

let unstored = ""; // where the browser keeps nothing

function kept() {
  try {
    return sessionStorage.getItem(NAME) ?? unstored;
  } catch {
    return unstored;
  }
}

function keep(token) {
  unstored = token;
  try {
    sessionStorage.setItem(NAME, token);
  } catch {
    // It lasts until the page is loaded again.
  }
}
