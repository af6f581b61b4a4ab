// A little colour for code: comments, texts, numbers and the words that most languages share. It does not know
// any language well, so it marks only what is hardly ever wrong.

const MAX = 20_000; // characters; longer code is shown plain, which is faster

const HASH = new Set(["py", "python", "sh", "bash", "shell", "zsh", "console", "yaml", "yml", "toml", "ini", "env",
  "dotenv", "ruby", "rb", "r", "make", "makefile", "dockerfile", "docker", "elixir", "nginx", "conf", "perl"]);
const SLASHES = new Set(["js", "javascript", "mjs", "ts", "typescript", "jsx", "tsx", "go", "rust", "rs", "java", "c",
  "cpp", "c++", "h", "cs", "csharp", "kotlin", "swift", "proto", "protobuf", "scala", "php", "dart", "zig", "jsonc"]);
const DASHES = new Set(["sql", "lua", "haskell", "hs"]);
const PLAIN = new Set(["json", "css", "graphql"]);

const WORDS = new Set(("abstract and as async await bool boolean break case catch class const continue def default defer del " +
  "do done echo elif else end enum esac except export extends false False fi final finally float fn for from func function global " +
  "go if impl implements import in int interface is lambda let local loop match message mod module mut namespace new nil " +
  "None nonlocal not null or package pass private protected pub public raise return returns rpc select self service " +
  "static str string struct super switch syntax then this throw throws trait true True try type typeof undefined union " +
  "use using var void when where while with yield").split(" "));
const SQL = new Set(("ADD ALL ALTER AND AS ASC BEGIN BY CASE COMMIT CREATE DELETE DESC DISTINCT DROP ELSE END EXISTS FROM " +
  "GROUP HAVING IF IN INDEX INSERT INTO IS JOIN KEY LEFT LIKE LIMIT NOT NULL OFFSET ON OR ORDER PRIMARY REFERENCES RIGHT " +
  "SELECT SET TABLE THEN UNION UNIQUE UPDATE VALUES WHEN WHERE WITH").split(" "));

const TEXT = String.raw`"(?:\\.|[^"\\\n])*"|'(?:\\.|[^'\\\n])*'`;
const REST = String.raw`(?<number>\b\d[\w.]*)|(?<![.\w])(?<word>[A-Za-z_$][\w$]*)\b(?!=[^=])`;

/** Return the nodes of a code block's text. */
export function highlight(text, language) {
  const name = language.toLowerCase();
  const pattern = patternOf(name);
  if (!pattern || text.length > MAX) return text ? [text] : [];
  const words = DASHES.has(name) ? SQL : WORDS;
  const nodes = [];
  let from = 0;
  for (const { 0: found, index, groups } of text.matchAll(pattern)) {
    const kind = kindOf(found, groups, words, name);
    if (!kind) continue;
    if (index > from) nodes.push(text.slice(from, index));
    nodes.push({ tag: "span", attributes: { class: kind }, children: [found] });
    from = index + found.length;
  }
  if (from < text.length) nodes.push(text.slice(from));
  return nodes;
}

function patternOf(name) {
  let comment;
  // A # or // inside a word or an address begins no comment.
  if (HASH.has(name)) comment = String.raw`(?<=^|\s)#[^\n]*`;
  else if (SLASHES.has(name)) comment = String.raw`(?<!:)\/\/[^\n]*|\/\*[\s\S]*?(?:\*\/|$)`;
  else if (DASHES.has(name)) comment = String.raw`--[^\n]*`;
  else if (PLAIN.has(name)) comment = "(?!)";
  else return null;
  const long = name === "python" || name === "py" ? String.raw`"""[\s\S]*?(?:"""|$)|` : "";
  return new RegExp(`(?<comment>${comment})|(?<text>${long}${TEXT})|${REST}`, "g");
}

function kindOf(found, groups, words, name) {
  if (groups.comment !== undefined) return "t-comment";
  if (groups.text !== undefined) return "t-text";
  if (groups.number !== undefined) return "t-number";
  return words.has(words === SQL ? found.toUpperCase() : found) && name !== "yaml" && name !== "yml" ? "t-word" : "";
}
