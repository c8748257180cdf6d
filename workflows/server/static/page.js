/* What the pages of `excl serve` and `excl annotate` share. */

/* Send a request with a JSON body, if there is one. Returns {status, body}; a server that is gone gives status 0. */
export async function send(method, path, body) {
  try {
    const response = await fetch(path, { method, body: body === undefined ? undefined : JSON.stringify(body) });
    return { status: response.status, body: await readBody(response) };
  } catch {
    return { status: 0, body: { message: "The server does not answer: was excl stopped in the terminal?" } };
  }
}

async function readBody(response) {
  const text = await response.text();
  try {
    return JSON.parse(text);
  } catch {
    return { message: text };
  }
}

export const element = (id) => document.getElementById(id);

export function make(name, text, attributes = {}) {
  const node = Object.assign(document.createElement(name), attributes);
  if (text) node.textContent = text;
  return node;
}

export function say(message, isError = false) {
  element("message").textContent = isError ? "" : message;
  element("problem").textContent = isError ? message : "";
}

export const seconds = (value) => `${value.toFixed(2)} s`;

/* Say in one sentence what to do about a video that the browser does not play, when its player reports it. */
export function watchPlaying(timeline, describe) {
  const place = element("unplayable");
  timeline.addEventListener("error", () => {
    const { text, command } = describe();
    place.replaceChildren(text);
    if (command) place.append(" ", make("code", command));
    place.hidden = false;
  }, true);
}

/* Fill a list with buttons, of which one is current; says in `more` how many are not shown. */
export function fillList(list, more, items, { most = 200, isCurrent, choose, label }) {
  const entries = items.slice(0, most).map((item) => {
    const button = make("button", "", { type: "button" });
    button.append(...label(item));
    if (isCurrent(item)) button.setAttribute("aria-current", "true");
    button.addEventListener("click", () => choose(item));
    const entry = make("li");
    entry.append(button);
    return entry;
  });
  list.replaceChildren(...entries);
  more.textContent = items.length > most ? `and ${items.length - most} more: search by name` : "";
  if (!items.length) more.textContent = "none";
}
