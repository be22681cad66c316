// Tables. A click or Enter on a column head sorts by this column.

/**
 * @param columns `{head, title, value(row), cell(row)}` for each column. `value` is the sort key: the first
 * click sorts text in ascending and numbers in descending order.
 * @param sorted index of the column that sorts the table at the start.
 */
function makeTable(columns, rows, { caption, sorted }) {
  const body = make("tbody");
  const lines = rows.map((row) => {
    const cells = columns.map(({ cell, value }) =>
      make("td", isText(value, row) ? {} : { class: "number" }, cell(row)),
    );
    return { row, line: make("tr", {}, ...cells) };
  });
  let order = [sorted, isText(columns[sorted].value, rows[0]) ? 1 : -1];
  const heads = columns.map(({ head, title, value }, column) => {
    const button = make("button", { type: "button", text: head, title });
    button.addEventListener("click", () => {
      const first = isText(value, rows[0]) ? 1 : -1;
      order = [column, order[0] === column ? -order[1] : first];
      sort();
    });
    return make("th", { scope: "col", class: isText(value, rows[0]) ? "text" : "number" }, button);
  });

  function sort() {
    const [column, direction] = order;
    const { value } = columns[column];
    const compare = isText(value, rows[0]) ? collator.compare : (a, b) => a - b;
    lines.sort((a, b) => direction * compare(value(a.row), value(b.row)));
    body.replaceChildren(...lines.map(({ line }) => line));
    heads.forEach((head, place) => {
      head.setAttribute("aria-sort", place !== column ? "none" : direction > 0 ? "ascending" : "descending");
    });
  }

  sort();
  const table = make("table", {}, make("caption", { class: "unseen", text: caption }));
  table.append(make("thead", {}, make("tr", {}, ...heads)), body);
  return { table, lines };
}

const isText = (value, row) => row !== undefined && typeof value(row) === "string";
