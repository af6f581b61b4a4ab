// How an answer ended, in words, and never better than it was: {warnings, notes, facts, again, calm}. `again`
// offers to ask once more; `calm` is an end that the reader wanted.

const DEGRADED = {
  retrieval: "Written without the memory, which could not be reached",
  llm: "Written by a stand-in, because the usual model did not answer",
  storage: "May be missing from the history, which could not be written",
};
const FAILURES = {
  MODEL_CUT: "the model's connection broke",
  MODEL_EMPTY: "the model wrote nothing",
  MODEL_ERROR: "the model reported an error",
  MODEL_PROTOCOL: "the model's answer could not be read",
  MODEL_TIMEOUT: "the model took too long",
  MODEL_UNAVAILABLE: "no model could be reached",
  STORAGE_UNAVAILABLE: "the history could not be written",
};

/** The ending of a stream that was read to its end, from its events stats and done. */
export function ofStream(stats, done, passages) {
  return {
    warnings: finishing(done.finish_reason),
    notes: remarks(stats.degraded ?? [], stats.cached, passages),
    facts: facts(stats.model, stats.tokens_used, stats.elapsed_seconds),
    again: false,
  };
}

/** The ending of a stream that this page left. */
export function stopped() {
  return { warnings: ["Stopped. This is what had been written."], notes: [], facts: [], again: true, calm: true };
}

/** The ending that the history tells of a message. */
export function ofHistory(message) {
  const why = FAILURES[message.error_reason] ? `: ${FAILURES[message.error_reason]}` : "";
  const warnings = {
    pending: [],
    completed: finishing(message.finish_reason),
    partial: [`Cut off${why || ", because the model failed"}.`],
    cancelled: [message.answer ? "Stopped. This is what had been written." : "Stopped before anything was written."],
    failed: [`No answer was written${why}.`],
    interrupted: ["Cut off, because the server stopped."],
  }[message.status] ?? [`Ended as “${message.status}”.`];
  const whole = message.status === "completed";
  const took = message.completed_at ? (Date.parse(message.completed_at) - Date.parse(message.created_at)) / 1000 : null;
  return {
    warnings,
    notes: whole ? remarks(message.degraded, message.cached, message.passages.length) : [],
    facts: whole ? facts(message.model, message.tokens_used, took) : [],
    again: !whole && message.status !== "pending",
    calm: message.status === "cancelled",
  };
}

function finishing(reason) {
  if (reason === "length") return ["Cut off, because the answer reached its greatest length."];
  if (reason === "content_filter") return ["A content filter withheld a part of this answer."];
  return [];
}

function remarks(degraded, cached, passages) {
  const notes = degraded.map((part) => DEGRADED[part] ?? `Written without ${part}`);
  if (cached) notes.push("From the cache: written earlier, for an equal question");
  if (!passages && !degraded.includes("retrieval")) notes.push("Nothing in the memory fits this question");
  return notes;
}

function facts(model, tokens, seconds) {
  return [
    model || null,
    tokens ? `${tokens.toLocaleString("en")} ${tokens === 1 ? "token" : "tokens"}` : null,
    Number.isFinite(seconds) ? duration(seconds) : null,
  ].filter(Boolean);
}

function duration(seconds) {
  if (seconds < 0.1) return "under 0.1 s";
  return `${seconds < 10 ? seconds.toFixed(1) : Math.round(seconds)} s`;
}
