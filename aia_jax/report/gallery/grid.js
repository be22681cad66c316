// The gallery. The document contains only the visible cards and a few rows around them.

const GAP = 12;
const NARROWEST = 150; // pixels of a card
const [TEXT, TEXT_EVALUATED] = [6.1, 8]; // rem, height of name and chips
const MOST_CHIPS = 40; // more than a card can show
const TAIL = 13; // last characters of a file name, which are always shown
const AROUND = 2; // rows to keep above and below the visible ones

class Grid {
  /** @param open called with the index of a photo. */
  constructor(root, open) {
    this.root = root;
    this.open = open;
    this.shown = [];
    this.minimum = 0;
    this.cards = new Map(); // by place in `shown`
    this.current = 0; // the place that Tab moves to
    addEventListener("scroll", () => this.schedule(), { passive: true });
    addEventListener("beforeprint", () => this.draw(true));
    new ResizeObserver(() => this.measure()).observe(root);
    root.addEventListener("click", (event) => this.clicked(event));
    root.addEventListener("keydown", (event) => this.pressed(event));
    root.addEventListener("focusin", (event) => this.focused(event));
  }

  /** Shows these photos with their labels that have at least the score `minimum`, and their scores for a sentence. */
  show(numbers, minimum, matched) {
    [this.shown, this.minimum, this.matched, this.current] = [numbers, minimum, matched, 0];
    this.clear();
    this.measure();
  }

  clear() {
    for (const place of [...this.cards.keys()]) this.remove(place);
  }

  remove(place) {
    const card = this.cards.get(place);
    forget(card);
    card.remove();
    this.cards.delete(place);
  }

  measure() {
    const width = this.root.clientWidth;
    if (!width) return; // another tab is open
    const rem = parseFloat(getComputedStyle(document.documentElement).fontSize);
    const wanted = width < 600 ? NARROWEST : 13.5 * rem;
    this.columns = Math.max(Math.floor((width + GAP) / (wanted + GAP)), 1);
    this.width = (width - GAP * (this.columns - 1)) / this.columns;
    this.height = Math.round(this.width * 0.75 + (facts.evaluation ? TEXT_EVALUATED : TEXT) * rem);
    const rows = Math.ceil(this.shown.length / this.columns);
    this.root.style.height = `${Math.max(rows * (this.height + GAP) - GAP, 0)}px`;
    for (const [place, card] of this.cards) this.put(card, place);
    this.draw();
    for (const card of this.cards.values()) hideChips(card);
  }

  schedule() {
    this.frame ??= requestAnimationFrame(() => {
      this.frame = undefined;
      this.draw();
    });
  }

  /** Adds the visible cards, or all cards, and removes the others. */
  draw(all = false) {
    if (!this.columns || !this.root.clientWidth) return;
    const top = -this.root.getBoundingClientRect().top;
    const row = (pixels) => Math.floor(pixels / (this.height + GAP));
    const first = all ? 0 : Math.max(row(top) - AROUND, 0) * this.columns;
    const end = all ? Infinity : (row(top + innerHeight) + AROUND + 1) * this.columns;
    const last = Math.min(end, this.shown.length);
    for (const [place, card] of [...this.cards]) {
      if ((place < first || place >= last) && !card.contains(document.activeElement)) this.remove(place);
    }
    for (let place = first; place < last; place += 1) if (!this.cards.has(place)) this.add(place);
  }

  add(place) {
    const card = makeCard(this.shown[place], place, this.shown.length, this.minimum);
    const match = matchText(this.matched, this.shown[place]);
    if (match) card.firstChild.append(make("span", { class: "match", text: match }));
    card.firstChild.tabIndex = place === this.current ? 0 : -1;
    this.put(card, place);
    this.cards.set(place, card);
    const after = [...this.cards.keys()].filter((other) => other > place).sort((a, b) => a - b)[0];
    this.root.insertBefore(card, this.cards.get(after) ?? null); // the order for screen readers
    hideChips(card);
    withBlock(card, this.shown[place], (block) => showPicture(card, block));
  }

  put(card, place) {
    const left = (place % this.columns) * (this.width + GAP);
    const top = Math.floor(place / this.columns) * (this.height + GAP);
    card.style.transform = `translate(${left}px, ${top}px)`;
    card.style.width = `${this.width}px`;
    card.style.height = `${this.height}px`;
  }

  /** Scrolls to a place and focuses it. */
  focus(place) {
    const top = Math.floor(place / this.columns) * (this.height + GAP) + this.root.getBoundingClientRect().top;
    const hidden = document.querySelector(".top").offsetHeight + GAP;
    if (top < hidden) scrollBy(0, top - hidden);
    else if (top + this.height > innerHeight) scrollBy(0, top + this.height + GAP - innerHeight);
    this.draw();
    this.cards.get(place)?.firstChild.focus({ preventScroll: true });
  }

  /** Focuses a photo, if it is shown. */
  focusPhoto(photo) {
    const place = this.shown.indexOf(photo);
    if (place >= 0) this.focus(place);
  }

  placeOf(target) {
    const card = target.closest(".card");
    return card ? Number(card.getAttribute("aria-posinset")) - 1 : -1;
  }

  clicked(event) {
    const place = this.placeOf(event.target);
    if (place >= 0) this.open(this.shown[place]);
  }

  focused(event) {
    const place = this.placeOf(event.target);
    if (place < 0) return;
    this.cards.get(this.current)?.firstChild.setAttribute("tabindex", -1);
    this.current = place;
    this.cards.get(place).firstChild.tabIndex = 0;
  }

  pressed(event) {
    const place = this.placeOf(event.target);
    const last = this.shown.length - 1;
    const steps = { ArrowRight: 1, ArrowLeft: -1, ArrowDown: this.columns, ArrowUp: -this.columns };
    const ends = { Home: 0, End: last };
    const wanted = event.key in steps ? place + steps[event.key] : ends[event.key];
    if (place < 0 || wanted === undefined || event.ctrlKey || event.metaKey || event.altKey) return;
    event.preventDefault();
    this.focus(wanted < 0 || wanted > last ? place : wanted);
  }
}

function makeCard(index, place, total, minimum) {
  const photo = photos[index];
  const chips = make("span", { class: "chips" });
  const places = [...photo.labels.keys()].filter((at) => isShown(photo, at, minimum));
  places.sort((a, b) => (photo.outcomes[a] === "hit") - (photo.outcomes[b] === "hit")); // errors first
  for (const at of places.slice(0, MOST_CHIPS))
    chips.append(makeChip(photo.labels[at], photo.scores[at], photo.outcomes[at]));
  chips.append(make("span", { class: "quiet more", "data-total": places.length }));
  const button = make(
    "button",
    { type: "button", title: photo.shown },
    make("span", { class: "picture" }),
    makeName(photo.shown),
    chips,
  );
  const place1 = { "aria-posinset": place + 1, "aria-setsize": total };
  return make("div", { class: "card", role: "listitem", ...place1 }, button);
}

/** Makes a file name whose end stays visible: the ellipsis is before the last characters. */
function makeName(text) {
  const letters = [...text];
  const start = letters.splice(0, letters.length > 2 * TAIL ? letters.length - TAIL : 0).join("");
  const parts = [start, letters.join("")].filter(Boolean).map((part) => make("span", { text: part }));
  return make("bdi", { class: "name" }, ...parts);
}

/** Hides the chips for which the card has no room, and says how many labels are not shown. */
function hideChips(card) {
  const chips = card.querySelector(".chips");
  const [labels, more] = [[...chips.children].slice(0, -1), chips.lastChild];
  const total = Number(more.dataset.total);
  const fits = (chip) => chip.offsetTop + chip.offsetHeight <= chips.offsetTop + chips.clientHeight + 1;
  for (const chip of labels) chip.hidden = false;
  more.hidden = total > 0;
  more.textContent = "no labels";
  for (let room = labels.filter(fits).length; room < total; room -= 1) {
    labels.slice(room).forEach((chip) => (chip.hidden = true));
    more.hidden = false;
    more.textContent = `+${counted.format(total - room)} more`;
    if (!room || fits(more)) return;
  }
}

function makeChip(label, score, outcome) {
  const chip = make("span", { class: `chip ${outcome ?? ""}` });
  if (outcome) chip.append(make("span", { class: "mark", text: MARKS[outcome], "aria-label": OUTCOME_NAMES[outcome] }));
  else chip.style.setProperty("--weight", score);
  chip.append(make("bdi", { text: labelNames[label] }));
  if (outcome !== "miss") chip.append(make("small", { text: decimal(score) }));
  return chip;
}

function showPicture(card, block) {
  const place = card.querySelector(".picture");
  if (!block) place.append(make("span", { class: "quiet", text: "no picture" }));
  else place.append(make("img", { alt: "", decoding: "async", src: pictureUrl(block) }));
}
