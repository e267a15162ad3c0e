// Making elements, and numbers as people read them. Text only ever becomes text nodes.

const SVG = "http://www.w3.org/2000/svg";

export const byId = (id) => document.getElementById(id);

/** An HTML element with attributes (true: without value; null and false: none) and children, strings as text. */
export function el(tag, attributes = {}, ...children) {
  return filled(document.createElement(tag), attributes, children);
}

/** The same in SVG. */
export function svg(tag, attributes = {}, ...children) {
  return filled(document.createElementNS(SVG, tag), attributes, children);
}

function filled(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (value !== null && value !== undefined && value !== false) node.setAttribute(name, value === true ? "" : value);
  }
  node.append(...children.flat().filter((child) => child !== null && child !== undefined));
  return node;
}

/** Call `changed` with the value chosen in a group of radio buttons, each time. */
export function onChoice(name, changed) {
  for (const input of document.querySelectorAll(`input[name="${name}"]`)) {
    input.addEventListener("change", () => changed(input.value));
  }
}

export const isNumber = (value) => typeof value === "number" && Number.isFinite(value);

/** `value` with about `digits` significant digits and no exponent. */
export function number(value, digits = 3) {
  if (!isNumber(value)) return "–";
  return value.toLocaleString("en", { maximumSignificantDigits: digits });
}

export const fixed = (value) => (isNumber(value) ? value.toFixed(3) : "–");

export function duration(ms) {
  if (!isNumber(ms)) return "–";
  if (ms < 999.5) return `${number(ms, ms < 100 ? 2 : 3)} ms`;
  return ms < 59_950 ? `${number(ms / 1000)} s` : `${number(ms / 60_000)} min`;
}

export const cost = (usd) => (isNumber(usd) ? `${number(usd * 1e6)} µ$` : "–");

export const percent = (share) => (isNumber(share) ? `${Math.round(share * 100)}%` : "–");

export function bytes(count) {
  if (!isNumber(count)) return "–";
  return count < 1e9 ? `${number(count / 1e6)} MB` : `${number(count / 1e9)} GB`;
}
