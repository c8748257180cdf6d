/* The page of `excl annotate`: the list of videos, the component with its marking, the sentence, the moments. */
import { element, fillList, make, say, seconds, send, watchPlaying } from "./page.js";

const timeline = element("timeline");
let state = null; // of the file: version, can_undo, videos [{id, count}], …
let shown = null; // the video that is shown: {number, moments, command}
let edited = null; // the moment that is being changed
let marked = { start_s: null, end_s: null }; // the mark when it was last looked at
let unchanged = ""; // the mark and the sentence as `written` has them when there is nothing to save
let warned = ""; // what was last warned of: what is written, and what would drop it

function showState(next) {
  state = next;
  const done = state.videos.filter((video) => video.count).length;
  const parts = [`${state.file}: ${done} of ${state.videos.length} videos have moments`];
  const isDone = done === state.videos.length;
  if (isDone) parts.push(`next: ${state.next}`);
  if (state.others) parts.push(`${state.others} moments of videos that are not here`);
  if (state.num_problems) parts.push(`${state.num_problems} lines that cannot be read stay as they are: ${state.problems[0]}`);
  element("file").textContent = parts.join("; ");
  element("undo").disabled = !state.can_undo;
  element("next").replaceChildren("When all is marked, in a terminal: ", make("code", state.next));
  document.title = `${state.folder}: excl annotate`;
  showVideos();
}

function listed() {
  const search = element("search").value.trim().toLowerCase();
  const todo = element("todo").checked;
  return state.videos
    .map((video, number) => ({ ...video, number }))
    .filter((video) => video.id.toLowerCase().includes(search) && (!todo || !video.count || video.number === shown?.number));
}

function showVideos() {
  const count = (number) => (number === 1 ? "1 moment" : number ? `${number} moments` : "none yet");
  fillList(element("videos"), element("more"), listed(), {
    isCurrent: (video) => video.number === shown?.number,
    choose: (video) => leaveFor(video.number, "choosing it again"),
    label: (video) => [make("span", video.id), make("span", count(video.count), { className: video.count ? "count" : "quiet" })],
  });
}

function setMark(mark) {
  timeline.mark = mark;
  marked = timeline.mark;
}

const written = () => JSON.stringify([timeline.mark, element("query").value.trim()]);

/* Whether what is not saved may be dropped by an action: if there is nothing, or if this was said and nothing done since. */
function mayDrop(action, again) {
  const now = written();
  if (now === unchanged || warned === action + now) return true;
  warned = action + now;
  const { start_s, end_s } = timeline.mark;
  const what = edited ? "change" : start_s === null && end_s === null ? "sentence" : "mark";
  say(`The ${what} is not saved: Enter saves it, ${again} drops it.`, true);
  return false;
}

/* Show another video, unless something would be lost of which nobody was warned. */
function leaveFor(number, again) {
  if (number !== shown?.number && (!shown || mayDrop(`video ${number}`, again))) choose(number);
}

let chosen = 0; // the number of the last choice: what comes late of an earlier one is not shown

async function choose(number) {
  const turn = (chosen += 1);
  const { status, body } = await send("GET", `api/videos/${number}`);
  if (turn !== chosen) return;
  if (status !== 200) {
    say(body.message, true);
    return;
  }
  say("");
  element("unplayable").hidden = true;
  shown = { number, moments: body.moments, command: body.command };
  for (const id of ["timeline", "form", "annotated"]) element(id).hidden = false;
  timeline.data = body.timeline;
  stopEditing();
  showMoments();
  showState(body.state);
  document.querySelector('[aria-current="true"]')?.scrollIntoView({ block: "nearest" });
  timeline.querySelector(".xt-plot").focus({ preventScroll: true });
}

function showMoments() {
  const { moments } = shown;
  timeline.data.queries = [{
    text: "", start_probability: [], end_probability: [], predictions: [], note: "",
    moments: moments.filter(hasTimes).map(({ start_s, end_s }) => ({ start_s, end_s })),
  }];
  timeline.redraw();
  element("title").textContent = `Moments of ${state?.videos[shown.number].id ?? timeline.data.title}`;
  const entries = moments.map((moment, index) => {
    const entry = make("li");
    entry.classList.toggle("edited", edited?.line === moment.line);
    const times = hasTimes(moment) ? `${seconds(moment.start_s)} to ${seconds(moment.end_s)}` : "no times";
    const button = (text, what) => {
      const node = make("button", text, { type: "button" });
      node.setAttribute("aria-label", `${text} moment ${index + 1}: ${moment.query}`);
      node.addEventListener("click", what);
      return node;
    };
    const buttons = make("span", "", { className: "buttons" });
    buttons.append(button("Play", () => play(moment)), button("Change", () => edit(moment)), button("Delete", () => remove(moment)));
    const split = moment.split ? `, ${moment.split}` : "";
    entry.append(make("span", moment.query, { className: "sentence" }), make("span", times + split, { className: "quiet" }), buttons);
    return entry;
  });
  element("moments").replaceChildren(...entries);
  if (!moments.length) element("moments").append(make("p", "None yet: play, press I where it starts and O where it ends.", { className: "quiet" }));
}

const hasTimes = (moment) => Number.isFinite(moment.start_s) && Number.isFinite(moment.end_s);

function play(moment) {
  if (hasTimes(moment)) timeline.play(moment.start_s, moment.end_s);
}

function edit(moment) {
  if (moment === edited || !mayDrop(`change ${moment.line}`, "“Change” again")) return;
  edited = moment;
  setMark(moment);
  if (hasTimes(moment)) timeline.time = moment.start_s;
  element("query").value = moment.query;
  unchanged = written();
  element("save").textContent = "Save change";
  element("cancel").hidden = false;
  showMoments();
  element("query").focus();
}

function stopEditing() {
  edited = null;
  setMark({ start_s: null, end_s: null });
  element("query").value = "";
  unchanged = written();
  element("save").textContent = "Save moment";
  element("cancel").hidden = true;
}

/* Show what a change to the moments of `video` came to; another video may be shown by now. Returns whether it was made. */
function showChange({ status, body }, video, done) {
  if (body.state && video !== shown) showState(body.state);
  else if (body.state) {
    shown.moments = body.moments;
    if (status === 409) edited = null; // its line may be another one
    showState(body.state);
    showMoments();
  }
  say(status === 200 ? done : body.message, status !== 200);
  return status === 200 && video === shown;
}

async function save() {
  const video = shown;
  const { start_s, end_s } = timeline.mark;
  if (start_s === null || end_s === null) {
    say("Mark where it starts (I) and where it ends (O), then save.", true);
    return;
  }
  const moment = { start_s, end_s, query: element("query").value, version: state.version };
  const path = `api/videos/${shown.number}/moments`;
  const before = unchanged;
  unchanged = written(); // on its way: nobody need be warned
  element("save").disabled = true; // a second Enter is not a second moment
  const answer = edited ? await send("PUT", `${path}/${edited.line}`, moment) : await send("POST", path, moment);
  element("save").disabled = false;
  if (video === shown && answer.status === 200) stopEditing();
  else if (video === shown) unchanged = before;
  if (showChange(answer, video, `Saved: ${seconds(start_s)} to ${seconds(end_s)}, “${moment.query.trim()}”.`)) toVideo();
}

async function remove(moment) {
  if (edited && !mayDrop(`delete ${moment.line}`, "“Delete” again")) return;
  if (edited) stopEditing(); // lines move
  const video = shown;
  const answer = await send("DELETE", `api/videos/${shown.number}/moments/${moment.line}`, { version: state.version });
  showChange(answer, video, "Deleted; Undo brings it back.");
  if (video === shown) toVideo();
}

async function undo() {
  if (edited && !mayDrop("undo", "Ctrl+Z again")) return;
  if (edited) stopEditing();
  const { status, body } = await send("POST", "api/undo", { version: state.version });
  if (body.state) showState(body.state);
  say(status === 200 ? "The last change is taken back." : body.message, status !== 200);
  if (!shown) return;
  const changed = shown;
  const { body: video } = await send("GET", `api/videos/${changed.number}`);
  if (!video.moments || changed !== shown) return;
  shown.moments = video.moments;
  showMoments();
}

function toVideo() {
  timeline.querySelector(".xt-plot")?.focus({ preventScroll: true });
}

function step(by) {
  const videos = listed();
  const at = videos.findIndex((video) => video.number === shown?.number);
  const next = videos[at + by];
  if (next) leaveFor(next.number, by > 0 ? "N again" : "P again");
  else say(by > 0 ? "That was the last video of the list." : "That was the first video of the list.");
}

document.addEventListener("keydown", (event) => {
  const { target } = event;
  const typing = target.matches("input, textarea, select") && target.type !== "checkbox";
  if (event.key === "Escape" && shown) {
    if (edited && mayDrop("stop", "Esc again")) {
      stopEditing();
      showMoments();
    }
    toVideo();
    return;
  }
  if (typing) return;
  if ((event.ctrlKey || event.metaKey) && event.key.toLowerCase() === "z" && !event.shiftKey) {
    event.preventDefault();
    undo();
    return;
  }
  if (event.ctrlKey || event.metaKey || event.altKey || !shown) return;
  const key = event.key.length === 1 ? event.key.toLowerCase() : event.key;
  const onButton = target.matches("button, a, summary, input");
  const frame_s = 1 / (timeline.data.fps || 10);
  let isOurs = true;
  if (key === "n" || key === "p") step(key === "n" ? 1 : -1);
  else if (/^[1-9]$/.test(key)) {
    if (shown.moments[key - 1]) play(shown.moments[key - 1]);
  } else if (key === "Enter" && !onButton) element("query").focus();
  else if ((key === "ArrowLeft" || key === "ArrowRight") && !event.shiftKey) {
    timeline.time += key === "ArrowLeft" ? -frame_s : frame_s;
  } else if (!(key === " " && onButton)) isOurs = timeline.press(event);
  else isOurs = false;
  if (isOurs) {
    event.preventDefault();
    event.stopPropagation();
  }
}, true);

/* Dragging in the strip of the mark marks both ends. */
let dragFrom = null;
const markAt = (event) => {
  const box = timeline.querySelector(".xt-mark .xt-field").getBoundingClientRect();
  return Math.min(Math.max((event.clientX - box.left) / box.width, 0), 1) * timeline.data.duration_s;
};
timeline.addEventListener("pointerdown", (event) => {
  if (event.button !== 0 || !event.target.closest(".xt-mark")) return;
  event.stopPropagation();
  event.preventDefault();
  dragFrom = markAt(event);
  timeline.setPointerCapture(event.pointerId);
}, true);
timeline.addEventListener("pointermove", (event) => {
  if (dragFrom === null) return;
  event.stopPropagation();
  const to = markAt(event);
  setMark({ start_s: Math.min(dragFrom, to), end_s: Math.max(dragFrom, to) });
  timeline.time = to;
}, true);
for (const name of ["pointerup", "pointercancel"]) timeline.addEventListener(name, () => (dragFrom = null), true);

/* The component takes back the other end of a mark that would have no length; that is said. */
timeline.addEventListener("excl-mark", ({ detail }) => {
  const before = marked;
  marked = detail;
  if (before.end_s !== null && detail.end_s === null) say("The end was not after the start, so it was taken back.", true);
  else if (before.start_s !== null && detail.start_s === null) say("The start was not before the end, so it was taken back.", true);
  else say("");
});
/* Who writes does not watch. */
element("query").addEventListener("focus", () => timeline.querySelector("video")?.pause());
window.addEventListener("beforeunload", (event) => {
  if (shown && written() !== unchanged) event.preventDefault();
});

watchPlaying(timeline, () => ({
  text: "This browser cannot play the video. This command makes a copy that it plays; then start excl annotate again with --videos and the folder of the copies:",
  command: shown.command,
}));
element("form").addEventListener("submit", (event) => {
  event.preventDefault();
  save();
});
element("cancel").addEventListener("click", () => {
  stopEditing();
  showMoments();
  toVideo();
});
element("undo").addEventListener("click", undo);
element("search").addEventListener("input", showVideos);
element("todo").addEventListener("change", showVideos);

const { status, body } = await send("GET", "api/state");
if (status === 200) {
  showState(body);
  const first = body.videos.findIndex((video) => !video.count);
  await choose(Math.max(first, 0));
} else say(body.message, true);
