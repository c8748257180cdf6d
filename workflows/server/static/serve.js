/* The page of `excl serve`: choose or send a video, ask, wait while it is read, see the answers. */
import { element, fillList, make, say, send, watchPlaying } from "./page.js";

const ASK_AGAIN_MS = 400;
const timeline = element("timeline");
let shown = null; // the video that is shown: {number, command, remedy}
let maxBytes = 0;
let asked = 0; // the number of the last question: answers to earlier ones are not shown

async function showVideos() {
  const search = element("search").value.trim();
  const { status, body } = await send("GET", `api/state?search=${encodeURIComponent(search)}`);
  if (search !== element("search").value.trim()) return; // what was typed since is being searched
  if (status !== 200) {
    say(body.message, true);
    return;
  }
  maxBytes = body.max_bytes;
  element("run").textContent = `answers of the run “${body.run}”`;
  document.title = `${body.run}: excl serve`;
  element("warnings").textContent = body.warnings.join(" ");
  element("warnings").hidden = !body.warnings.length;
  fillList(element("videos"), element("more"), body.videos, {
    isCurrent: (video) => video.number === shown?.number,
    choose: (video) => choose(video),
    label: (video) => [make("span", video.id), make("span", video.is_upload ? "yours" : "", { className: "quiet" })],
  });
  const hidden = body.num_matching - body.videos.length;
  if (hidden > 0) element("more").textContent = `and ${hidden} more: search by name`;
}

async function choose({ number, is_upload }) {
  const turn = (asked += 1);
  showProgress(null);
  const { status, body } = await send("GET", `api/videos/${number}`);
  if (turn !== asked) return; // another was chosen meanwhile
  if (status !== 200) {
    say(body.message, true);
    return;
  }
  say("");
  shown = { number, command: body.command, remedy: body.remedy };
  element("unplayable").hidden = true;
  element("form").hidden = timeline.hidden = false;
  element("remove").hidden = !is_upload;
  draw(body.timeline);
  element("suggestions").replaceChildren(...body.suggestions.map((text) => {
    const button = make("button", text, { type: "button" });
    button.addEventListener("click", () => {
      element("queries").value = text;
      ask();
    });
    const entry = make("li");
    entry.append(button);
    return entry;
  }));
  await showVideos();
  element("queries").focus();
}

async function ask() {
  const queries = element("queries").value.split("\n").filter((line) => line.trim());
  if (!queries.length) {
    say("Write what you are looking for, in a sentence.", true);
    return;
  }
  const number = (asked += 1);
  const path = `api/videos/${shown.number}/answers`;
  for (;;) {
    const { status, body } = await send("POST", path, { queries });
    if (number !== asked) return; // something else is shown by now
    if (status === 202) {
      showProgress(body);
      await new Promise((resolve) => setTimeout(resolve, ASK_AGAIN_MS));
      if (number !== asked) return;
      continue;
    }
    showProgress(null);
    if (status === 200) showAnswers(body);
    else say(body.message, true);
    return;
  }
}

function draw(data) {
  timeline.data = data;
  if (!data.video && shown.remedy) timeline.querySelector(".xt-player .xt-note").append(" ", shown.remedy);
}

function showAnswers(answers) {
  const { time } = timeline;
  draw(answers);
  const best = answers.queries[0].predictions[0];
  timeline.time = best ? best.start_s : time;
  say(best ? "" : "No moment was found.");
}

function showProgress(progress) {
  const bar = element("progress");
  bar.hidden = !progress;
  if (!progress) return;
  if (progress.state === "waiting") {
    bar.removeAttribute("value");
    say(progress.before === 1 ? "One video is read before this one." : `${progress.before} videos are read before this one.`);
    return;
  }
  if (progress.expected) {
    bar.max = Math.max(progress.expected, progress.frames);
    bar.value = progress.frames;
  } else bar.removeAttribute("value");
  const of = progress.expected ? ` of about ${progress.expected}` : "";
  if (!progress.frames) say("The video is being opened.");
  else say(`The video is decoded and its features are computed: ${progress.frames}${of} frames.`);
}

async function upload(files) {
  const problems = [];
  let last = null;
  for (const file of files) {
    if (file.size > maxBytes) {
      problems.push(`${file.name}: it is larger than ${(maxBytes / 1e9).toPrecision(2)} GB.`);
      continue;
    }
    const answer = await sendFile(file);
    if (answer.status === 201) last = { number: answer.body.number, is_upload: true };
    else problems.push(`${file.name}: ${answer.body.message}`);
  }
  showProgress(null);
  element("upload").value = "";
  if (last) await choose(last);
  if (problems.length) say(problems.join(" "), true);
}

/* XMLHttpRequest tells how much is sent; fetch does not. */
function sendFile(file) {
  const bar = element("progress");
  bar.hidden = false;
  bar.value = 0;
  say(`${file.name} is being sent.`);
  return new Promise((resolve) => {
    const request = new XMLHttpRequest();
    request.open("POST", `api/uploads?name=${encodeURIComponent(file.name)}`);
    request.upload.addEventListener("progress", (event) => {
      bar.max = event.total || 1;
      bar.value = event.loaded;
    });
    request.addEventListener("load", () => {
      let body = { message: request.responseText };
      try {
        body = JSON.parse(request.responseText);
      } catch {}
      resolve({ status: request.status, body });
    });
    request.addEventListener("error", () => resolve({ status: 0, body: { message: "It could not be sent: too much at once, or excl was stopped." } }));
    request.send(file);
  });
}

async function remove() {
  const { status, body } = await send("DELETE", `api/uploads/${shown.number}`);
  if (status !== 200) {
    say(body.message, true);
    return;
  }
  asked += 1;
  shown = null;
  showProgress(null);
  element("form").hidden = timeline.hidden = true;
  say("The video is removed.");
  showVideos();
}

watchPlaying(timeline, () => ({
  text: shown.command
    ? "This browser cannot play the video, but it can be asked about. This command makes a copy that it plays:"
    : "This browser cannot play the video, but it can be asked about; H.264 in an MP4 file is what browsers play.",
  command: shown.command,
}));
document.addEventListener("dragover", (event) => {
  event.preventDefault();
  element("drop").classList.add("over");
});
document.addEventListener("dragleave", () => element("drop").classList.remove("over"));
document.addEventListener("drop", (event) => {
  event.preventDefault();
  element("drop").classList.remove("over");
  if (event.dataTransfer.files.length) upload([...event.dataTransfer.files]);
});
element("upload").addEventListener("change", () => upload([...element("upload").files]));
element("search").addEventListener("input", showVideos);
element("remove").addEventListener("click", remove);
element("form").addEventListener("submit", (event) => {
  event.preventDefault();
  ask();
});
element("queries").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey) {
    event.preventDefault();
    ask();
  }
});
await showVideos();
