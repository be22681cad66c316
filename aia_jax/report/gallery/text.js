// Elements and text. Text from users reaches the page only through `textContent` and attributes, never as HTML.

const SVG = "http://www.w3.org/2000/svg";
const MARKS = { hit: "✓", miss: "○", false: "✗" };
const OUTCOMES = ["hit", "miss", "false"]; // in the order of the index
const OUTCOME_NAMES = { hit: "hit", miss: "missed", false: "false alarm" };

const byId = (id) => document.getElementById(id);

/** Makes an element with attributes; `text` is its content. */
function make(tag, { text, ...attributes } = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  if (text !== undefined) element.textContent = text;
  element.append(...children);
  return element;
}

function makeSvg(tag, attributes = {}, ...children) {
  const element = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}

const ESCAPES = { "\n": "\\n", "\r": "\\r", "\t": "\\t" };

/** Puts text in one line and escapes control characters, direction marks and lone surrogates. */
function visible(text) {
  return text.replace(
    /[\p{Cc}\p{Cs}\p{Zl}\p{Zp}\u200e\u200f\u202a-\u202e\u2066-\u2069]/gu,
    (character) => ESCAPES[character] ?? `\\u${character.charCodeAt(0).toString(16).padStart(4, "0")}`,
  );
}

// Letters without a decomposition in Unicode, and marks that searches ignore: accents, vowel points, invisible joiners.
const PLAIN = { ß: "ss", æ: "ae", œ: "oe", ø: "o", ł: "l", đ: "d", ð: "d", þ: "th", ı: "i", ς: "σ" };
const IGNORED = /[\u00ad\u0300-\u036f\u0591-\u05c7\u0610-\u061a\u0640\u064b-\u065f\u0670\u200b-\u200d\u2060]/g;

/** Normalises text for searches, without case and accents: `zurich` finds Zürich, `strasse` finds Straße. */
const folded = (text) =>
  text
    .toLowerCase()
    .normalize("NFKD")
    .replace(IGNORED, "")
    .normalize("NFC")
    .replace(/[^\0-\x7f]/g, (letter) => PLAIN[letter] ?? letter);

const counted = new Intl.NumberFormat("en-US");
const count = (number, noun) => `${counted.format(number)} ${noun}${number === 1 ? "" : "s"}`;
const decimal = (number, digits = 2) => number.toFixed(digits);

function bytesOf(base64) {
  return Uint8Array.from(atob(base64), (character) => character.charCodeAt(0));
}

const TAIL = 13; // last characters of a file name, which are always shown

/** Makes a file name whose end stays visible: the ellipsis is before the last characters. */
function makeName(text) {
  const letters = [...text];
  const start = letters.splice(0, letters.length > 2 * TAIL ? letters.length - TAIL : 0).join("");
  const parts = [start, letters.join("")].filter(Boolean).map((part) => make("span", { text: part }));
  return make("bdi", { class: "name" }, ...parts);
}
