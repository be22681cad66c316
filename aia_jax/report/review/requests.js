// Requests to the server that sent this page, and messages about what went wrong.

const TOKEN = new URLSearchParams(location.search).get("token") ?? "";
const STOPPED = "The server does not answer. Start aia review again and open the address that it prints; all answers that this page showed as saved are kept.";

/** The counts of the last response: `changes`, those since the last training, `num_labels` and `progress`. */
const counts = { changes: 0, fresh: 0, num_labels: 0, progress: {} };

/** Requests `/api/PATH` and returns its JSON; a `body` is posted. An error has a message for people. */
async function call(path, { body, signal, read = "json" } = {}) {
  const headers = { "X-Review-Token": TOKEN };
  const options = { headers, signal, cache: "no-store" };
  if (body) Object.assign(options, { method: "POST", body: JSON.stringify(body) });
  if (body) headers["Content-Type"] = "application/json";
  let response;
  try {
    response = await fetch(`/api/${path}`, options);
  } catch (error) {
    throw signal?.aborted ? error : new Error(STOPPED);
  }
  if (response.ok) return response[read]();
  const problem = await response.json().catch(() => ({}));
  throw new Error(problem.error ?? `The server answers with the error ${response.status}.`);
}

let last = Promise.resolve();
let running = 0;

/** Posts a change after the changes before it, so that answers are stored in the order of the clicks. */
function post(path, body = {}) {
  running += 1;
  const answer = last.then(() => call(path, { body }));
  last = answer.catch(() => {}).finally(() => (running -= 1));
  return answer;
}

const MESSAGE_TIME = 5000; // milliseconds

/** Shows a message. Errors stay until they are closed. */
function tell(text, isError = false) {
  const box = byId("messages");
  for (const old of box.querySelectorAll(isError ? ".error" : ".message:not(.error)")) old.remove();
  const close = make("button", { type: "button", "aria-label": "Close the message", text: "✕" });
  const kind = isError ? { class: "message error", role: "alert" } : { class: "message" };
  const message = make("div", kind, make("p", { text: visible(text) }), close);
  close.addEventListener("click", () => message.remove());
  box.append(message);
  placeMessages();
  if (!isError) setTimeout(() => message.remove(), MESSAGE_TIME);
}

/** Puts the messages into the open dialog, because all else is behind it and takes no clicks. */
function placeMessages() {
  const host = [...document.querySelectorAll("dialog[open]")].at(-1) ?? document.body;
  if (byId("messages").parentNode !== host) host.append(byId("messages"));
}

const tellError = (error) => error.name !== "AbortError" && tell(error.message, true);
