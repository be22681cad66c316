// Two precision-recall curves: one for all labels together, and one for a chosen label.

const AXIS = { left: 46, top: 14, side: 300 };

/** Makes the panel. Its function `show` adds the curve of a row; `show(null)` leaves only the curve of all labels. */
function makeCurvePanel(curves, showPhotos) {
  const [heading, legend, links] = [make("h2"), make("p", { class: "legend" }), make("p", { class: "links" })];
  const size = [AXIS.left + AXIS.side + 14, AXIS.top + AXIS.side + 44];
  const drawing = makeSvg("svg", { viewBox: `0 0 ${size.join(" ")}`, role: "img" });
  const show = (row) => {
    const pooled = `all labels pooled, AP ${decimal(curves.micro_ap, 3)}`;
    drawing.replaceChildren(...axes(), line(curves.micro, "micro"));
    drawing.setAttribute("aria-label", `Precision over recall, ${row ? nameOf(row) : pooled}`);
    heading.replaceChildren(row ? "Precision and recall: " : "Precision and recall");
    legend.replaceChildren(make("span", { class: "micro", text: pooled }));
    links.replaceChildren();
    if (!row) return;
    drawing.append(line(curves.labels[row.label], "chosen"), ...operatingPoint(row));
    heading.append(make("bdi", { text: nameOf(row) }));
    legend.prepend(describe(row));
    links.append(...photoLinks(row, showPhotos));
  };
  return { element: make("div", { class: "panel" }, heading, drawing, legend, links), show };
}

function describe(row) {
  const at = row.predicted ? `; ● at its threshold ${decimal(row.threshold, 3)}` : "";
  return make("span", { class: "chosen" }, make("bdi", { text: nameOf(row) }), `, AP ${decimal(row.ap, 3)}${at}`);
}

/** Makes a point for the precision and recall at the threshold. A label without predictions has no point. */
function operatingPoint(row) {
  const [cx, cy] = onAxes(row.recall, row.precision);
  return row.predicted ? [makeSvg("circle", { class: "at", r: 5, cx, cy })] : [];
}

/** Makes three buttons. They show the photos where the label is a hit, where it is missed and where it is false. */
function photoLinks(row, showPhotos) {
  const numbers = { hit: row.tp, miss: row.support - row.tp, false: row.predicted - row.tp };
  return Object.entries(numbers).map(([outcome, number]) => {
    const text = `${MARKS[outcome]} ${counted.format(number)} ${OUTCOME_NAMES[outcome]}`;
    const button = make("button", { type: "button", class: outcome, text });
    button.disabled = !number;
    button.addEventListener("click", () => showPhotos(new Map([[row.label, outcome]])));
    return button;
  });
}

const onAxes = (x, y) => [AXIS.left + AXIS.side * x, AXIS.top + AXIS.side * (1 - y)];

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
  const start = points.length ? [[0, points[0][1]]] : [];
  const places = [...start, ...points].map((point) => onAxes(...point).map((number) => decimal(number, 1)));
  return makeSvg("polyline", { class: kind, points: places.join(" ") });
}
