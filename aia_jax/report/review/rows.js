// A label of a photo with its two buttons, and the answers.

/** Makes the row of a label. Its state is written in `class`: predicted or asked; yes, no or neither; pending. */
function makeRow(number, row) {
  const name = labelNames[row.label];
  const state = row.answer === null ? "" : row.answer ? "yes" : "no";
  const kind = row.predicted ? "predicted" : row.answer === null ? "asked" : "";
  const told = { yes: "confirmed", no: "rejected", "": row.predicted ? "predicted" : "not predicted" }[state];
  const text = make("span", { class: "label" }, make("bdi", { text: name }));
  if (kind === "asked") text.append(make("span", { class: "mark", text: "?", "aria-hidden": true }));
  const score = make("small", { class: "number", text: row.score === null ? "new" : decimal(row.score) });
  const button = (answer, verb, mark) =>
    make("button", {
      type: "button",
      class: answer ? "tick yes" : "tick no",
      "aria-pressed": row.answer === answer,
      "aria-label": `${verb} ${name}`,
      title: row.answer === answer ? "Take the answer back" : `${verb} this label`,
      "data-answer": answer,
      text: mark,
    });
  const attributes = { class: `label-row ${kind} ${state} ${row.pending ? "pending" : ""}`, "data-label": row.label };
  const item = make("li", attributes, text, score, button(false, "Reject", "✗"), button(true, "Confirm", "✓"));
  item.setAttribute("aria-label", `${name}, ${told}`);
  item.dataset.photo = number;
  return item;
}

/** Gives a row the content of another row of the same label. Its buttons stay, so that no click on them is lost. */
function updateRow(old, fresh) {
  for (const { name, value } of fresh.attributes) old.setAttribute(name, value);
  const [text, score, ...buttons] = fresh.children;
  old.children[0].replaceWith(text);
  old.children[1].replaceWith(score);
  buttons.forEach((button, place) => {
    for (const name of ["aria-pressed", "title"]) old.children[2 + place].setAttribute(name, button.getAttribute(name));
  });
  return old;
}

/** Shows the rows of a photo in a list, and then `others`. Rows that are there already stay. */
function showRows(list, number, rows, ...others) {
  const there = new Map([...list.children].map((item) => [`${item.dataset.photo} ${item.dataset.label}`, item]));
  const items = rows.map((row) => {
    const old = there.get(`${number} ${row.label}`);
    return old ? updateRow(old, makeRow(number, row)) : makeRow(number, row);
  });
  const focused = focusKey(list);
  const isSame = items.length <= list.children.length && items.every((item, place) => item === list.children[place]);
  if (isSame) {
    for (const item of [...list.children].slice(items.length)) item.remove();
    list.append(...others);
  } else list.replaceChildren(...items, ...others);
  if (focused && !list.contains(document.activeElement)) list.querySelector(focused)?.focus({ preventScroll: true });
}

/** A selector of the row's button in `root` that has the focus; undefined: none has it. */
function focusKey(root) {
  const button = document.activeElement;
  if (!root.contains(button) || !button.dataset.answer) return undefined;
  return `[data-label="${button.closest("li").dataset.label}"] [data-answer="${button.dataset.answer}"]`;
}

/** The answer that a click on a button of a row gives: the button's, or none if it is the answer already. */
function clickedAnswer(button) {
  const row = button.closest(".label-row");
  const answer = button.getAttribute("aria-pressed") === "true" ? null : button.dataset.answer === "true";
  return { number: Number(row.dataset.photo), label: Number(row.dataset.label), answer };
}

/** Takes the counts and photos of a response to a change. */
async function takeChange(response) {
  const old = response.changes > counts.changes + 1 ? [...entries.keys()] : []; // another page has changed something
  takeCounts(response);
  for (const number of old) entries.delete(number);
  await updateLabels();
  takeEntries(response.photos);
  redraw(old);
}

let changesMade = 0;

/**
 * Stores an answer about a label, by name, of photos. While it is being saved, their rows are marked as pending.
 * Returns whether it was saved.
 */
async function answer(numbers, name, value) {
  const label = labelNames.indexOf(name);
  const rows = numbers.map((number) => entries.get(number)?.rows.find((row) => row.label === label)).filter(Boolean);
  const before = rows.map((row) => row.answer);
  const change = (changesMade += 1);
  for (const row of rows) Object.assign(row, { answer: value, pending: change });
  redraw(numbers);
  try {
    const response = await post("answer", { photos: numbers, label: storedName(name), answer: value });
    const told = new Set(response.photos.map(({ number }) => number));
    for (const number of numbers) if (!told.has(number)) entries.delete(number);
    for (const row of rows) if (row.pending === change) row.pending = 0;
    await takeChange(response);
    return true;
  } catch (error) {
    rows.forEach((row, place) => row.pending === change && Object.assign(row, { answer: before[place], pending: 0 }));
    tell(`Not saved. ${error.message}`, true);
    return false;
  } finally {
    redraw(numbers);
  }
}

async function undo() {
  try {
    const response = await post("undo");
    if (!response.undone) return tell("There is no answer to undo.");
    for (const number of response.numbers.slice(response.photos.length)) entries.delete(number);
    await takeChange(response);
    const { label, answer: value, count: number } = response.undone;
    const what = { true: "confirmed", false: "rejected", null: "answer taken back" }[value];
    tell(`Undone: “${label}” ${what}${number > 1 ? ` on ${count(number, "photo")}` : ""}.`);
    redraw(response.numbers);
  } catch (error) {
    tellError(error);
  }
  return undefined;
}
