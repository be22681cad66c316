// The cards of the grid: picture, file name, check box and rows of labels.

const IS_TOUCH = matchMedia("(hover: none)").matches;
const ROWS = IS_TOUCH ? 5 : 7; // labels of a card
const LONG_PRESS = 500; // milliseconds
const MOVED = 12; // pixels, more is scrolling and no press

const CARDS = {
  narrow: 300,
  wide: 15.5,
  text: 2.1 + ROWS * (IS_TOUCH ? 2.9 : 2) + 0.5, // as in review.css
  make(number, place, total) {
    const open = make("button", { type: "button", class: "open" }, make("span", { class: "picture" }));
    const box = make("input", { type: "checkbox" });
    box.checked = selection.has(number);
    box.setAttribute("aria-label", `Select photo ${place + 1}`);
    const rows = make("ul", { class: "rows" });
    const pick = make("label", { class: "pick" }, box);
    const places = { "aria-posinset": place + 1, "aria-setsize": total, "data-number": number };
    return make("div", { class: "card", role: "listitem", ...places }, open, pick, rows);
  },
  added(card, number) {
    withEntry(card, number, order, () => fillCard(card, number));
    withPicture(card, number, (address) => showPicture(card, address));
  },
  removed(card) {
    forgetEntry(card, Number(card.dataset.number));
    forgetPicture(card);
  },
  resized() {},
};

function showPicture(card, address) {
  const picture = card.querySelector(".picture");
  if (address) picture.replaceChildren(make("img", { alt: "", decoding: "async", src: address }));
  else picture.replaceChildren(make("span", { class: "quiet", text: "no picture" }));
}

function fillCard(card, number) {
  const { shown, rows } = entries.get(number);
  const open = card.querySelector(".open");
  if (open.title !== shown) {
    open.title = shown;
    open.querySelector(".name")?.remove();
    open.append(makeName(shown));
    card.querySelector("input").setAttribute("aria-label", `Select ${shown}`);
  }
  const fits = rows.length <= ROWS ? rows : chooseRows(rows);
  const others = [];
  if (fits.length < rows.length) {
    const more = make("button", { type: "button", class: "plain", text: `+${rows.length - fits.length} more labels` });
    more.addEventListener("click", () => detail.open(number, order));
    others.push(make("li", { class: "more" }, more));
  }
  if (!rows.length) others.push(make("li", { class: "quiet more", text: "no labels" }));
  showRows(card.querySelector(".rows"), number, fits, ...others);
  card.classList.toggle("done", rows.length > 0 && rows.every((row) => row.answer !== null));
  grid.reach(card, grid.cards.get(grid.current) === card);
}

/** Chooses the labels of a card that cannot show all: the chosen label and added ones, then predicted ones. */
function chooseRows(rows) {
  const rank = (row) => (isChosen(row) || (row.answer && !row.predicted) ? 0 : row.predicted ? 1 : row.answer === null ? 3 : 2);
  const ranked = [...rows].sort((a, b) => rank(a) - rank(b)).slice(0, ROWS - 1);
  return rows.filter((row) => ranked.includes(row));
}

/** Draws the labels of photos again, where they are shown. */
function redraw(numbers) {
  const changed = new Set(numbers);
  for (const card of grid.cards.values()) {
    const number = Number(card.dataset.number);
    if (!changed.has(number)) continue;
    withEntry(card, number, order, () => fillCard(card, number));
  }
  const { number } = detail;
  if (!detail.dialog.open || !changed.has(number)) return;
  withEntry(detail, number, detail.shown, () => number === detail.number && detail.list());
}

/** Connects clicks on labels, and the selection by check boxes, Shift and long presses. */
function setUpCards(root) {
  root.addEventListener("click", (event) => {
    const button = event.target.closest(".tick");
    if (!button) return;
    const { number, label, answer: value } = clickedAnswer(button);
    answer([number], labelNames[label], value);
  });
  let press;
  const release = () => clearTimeout(press?.timer);
  root.addEventListener("pointerdown", (event) => {
    release();
    press = undefined;
    const card = event.target.closest(".open")?.parentNode;
    if (!card || event.pointerType === "mouse") return;
    press = { x: event.clientX, y: event.clientY, long: false };
    press.timer = setTimeout(() => {
      press.long = true;
      selection.toggle(Number(card.dataset.number));
    }, LONG_PRESS);
  });
  root.addEventListener("pointermove", (event) => {
    if (press && Math.hypot(event.clientX - press.x, event.clientY - press.y) > MOVED) release();
  });
  for (const name of ["pointerup", "pointercancel"]) root.addEventListener(name, release);
  root.addEventListener("contextmenu", (event) => press && event.preventDefault());
  root.addEventListener(
    "click",
    (event) => {
      const number = Number(event.target.closest(".card")?.dataset.number);
      const isBox = event.target.matches("input[type=checkbox]");
      if (press?.long && event.target.closest(".open")) event.stopImmediatePropagation();
      else if (isBox || (event.target.closest(".open") && (event.shiftKey || selection.size))) {
        event.stopImmediatePropagation();
        selection.toggle(number, event.shiftKey);
      }
    },
    true,
  );
}
