// Confusions: pairs of a missed label and a false alarm on the same photo.

/** Fills the tab of confusions: a table of the most frequent pairs. */
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
  part.append(make("p", { class: "note", text: note }), make("div", { class: "scrolled", tabindex: 0 }, table));
}

function photosButton(row, show) {
  const button = make("button", { type: "button", class: "plain", text: counted.format(row.number) });
  const [missed, falsely] = [labelNames[row.missed], labelNames[row.falsely]];
  button.setAttribute("aria-label", `${row.number}: show the photos with ${missed} missed, ${falsely} false alarm`);
  button.addEventListener("click", () => show(row.missed, row.falsely));
  return button;
}
