// ReDoc over the document that stands beside this page, in the fonts that the reader's machine has:
// its own choice would come from another host.
const text = "system-ui, sans-serif";
const code = "ui-monospace, monospace";
Redoc.init(
  "openapi.json",
  { theme: { typography: { fontFamily: text, headings: { fontFamily: text }, code: { fontFamily: code } } } },
  document.getElementById("ui"),
);
