// Confusions: pairs of a missed label and a false alarm on the same photo.

const CELL = 22;
const LONGEST = 18; // characters of a label beside the heat map

/** Fills the tab of confusions: a table of the most frequent pairs, and a heat map of the most confused labels. */
function fillConfusions(part, { confusions }, showPhotos) {
  if (!confusions.pairs.length) {
    part.append(make("p", { class: "note", text: "No photo has both a missed label and a false alarm." }));
    return;
  }
  const show = (missed, falsely) => showPhotos(new Map([[missed, "miss"]]).set(falsely, "false"));
  const rows = confusions.pairs.map(([missed, falsely, number]) => ({ missed, falsely, number }));
  const fractionOf = (row) => row.number / confusions.missed[row.missed];
  const labelColumn = (head, title, side, kind) => {
    const name = (row) => labelNames[row[side]];
    return column(head, title, name, (row) => make("bdi", { class: kind, text: name(row) }));
  };
  const columns = [
    labelColumn("○ missed", "Missed label", "missed", "miss"),
    labelColumn("✗ false alarm", "False alarm", "falsely", "false"),
    column(
      "photos",
      "Photos with both",
      (row) => row.number,
      (row) => photosButton(row, show),
    ),
    column("of missed", "Fraction of the photos where the label is missed", fractionOf, (row) => {
      return `${Math.round(100 * fractionOf(row))} %`;
    }),
  ];
  const caption = "Missed labels and false alarms on the same photos";
  const { table } = makeTable(columns, rows, { caption, sorted: 2 });
  const note = "Photos that miss one label and have another one as a false alarm: labels that the model may confuse.";
  const left = make("div", { class: "listed" }, make("div", { class: "scrolled", tabindex: 0 }, table));
  const right = makeMatrix(confusions.matrix, show);
  part.append(make("p", { class: "note", text: note }), make("div", { class: "pair" }, left, right));
}

function photosButton(row, show) {
  const button = make("button", { type: "button", class: "plain", text: counted.format(row.number) });
  const [missed, falsely] = [labelNames[row.missed], labelNames[row.falsely]];
  button.setAttribute("aria-label", `${row.number}: show the photos with ${missed} missed, ${falsely} false alarm`);
  button.addEventListener("click", () => show(row.missed, row.falsely));
  return button;
}

function makeMatrix(matrix, show) {
  const names = [...matrix.missed, ...matrix.false].map((label) => shortened(labelNames[label]));
  const room = 8 + 6.6 * Math.max(4, ...names.map((name) => name.length)); // pixels for the names
  const size = [room + CELL * matrix.false.length + 8, room + CELL * matrix.missed.length + 8];
  const svg = makeSvg("svg", { viewBox: `0 0 ${size.join(" ")}`, class: "matrix", role: "img" });
  svg.setAttribute("aria-label", "The most frequent pairs as a heat map");
  svg.style.maxWidth = `${size[0]}px`;
  const middle = (place) => room + CELL * (place + 0.5) + 4;
  names.forEach((name, place) => {
    const row = place < matrix.missed.length;
    const turned = `translate(${middle(place - matrix.missed.length)} ${room - 6}) rotate(-90)`;
    const at = row ? { class: "miss", x: room - 6, y: middle(place), "text-anchor": "end" } : { transform: turned };
    svg.append(makeSvg("text", { class: "false", ...at }, name));
  });
  const most = Math.max(1, ...matrix.counts.flat());
  matrix.counts.forEach((numbers, row) => {
    const cells = numbers.map((_, at) => makeCell(matrix, row, at, most, show));
    cells.forEach((cell, at) => {
      cell.setAttribute("x", room + CELL * at);
      cell.setAttribute("y", room + CELL * row);
    });
    svg.append(...cells);
  });
  const legend = make("p", { class: "legend" }, make("span", { class: "miss", text: "○ missed: rows" }));
  legend.append(make("span", { class: "false", text: "✗ false alarm: columns" }), `darkest: ${count(most, "photo")}`);
  return make("div", { class: "panel" }, make("h2", { text: "Most confused labels" }), svg, legend);
}

function makeCell({ missed, false: falsely, counts }, row, at, most, show) {
  const number = counts[row][at];
  const words = `${labelNames[missed[row]]} missed, ${labelNames[falsely[at]]} false alarm: ${count(number, "photo")}`;
  const cell = makeSvg("rect", { class: number ? "cell some" : "cell", width: CELL - 1, height: CELL - 1 });
  cell.append(makeSvg("title", {}, words));
  if (number) {
    cell.style.fillOpacity = 0.15 + 0.85 * (number / most);
    cell.addEventListener("click", () => show(missed[row], falsely[at]));
  }
  return cell;
}

const shortened = (name) => (name.length > LONGEST ? `${[...name].slice(0, LONGEST - 1).join("")}…` : name);
