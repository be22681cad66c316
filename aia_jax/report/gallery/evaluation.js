// How an annotator did: its labels with their curves, and which of them it confuses.

const AXIS = { left: 46, top: 14, side: 300 };
const CELL = 22;

/** The numbers of the whole split, as tiles. */
function makeSummary({ metrics }) {
  const tiles = [
    ["Precision", decimal(metrics.precision, 4), "mean over labels"],
    ["Recall", decimal(metrics.recall, 4), "mean over labels"],
    ["F1", decimal(metrics.f1, 4), "of these two means"],
    ["N+", `${metrics.n_plus} of ${metrics.num_labels}`, "labels with a hit"],
    ["mAP", decimal(metrics.map), "per cent"],
  ];
  const made = tiles.map(([name, value, note]) =>
    make("div", {}, make("dt", { text: name, title: note }), make("dd", { text: value })),
  );
  return make("dl", { class: "tiles" }, ...made);
}

/** Fills the part of labels: table on one side, curves on the other. */
function fillLabels(part, evaluation, showPhotos) {
  const rows = evaluation.per_label.map((numbers, label) => ({ label, ...numbers }));
  const panel = makeCurvePanel(evaluation, showPhotos);
  const choose = (row) => {
    panel.show(row);
    for (const { row: other, line } of lines) line.classList.toggle("current", other === row);
  };
  const fraction = (name, head, title) => ({
    head,
    title,
    value: (row) => row[name],
    cell: (row) => decimal(row[name], 3),
  });
  const whole = (name, head, title) => ({ head, title, value: (row) => row[name], cell: (row) => counted.format(row[name]) });
  const columns = [
    { head: "label", title: "Label", value: (row) => labelNames[row.label], cell: (row) => nameButton(row, choose) },
    whole("support", "support", "Photos where the label is true"),
    whole("predicted", "predicted", "Photos where it is predicted"),
    fraction("precision", "P", "Precision"),
    fraction("recall", "R", "Recall"),
    fraction("f1", "F1", "F1 of this label"),
    fraction("ap", "AP", "Average precision"),
    fraction("threshold", "threshold", "It is predicted where its score is above"),
  ];
  const { table, lines } = makeTable(columns, rows, { caption: "Labels", sorted: 1 });
  const find = make("input", { type: "search", id: "find-row", placeholder: "Find a label", "aria-label": "Find a label" });
  find.addEventListener("input", () => {
    const wanted = folded(find.value);
    for (const { row, line } of lines) line.hidden = !folded(labelNames[row.label]).includes(wanted);
  });
  const left = make("div", { class: "listed" }, find, make("div", { class: "scrolled", tabindex: 0 }, table));
  part.append(makeSummary(evaluation), make("div", { class: "pair" }, left, panel.element));
  panel.show(null);
}

function nameButton(row, choose) {
  const button = make("button", { type: "button", class: "plain" }, make("bdi", { text: labelNames[row.label] }));
  button.addEventListener("click", () => choose(row));
  return button;
}

function makeCurvePanel({ curves }, showPhotos) {
  const { left, top, side } = AXIS;
  const drawing = makeSvg("svg", { viewBox: `0 0 ${left + side + 14} ${top + side + 44}`, role: "img" });
  const heading = make("h2");
  const links = make("p", { class: "links" });
  const element = make("div", { class: "panel" }, heading, drawing, make("p", { class: "legend" }), links);
  const legend = element.querySelector(".legend");
  const show = (row) => {
    drawing.replaceChildren(...axes(), line(curves.micro, "micro"));
    legend.replaceChildren(make("span", { class: "micro", text: `all labels pooled, AP ${decimal(curves.micro_ap, 3)}` }));
    links.replaceChildren();
    heading.replaceChildren("Precision and recall");
    drawing.setAttribute("aria-label", "Precision over recall, all labels pooled");
    if (!row) return;
    heading.replaceChildren("Precision and recall: ", make("bdi", { text: labelNames[row.label] }));
    drawing.setAttribute("aria-label", `Precision over recall of ${labelNames[row.label]}`);
    drawing.append(line(curves.labels[row.label], "chosen"));
    const at = makeSvg("circle", { r: 5, cx: left + side * row.recall, cy: top + side * (1 - row.precision), class: "at" });
    if (row.predicted) drawing.append(at);
    const name = make("span", { class: "chosen" }, make("bdi", { text: labelNames[row.label] }));
    name.append(`, AP ${decimal(row.ap, 3)}`);
    if (row.predicted) name.append(`; ● at its threshold ${decimal(row.threshold, 3)}`);
    legend.prepend(name);
    for (const [outcome, number] of [["hit", row.tp], ["miss", row.support - row.tp], ["false", row.predicted - row.tp]]) {
      const text = `${MARKS[outcome]} ${counted.format(number)} ${OUTCOME_NAMES[outcome]}`;
      const button = make("button", { type: "button", class: outcome, text });
      button.disabled = !number;
      button.addEventListener("click", () => showPhotos(new Map([[row.label, outcome]])));
      links.append(button);
    }
  };
  return { element, show };
}

function axes() {
  const { left, top, side } = AXIS;
  const parts = [];
  for (let tick = 0; tick <= 5; tick += 1) {
    const at = (side * tick) / 5;
    parts.push(makeSvg("line", { class: "grid", x1: left + at, x2: left + at, y1: top, y2: top + side }));
    parts.push(makeSvg("line", { class: "grid", x1: left, x2: left + side, y1: top + at, y2: top + at }));
    const text = decimal(tick / 5, 1);
    parts.push(makeSvg("text", { x: left + at, y: top + side + 16, "text-anchor": "middle" }, text));
    parts.push(makeSvg("text", { x: left - 7, y: top + side - at + 4, "text-anchor": "end" }, text));
  }
  parts.push(makeSvg("text", { x: left + side / 2, y: top + side + 36, "text-anchor": "middle" }, "recall"));
  const turned = `rotate(-90 12 ${top + side / 2})`;
  parts.push(makeSvg("text", { x: 12, y: top + side / 2, "text-anchor": "middle", transform: turned }, "precision"));
  return parts;
}

function line(points, kind) {
  const { left, top, side } = AXIS;
  const place = ([recall, precision]) => `${decimal(left + side * recall, 1)},${decimal(top + side * (1 - precision), 1)}`;
  const start = points.length ? [[0, points[0][1]]] : [];
  return makeSvg("polyline", { class: kind, points: [...start, ...points].map(place).join(" ") });
}

/** Fills the part of confusions: the most frequent pairs, and those of the labels most concerned as a heat map. */
function fillConfusions(part, { confusions }, showPhotos) {
  if (!confusions.pairs.length) {
    part.append(make("p", { class: "note", text: "No photo has both a missed label and a false alarm." }));
    return;
  }
  const show = (missed, falsely) => showPhotos(new Map([[missed, "miss"], [falsely, "false"]]));
  const rows = confusions.pairs.map(([missed, falsely, number]) => ({ missed, falsely, number }));
  const share = (row) => row.number / confusions.missed[row.missed];
  const columns = [
    { head: "○ missed", title: "Missed label", value: (row) => labelNames[row.missed], cell: (row) => bdi(row.missed, "miss") },
    { head: "✗ false alarm", title: "False alarm", value: (row) => labelNames[row.falsely], cell: (row) => bdi(row.falsely, "false") },
    { head: "photos", title: "Photos with both", value: (row) => row.number, cell: (row) => photosButton(row, show) },
    { head: "of its misses", title: "Share of the photos where the label is missed", value: share, cell: (row) => `${Math.round(100 * share(row))} %` },
  ];
  const { table } = makeTable(columns, rows, { caption: "Labels missed and falsely given on one photo", sorted: 2 });
  const note = "Photos on which one label is missed while another is given that is not true: what is taken for what.";
  const left = make("div", { class: "listed" }, make("div", { class: "scrolled", tabindex: 0 }, table));
  part.append(make("p", { class: "note", text: note }), make("div", { class: "pair" }, left, makeMatrix(confusions, show)));
}

const bdi = (label, kind) => make("bdi", { class: kind, text: labelNames[label] });

function photosButton(row, show) {
  const words = `${row.number}: show the photos that miss ${labelNames[row.missed]} and have ${labelNames[row.falsely]}`;
  const button = make("button", { type: "button", class: "plain", text: counted.format(row.number), "aria-label": words });
  button.addEventListener("click", () => show(row.missed, row.falsely));
  return button;
}

function makeMatrix({ matrix }, show) {
  const room = 8 + 6.6 * Math.max(4, ...[...matrix.missed, ...matrix.false].map((label) => Math.min(labelNames[label].length, 18)));
  const size = [room + CELL * matrix.false.length + 8, room + CELL * matrix.missed.length + 8];
  const svg = makeSvg("svg", { viewBox: `0 0 ${size.join(" ")}`, class: "matrix", role: "img", "aria-label": "The same as a heat map" });
  svg.style.maxWidth = `${size[0]}px`;
  const most = Math.max(1, ...matrix.counts.flat());
  const short = (label) => (labelNames[label].length > 18 ? `${[...labelNames[label]].slice(0, 17).join("")}…` : labelNames[label]);
  const middle = (place) => room + CELL * (place + 0.5) + 4;
  matrix.missed.forEach((label, row) => {
    svg.append(makeSvg("text", { class: "miss", x: room - 6, y: middle(row), "text-anchor": "end" }, short(label)));
  });
  matrix.false.forEach((label, column) => {
    const turned = `translate(${middle(column)} ${room - 6}) rotate(-90)`;
    svg.append(makeSvg("text", { class: "false", transform: turned }, short(label)));
  });
  matrix.counts.forEach((numbers, row) => numbers.forEach((number, column) => {
    const [missed, falsely] = [matrix.missed[row], matrix.false[column]];
    const place = { x: room + CELL * column, y: room + CELL * row, width: CELL - 1, height: CELL - 1 };
    const title = makeSvg("title", {}, `${labelNames[missed]} missed, ${labelNames[falsely]} given: ${count(number, "photo")}`);
    const cell = makeSvg("rect", { ...place, class: number ? "cell some" : "cell" }, title);
    if (number) {
      cell.style.fillOpacity = 0.15 + 0.85 * (number / most);
      cell.addEventListener("click", () => show(missed, falsely));
    }
    svg.append(cell);
  }));
  const legend = make("p", { class: "legend" }, make("span", { class: "miss", text: "○ missed: rows" }));
  legend.append(make("span", { class: "false", text: "✗ false alarm: columns" }), `darkest: ${count(most, "photo")}`);
  return make("div", { class: "panel" }, make("h2", { text: "The labels most concerned" }), svg, legend);
}
