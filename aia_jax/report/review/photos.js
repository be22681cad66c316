// The labels and the pictures of photos, which are requested when a card needs them.

const PAGE = 60; // photos whose labels are requested together
const IN_FLIGHT = 5; // pictures; a browser has 6 connections
const KEPT = 300; // pictures

let labelNames = []; // as they are shown
let storedNames = [];

/** The name of a label for the server; `visible` changes names with invisible marks. */
const storedName = (name) => storedNames[labelNames.indexOf(name)] ?? name;

/** Requests the names of new labels. */
async function updateLabels() {
  if (labelNames.length === counts.num_labels) return;
  storedNames = await call("labels");
  labelNames = storedNames.map(visible);
  fillLabelSelect();
}

/** The name of the label whose photos are shown; "": any label. It is the first label of each photo. */
let chosenLabel = "";
const isChosen = (row) => labelNames[row.label] === chosenLabel;

/** The labels of photos by number. A label is `{label, score, predicted, answer}`. */
const entries = new Map();
const requested = new Set();
const waitingForEntry = new Map(); // what to call for a photo, by number and key

/** Keeps the order of the labels that the page shows already, so that no label moves under the pointer. */
function mergeRows(old, rows) {
  const fresh = new Map(rows.map((row) => [row.label, row]));
  const kept = old.map((row) => (row.pending ? row : fresh.get(row.label) ?? { ...row, answer: null }));
  const known = new Set(old.map((row) => row.label));
  return [...kept, ...rows.filter((row) => !known.has(row.label) && (row.predicted || row.answer !== null))];
}

function takeEntries(photos) {
  for (const { number, name, labels } of photos) {
    const rows = labels.map(([label, score, predicted, answer]) => ({ label, score, predicted, answer }));
    rows.sort((a, b) => isChosen(b) - isChosen(a));
    const old = entries.get(number);
    entries.set(number, { shown: visible(name), rows: old ? mergeRows(old.rows, rows) : rows });
    for (const use of waitingForEntry.get(number)?.values() ?? []) use();
    waitingForEntry.delete(number);
  }
}

/** Calls `use()` when the labels of a photo are there. Requests them with those of its neighbours in `order`. */
function withEntry(key, number, order, use) {
  if (entries.has(number)) return use();
  if (!waitingForEntry.has(number)) waitingForEntry.set(number, new Map());
  waitingForEntry.get(number).set(key, use);
  if (requested.has(number)) return undefined;
  const start = Math.floor(Math.max(order.indexOf(number), 0) / PAGE) * PAGE;
  const numbers = order.slice(start, start + PAGE).filter((other) => !entries.has(other) && !requested.has(other));
  for (const other of numbers) requested.add(other);
  return requestEntries(numbers);
}

async function requestEntries(numbers) {
  try {
    const photos = await call(`photos?${new URLSearchParams({ numbers, label: storedName(chosenLabel) })}`);
    await updateLabels();
    takeEntries(photos);
  } catch (error) {
    tellError(error);
  } finally {
    for (const number of numbers) requested.delete(number);
  }
}

const forgetEntry = (key, number) => waitingForEntry.get(number)?.delete(key);

const pictures = new Map(); // addresses by number; the last used one is the last
const wanted = new Map(); // requests that wait, by key
const flying = new Map(); // requests under way, by key

/** Calls `use(address)` when the picture of a photo is there; the address is "" if it cannot be read. */
function withPicture(key, number, use) {
  forgetPicture(key);
  if (pictures.has(number)) {
    keepPicture(number, pictures.get(number));
    use(pictures.get(number));
  } else {
    wanted.set(key, { number, use });
    requestPictures();
  }
}

/** Cancels the request for a picture. */
function forgetPicture(key) {
  wanted.delete(key);
  flying.get(key)?.abort();
  flying.delete(key);
}

function requestPictures() {
  for (const [key, request] of wanted) {
    if (flying.size >= IN_FLIGHT) return;
    wanted.delete(key);
    requestPicture(key, request);
  }
}

async function requestPicture(key, { number, use }) {
  const stop = new AbortController();
  flying.set(key, stop);
  try {
    const picture = await call(`picture/${number}`, { signal: stop.signal, read: "blob" });
    if (!pictures.has(number)) keepPicture(number, URL.createObjectURL(picture));
    if (!stop.signal.aborted) use(pictures.get(number));
  } catch (error) {
    if (!stop.signal.aborted) use("");
  }
  if (flying.get(key) === stop) flying.delete(key);
  requestPictures();
}

function keepPicture(number, address) {
  pictures.delete(number);
  pictures.set(number, address);
  for (const [old, unused] of pictures) {
    if (pictures.size <= KEPT) return;
    pictures.delete(old);
    URL.revokeObjectURL(unused);
  }
}
