// Metrics of an evaluated annotator, for all labels and for each label.

const TERMS = {
  label: "The name of the label. The button shows its precision-recall curve.",
  support: "Number of photos of this split that truly have the label.",
  predicted: "Number of photos for which the model predicts the label.",
  P: "Precision: the fraction of the predicted photos that truly have the label. In the tile: the mean over labels.",
  R: "Recall: the fraction of the photos with the label for which it is predicted. In the tile: the mean over labels.",
  F1: "The harmonic mean of precision and recall. In the tile: of the two means.",
  AP: "Average precision: the mean precision at the rank of each photo with the label. It needs no threshold.",
  mAP: "The mean of AP over labels, in per cent.",
  "N+": "Number of labels that are predicted correctly for at least one photo.",
  threshold: "The label is predicted if its score is above this number.",
  weights: "In the title: raw are the trained weights, ema their moving average. The better of the two is evaluated.",
};

/** The metrics of the split as tiles, and the meaning of all terms. Labels without a photo are not in the means. */
function makeSummary({ metrics, with_photos: tested = metrics }) {
  const tiles = { P: decimal(tested.precision, 4), R: decimal(tested.recall, 4), F1: decimal(tested.f1, 4) };
  tiles["N+"] = `${tested.n_plus} of ${tested.num_labels}`;
  tiles.mAP = decimal(tested.map);
  const pair = ([name, text], title) => make("div", { title }, make("dt", { text: name }), make("dd", { text }));
  const made = make("dl", { class: "tiles" }, ...Object.entries(tiles).map((tile) => pair(tile, TERMS[tile[0]])));
  const untested = metrics.num_labels - tested.num_labels;
  const { precision, recall, f1, map } = metrics;
  const all = `P ${decimal(precision, 4)}, R ${decimal(recall, 4)}, F1 ${decimal(f1, 4)}, mAP ${decimal(map)}`;
  const note = `${count(untested, "label")} without a photo in this split: left out of these means. With them: ${all}.`;
  const terms = make("dl", {}, ...Object.entries(TERMS).map((term) => pair(term, "")));
  const legend = make("details", { class: "note" }, make("summary", { text: "What the numbers mean" }), terms);
  return [made, ...(untested ? [make("p", { class: "note", id: "untested", text: note })] : []), legend];
}

const column = (head, title, value, cell) => ({ head, title, value, cell });
const whole = (name) => ({ ...fraction(name, name), cell: (row) => counted.format(row[name]) });
const fraction = (head, name) => ({
  ...{ head, title: TERMS[head] },
  ...{ value: (row) => row[name], cell: (row) => decimal(row[name], 3) },
});

/** Fills the tab of labels: the table on the left, the curves on the right. */
function fillLabels(part, evaluation, showPhotos) {
  const rows = evaluation.per_label.map((numbers, label) => ({ label, ...numbers }));
  const panel = makeCurvePanel(evaluation.curves, showPhotos);
  const choose = (row) => {
    panel.show(row);
    for (const { row: other, line } of lines) line.classList.toggle("current", other === row);
  };
  const columns = [
    column("label", TERMS.label, nameOf, (row) => nameButton(row, choose)),
    whole("support"),
    whole("predicted"),
    fraction("P", "precision"),
    fraction("R", "recall"),
    fraction("F1", "f1"),
    fraction("AP", "ap"),
    fraction("threshold", "threshold"),
  ];
  const { table, lines } = makeTable(columns, rows, { caption: "Labels", sorted: 1 });
  const find = make("input", { type: "search", id: "find-row", placeholder: "Find a label" });
  find.setAttribute("aria-label", "Find a label");
  find.addEventListener("input", () => {
    const wanted = folded(find.value);
    for (const { row, line } of lines) line.hidden = !folded(nameOf(row)).includes(wanted);
  });
  const left = make("div", { class: "listed" }, find, make("div", { class: "scrolled", tabindex: 0 }, table));
  part.append(...makeSummary(evaluation), make("div", { class: "pair" }, left, panel.element));
  panel.show(null);
}

const nameOf = (row) => labelNames[row.label];

function nameButton(row, choose) {
  const button = make("button", { type: "button", class: "plain" }, make("bdi", { text: nameOf(row) }));
  button.addEventListener("click", () => choose(row));
  return button;
}
