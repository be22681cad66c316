// Metrics of an evaluated annotator, for all labels and for each label.

/** The metrics of the split as tiles. */
function makeSummary({ metrics }) {
  const tiles = [
    ["Precision", decimal(metrics.precision, 4), "mean over labels"],
    ["Recall", decimal(metrics.recall, 4), "mean over labels"],
    ["F1", decimal(metrics.f1, 4), "of mean precision and mean recall"],
    ["N+", `${metrics.n_plus} of ${metrics.num_labels}`, "labels with at least one hit"],
    ["mAP", decimal(metrics.map), "in percent"],
  ];
  const made = tiles.map(([name, value, note]) =>
    make("div", {}, make("dt", { text: name, title: note }), make("dd", { text: value })),
  );
  return make("dl", { class: "tiles" }, ...made);
}

const column = (head, title, value, cell) => ({ head, title, value, cell });
const whole = (name, title) =>
  column(
    name,
    title,
    (row) => row[name],
    (row) => counted.format(row[name]),
  );
const fraction = (head, name, title) =>
  column(
    head,
    title,
    (row) => row[name],
    (row) => decimal(row[name], 3),
  );

/** Fills the tab of labels: the table on the left, the curves on the right. */
function fillLabels(part, evaluation, showPhotos) {
  const rows = evaluation.per_label.map((numbers, label) => ({ label, ...numbers }));
  const panel = makeCurvePanel(evaluation.curves, showPhotos);
  const choose = (row) => {
    panel.show(row);
    for (const { row: other, line } of lines) line.classList.toggle("current", other === row);
  };
  const columns = [
    column("label", "Label", nameOf, (row) => nameButton(row, choose)),
    whole("support", "Photos with this true label"),
    whole("predicted", "Photos with this predicted label"),
    fraction("P", "precision", "Precision"),
    fraction("R", "recall", "Recall"),
    fraction("F1", "f1", "F1 of this label"),
    fraction("AP", "ap", "Average precision"),
    fraction("threshold", "threshold", "The label is predicted above this score"),
  ];
  const { table, lines } = makeTable(columns, rows, { caption: "Labels", sorted: 1 });
  const find = make("input", { type: "search", id: "find-row", placeholder: "Find a label" });
  find.setAttribute("aria-label", "Find a label");
  find.addEventListener("input", () => {
    const wanted = folded(find.value);
    for (const { row, line } of lines) line.hidden = !folded(nameOf(row)).includes(wanted);
  });
  const left = make("div", { class: "listed" }, find, make("div", { class: "scrolled", tabindex: 0 }, table));
  part.append(makeSummary(evaluation), make("div", { class: "pair" }, left, panel.element));
  panel.show(null);
}

const nameOf = (row) => labelNames[row.label];

function nameButton(row, choose) {
  const button = make("button", { type: "button", class: "plain" }, make("bdi", { text: nameOf(row) }));
  button.addEventListener("click", () => choose(row));
  return button;
}
