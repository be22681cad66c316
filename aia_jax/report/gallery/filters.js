// The filter: the tools above the gallery, the list of labels, and the address that stores the state.

const NO_FILTER = { query: "", minimum: LOWEST, outcome: "" };
const DEFAULTS = { part: "photos", ...NO_FILTER, sort: Object.keys(SORTS)[0], photo: null };
const SHOWN = { "": "all photos", wrong: "with errors", miss: "with missed labels", false: "with false alarms", right: "without errors" };

/** The state. `chosen` maps each chosen label to the required outcome, "" for any. */
const state = { ...DEFAULTS, chosen: new Map() };

function readAddress() {
  const given = new URLSearchParams(location.hash.slice(1));
  const number = (name) => (/^\d+$/.test(given.get(name) ?? "") ? Number(given.get(name)) : null);
  state.part = ["labels", "confusions", "problems"].includes(given.get("part")) ? given.get("part") : DEFAULTS.part;
  state.query = given.get("q") ?? "";
  state.minimum = Math.min(Math.max(Number(given.get("min")) || 0, LOWEST), 1);
  state.outcome = Object.hasOwn(SHOWN, given.get("show") ?? "") ? given.get("show") ?? "" : "";
  state.sort = Object.hasOwn(SORTS, given.get("sort") ?? "") ? given.get("sort") : DEFAULTS.sort;
  state.photo = number("photo") < photos.length ? number("photo") : null;
  const chosen = (given.get("labels") ?? "").split(",").map((text) => /^(\d+)(?::(hit|miss|false))?$/.exec(text));
  state.chosen = new Map(chosen.filter(Boolean).map(([, label, outcome]) => [Number(label), outcome ?? ""]));
  for (const label of [...state.chosen.keys()]) if (label >= labelNames.length) state.chosen.delete(label);
}

let addressing;

/** Writes the state into the address after a delay, because browsers limit the number of changes per second. */
function writeAddress() {
  clearTimeout(addressing);
  addressing = setTimeout(writeAddressNow, 120);
}

function writeAddressNow() {
  const written = new URLSearchParams();
  const labels = [...state.chosen].map(([label, outcome]) => (outcome ? `${label}:${outcome}` : label)).join(",");
  const fields = { part: state.part, q: state.query, labels, min: state.minimum, show: state.outcome };
  const standing = { part: DEFAULTS.part, q: "", labels: "", min: LOWEST, show: "", sort: DEFAULTS.sort, photo: null };
  for (const [name, value] of Object.entries({ ...fields, sort: state.sort, photo: state.photo })) {
    if (value !== standing[name]) written.set(name, value);
  }
  history.replaceState(null, "", `#${written}`);
}

function fillSelect(select, options) {
  for (const [value, text] of options) select.append(make("option", { value, text }));
}

/** Connects the tools. Calls `changed` after each change of the filter. */
function setUpTools(changed) {
  fillSelect(
    byId("sort"),
    Object.entries(SORTS).map(([name, [text]]) => [name, text]),
  );
  if (facts.evaluation) {
    fillSelect(byId("outcome"), Object.entries(SHOWN));
    document.querySelector(".with-outcome").hidden = false;
  }
  if (sentences.size) offerSentences();
  byId("tools").addEventListener("submit", (event) => event.preventDefault());
  const fields = { query: "query", minimum: "minimum", outcome: "outcome", sort: "sort" };
  for (const [id, field] of Object.entries(fields)) {
    byId(id).addEventListener("input", (event) => {
      state[field] = id === "minimum" ? Number(event.target.value) : event.target.value;
      changed();
    });
  }
  byId("minimum").min = LOWEST;
  const toggle = byId("filters-toggle");
  toggle.addEventListener("click", () => {
    toggle.setAttribute("aria-expanded", byId("part-photos").classList.toggle("open"));
  });
  byId("find-label").addEventListener("input", () => showFoundLabels());
  byId("label-list").addEventListener("click", (event) => {
    const button = event.target.closest("button");
    if (button) toggleLabel(Number(button.dataset.label), changed);
  });
  addEventListener("keydown", (event) => {
    if (event.key !== "/" || event.ctrlKey || event.metaKey || byId("detail").open) return;
    if (event.target.matches("input[type=search], select")) return;
    event.preventDefault();
    byId(state.part === "photos" ? "query" : "find-row")?.focus();
  });
}

function offerSentences() {
  const text = "Search, or choose a sentence";
  for (const [name, value] of Object.entries({ list: "sentences", placeholder: text, "aria-label": text }))
    byId("query").setAttribute(name, value);
  byId("sentences").append(...facts.queries.map(([sentence]) => make("option", { value: visible(sentence) })));
  byId("sort").append(make("option", { value: "match", text: "best match", hidden: "" }));
}

function toggleLabel(label, changed) {
  if (!state.chosen.delete(label)) state.chosen.set(label, "");
  changed();
}

const labelRows = new Map();

/** Lists the labels of all photos, most frequent first. */
function fillLabelList() {
  const order = [...labelTotals.keys()].filter((label) => labelTotals[label]);
  order.sort((a, b) => labelTotals[b] - labelTotals[a] || collator.compare(labelNames[a], labelNames[b]));
  for (const label of order) {
    const number = make("span", { class: "number" });
    const name = make("bdi", { text: labelNames[label] });
    const button = make("button", { type: "button", "data-label": label, "aria-pressed": false }, name, number);
    labelRows.set(label, { row: make("li", {}, button), button, number });
  }
  byId("label-list").append(...[...labelRows.values()].map(({ row }) => row));
  byId("labels").classList.toggle("empty", !order.length);
}

function showFoundLabels() {
  const wanted = folded(byId("find-label").value);
  for (const [label, { row }] of labelRows) row.hidden = !folded(labelNames[label]).includes(wanted);
}

/** Updates the tools, the list and the chips. `found` is the list of matching photos. */
function showFilter(found, changed) {
  byId("query").value = state.query;
  byId("minimum").value = state.minimum;
  byId("minimum-shown").textContent = decimal(state.minimum);
  byId("outcome").value = state.outcome;
  byId("sort").disabled = Boolean(matchesFor(state.query));
  byId("sort").value = byId("sort").disabled ? "match" : state.sort;
  const all = count(photos.length, "photo");
  byId("count").textContent = found.length === photos.length ? all : `${counted.format(found.length)} of ${all}`;
  const chosen = makeChosen(changed);
  byId("filters-toggle").textContent = chosen.length ? `Filters (${chosen.length - 1})` : "Filters";
  byId("none").hidden = found.length > 0;
  const text = photos.length ? "No photo matches. Remove a filter:" : "No photo could be read.";
  byId("none").replaceChildren(make("p", { text }), make("ul", { class: "chosen-list" }, ...makeChosen(changed)));
  byId("chosen").replaceChildren(...chosen);
  const numbers = labelTotals.map(() => 0);
  for (const index of found) {
    const photo = photos[index];
    photo.labels.forEach((label, place) => (numbers[label] += isShown(photo, place, state.minimum)));
  }
  for (const [label, { button, number }] of labelRows) {
    button.setAttribute("aria-pressed", state.chosen.has(label));
    button.classList.toggle("rare", !numbers[label]);
    number.textContent = counted.format(numbers[label]);
  }
}

/** Makes a chip for each active filter, with a button that removes it, and a button for all of them. */
function makeChosen(changed) {
  const chip = (text, remove, ...tools) => {
    const drop = make("button", { type: "button", text: "✕", "aria-label": `Remove ${text}` });
    drop.addEventListener("click", () => {
      remove();
      changed();
    });
    return make("li", { class: "chosen" }, make("bdi", { text }), ...tools, drop);
  };
  const { query, minimum, outcome, chosen } = state;
  const clear = make("button", { type: "button", class: "clear", text: "Clear all" });
  clear.addEventListener("click", () => {
    Object.assign(state, NO_FILTER, { chosen: new Map() });
    changed();
    byId("query").focus();
  });
  const chips = [
    query && chip(`“${visible(query)}”`, () => (state.query = "")),
    minimum > LOWEST && chip(`score ≥ ${decimal(minimum)}`, () => (state.minimum = LOWEST)),
    outcome && chip(SHOWN[outcome], () => (state.outcome = "")),
    ...[...chosen].map(([label, wanted]) => {
      const tools = facts.evaluation ? [makeOutcome(label, wanted, changed)] : [];
      return chip(labelNames[label], () => chosen.delete(label), ...tools);
    }),
  ].filter(Boolean);
  return chips.length ? [...chips, make("li", {}, clear)] : [];
}

function makeOutcome(label, outcome, changed) {
  const choice = make("select", { "aria-label": `${labelNames[label]}: outcome` });
  fillSelect(choice, [["", "any"], ...Object.entries(OUTCOME_NAMES)]);
  choice.value = outcome;
  choice.addEventListener("change", () => {
    state.chosen.set(label, choice.value);
    changed();
  });
  return choice;
}
