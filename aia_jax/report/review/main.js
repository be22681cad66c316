// Connects the parts: reading, order of the photos, counts, and changes of other pages.

const [SOON, LATER] = [400, 4000]; // milliseconds between two questions for the state

byId("starting").remove();

let order = [];
const grid = new Grid(byId("grid"), CARDS, (number) => detail.open(number, order));
const detail = new Detail();
let trainings = 0;
let polling;
let isLost = false; // the server does not answer

function takeCounts({ changes, fresh, num_labels, progress }) {
  Object.assign(counts, { changes, fresh, num_labels, progress });
  showCounts();
}

function fillLabelSelect() {
  const select = byId("label");
  const { value } = select;
  const names = [...labelNames].sort((a, b) => a.localeCompare(b));
  const options = names.map((name) => make("option", { value: name, text: name }));
  select.replaceChildren(make("option", { value: "", text: "any label" }), ...options);
  select.value = value;
}

/** Requests the order of the photos, and shows them. */
async function reorder() {
  const [label, show, sort] = ["label", "show", "sort"].map((id) => byId(id).value);
  try {
    order = await call(`order?${new URLSearchParams({ label: storedName(label), show, sort })}`);
  } catch (error) {
    return tellError(error);
  }
  if (selection.size) selection.clear();
  if (label !== chosenLabel) entries.clear();
  chosenLabel = label;
  byId("count").textContent = count(order.length, "photo");
  byId("none").hidden = order.length > 0;
  byId("none").textContent = show === "unanswered" ? "All photos have answers here." : "No photo has answers here yet.";
  grid.show(order);
  return undefined;
}

/** Asks for the state: the progress of reading and training, and whether another page has changed something. */
async function poll() {
  clearTimeout(polling);
  if (document.hidden && !byId("work").hidden) return; // the event visibilitychange asks again
  let wait = LATER;
  try {
    const state = await call("state");
    byId("title").textContent = visible(state.title);
    document.title = `${visible(state.title)} · labels`;
    byId("loading").hidden = !state.loading;
    byId("progress").hidden = Boolean(state.loading);
    if (state.loading) showLoading(state.loading);
    else await follow(state);
    if (state.loading || state.training !== null) wait = SOON;
    if (isLost) tell("The server answers again.");
    isLost = false;
  } catch (error) {
    if (!isLost) tellError(error);
    isLost = true;
  }
  polling = setTimeout(poll, wait);
}

function showLoading([done, total]) {
  byId("loading-text").textContent = total
    ? `Reading photos: ${counted.format(done)} of ${counted.format(total)}. The next call reads only new photos.`
    : "Reading the model and the list of photos …";
  const bar = byId("loading-bar");
  if (total) [bar.max, bar.value] = [total, done];
}

async function follow(state) {
  const isFirst = byId("work").hidden;
  const isOther = !running && state.changes > counts.changes;
  showTraining(state.training);
  if (isFirst) {
    trainings = state.trainings;
    takeCounts(state);
    byId("work").hidden = false;
    showProblems(state.problems);
    await Promise.all([updateLabels(), reorder()]);
    return;
  }
  if (!isOther) return;
  const isTrained = state.trainings !== trainings;
  trainings = state.trainings;
  takeCounts(state);
  await updateLabels();
  if (isTrained) {
    await trainingEnded(state);
  } else {
    const numbers = [...entries.keys()];
    entries.clear();
    redraw(numbers);
  }
}

function showProblems(problems) {
  byId("problems").hidden = !problems.length;
  byId("problems").firstChild.textContent = `${count(problems.length, "photo")} cannot be read`;
  const line = ([name, why]) => make("li", {}, make("bdi", { text: visible(name) }), `: ${visible(why)}`);
  byId("problems").lastChild.replaceChildren(...problems.slice(0, 100).map(line));
}

for (const id of ["label", "show", "sort"]) {
  byId(id).addEventListener("change", () => {
    scrollTo(0, 0);
    reorder();
  });
}
byId("tools").addEventListener("submit", (event) => event.preventDefault());
byId("undo").addEventListener("click", undo);
byId("train").addEventListener("click", startTraining);
byId("help-open").addEventListener("click", () => byId("help").showModal());
for (const button of document.querySelectorAll(".shut")) {
  button.addEventListener("click", () => button.closest("dialog").close());
}
for (const dialog of document.querySelectorAll("dialog")) dialog.addEventListener("close", placeMessages);
for (const sheet of document.querySelectorAll(".sheet")) {
  sheet.addEventListener("click", (event) => event.target === sheet && sheet.close());
}
addEventListener("keydown", (event) => {
  if (event.target.matches("input[type=text], select")) return;
  const isUndo = (event.ctrlKey || event.metaKey) && event.key.toLowerCase() === "z" && !event.shiftKey;
  if (!isUndo && (event.ctrlKey || event.metaKey || event.altKey)) return;
  if (isUndo || event.key.toLowerCase() === "u") undo();
  else if (event.key === "?") byId("help").showModal();
  else if (event.key === "Escape" && selection.size && !detail.dialog.open) selection.clear();
  else return;
  event.preventDefault();
});
addEventListener("visibilitychange", () => document.hidden || poll());
setUpCards(byId("grid"));
selection.setUp();
poll();
