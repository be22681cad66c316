// The photos: labels, filter, sort order, and pictures, which are decoded on demand.

const facts = JSON.parse(byId("facts").textContent);
const labelNames = facts.labels.map(visible);
const photos = JSON.parse(byId("index").textContent).map(([name, labels, scores, outcomes]) => ({
  name,
  shown: visible(name),
  searched: folded([name, visible(name), ...labels.map((label) => facts.labels[label])].join("\n")),
  labels,
  scores: scores.map((score) => score / facts.scale),
  outcomes: (outcomes ?? []).map((outcome) => OUTCOMES[outcome]),
}));

const predicted = photos.flatMap(({ scores, outcomes }) => scores.filter((_, at) => outcomes[at] !== "miss"));

/** Where the slider starts: the lowest score of a predicted label, rounded down to hundredths. */
const LOWEST = Math.floor(100 * predicted.reduce((a, b) => Math.min(a, b), predicted.length ? 1 : 0) + 1e-6) / 100;

/** The number of photos with each label. */
const labelTotals = facts.labels.map(() => 0);
for (const photo of photos) for (const label of photo.labels) labelTotals[label] += 1;

/** A photo's `{photo, shape, maps}`; null: it has no picture; undefined: the browser has not loaded it yet. */
function readBlock(number) {
  const block = byId(`b${number}`);
  if (!block || (!block.nextElementSibling && document.readyState === "loading")) return undefined;
  return JSON.parse(block.textContent);
}

const waiting = new Map();

/** Calls `use(block)` when the photo's block is loaded, unless `forget(key)` is called before. */
function withBlock(key, number, use) {
  waiting.delete(key);
  const block = readBlock(number);
  if (block !== undefined) use(block);
  else if (waiting.set(key, () => withBlock(key, number, use)).size === 1) setTimeout(askAgain, 50);
}

const forget = (key) => waiting.delete(key);

function askAgain() {
  const asking = [...waiting.values()];
  waiting.clear();
  for (const ask of asking) ask();
}

const pictureUrl = (block) => `data:image/webp;base64,${block.photo}`;

/** The URL of a photo's file, relative to the page; "" if it is unknown or the name has bytes that are not UTF-8. */
const fileUrl = ({ name }) =>
  facts.folder && !/\p{Cs}/u.test(name) ? facts.folder + name.split("/").map(encodeURIComponent).join("/") : "";

/** Whether a label passes the minimum score. A missed label always passes, because its score is low. */
const isShown = (photo, place, minimum) => photo.outcomes[place] === "miss" || photo.scores[place] >= minimum;

function matches(photo, filter, terms) {
  if (!terms.every((term) => photo.searched.includes(term))) return false;
  for (const [label, outcome] of filter.chosen) {
    const place = photo.labels.indexOf(label);
    if (place < 0 || !isShown(photo, place, filter.minimum)) return false;
    if (outcome && photo.outcomes[place] !== outcome) return false;
  }
  if (filter.minimum > LOWEST && !filter.chosen.size && !photo.scores.some((_, place) => isShown(photo, place, filter.minimum)))
    return false;
  const wrong = photo.outcomes.filter((outcome) => outcome !== "hit");
  if (filter.outcome === "right") return !wrong.length;
  if (filter.outcome === "wrong") return wrong.length > 0;
  return !filter.outcome || wrong.includes(filter.outcome);
}

const NO_SCORE = -32768; // of a photo that the index of photos does not have
const sentenceKey = (query) => folded(query).trim().replace(/\s+/gu, " ");

/** For each sentence, the scores of all photos in thousandths. */
const sentences = new Map(
  (facts.queries ?? []).map(([text, scores]) => [sentenceKey(visible(text)), new Int16Array(bytesOf(scores).buffer)]),
);

/** The scores of all photos for a query; undefined: the query is none of the sentences. */
const matchesFor = (query) => sentences.get(sentenceKey(query));

/** The score of a photo as text; "" if there is none. */
const matchText = (scores, index) =>
  scores && scores[index] !== NO_SCORE ? `match ${decimal(scores[index] / 1000, 3)}` : "";

const collator = new Intl.Collator(undefined, { numeric: true });
const number = (photo, outcome) => photo.outcomes.filter((other) => other === outcome).length;

/** F1 of one photo's labels; 1 if there are neither true nor predicted labels. */
function photoF1(photo) {
  return photo.outcomes.length ? (2 * number(photo, "hit")) / (number(photo, "hit") + photo.outcomes.length) : 1;
}

/** The lowest score of the chosen labels; without chosen labels, the highest score of all labels. */
function scoreOf(photo, filter) {
  if (!filter.chosen.size) return Math.max(0, ...photo.scores);
  return Math.min(...[...filter.chosen.keys()].map((label) => photo.scores[photo.labels.indexOf(label)]));
}

const wrongs = (photo) => number(photo, "miss") + number(photo, "false");

/** The sort orders by name: visible text, and sort key of a photo. The photo with the lowest key comes first. */
const SORTS = facts.evaluation
  ? {
      worst: ["worst first", (photo) => photoF1(photo) - wrongs(photo) / 1e4],
      misses: ["most missed", (photo) => -number(photo, "miss")],
      alarms: ["most false alarms", (photo) => -number(photo, "false")],
      best: ["best first", (photo) => -photoF1(photo) - number(photo, "hit") / 1e4],
      name: ["name"],
    }
  : {
      name: ["name"],
      high: ["highest score", (photo, filter) => -scoreOf(photo, filter)],
      low: ["lowest score", scoreOf],
      most: ["most labels", (photo) => -photo.labels.length],
    };

/** Indices of the matching photos, in order. A sentence ranks the photos; other queries are words to find. */
function select(filter) {
  const scores = matchesFor(filter.query);
  const terms = scores ? [] : folded(filter.query).split(/\s+/u).filter(Boolean);
  const found = [...photos.keys()].filter((index) => matches(photos[index], filter, terms));
  if (scores) return found.filter((index) => scores[index] !== NO_SCORE).sort((a, b) => scores[b] - scores[a] || a - b);
  const [, key] = SORTS[filter.sort];
  if (!key) return found.sort((a, b) => collator.compare(photos[a].shown, photos[b].shown));
  const keys = new Map(found.map((index) => [index, key(photos[index], filter)]));
  return found.sort((a, b) => keys.get(a) - keys.get(b) || a - b);
}
