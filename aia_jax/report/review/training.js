// Training again: its progress, and what it changed.

const MOST_LISTED = 8; // labels of each kind

async function startTraining() {
  byId("train").disabled = true;
  try {
    await call("train", { body: {} });
    await poll();
  } catch (error) {
    tellError(error);
    showCounts();
  }
}

/** Shows the end of a training: what went wrong, or what changed. */
async function trainingEnded(state) {
  if (state.failure) return tell(state.failure, true);
  try {
    const report = await call("report");
    entries.clear();
    await reorder();
    if (detail.dialog.open) detail.show();
    showReport(report);
  } catch (error) {
    tellError(error);
  }
  return undefined;
}

/** Shows how far a training is; `fraction` is null if none is running. */
function showTraining(fraction) {
  const isRunning = fraction !== null;
  byId("train").classList.toggle("running", isRunning);
  byId("train").style.setProperty("--share", fraction ?? 0);
  if (isRunning) byId("train").textContent = `Training ${Math.round(100 * fraction)} %`;
  if (isRunning) byId("train").disabled = true;
  else showCounts();
}

function showCounts() {
  const { photos = 0, answered_photos: answered = 0, answers = 0, elsewhere = 0 } = counts.progress;
  const since = trainings ? `, ${counted.format(counts.fresh)} new` : "";
  const others = elsewhere ? ` · not used: ${count(elsewhere, "answer")} about other photos` : "";
  byId("progress-text").textContent =
    `${counted.format(answered)} of ${count(photos, "photo")} answered · ${count(answers, "answer")}${since}${others}`;
  byId("progress-text").title = trainings ? "New: changed since the last training" : "";
  byId("progress").value = photos ? Math.min(answered / photos, 1) : 0;
  if (byId("train").classList.contains("running")) return;
  byId("train").disabled = !answers;
  byId("train").textContent = "Retrain";
  byId("train").title = answers ? `Train the model with ${count(answers, "answer")}` : "Give a few answers first";
  for (const id of ["undo", "detail-undo"]) byId(id).disabled = !counts.changes && !answers && !elsewhere;
}

const METRICS = { map: ["mAP", 2], f1: ["F1", 4], precision: ["P", 4], recall: ["R", 4] };
const signed = (number, digits) => `${number > 0 ? "+" : number < 0 ? "−" : "±"}${Math.abs(number).toFixed(digits)}`;

function showReport(report) {
  const tile = (name, value) => make("div", {}, make("dt", { text: name }), make("dd", { text: counted.format(value) }));
  const tiles = [
    tile("answers used", report.answers),
    tile("photos with answers", report.photos),
    tile("photos whose labels changed", report.changed_photos),
  ];
  const changes = [
    ["Added to photos", report.gained, "+"],
    ["Removed from photos", report.lost, "−"],
  ];
  byId("report-body").replaceChildren(
    make("dl", { class: "tiles" }, ...tiles),
    make("div", { class: "two" }, ...changes.map((change) => listChanges(...change))),
    ...metricsTable(report.metrics),
    thresholdsTable(report.labels),
  );
  byId("report").showModal();
}

/** Lists the labels that photos gained or lost, each with the number of photos. */
function listChanges(title, labels, sign) {
  const found = Object.entries(labels).sort((a, b) => b[1] - a[1]);
  const line = ([name, number]) =>
    make(
      "li",
      {},
      make("bdi", { text: visible(name) }),
      make("span", { class: "number", text: `${sign}${counted.format(number)}` }),
    );
  const lines = found.slice(0, MOST_LISTED).map(line);
  if (found.length > lines.length)
    lines.push(make("li", { class: "quiet", text: `and ${count(found.length - lines.length, "more label")}` }));
  if (!found.length) lines.push(make("li", { class: "quiet", text: "none" }));
  return make("section", {}, make("h3", { text: title }), make("ul", { class: "changes" }, ...lines));
}

function makeTable(titles, rows) {
  const cell = (tag) => (content, place) =>
    make(tag, { class: place ? "number" : "text" }, tag === "td" && !place ? make("bdi", { text: content }) : content);
  const head = make("thead", {}, make("tr", {}, ...titles.map(cell("th"))));
  const body = make("tbody", {}, ...rows.map((row) => make("tr", {}, ...row.map(cell("td")))));
  return make("div", { class: "scrolled" }, make("table", {}, head, body));
}

function metricsTable({ split, photos, before, after }) {
  if (!before) return [];
  const rows = Object.entries(METRICS)
    .filter(([key]) => typeof before[key] === "number" && typeof after[key] === "number")
    .map(([key, [name, digits]]) => [
      name,
      before[key].toFixed(digits),
      after[key].toFixed(digits),
      signed(after[key] - before[key], digits),
    ]);
  const where = `On ${count(photos, "photo")} of the ${split} split, which were not trained on`;
  return [make("h3", { text: "Metrics" }), make("p", { class: "quiet", text: where }), makeTable(["", "before", "after", "change"], rows)];
}

function thresholdsTable(labels) {
  const answered = labels.filter((label) => label.confirmed || label.rejected);
  const shown = (threshold) => (threshold === null ? "new" : decimal(threshold, 3));
  const row = (label) => [
    visible(label.label),
    counted.format(label.confirmed),
    counted.format(label.rejected),
    shown(label.threshold_before),
    shown(label.threshold_after),
  ];
  const titles = ["label", "✓ confirmed", "✗ rejected", "threshold before", "after"];
  const summary = make("summary", { text: `Answers and thresholds of ${count(answered.length, "label")}` });
  return make("details", {}, summary, makeTable(titles, answered.map(row)));
}
