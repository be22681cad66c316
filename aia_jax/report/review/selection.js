// Several selected photos, which get one answer together.

const selection = {
  numbers: new Set(),
  last: null, // where a range begins

  get size() {
    return this.numbers.size;
  },

  has(number) {
    return this.numbers.has(number);
  },

  /** Selects a photo or deselects it; with `isRange`, all photos from the last one to this one. */
  toggle(number, isRange = false) {
    const [from, to] = [order.indexOf(this.last), order.indexOf(number)];
    if (isRange && from >= 0) {
      for (const other of order.slice(Math.min(from, to), Math.max(from, to) + 1)) this.numbers.add(other);
    } else if (!this.numbers.delete(number)) this.numbers.add(number);
    this.last = number;
    this.show();
  },

  clear() {
    this.numbers.clear();
    this.last = null;
    this.show();
  },

  show() {
    for (const card of grid.cards.values()) {
      const isIn = this.has(Number(card.dataset.number));
      card.classList.toggle("selected", isIn);
      card.querySelector("input").checked = isIn;
    }
    byId("selection").hidden = !this.size;
    document.body.classList.toggle("selecting", this.size > 0);
    byId("selection-count").textContent = `${count(this.size, "photo")} selected`;
    if (!this.size) this.chooser.clear();
  },

  setUp() {
    this.chooser = new Chooser(byId("selection-label"), "Label of these photos", (name) => this.choose(name));
    for (const id of ["selection-yes", "selection-no"]) {
      byId(id).addEventListener("click", () => this.answer(id === "selection-yes"));
    }
    byId("selection-clear").addEventListener("click", () => this.clear());
  },

  choose(name) {
    this.label = name;
    for (const id of ["selection-yes", "selection-no"]) byId(id).disabled = !name;
    if (name) byId("selection-yes").focus();
  },

  async answer(value) {
    const [numbers, name] = [[...this.numbers], this.label];
    if (!name || !(await answer(numbers, name, value))) return;
    tell(`“${name}” ${value ? "confirmed" : "rejected"} on ${count(numbers.length, "photo")}.`);
    this.clear();
  },
};
