// The routes of the server that this page uses.

import { askForToken, authorization } from "./token.js";

const SILENCE = 60_000; // ms; the server says a comment every 15 s, so that this long means: nobody is there

/** Something that went wrong, in words for a person. */
export class ApiError extends Error {
  constructor(message, { reason = "", status = 0, retryAfter = null, requestId = "" } = {}) {
    super(sentence(message));
    this.reason = reason; // UPPER_SNAKE_CASE, from the server; "" when it did not answer
    this.status = status; // of HTTP; 0 when there is none
    this.retryAfter = retryAfter; // seconds; null when waiting does not help, or nobody knows
    this.requestId = requestId; // finds the request in the server's log
  }
}

/**
 * Send a message and yield the answer's events: retrieval, token..., stats, done. The last one is always done;
 * every other end is an ApiError, or the AbortError that `signal` asked for.
 */
export async function* chat({ message, sessionId, requestId, signal }) {
  const silence = new AbortController();
  let timer = 0;
  const heard = () => {
    clearTimeout(timer);
    timer = setTimeout(() => silence.abort(), SILENCE);
  };
  heard();
  try {
    const response = await send("/api/v1/chat", {
      method: "POST",
      asked: () => clearTimeout(timer), // a reader who looks for a token may take longer than a server that is there
      headers: { "content-type": "application/json", accept: "text/event-stream", "x-request-id": requestId },
      body: JSON.stringify({ message, stream: true, ...(sessionId ? { session_id: sessionId } : {}) }),
      cache: "no-store",
      signal: either(signal, silence.signal),
    });
    if (!response.ok) throw await failure(response);
    for await (const event of events(response.body, heard)) {
      if (event.type === "error") {
        throw new ApiError(event.error, { reason: event.reason, retryAfter: event.retry_after ?? null, requestId });
      }
      yield event;
      if (event.type === "done") return;
    }
  } catch (error) {
    if (error instanceof ApiError || signal.aborted) throw error;
    if (silence.signal.aborted) throw new ApiError("nothing was heard from the server for a minute", { requestId });
    throw new ApiError("the connection to the server was lost, or could not be made", { requestId });
  } finally {
    clearTimeout(timer);
  }
  throw new ApiError("the connection ended before the answer did", { reason: "CONNECTION_ENDED", requestId });
}

/** Return a page of a conversation, newest message first, and the token of the page before it ("" if none). */
export async function messages(sessionId, { limit, pageToken = "" }) {
  const query = new URLSearchParams({ limit, ...(pageToken ? { page_token: pageToken } : {}) });
  const page = await get(`/api/v1/sessions/${encodeURIComponent(sessionId)}/messages?${query}`);
  return { messages: page.messages, nextPageToken: page.next_page_token };
}

/** Return questions worth asking; none where the server has none. */
export async function suggestedQuestions() {
  try {
    return (await get("/api/v1/suggested-questions")).questions;
  } catch (error) {
    if (error instanceof ApiError) return [];
    throw error;
  }
}

/** Return the state of the server, or null when it does not say. */
export async function health() {
  try {
    return await get("/api/v1/health");
  } catch (error) {
    if (error instanceof ApiError) return null;
    throw error;
  }
}

/** Fetch, as the reader whom the tab knows; if the server asks who that is, ask the reader and try once more. */
async function send(path, { headers, asked = () => {}, ...options }) {
  const attempt = () => fetch(path, { ...options, headers: { ...headers, ...authorization() } });
  const shown = authorization().authorization;
  const response = await attempt();
  if (response.status !== 401) return response;
  // Another request may have asked meanwhile.
  if (authorization().authorization !== shown) return await attempt();
  asked();
  return (await askForToken()) ? await attempt() : response;
}

async function get(path) {
  let response;
  try {
    response = await send(path, { headers: { accept: "application/json" } });
  } catch {
    throw new ApiError("the server can't be reached");
  }
  if (!response.ok) throw await failure(response);
  return await response.json();
}

/** Yield the events of a stream: one JSON object in each line that begins with "data:". */
async function* events(body, heard) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  try {
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return;
      heard();
      const lines = (rest + value).split("\n");
      rest = lines.pop();
      for (const line of lines) if (line.startsWith("data:")) yield JSON.parse(line.slice(5));
    }
  } finally {
    // Whoever stops listening lets go of the connection: that is how the server knows.
    reader.cancel().catch(() => {});
  }
}

async function failure(response) {
  let body = {};
  try {
    body = await response.json();
  } catch {
    // Not of our server: something on the way answered.
  }
  return new ApiError(body.message || `the server answered with status ${response.status}`, {
    reason: body.error,
    status: response.status,
    retryAfter: retryAfter(response),
    requestId: body.request_id || response.headers.get("x-request-id") || "",
  });
}

function retryAfter(response) {
  const text = response.headers.get("retry-after");
  if (!text) return null;
  const seconds = /^\d+$/.test(text) ? Number(text) : Math.ceil((Date.parse(text) - Date.now()) / 1000);
  return Number.isFinite(seconds) ? Math.max(0, seconds) : null;
}

function either(...signals) {
  const any = new AbortController();
  for (const signal of signals) {
    if (signal.aborted) any.abort();
    else signal.addEventListener("abort", () => any.abort(), { once: true });
  }
  return any.signal;
}

function sentence(text) {
  const trimmed = text.trim();
  return trimmed.charAt(0).toUpperCase() + trimmed.slice(1) + (/[.!?]$/.test(trimmed) ? "" : ".");
}
