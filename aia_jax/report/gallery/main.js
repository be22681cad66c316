// Connects the parts, and keeps the address in line with the state.

const PARTS = { photos: "Photos", labels: "Labels", confusions: "Confusions", problems: "Unreadable" };

byId("starting").remove();
document.title = visible(facts.title);
byId("title").textContent = visible(facts.title);
if (facts.evaluation) byId("title").title = TERMS.weights;
byId("subtitle").textContent = visible(facts.subtitle ?? "");

document.body.classList.toggle("evaluated", Boolean(facts.evaluation));

let found = [];
const grid = new Grid(byId("grid"), CARDS, (photo) => detail.open(photo, found));
const detail = new Detail({
  turned(photo) {
    state.photo = photo;
    writeAddress();
  },
  closed(photo) {
    state.photo = null;
    forget(detail);
    writeAddress();
    grid.focusPhoto(photo);
  },
});

function changed() {
  found = select(state);
  showFilter(found, changed);
  grid.show(found);
  writeAddress();
}

/** Shows only the photos whose labels have the outcomes in `chosen`. */
function showPhotos(chosen) {
  Object.assign(state, NO_FILTER, { chosen });
  showPart("photos");
  changed();
  scrollTo(0, 0);
}

const filled = new Set();
const fill = {
  labels: (part) => fillLabels(part, facts.evaluation, showPhotos),
  confusions: (part) => fillConfusions(part, facts.evaluation, showPhotos),
  problems(part) {
    const row = ([name, problem]) =>
      make("li", {}, make("bdi", { text: visible(name) }), make("span", { class: "quiet", text: visible(problem) }));
    part.append(make("ul", { class: "problems" }, ...facts.problems.map(row)));
  },
};

const tabs = new Map();

function showPart(name) {
  state.part = tabs.has(name) ? name : "photos";
  for (const part of Object.keys(PARTS)) byId(`part-${part}`).hidden = part !== state.part;
  for (const [part, tab] of tabs) {
    tab.setAttribute("aria-selected", part === state.part);
    tab.tabIndex = part === state.part ? 0 : -1;
  }
  if (fill[state.part] && !filled.has(state.part)) fill[state.part](byId(`part-${state.part}`));
  filled.add(state.part);
  grid.measure();
}

function setUpTabs() {
  const there = {
    photos: true,
    labels: facts.evaluation,
    confusions: facts.evaluation,
    problems: facts.problems?.length,
  };
  const names = Object.keys(PARTS).filter((part) => there[part]);
  if (names.length < 2) return;
  for (const part of names) {
    const text = part === "problems" ? `${PARTS[part]} (${counted.format(facts.problems.length)})` : PARTS[part];
    const tab = make("button", {
      type: "button",
      role: "tab",
      id: `tab-${part}`,
      "aria-controls": `part-${part}`,
      text,
    });
    tab.addEventListener("click", () => {
      showPart(part);
      writeAddress();
    });
    tabs.set(part, tab);
    byId("tabs").append(tab);
    byId(`part-${part}`).setAttribute("role", "tabpanel");
  }
  byId("tabs").hidden = false;
  byId("tabs").addEventListener("keydown", (event) => {
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (!step) return;
    const next = names[(names.indexOf(state.part) + step + names.length) % names.length];
    tabs.get(next).click();
    tabs.get(next).focus();
  });
}

/** Shows the state in the address. */
function follow() {
  readAddress();
  const { photo } = state;
  showPart(state.part);
  changed();
  if (photo === null) {
    if (byId("detail").open) byId("detail").close();
    return;
  }
  detail.open(photo, found.includes(photo) ? found : [photo]);
}

setUpTabs();
setUpTools(changed);
fillLabelList();
addEventListener("hashchange", follow);
addEventListener("beforeprint", () => grid.draw(true));
follow();
