// One large photo with its labels, and the attention map of a label over it.

const LARGEST = 3; // times the size of the picture, but at least LARGEST_SIDE pixels
const LARGEST_SIDE = 480;
const FINER = 16; // times the size of an attention map
const heatColors = bytesOf(facts.heat);

/** The weight of a cell at this distance in Pillow's BICUBIC filter. */
function cubic(at) {
  const distance = Math.abs(at);
  if (distance < 1) return (1.5 * distance - 2.5) * distance * distance + 1;
  return distance < 2 ? ((-0.5 * distance + 2.5) * distance - 4) * distance + 2 : 0;
}

/** Interpolates rows of `width` values to `FINER` times the length. */
function stretchRows(values, rows, width) {
  const longer = width * FINER;
  const out = new Float32Array(rows * longer);
  for (let x = 0; x < longer; x += 1) {
    const center = (x + 0.5) / FINER - 0.5;
    const [first, last] = [Math.max(Math.floor(center) - 1, 0), Math.min(Math.floor(center) + 2, width - 1)];
    let total = 0;
    for (let cell = first; cell <= last; cell += 1) total += cubic(center - cell);
    for (let cell = first; cell <= last; cell += 1) {
      const weight = cubic(center - cell) / total;
      for (let y = 0; y < rows; y += 1) out[y * longer + x] += weight * values[y * width + cell];
    }
  }
  return out;
}

function transposed(values, rows, width) {
  const out = new Float32Array(values.length);
  for (let y = 0; y < rows; y += 1) for (let x = 0; x < width; x += 1) out[x * rows + y] = values[y * width + x];
  return out;
}

/** Draws a map uint8 [h, w] as `report.figures.overlay` does: hotter places are brighter and more opaque. */
function drawMap(canvas, map, [height, width]) {
  const wide = transposed(stretchRows(map, height, width), height, width * FINER);
  const values = transposed(stretchRows(wide, width * FINER, height), width * FINER, height * FINER);
  [canvas.width, canvas.height] = [width * FINER, height * FINER];
  const image = new ImageData(canvas.width, canvas.height);
  const peak = Math.max(
    values.reduce((most, value) => Math.max(most, value), 0),
    1e-9,
  );
  values.forEach((value, cell) => {
    const heat = Math.max(value, 0) / peak;
    const color = Math.round(255 * heat);
    image.data.set(heatColors.subarray(3 * color, 3 * color + 3), 4 * cell);
    image.data[4 * cell + 3] = 255 * 0.85 * heat ** 0.8;
  });
  canvas.getContext("2d").putImageData(image, 0, 0);
}

class Detail {
  /** @param turned called with the index of each shown photo; @param closed called with the index of the last photo. */
  constructor({ turned, closed }) {
    [this.dialog, this.turned] = [byId("detail"), turned];
    [this.shown, this.label, this.block] = [[], null, null];
    byId("close").addEventListener("click", () => this.dialog.close());
    byId("previous").addEventListener("click", () => this.turn(-1));
    byId("next").addEventListener("click", () => this.turn(1));
    byId("opacity").addEventListener("input", () => this.setOpacity());
    byId("photo").addEventListener("load", () => this.fit());
    for (const id of ["enlarge", "frame"]) byId(id).addEventListener("click", () => this.enlarge());
    this.dialog.addEventListener("keydown", (event) => this.pressed(event));
    this.dialog.addEventListener("close", () => {
      this.enlarge(false);
      closed(this.number);
    });
    this.dialog.addEventListener("click", (event) => event.target === this.dialog && this.dialog.close());
    new ResizeObserver(() => this.fit()).observe(byId("stage"));
  }

  /** Shows the photo `number` of `numbers`. */
  open(number, numbers) {
    [this.number, this.shown] = [number, numbers];
    if (!this.dialog.open) this.dialog.showModal();
    this.show();
  }

  turn(step) {
    const wanted = this.shown[this.shown.indexOf(this.number) + step];
    if (wanted === undefined) return;
    this.number = wanted;
    this.show();
  }

  show() {
    const photo = photos[this.number];
    const place = this.shown.indexOf(this.number);
    byId("detail-name").replaceChildren(make("bdi", { text: photo.shown }));
    const match = matchText(matchesFor(state.query), this.number);
    byId("detail-place").textContent =
      `${counted.format(place + 1)} of ${counted.format(this.shown.length)}${match && ` · ${match}`}`;
    byId("previous").disabled = place <= 0;
    byId("next").disabled = place === this.shown.length - 1;
    this.block = null;
    byId("original").hidden = !(byId("original").href = fileUrl(photo));
    byId("photo").removeAttribute("src");
    byId("frame").classList.remove("there");
    this.list();
    withBlock(this, this.number, (block) => this.showBlock(block));
    this.turned(this.number);
  }

  showBlock(block) {
    this.block = block;
    const photo = byId("photo");
    photo.alt = block ? photos[this.number].shown : "no picture";
    if (block) photo.src = byId("pale-photo").src = pictureUrl(block);
    this.list();
    const kept = photos[this.number].labels.includes(this.label) && this.mapOf(this.label);
    this.look(kept ? this.label : null);
    const any = Boolean(block?.maps.some(Boolean));
    byId("opacity-line").hidden = !any;
    byId("detail-keys").textContent = `← → photos${any ? " · ↑ ↓ maps of labels" : ""} · Esc closes`;
  }

  mapOf(label) {
    return this.block?.maps[photos[this.number].labels.indexOf(label)] ?? null;
  }

  /** Lists the labels; a label with a map is a button. */
  list() {
    const photo = photos[this.number];
    const rows = photo.labels.map((label, place) => {
      const content = labelRow(label, photo.scores[place], photo.outcomes[place]);
      if (!this.mapOf(label)) return make("li", {}, make("div", { class: "row" }, ...content));
      const button = make(
        "button",
        { type: "button", class: "row", "aria-pressed": false, "data-label": label },
        ...content,
      );
      button.addEventListener("click", () => this.look(this.label === label ? null : label));
      button.addEventListener("pointerenter", (event) => event.pointerType === "mouse" && this.draw(label));
      button.addEventListener("pointerleave", () => this.draw(this.label));
      return make("li", {}, button);
    });
    if (!rows.length) rows.push(make("li", { class: "quiet", text: "No label has a score above its threshold." }));
    byId("detail-labels").replaceChildren(...rows);
  }

  /** Shows the map of a label over the photo; null: no map. */
  look(label) {
    this.label = label;
    for (const button of byId("detail-labels").querySelectorAll("button")) {
      button.setAttribute("aria-pressed", button.dataset.label === String(label));
    }
    this.draw(label);
  }

  draw(label) {
    const map = label === null ? null : this.mapOf(label);
    byId("heat").classList.toggle("on", Boolean(map));
    this.setOpacity();
    if (map) drawMap(byId("map"), bytesOf(map), this.block.shape);
  }

  setOpacity() {
    byId("heat").style.opacity = byId("heat").classList.contains("on") ? byId("opacity").value : 0;
  }

  /** Shows the photo alone in the whole window, or again beside its labels. */
  enlarge(full = !this.dialog.classList.contains("full")) {
    this.dialog.classList.toggle("full", full);
    byId("enlarge").setAttribute("aria-pressed", full);
    byId("enlarge").textContent = full ? "−" : "+";
    byId("enlarge").focus(); // for the arrow keys after a click on the photo
  }

  fit() {
    const [photo, stage, frame] = [byId("photo"), byId("stage"), byId("frame")];
    if (!photo.naturalWidth || !stage.clientWidth) return;
    const room = [stage.clientWidth / photo.naturalWidth, stage.clientHeight / photo.naturalHeight];
    const most = Math.max(LARGEST, LARGEST_SIDE / Math.max(photo.naturalWidth, photo.naturalHeight));
    const scale = Math.min(...room, this.dialog.classList.contains("full") ? Infinity : most);
    frame.style.width = `${photo.naturalWidth * scale}px`;
    frame.style.height = `${photo.naturalHeight * scale}px`;
    frame.classList.add("there");
  }

  pressed(event) {
    if (event.target.matches("input") || event.ctrlKey || event.metaKey || event.altKey) return;
    const steps = { ArrowLeft: -1, ArrowRight: 1 };
    const moves = { ArrowUp: -1, ArrowDown: 1 };
    if (event.key in steps) this.turn(steps[event.key]);
    else if (event.key in moves) this.move(moves[event.key]);
    else return;
    event.preventDefault();
  }

  /** Moves to the next label with a map; after the last one, to no label. */
  move(step) {
    const buttons = [...byId("detail-labels").querySelectorAll("button")];
    if (!buttons.length) return;
    const places = [null, ...buttons.map((button) => Number(button.dataset.label))];
    const place = (places.indexOf(this.label) + step + places.length) % places.length;
    this.look(places[place]);
    buttons[place - 1]?.focus();
  }
}

function labelRow(label, score, outcome) {
  const bar = make("span", { class: `bar ${outcome ?? ""}` });
  bar.style.setProperty("--share", score);
  const name = make("span", { class: `label ${outcome ?? ""}` });
  if (outcome) name.append(make("span", { class: "mark", text: MARKS[outcome] }), " ");
  name.append(make("bdi", { text: labelNames[label] }));
  if (outcome) name.append(make("small", { text: ` ${OUTCOME_NAMES[outcome]}` }));
  return [name, make("span", { class: "number", text: decimal(score, 3) }), bar];
}
