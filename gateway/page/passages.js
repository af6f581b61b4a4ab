// The passages that an answer is written from.

import { h, icon } from "./dom.js";

const NAMED = 2; // in the closed list; the others are counted

/** The passages as a list that opens: their titles and scores at once, their text when asked for. */
export function passageList(passages) {
  const named = passages.slice(0, NAMED).map((passage) =>
    h("span", { class: "chip" }, h("span", { class: "chip-title" }, leaf(passage.title)), score(passage)),
  );
  const more = passages.length - named.length;
  const count = passages.length === 1 ? "1 passage" : `${passages.length} passages`;
  return h(
    "details",
    { class: "passages" },
    h(
      "summary",
      {},
      h("span", { class: "passages-count" }, icon("memory"), count),
      h("span", { class: "chips" }, ...named, more > 0 ? h("span", { class: "chip more" }, `+${more}`) : null),
    ),
    h("ol", {}, ...passages.map(card)),
  );
}

function card(passage) {
  const bar = h("span", { class: "bar", "aria-hidden": "true" });
  bar.style.setProperty("--score", Math.min(1, Math.max(0, passage.score)));
  return h(
    "li",
    { class: "passage" },
    h("p", { class: "passage-title" }, h("span", {}, passage.title || "Untitled"), bar, score(passage)),
    h("p", { class: "passage-text" }, passage.snippet),
  );
}

function score(passage) {
  return h(
    "span",
    { class: "score", title: "How well the passage fits the question, from 0 to 1" },
    h("span", { class: "visually-hidden" }, "score "),
    passage.score.toFixed(2),
  );
}

/** The last heading of a title such as "Storage › SQLite". */
function leaf(title) {
  return title.split("›").at(-1).trim() || "Untitled";
}
