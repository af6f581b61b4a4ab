// What screen readers say while nobody moves: an answer paragraph by paragraph, not token by token.

const KEPT = 8_000; // ms; long enough to be said, short enough not to be found a second time by reading on

const region = document.getElementById("announcements");

/** Have a text said once what is being said has been said. */
export function announce(text) {
  if (!text.trim()) return;
  const line = document.createElement("p");
  line.textContent = text;
  region.append(line);
  setTimeout(() => line.remove(), KEPT);
}
