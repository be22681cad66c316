// A text field that completes the names of labels. A new name needs a second confirmation.

const OFFERED = 30; // names in the list

/** Names with the same spelling are one label for the server. */
const spelling = (name) => name.replace(/\s/gu, "").toLowerCase();

class Chooser {
  /** @param chosen called with the name of a label, and with "" when the text no longer names one. */
  constructor(root, prompt, chosen) {
    this.chosen = chosen;
    this.input = make("input", {
      type: "text",
      role: "combobox",
      placeholder: prompt,
      "aria-label": prompt,
      "aria-expanded": false,
      "aria-autocomplete": "list",
      "aria-controls": `${root.id}-list`,
      autocomplete: "off",
      autocapitalize: "none",
      spellcheck: "false",
      maxlength: 100,
      enterkeyhint: "done",
    });
    this.list = make("ul", { id: `${root.id}-list`, role: "listbox", "aria-label": "Labels", hidden: "" });
    root.append(this.input, this.list);
    this.input.addEventListener("input", () => {
      this.chosen("");
      this.offer();
    });
    this.input.addEventListener("focus", () => this.offer());
    this.input.addEventListener("blur", () => this.close());
    this.input.addEventListener("keydown", (event) => this.pressed(event));
    this.list.addEventListener("pointerdown", (event) => event.preventDefault()); // keeps the focus in the field
    this.list.addEventListener("click", (event) => {
      const option = event.target.closest("[role=option]");
      if (option) this.choose(option);
    });
  }

  clear() {
    this.input.value = "";
    this.chosen("");
    this.close();
  }

  close() {
    this.list.hidden = true;
    this.input.setAttribute("aria-expanded", false);
    this.input.removeAttribute("aria-activedescendant");
  }

  offer() {
    const text = this.input.value.trim().replace(/\s+/gu, " ");
    const sought = folded(text);
    const matching = labelNames.filter((name) => folded(name).includes(sought));
    const first = (name) => (folded(name) === sought ? 0 : folded(name).startsWith(sought) ? 1 : 2);
    matching.sort((a, b) => first(a) - first(b) || a.localeCompare(b));
    const options = matching.slice(0, OFFERED).map((name) => this.option(name, make("bdi", { text: name })));
    if (text && !labelNames.some((name) => spelling(name) === spelling(text))) {
      const hint = make("small", { text: "new label" });
      options.push(this.option(text, make("bdi", { text: `+ ${visible(text)}` }), hint));
      options.at(-1).classList.add("new");
    }
    this.list.replaceChildren(...options);
    this.list.hidden = !options.length;
    this.input.setAttribute("aria-expanded", options.length > 0);
    this.mark(text && matching.length ? 0 : -1);
  }

  option(name, ...content) {
    const id = `${this.list.id}-${name}`.replace(/\s/gu, "_");
    return make("li", { role: "option", id, "data-name": name, "aria-selected": false }, ...content);
  }

  get options() {
    return [...this.list.children];
  }

  mark(place) {
    this.marked = place;
    this.options.forEach((option, at) => option.setAttribute("aria-selected", at === place));
    const option = this.options[place];
    option?.scrollIntoView({ block: "nearest" });
    if (option) this.input.setAttribute("aria-activedescendant", option.id);
    else this.input.removeAttribute("aria-activedescendant");
  }

  pressed(event) {
    const step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
    if (event.key === "Escape" && (this.input.value || !this.list.hidden)) {
      this.clear();
      this.input.blur();
    } else if (step && !this.list.hidden) {
      const number = this.options.length;
      this.mark(this.marked < 0 && step < 0 ? number - 1 : (this.marked + step + number) % number);
    } else if (event.key === "Enter") this.enter();
    else return;
    event.preventDefault();
    event.stopPropagation();
  }

  /** Chooses the marked name. A new name is only marked first, with a hint. */
  enter() {
    const option = this.options[this.marked];
    if (option) return this.choose(option);
    const fresh = this.options.at(-1);
    if (!fresh?.classList.contains("new") || this.list.hidden) return undefined;
    fresh.querySelector("small").textContent = "new: Enter again adds it";
    return this.mark(this.options.length - 1);
  }

  choose(option) {
    this.input.value = option.dataset.name;
    this.close();
    this.chosen(option.dataset.name);
  }
}
