// Light, dark, or as the system says.

import { announce } from "./announce.js";
import { icon } from "./dom.js";
import { recall, remember } from "./store.js";

const THEMES = {
  "": { next: "light", icon: "system", name: "as the system" },
  light: { next: "dark", icon: "sun", name: "light" },
  dark: { next: "", icon: "moon", name: "dark" },
};

export function setUpTheme(button) {
  show(button, recall("theme"));
  button.addEventListener("click", () => {
    const { next } = THEMES[document.documentElement.dataset.theme ?? ""];
    remember("theme", next);
    show(button, next);
    announce(`Colours: ${THEMES[next].name}`);
  });
}

function show(button, wanted) {
  const theme = wanted in THEMES ? wanted : "";
  if (theme) document.documentElement.dataset.theme = theme;
  else delete document.documentElement.dataset.theme;
  const label = `Colours: ${THEMES[theme].name}`;
  button.replaceChildren(icon(THEMES[theme].icon));
  button.setAttribute("aria-label", label);
  button.title = label;
}
