// One large photo with its labels, for answers by key or by thumb.

const LARGEST = 3; // times the size of the picture
const SWIPE = 50; // pixels
const PAUSE = 350; // milliseconds after the last answer by pointer, so that it is seen

class Detail {
  constructor() {
    this.dialog = byId("detail");
    [this.number, this.shown, this.label] = [null, [], null];
    this.adding = new Chooser(byId("detail-add"), "Add a label", (name) => name && this.add(name));
    byId("close").addEventListener("click", () => this.dialog.close());
    byId("previous").addEventListener("click", () => this.turn(-1));
    byId("next").addEventListener("click", () => this.turn(1));
    byId("detail-undo").addEventListener("click", undo);
    byId("photo").addEventListener("load", () => this.fit());
    byId("detail-labels").addEventListener("click", (event) => this.clicked(event));
    byId("detail-labels").addEventListener("focusin", (event) => {
      const row = event.target.closest(".label-row");
      if (row) this.look(Number(row.dataset.label));
    });
    // Not of the dialog, which gets no keys while nothing has the focus.
    addEventListener("keydown", (event) => this.dialog.open && !document.querySelector(".sheet[open]") && this.pressed(event));
    this.dialog.addEventListener("click", (event) => event.target === this.dialog && this.dialog.close());
    this.dialog.addEventListener("close", () => {
      clearTimeout(this.timer);
      forgetPicture(this);
      grid.focusPhoto(this.number);
    });
    this.setUpSwipes(byId("stage"));
    new ResizeObserver(() => this.fit()).observe(byId("stage"));
  }

  /** Turns to the next or previous photo when a finger moves over the photo. */
  setUpSwipes(stage) {
    let start = null;
    stage.addEventListener("pointerdown", (event) => (start = event.pointerType === "mouse" ? null : event.clientX));
    stage.addEventListener("pointerup", (event) => {
      const moved = start === null ? 0 : event.clientX - start;
      if (Math.abs(moved) > SWIPE) this.turn(moved < 0 ? 1 : -1);
      start = null;
    });
  }

  /** Shows the photo `number` of `numbers`. */
  open(number, numbers) {
    [this.number, this.shown] = [number, numbers];
    if (!this.dialog.open) this.dialog.showModal();
    this.show();
  }

  /** Shows the next photo, or the previous one. Returns whether there is one. */
  turn(step) {
    const next = this.shown[this.shown.indexOf(this.number) + step];
    if (next === undefined) return false;
    this.number = next;
    this.show();
    return true;
  }

  get rows() {
    return entries.get(this.number)?.rows ?? [];
  }

  show() {
    clearTimeout(this.timer);
    const place = this.shown.indexOf(this.number);
    byId("detail-place").textContent = `${counted.format(place + 1)} of ${counted.format(this.shown.length)}`;
    byId("previous").disabled = place <= 0;
    byId("next").disabled = place === this.shown.length - 1;
    byId("detail-name").replaceChildren();
    byId("detail-labels").replaceChildren();
    byId("photo").removeAttribute("src");
    byId("frame").classList.remove("there");
    this.adding.clear();
    const number = this.number;
    withEntry(this, number, this.shown, () => number === this.number && this.start());
    withPicture(this, number, (address) => this.showPicture(address));
    this.lookAhead(place);
  }

  /** Requests the next photo. */
  lookAhead(place) {
    const next = this.shown[place + 1];
    if (next === undefined) return;
    withEntry("ahead", next, this.shown, () => {});
    withPicture("ahead", next, () => {});
  }

  start() {
    byId("detail-name").replaceChildren(make("bdi", { text: entries.get(this.number).shown }));
    const [first] = this.rows;
    this.label = (this.rows.find((row) => row.answer === null && (!chosenLabel || isChosen(row))) ?? first)?.label ?? null;
    this.list();
    this.focusRow();
  }

  showPicture(address) {
    byId("photo").alt = address ? "" : "The picture cannot be read.";
    if (address) byId("photo").src = address;
    byId("frame").classList.toggle("there", !address);
  }

  list() {
    const none = make("li", { class: "quiet", text: "The model predicts no label. Add one below." });
    showRows(byId("detail-labels"), this.number, this.rows, ...(this.rows.length ? [] : [none]));
    this.look(this.label);
  }

  /** Marks the label that the keys answer. */
  look(label) {
    this.label = label;
    for (const item of byId("detail-labels").querySelectorAll(".label-row")) {
      item.classList.toggle("current", Number(item.dataset.label) === label);
    }
  }

  /** Moves the focus to the marked label, but not while the person writes another label. */
  focusRow() {
    if (document.activeElement === this.adding.input) return;
    const row = byId("detail-labels").querySelector(`[data-label="${this.label}"]`);
    (row?.querySelector(".yes.tick") ?? byId("next")).focus({ preventScroll: true });
    row?.scrollIntoView({ block: "nearest" });
  }

  move(step) {
    if (!this.rows.length) return;
    const place = this.rows.findIndex((row) => row.label === this.label);
    this.label = this.rows[Math.min(Math.max(place + step, 0), this.rows.length - 1)].label;
    this.look(this.label);
    this.focusRow();
  }

  /** Answers the label that is marked, and moves on to the next question or, after a chosen label, to the next photo. */
  answerCurrent(value) {
    const place = this.rows.findIndex((row) => row.label === this.label);
    if (place < 0) return;
    answer([this.number], labelNames[this.label], value);
    const next = this.rows.slice(place + 1).find((row) => row.answer === null);
    if (next && !isChosen(this.rows[place])) this.goTo(next);
    else if (!this.turn(1)) tell("This was the last photo of the list.");
  }

  goTo(row) {
    this.label = row.label;
    this.look(row.label);
    this.focusRow();
  }

  async clicked(event) {
    const item = event.target.closest(".label-row");
    if (!item) return;
    this.look(Number(item.dataset.label));
    const button = event.target.closest(".tick");
    if (!button) return;
    const { number, label, answer: value } = clickedAnswer(button);
    const open = () => this.rows.filter((row) => row.answer === null).length;
    const before = open();
    const saved = answer([number], labelNames[label], value);
    const completes = before > 0 && !open();
    const next = this.rows.find((row) => row.answer === null);
    if (next && value !== null) this.look(next.label);
    if ((await saved) && completes && number === this.number) this.timer = setTimeout(() => this.turn(1), PAUSE);
  }

  async add(name) {
    const number = this.number;
    this.adding.clear();
    this.adding.input.blur();
    if (!(await answer([number], name, true)) || number !== this.number) return;
    const row = this.rows.find((one) => labelNames[one.label] === name);
    if (row) this.goTo(row);
  }

  fit() {
    const [photo, stage, frame] = [byId("photo"), byId("stage"), byId("frame")];
    if (!photo.naturalWidth || !stage.clientWidth) return;
    const room = [stage.clientWidth / photo.naturalWidth, stage.clientHeight / photo.naturalHeight];
    const scale = Math.min(...room, LARGEST);
    frame.style.width = `${photo.naturalWidth * scale}px`;
    frame.style.height = `${photo.naturalHeight * scale}px`;
    frame.classList.add("there");
  }

  pressed(event) {
    if (event.target.matches("input") || event.ctrlKey || event.metaKey || event.altKey) return;
    const isEnter = !event.target.closest("button:not(.tick)"); // Enter on another button presses it
    const keys = {
      ArrowLeft: () => this.turn(-1),
      ArrowRight: () => this.turn(1),
      k: () => this.turn(-1),
      j: () => this.turn(1),
      ArrowUp: () => this.move(-1),
      ArrowDown: () => this.move(1),
      y: () => this.answerCurrent(true),
      n: () => this.answerCurrent(false),
      x: () => this.answerCurrent(false),
      Backspace: () => this.answerCurrent(false),
      Enter: isEnter ? () => this.answerCurrent(!event.target.matches(".tick.no")) : undefined,
      a: () => this.adding.input.focus(),
      "+": () => this.adding.input.focus(),
    };
    const act = keys[event.key.length === 1 ? event.key.toLowerCase() : event.key];
    if (!act) return;
    event.preventDefault();
    act();
  }
}
