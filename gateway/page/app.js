// The page: one conversation, kept across reloads by the session's id.

import { announce } from "./announce.js";
import { ApiError, chat, health, messages, suggestedQuestions } from "./api.js";
import { Composer } from "./composer.js";
import { copy } from "./copy.js";
import { h, icon } from "./dom.js";
import * as endings from "./endings.js";
import { Follower } from "./follow.js";
import { recall, remember } from "./store.js";
import { setUpTheme } from "./theme-button.js";
import { Turn } from "./turn.js";

const PAGE = 20; // messages that are loaded at a time
const LOOKS = 8; // how often an answer that is being written elsewhere is looked for, ever less often

const list = document.getElementById("turns");
const welcome = document.getElementById("welcome");
const earlier = document.getElementById("earlier");
const title = document.title;

let session = recall("session");
let olderToken = "";
let writing = null; // {controller, turn} while an answer arrives
let conversation = 0; // counts conversations, so that what was asked for an earlier one is not shown in the next

const composer = new Composer(document.getElementById("composer"), { onSend: ask, onStop: stop });
const follower = new Follower(document.getElementById("conversation"), document.getElementById("latest"));

setUpTheme(document.getElementById("theme"));
document.getElementById("new").addEventListener("click", begin);
earlier.addEventListener("click", showEarlier);
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape" && writing) stop();
});
document.addEventListener("click", (event) => {
  const button = event.target.closest?.(".copy-code");
  if (button) copy(button.closest(".code").querySelector("code").textContent, button);
});
document.addEventListener("visibilitychange", nameTab);
// A page that is left reads no more, also where the browser keeps it to come back to.
addEventListener("pagehide", stop);

void restore();
void describe();

/** Send a message; `replaced` is the turn that this is another attempt at. */
async function ask(message, replaced = null) {
  if (writing) return;
  const turn = new Turn(message, { onAgain: again, onEdit: edit });
  // The server answers a request of one name once. What it has not told about, it may still be answering.
  const same = replaced?.requestId && !replaced.began && replaced.session === session;
  turn.requestId = same ? replaced.requestId : newId();
  turn.session = session;
  if (replaced) replaced.element.replaceWith(turn.element);
  else list.append(turn.element);
  const controller = new AbortController();
  writing = { controller, turn };
  turn.start();
  show();
  follower.follow();
  composer.setBusy(true);
  composer.invite(turn.element); // what was pressed, a suggestion or a button of the old turn, is gone
  announce("Searching the memory");
  try {
    await read(turn, controller.signal);
  } catch (error) {
    if (controller.signal.aborted) {
      const remarks = turn.finish(endings.stopped());
      if (turn.element.isConnected) announce(remarks.join(". "));
    } else {
      turn.fail(error instanceof ApiError ? error : new ApiError("this page made a mistake; reload it and try again"));
      if (!(error instanceof ApiError)) throw error;
    }
  } finally {
    if (writing?.turn === turn) writing = null;
    composer.setBusy(writing !== null);
    nameTab("ready");
  }
}

function again(turn) {
  void ask(turn.question, turn);
}

/** Put a question that was not taken back into the field. */
function edit(turn) {
  turn.element.remove();
  composer.edit(turn.question);
  show();
}

/** Read an answer into its turn. */
async function read(turn, signal) {
  const mine = conversation;
  const request = { message: turn.question, sessionId: session, requestId: turn.requestId, signal };
  let stats = {};
  try {
    for await (const event of chat(request)) {
      if (event.type === "retrieval") {
        if (event.session_id && mine === conversation) remember("session", (session = event.session_id));
        turn.showPassages(event.passages ?? []);
        nameTab();
      } else if (event.type === "token") turn.append(event.content);
      else if (event.type === "stats") stats = event;
      else if (event.type === "done") {
        const remarks = turn.finish(endings.ofStream(stats, event, turn.passages.length));
        announce(["The answer is complete", ...remarks].join(". "));
      }
    }
  } catch (error) {
    if (error.reason !== "SESSION_NOT_FOUND" || !session || mine !== conversation) throw error;
    remember("session", (session = ""));
    turn.requestId = newId();
    turn.element.before(
      h("p", { class: "divider" }, "The conversation above had ended. A new one begins here, and does not know of it."),
    );
    await read(turn, signal);
  }
}

function stop() {
  writing?.controller.abort();
}

/** Begin a new conversation. */
function begin() {
  stop();
  writing = null;
  conversation++;
  composer.setBusy(false);
  remember("session", (session = ""));
  olderToken = "";
  list.replaceChildren();
  show();
  nameTab();
  composer.focus();
  announce("New conversation");
}

/** Show the conversation that this browser had last, or invite to one. */
async function restore() {
  if (!session) {
    show();
    composer.invite();
    return;
  }
  const mine = conversation;
  const loading = h("p", { class: "loading", role: "status" }, "Loading the conversation…");
  list.replaceChildren(loading);
  try {
    const page = await messages(session, { limit: PAGE });
    if (mine !== conversation) return;
    loading.remove();
    list.prepend(...turnsOf(page.messages));
    olderToken = page.nextPageToken;
    follower.follow();
    void lookAgain(mine, 0);
  } catch (error) {
    if (mine !== conversation) return;
    if (["SESSION_NOT_FOUND", "SESSION_OF_ANOTHER_USER", "INVALID_REQUEST"].includes(error.reason)) {
      remember("session", (session = ""));
      loading.remove();
    } else {
      const again = h("button", { type: "button", class: "quiet", click: restore }, icon("again"), "Load it again");
      loading.replaceWith(
        h(
          "div",
          { class: "problem", role: "alert" },
          h("p", {}, `Your conversation is not shown. ${error.message}`),
          again,
        ),
      );
    }
  }
  show();
  nameTab();
  composer.invite();
}

/** Show the messages before those that are shown. */
async function showEarlier() {
  const mine = conversation;
  earlier.disabled = true;
  try {
    const page = await messages(session, { limit: PAGE, pageToken: olderToken });
    if (mine !== conversation) return;
    const height = document.documentElement.scrollHeight;
    const turns = turnsOf(page.messages);
    list.prepend(...turns);
    olderToken = page.nextPageToken;
    // What is being read stays where it is, also in browsers that do not see to it.
    if (!CSS.supports("overflow-anchor", "auto")) scrollBy(0, document.documentElement.scrollHeight - height);
    announce(`${turns.length} earlier messages`);
  } catch (error) {
    announce(error.message);
  } finally {
    earlier.disabled = false;
    show();
  }
}

/** Look again for answers that were still being written: those of a page that was just left, or of another tab. */
async function lookAgain(mine, looks) {
  const pending = [...list.children].filter((element) => element.classList.contains("pending"));
  if (!pending.length || looks === LOOKS) return;
  await new Promise((resolve) => setTimeout(resolve, 250 * 2 ** looks));
  if (mine !== conversation) return;
  const page = await messages(session, { limit: PAGE }).catch(() => null);
  if (mine !== conversation) return;
  for (const element of pending) {
    const message = page?.messages.find((item) => item.id === element.dataset.id);
    if (message && message.status !== "pending") element.replaceWith(...turnsOf([message]));
  }
  void lookAgain(mine, looks + 1);
}

/** Make the turns of some messages, which come newest first. */
function turnsOf(found) {
  return found
    .filter((message, at) => message.status === "completed" || found[at - 1]?.message !== message.message)
    .map((message) => {
      const turn = Turn.ofHistory(message, { onAgain: again, onEdit: edit });
      turn.element.dataset.id = message.id;
      turn.element.classList.toggle("pending", message.status === "pending");
      return turn.element;
    })
    .reverse();
}

/** Fill the invitation: what there is to ask about, and questions to begin with. */
async function describe() {
  const [questions, state] = await Promise.all([suggestedQuestions(), health()]);
  const suggestions = document.getElementById("suggestions");
  suggestions.replaceChildren(
    ...questions.slice(0, 6).map(({ question }) =>
      h("li", {}, h("button", { type: "button", click: () => ask(question) }, h("span", {}, question), icon("arrow"))),
    ),
  );
  suggestions.hidden = questions.length === 0;
  if (state) {
    const count = state.memvid_frame_count;
    const passages = `${count.toLocaleString("en")} ${count === 1 ? "passage" : "passages"}`;
    document.getElementById("facts").textContent = state.memvid_connected
      ? `Every answer is written from a memory of ${passages}, and shows the ones it used.`
      : "The memory can't be reached at the moment; answers come without passages until it can.";
  }
}

function show() {
  welcome.hidden = list.childElementCount > 0;
  earlier.hidden = !olderToken;
  document.getElementById("new").disabled = list.childElementCount === 0;
}

/** Name the tab by the conversation, and say there when an answer became ready while nobody looked. */
function nameTab(event) {
  const question = list.querySelector(".question")?.textContent ?? "";
  const short = question.length > 50 ? `${question.slice(0, 50).trimEnd()}…` : question;
  const name = question ? `${short} · ${title}` : title;
  document.title = event === "ready" && document.hidden ? `✓ ${name}` : name;
}

/** A name for a request. crypto.randomUUID exists only on pages that came over TLS or from this machine. */
function newId() {
  return [...crypto.getRandomValues(new Uint8Array(16))].map((byte) => byte.toString(16).padStart(2, "0")).join("");
}
