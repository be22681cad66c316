// The cards of the gallery: picture, file name and labels.

const [TEXT, TEXT_EVALUATED] = [6.1, 8]; // rem, height of name and chips
const MOST_CHIPS = 40; // more than a card can show

const CARDS = {
  narrow: 150,
  wide: 13.5,
  text: facts.evaluation ? TEXT_EVALUATED : TEXT,
  make: makeCard,
  added(card, photo) {
    hideChips(card);
    withBlock(card, photo, (block) => showPicture(card, block));
  },
  removed: forget,
  resized: hideChips,
};

function makeCard(index, place, total) {
  const photo = photos[index];
  const chips = make("span", { class: "chips" });
  const places = [...photo.labels.keys()].filter((at) => isShown(photo, at, state.minimum));
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
  const match = matchText(matchesFor(state.query), index);
  if (match) button.append(make("span", { class: "match", text: match }));
  const place1 = { "aria-posinset": place + 1, "aria-setsize": total };
  return make("div", { class: "card", role: "listitem", ...place1 }, button);
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
