// A grid of cards for photos. The document contains only the visible cards and a few rows around them.

const GAP = 12;
const AROUND = 2; // rows to keep above and below the visible ones

class Grid {
  /**
   * @param cards the kind of cards. `make(photo, place, total)` makes a card, whose first child opens the photo;
   * `added(card, photo)`, `removed(card)` and `resized(card)` are called after these changes; `narrow` and `wide` are
   * the least widths of a card in pixels on a phone and in rem; `text` is the height in rem below the picture.
   * @param open called with the index of a photo and the event.
   */
  constructor(root, cards, open) {
    [this.root, this.kind, this.open] = [root, cards, open];
    this.shown = [];
    this.cards = new Map(); // by place in `shown`
    this.current = 0; // the place that Tab moves to
    addEventListener("scroll", () => this.schedule(), { passive: true });
    new ResizeObserver(() => this.measure()).observe(root);
    root.addEventListener("click", (event) => this.clicked(event));
    root.addEventListener("keydown", (event) => this.pressed(event));
    root.addEventListener("focusin", (event) => this.focused(event));
  }

  /** Shows these photos. */
  show(numbers) {
    [this.shown, this.current] = [numbers, 0];
    this.clear();
    this.measure();
  }

  clear() {
    for (const place of [...this.cards.keys()]) this.remove(place);
  }

  remove(place) {
    const card = this.cards.get(place);
    this.kind.removed(card);
    card.remove();
    this.cards.delete(place);
  }

  measure() {
    const width = this.root.clientWidth;
    if (!width) return; // another tab is open
    const rem = parseFloat(getComputedStyle(document.documentElement).fontSize);
    const wanted = width < 600 ? this.kind.narrow : this.kind.wide * rem;
    this.columns = Math.max(Math.floor((width + GAP) / (wanted + GAP)), 1);
    this.width = (width - GAP * (this.columns - 1)) / this.columns;
    this.height = Math.round(this.width * 0.75 + this.kind.text * rem);
    const rows = Math.ceil(this.shown.length / this.columns);
    this.root.style.height = `${Math.max(rows * (this.height + GAP) - GAP, 0)}px`;
    for (const [place, card] of this.cards) this.put(card, place);
    this.draw();
    for (const card of this.cards.values()) this.kind.resized(card);
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
    const card = this.kind.make(this.shown[place], place, this.shown.length);
    this.reach(card, place === this.current);
    this.put(card, place);
    this.cards.set(place, card);
    const after = [...this.cards.keys()].filter((other) => other > place).sort((a, b) => a - b)[0];
    this.root.insertBefore(card, this.cards.get(after) ?? null); // the order for screen readers
    this.kind.added(card, this.shown[place]);
  }

  /** Lets Tab reach the controls of a card, or not. */
  reach(card, reachable) {
    for (const control of card?.querySelectorAll("button, input") ?? []) control.tabIndex = reachable ? 0 : -1;
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
    if (place >= 0 && event.target.closest(".card > :first-child")) this.open(this.shown[place], event);
  }

  focused(event) {
    const place = this.placeOf(event.target);
    if (place < 0 || place === this.current) return;
    this.reach(this.cards.get(this.current), false);
    this.current = place;
    this.reach(this.cards.get(place), true);
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
