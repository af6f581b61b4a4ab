// Before anything is drawn, so that no page flashes in the wrong colours; therefore not a module.
"use strict";
try {
  const theme = localStorage.getItem("chat-grpc.theme");
  if (theme === "light" || theme === "dark") document.documentElement.dataset.theme = theme;
} catch {
  // The browser keeps nothing; its own preference counts.
}
