// Everything that this page shows is put together here, from elements and text. No text is ever parsed as
// markup: the policy that the page is served with (Trusted Types, no policy allowed) would refuse it, too.

/** Make an element. Attributes that are functions become listeners; null and false ones are left out. */
export function h(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (typeof value === "function") element.addEventListener(name, value);
    else if (value !== null && value !== false) element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.filter((child) => child !== null));
  return element;
}

/** Make one of the icons that index.html holds. */
export function icon(name) {
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  svg.setAttribute("class", "icon");
  svg.setAttribute("aria-hidden", "true");
  const use = document.createElementNS("http://www.w3.org/2000/svg", "use");
  use.setAttribute("href", `#icon-${name}`);
  svg.append(use);
  return svg;
}

// What an answer may consist of. markdown.js makes nothing else; should it ever, this stops it.
const TAGS = new Set(
  ("a blockquote br button code del div em h3 h4 h5 h6 hr li ol p pre span strong table tbody td th thead tr ul").split(
    " ",
  ),
);
const ATTRIBUTES = new Set("aria-label class href rel role scope start tabindex target type".split(" "));
const PROTOCOLS = new Set(["http:", "https:", "mailto:"]);

/** Return an address that may be followed, in its normal form, or null. */
export function safeAddress(text) {
  // URL() drops control characters and white space wherever they are; an address that has some is not one.
  if (/[\u0000-\u0020\u007f-\u009f]/.test(text) || !/^(?:https?:\/\/|mailto:)/i.test(text)) return null;
  try {
    const url = new URL(text);
    return PROTOCOLS.has(url.protocol) ? url.href : null;
  } catch {
    return null;
  }
}

/**
 * Make an element's children, from the one at `from` on, equal to the nodes of a tree ({tag, attributes,
 * children} or a string). What is equal already stays as it is: a selection, the focus and the reader's
 * place survive each piece of text that arrives.
 */
export function patch(parent, nodes, from = 0) {
  let at = parent.childNodes[from] ?? null;
  for (const node of nodes) {
    if (at && fits(at, node)) update(at, node);
    else {
      const made = create(node);
      if (at) at.replaceWith(made);
      else parent.append(made);
      at = made;
    }
    at = at.nextSibling;
  }
  while (at) {
    const next = at.nextSibling;
    at.remove();
    at = next;
  }
}

function fits(at, node) {
  return typeof node === "string" ? at.nodeType === Node.TEXT_NODE : at.localName === node.tag;
}

function create(node) {
  if (typeof node === "string") return document.createTextNode(node);
  if (!TAGS.has(node.tag)) throw new Error(`an answer has no <${node.tag}>`);
  const element = document.createElement(node.tag);
  update(element, node);
  return element;
}

function update(at, node) {
  if (typeof node === "string") {
    // Appending leaves what is selected selected.
    if (node.startsWith(at.data)) at.appendData(node.slice(at.data.length));
    else at.data = node;
    return;
  }
  const wanted = node.attributes ?? {};
  for (const name of at.getAttributeNames()) if (!(name in wanted)) at.removeAttribute(name);
  for (const [name, value] of Object.entries(wanted)) {
    if (!ATTRIBUTES.has(name)) throw new Error(`an answer has no attribute ${name}`);
    if (name === "href" && safeAddress(value) === null) throw new Error("an answer has no such address");
    if (at.getAttribute(name) !== String(value)) at.setAttribute(name, value);
  }
  patch(at, node.children ?? []);
}
