/* <excl-timeline>: a video with its timeline. No library, no build step, no network.
 *
 * Data (timeline.py has the same records in Python; all times are seconds on the player's clock):
 *
 *   { "title":      "v_abc",                      the video's name, for people
 *     "video":      "videos/v_abc.mp4" or null,   a URL for <video>; null where there is only the time axis
 *     "duration_s": 30.5,                         0 if it is not known: the player's is taken then
 *     "fps":        15 or null,                     frames a second of the video
 *     "rows":       {"start_s": [0, 1.6], "end_s": [1.6, 3.2]},   of the features; both may be empty
 *     "queries":    [ { "text": "a man cooks",
 *                       "start_probability": [0.1, 0.9],   one number a row; empty where they are not known
 *                       "end_probability":   [0.2, 0.8],
 *                       "predictions": [{"start_s": 0, "end_s": 3.2, "score": 0.72}],   the best first; score or null
 *                       "moments":     [{"start_s": 0, "end_s": 3.0}],                  annotated
 *                       "note": "IoU 0.94",                a line below the query; may be ""
 *                       "unseen_words": ["zebra"],         that the model was not trained with; shown whichever query is
 *                       "unknown_words": [] } ],           chosen; those among them without a vector. Both may be missing
 *     "thumbnails": ["data:image/jpeg;base64,..."] }       n pictures: number i shows the middle of the i-th n-th
 *
 * It is given as the text of a child <script type="application/json">, or by the property `data`. (No closing tag of a script
 * may stand in this file, since pages have it inside one.)
 *
 * Properties and methods
 *   data           get, set: the data; setting it draws everything anew. redraw() draws again what was changed in place.
 *   time           get, set: the time in seconds; setting it seeks.
 *   query          get, set: the index of the query that is shown.
 *   marking        get, set: whether the user may mark a moment (also the attribute `marking`).
 *   mark           get, set: the marked moment {start_s, end_s}; either may be null.
 *   play(start_s, end_s)   plays a part of the video and stops at its end.
 *   press(event)   does what a key does; a page calls it for keys that are pressed elsewhere. True if the key has a meaning.
 *
 * Events (all bubble; `detail` has what is named)
 *   excl-seek   {time_s}           the user has chosen a time
 *   excl-query  {index}            the user has chosen a query
 *   excl-mark   {start_s, end_s}   the user has marked a start or an end; the other may be null
 *
 * Keys: Left and Right go to the row before and after, with Shift one second, Home and End to the beginning and the end;
 * comma and full stop go one frame back and on where fps is known; the space bar plays and pauses; with `marking`, I marks the start and O the end (the in and out points of video editors).
 */
"use strict";
(() => {
  const SVG = "http://www.w3.org/2000/svg";
  const LABEL_PX = 70; // the least distance of two labels on the time axis
  const SPAN_PX = 6; // the least width of a moment
  const MOST_WARNED = 5; // queries of whose words something is said
  const STEPS = [0.1, 0.2, 0.5, 1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200];

  const make = (name, className, text) => {
    const element = document.createElement(name);
    if (className) element.className = className;
    if (text !== undefined) element.textContent = text;
    return element;
  };
  const makeSvg = (name, attributes, parent) => {
    const element = document.createElementNS(SVG, name);
    for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
    if (parent) parent.append(element);
    return element;
  };
  const clamp = (value, low, high) => Math.min(Math.max(value, low), high);
  const seconds = (value) => `${value.toFixed(2)} s`;
  const span = (moment) => `${seconds(moment.start_s)} to ${seconds(moment.end_s)}`;
  const words = ({ unseen_words, unknown_words = [] }) => {
    const unknown = unknown_words.length ? `; taken for one unknown word: ${unknown_words.join(", ")}` : "";
    return `words that the training split did not have: ${unseen_words.join(", ")}${unknown}`;
  };
  const probability = (value) => (value >= 0.01 || value === 0 ? value.toFixed(2) : value.toPrecision(1));
  const clock = (value, step) => {
    if (step < 1) return value.toFixed(1);
    const whole = Math.round(value);
    const two = (number) => String(number).padStart(2, "0");
    const minutes = Math.floor(whole / 60);
    if (minutes < 60) return `${minutes}:${two(whole % 60)}`;
    return `${Math.floor(minutes / 60)}:${two(minutes % 60)}:${two(whole % 60)}`;
  };

  class ExclTimeline extends HTMLElement {
    #data = null;
    #index = 0;
    #time = 0; // where no video plays
    #mark = { start_s: null, end_s: null };
    #stopAt = null;
    #parts = {};
    #resized = new ResizeObserver(() => this.#drawAxis());

    connectedCallback() {
      if (this.#data) return;
      const read = () => {
        const source = this.querySelector(':scope > script[type="application/json"]');
        if (source && !this.#data) this.data = JSON.parse(source.textContent);
      };
      if (document.readyState === "loading") document.addEventListener("DOMContentLoaded", read, { once: true });
      read();
    }

    get data() { return this.#data; }
    set data(value) {
      this.#data = value;
      this.#index = 0;
      this.#time = 0;
      this.#mark = { start_s: null, end_s: null };
      this.#build();
    }

    get time() { return this.#parts.video ? this.#parts.video.currentTime : this.#time; }
    set time(value) {
      this.#stopAt = null;
      this.#time = clamp(value, 0, this.#data.duration_s);
      if (this.#parts.video) this.#parts.video.currentTime = this.#time;
      this.#drawTime();
    }

    get query() { return this.#index; }
    set query(value) {
      this.#index = value;
      if (this.#parts.select) this.#parts.select.value = String(value);
      this.#drawQuery();
    }

    get marking() { return this.hasAttribute("marking"); }
    set marking(value) {
      this.toggleAttribute("marking", Boolean(value));
      if (this.#data) this.#build();
    }

    get mark() { return { ...this.#mark }; }
    set mark(value) {
      this.#mark = { start_s: value.start_s ?? null, end_s: value.end_s ?? null };
      this.#drawMark();
    }

    redraw() {
      if (this.#parts.select) this.#fillSelect();
      this.query = Math.min(this.#index, Math.max(this.#data.queries.length - 1, 0));
      this.#drawMark();
    }

    play(start_s, end_s) {
      this.time = start_s;
      const { video } = this.#parts;
      if (!video) return;
      this.#stopAt = end_s;
      video.play().catch(() => {}); // a click elsewhere has paused it
    }

    press(event) {
      if (!this.#data || event.ctrlKey || event.metaKey || event.altKey) return false;
      const key = event.key.length === 1 ? event.key.toLowerCase() : event.key;
      const by = { ArrowLeft: -1, ArrowRight: 1 }[key];
      if (by) this.#go(event.shiftKey ? this.time + by : this.#edge(by));
      else if ((key === "," || key === ".") && this.#data.fps) this.#go(this.time + (key === "," ? -1 : 1) / this.#data.fps);
      else if (key === "Home") this.#go(0);
      else if (key === "End") this.#go(this.#data.duration_s);
      else if (key === " ") this.#toggle();
      else if (this.marking && (key === "i" || key === "o")) this.#markHere(key === "i" ? "start_s" : "end_s");
      else return false;
      event.preventDefault();
      event.stopPropagation();
      return true;
    }

    /* The time of the row edge before or after the present time. */
    #edge(by) {
      const edges = this.#data.rows.start_s;
      const now = this.time;
      const little = 1e-3; // players round times
      const next = by > 0 ? edges.find((edge) => edge > now + little) : edges.findLast((edge) => edge < now - little);
      return next ?? (by > 0 ? this.#data.duration_s : 0);
    }

    #go(time_s) {
      this.time = time_s;
      this.#tell("excl-seek", { time_s: this.#time });
    }

    #tell(name, detail) {
      this.dispatchEvent(new CustomEvent(name, { bubbles: true, detail }));
    }

    #toggle() {
      const { video } = this.#parts;
      if (!video) return;
      this.#stopAt = null;
      if (video.paused) video.play().catch(() => {});
      else video.pause();
    }

    #markHere(which) {
      const other = which === "start_s" ? "end_s" : "start_s";
      this.#mark[which] = this.time;
      const { start_s, end_s } = this.#mark;
      if (start_s !== null && end_s !== null && start_s >= end_s) this.#mark[other] = null;
      this.#drawMark();
      this.#tell("excl-mark", this.mark);
    }

    #build() {
      this.#resized.disconnect();
      const old = this.#parts.video;
      if (old) old.removeAttribute("src"); // or it would go on loading
      const parts = (this.#parts = {});
      const root = make("div", "xt");
      root.setAttribute("role", "group");
      root.setAttribute("aria-label", `Video ${this.#data.title} with its timeline`);
      root.append(this.#player(), this.#queryLine(), this.#strips(), this.#readout());
      if (this.marking) root.append(this.#markButtons());
      parts.answers = root.appendChild(make("div", "xt-answers"));
      this.replaceChildren(root);
      root.addEventListener("keydown", (event) => this.#keyed(event), true);
      this.#resized.observe(parts.plot);
      this.#drawAxis();
      this.#drawQuery();
      this.#drawMark();
    }

    #keyed(event) {
      const { target } = event;
      if (target.matches("select, input, textarea")) return;
      if (event.key === " " && target.matches("button, video")) return; // it presses the button, and plays the video
      this.press(event);
    }

    #player() {
      const box = make("div", "xt-player");
      if (!this.#data.video) {
        box.append(make("p", "xt-note", "There is no video file here: the timeline alone is shown."));
        return box;
      }
      const video = (this.#parts.video = make("video"));
      video.controls = true;
      video.preload = "metadata";
      video.playsInline = true;
      video.setAttribute("aria-label", `Video ${this.#data.title}`);
      const draw = () => {
        if (this.#parts.video !== video) return;
        if (this.#stopAt !== null && video.currentTime >= this.#stopAt) {
          this.#stopAt = null;
          video.pause();
        }
        this.#drawTime();
        if (!video.paused) requestAnimationFrame(draw);
      };
      video.addEventListener("durationchange", () => this.#learnDuration(video));
      for (const name of ["timeupdate", "seeked", "play", "loadedmetadata"]) video.addEventListener(name, draw);
      video.addEventListener("error", () => {
        if (this.#parts.video !== video) return;
        this.#time = video.currentTime;
        this.#parts.video = null;
        const name = this.#data.video.startsWith("data:") ? "The video" : `The video ${this.#data.video}`;
        box.replaceChildren(make("p", "xt-note", `${name} cannot be played here: the timeline alone is shown.`));
      });
      video.src = this.#data.video;
      box.append(video);
      return box;
    }

    /* Take the duration from the player where the data has none. Some players know that of a recording once they were at its end. */
    #learnDuration(video) {
      if (this.#parts.video !== video || this.#data.duration_s > 0) return;
      if (video.duration === Infinity) video.currentTime = 1e9;
      if (!(video.duration > 0 && Number.isFinite(video.duration))) return;
      this.#data.duration_s = video.duration;
      this.#parts.plot.setAttribute("aria-valuemax", String(video.duration));
      this.time = 0;
      this.#drawAxis();
      this.#drawQuery();
      this.#drawMark();
    }

    #queryLine() {
      const box = make("div", "xt-query");
      if (this.#data.queries.length > 1) {
        const label = make("label", "", "Query ");
        const select = (this.#parts.select = label.appendChild(make("select")));
        this.#fillSelect();
        select.addEventListener("change", () => {
          this.query = Number(select.value);
          this.#tell("excl-query", { index: this.#index });
        });
        box.append(label);
      } else {
        this.#parts.text = box.appendChild(make("p", "xt-text"));
      }
      this.#parts.note = box.appendChild(make("p", "xt-note"));
      this.#parts.words = box.appendChild(make("div", "xt-words"));
      return box;
    }

    #fillSelect() {
      const options = this.#data.queries.map((query, index) => {
        const option = make("option", "", query.text);
        option.value = String(index);
        return option;
      });
      this.#parts.select.replaceChildren(...options);
    }

    #strips() {
      const parts = this.#parts;
      const plot = (parts.plot = make("div", "xt-plot"));
      plot.tabIndex = 0;
      plot.setAttribute("role", "slider");
      plot.setAttribute("aria-label", `Time in the video ${this.#data.title}`);
      plot.setAttribute("aria-valuemin", "0");
      plot.setAttribute("aria-valuemax", String(this.#data.duration_s));
      parts.lanes = {};
      const lane = (name, title) => {
        const box = plot.appendChild(make("div", `xt-lane xt-${name}`));
        parts.lanes[name] = { box, label: box.appendChild(make("span", "xt-label", title)) };
        parts.lanes[name].field = box.appendChild(make("div", "xt-field"));
        return parts.lanes[name].field;
      };
      if (this.#data.thumbnails.length) {
        const field = lane("pictures", "pictures");
        for (const source of this.#data.thumbnails) {
          const image = field.appendChild(make("img"));
          image.alt = "";
          image.draggable = false;
          image.src = source;
        }
      }
      lane("start", "start");
      lane("end", "end");
      lane("predicted", "predicted");
      lane("annotated", "annotated");
      if (this.marking) lane("mark", "your mark");
      const { start_s: starts } = this.#data.rows;
      if (starts.length) {
        const svg = this.#svg(lane("rows", "rows"), 1);
        const ends = this.#data.rows.end_s;
        const path = [...starts, ends[ends.length - 1]].map((edge) => `M${edge} 0V1`).join("");
        makeSvg("path", { d: path, "vector-effect": "non-scaling-stroke" }, svg);
      }
      lane("axis", "time");
      parts.playhead = plot.appendChild(make("div", "xt-playhead"));
      parts.hover = plot.appendChild(make("div", "xt-hover"));
      parts.tip = plot.appendChild(make("div", "xt-tip"));
      parts.hover.hidden = parts.tip.hidden = true;
      this.#listen(plot);
      return plot;
    }

    /* An empty drawing whose x axis is the time in seconds, and whose y axis goes down to `height`. */
    #svg(field, height) {
      const viewBox = `0 0 ${Math.max(this.#data.duration_s, 1e-9)} ${height}`;
      return makeSvg("svg", { viewBox, preserveAspectRatio: "none", "aria-hidden": "true" }, field);
    }

    #listen(plot) {
      const timeAt = (event) => {
        const box = this.#parts.lanes.axis.field.getBoundingClientRect();
        return clamp((event.clientX - box.left) / box.width, 0, 1) * this.#data.duration_s;
      };
      let dragged = false;
      plot.addEventListener("pointerdown", (event) => {
        if (event.button !== 0) return;
        dragged = true;
        plot.setPointerCapture(event.pointerId);
        this.#go(timeAt(event));
      });
      plot.addEventListener("pointermove", (event) => {
        const time_s = timeAt(event);
        if (dragged) this.#go(time_s);
        const { hover, tip } = this.#parts;
        hover.hidden = tip.hidden = false;
        tip.textContent = this.#describe(time_s);
        this.#place(hover, time_s);
        const share = time_s / this.#data.duration_s; // at the left end the tip hangs to the right, and the other way round
        this.#place(tip, time_s);
        tip.style.transform = `translateX(${-100 * share}%)`;
      });
      for (const name of ["pointerup", "pointercancel"]) plot.addEventListener(name, () => (dragged = false));
      plot.addEventListener("pointerleave", () => (this.#parts.hover.hidden = this.#parts.tip.hidden = true));
    }

    #readout() {
      this.#parts.readout = make("p", "xt-readout");
      this.#parts.readout.setAttribute("aria-hidden", "true"); // the slider's value says the same
      return this.#parts.readout;
    }

    #markButtons() {
      const box = make("div", "xt-marking");
      for (const [which, text] of [["start_s", "Mark start (I)"], ["end_s", "Mark end (O)"]]) {
        const button = box.appendChild(make("button", "", text));
        button.type = "button";
        button.addEventListener("click", () => this.#markHere(which));
      }
      this.#parts.marked = box.appendChild(make("output", "xt-note"));
      return box;
    }

    #place(element, start_s, end_s) {
      const { duration_s } = this.#data;
      const percent = (value) => `${(100 * clamp(value, 0, duration_s)) / duration_s}%`;
      element.style.left = percent(start_s);
      if (end_s === undefined) return;
      element.style.left = `min(${percent(start_s)}, 100% - ${SPAN_PX}px)`; // one at the very end stays in the strip
      element.style.width = percent(end_s - start_s);
      element.style.minWidth = `${SPAN_PX}px`;
    }

    #drawAxis() {
      const { field } = this.#parts.lanes.axis;
      const { duration_s } = this.#data;
      const width = field.clientWidth;
      const most = Math.max(width / LABEL_PX, 1);
      const step = STEPS.find((value) => duration_s / value <= most) ?? 3600 * Math.ceil(duration_s / most / 3600);
      const labels = [];
      for (let number = 0; number * step <= duration_s + 1e-9; number += 1) labels.push(make("span", "", clock(number * step, step)));
      field.replaceChildren(...labels);
      const widths = labels.map((label) => label.offsetWidth);
      labels.forEach((label, number) => {
        const left = (width * number * step) / Math.max(duration_s, step) - widths[number] / 2;
        label.style.left = `${clamp(left, 0, width - widths[number])}px`; // the first and the last are not cut
      });
    }

    #drawQuery() {
      const parts = this.#parts;
      const query = this.#data.queries[this.#index];
      if (parts.text) parts.text.textContent = query ? query.text : "";
      parts.note.textContent = query ? query.note : "";
      this.#drawWords(query);
      const curves = query ? [query.start_probability, query.end_probability] : [[], []];
      const top = Math.max(...curves[0], ...curves[1], 1e-12);
      this.#drawCurve("start", curves[0], top);
      this.#drawCurve("end", curves[1], top);
      this.#drawSpans("predicted", query ? query.predictions : []);
      this.#drawSpans("annotated", query ? query.moments : []);
      this.#drawAnswers(query);
      this.#drawTime();
    }

    /* Say which words are new to the model: of all queries, since only one of them is chosen. */
    #drawWords(chosen) {
      const { queries } = this.#data;
      const foreign = queries.filter((query) => query.unseen_words?.length);
      foreign.sort((a, b) => (b === chosen) - (a === chosen));
      const lines = foreign.slice(0, MOST_WARNED).map((query) => `“${query.text}”: ${words(query)}`);
      if (foreign.length > MOST_WARNED) lines.push(`and ${foreign.length - MOST_WARNED} more queries have such words`);
      this.#parts.words.replaceChildren(...lines.map((line) => make("p", "", line)));
      this.#parts.words.hidden = !lines.length;
    }

    #drawCurve(name, values, top) {
      const { box, field, label } = this.#parts.lanes[name];
      box.hidden = values.length === 0;
      field.replaceChildren();
      if (box.hidden) return;
      label.textContent = `${name} p, to ${probability(top)}`;
      const { start_s: starts, end_s: ends } = this.#data.rows;
      const steps = values.map((value, row) => `M${starts[row]} 1V${1 - value / top}H${ends[row]}V1`);
      makeSvg("path", { d: steps.join("") }, this.#svg(field, 1));
    }

    #drawSpans(name, moments) {
      const { box, field } = this.#parts.lanes[name];
      box.hidden = moments.length === 0;
      const bars = moments.map((moment, index) => {
        const bar = make("div", "xt-span");
        if (moments.length > 1 || name === "predicted") bar.append(make("span", "xt-number", String(index + 1)));
        bar.style.top = `${(100 * index) / moments.length}%`;
        bar.style.height = `${100 / moments.length}%`;
        this.#place(bar, moment.start_s, moment.end_s);
        return bar;
      });
      field.style.height = `${Math.max(moments.length, 1) * 16}px`;
      field.replaceChildren(...bars);
    }

    #drawAnswers(query) {
      const { answers } = this.#parts;
      answers.replaceChildren();
      const list = (title, moments, describe) => {
        if (!moments.length) return;
        const box = answers.appendChild(make("div"));
        box.append(make("span", "xt-list", title));
        moments.forEach((moment, index) => {
          const button = box.appendChild(make("button", "", describe(moment, index)));
          button.type = "button";
          button.title = "Play this moment";
          button.addEventListener("click", () => {
            this.play(moment.start_s, moment.end_s);
            this.#tell("excl-seek", { time_s: this.#time });
          });
        });
      };
      if (!query) return;
      const score = (moment) => (moment.score === null ? "" : `, p = ${probability(moment.score)}`);
      list("Predicted", query.predictions, (moment, index) => `${index + 1}: ${span(moment)}${score(moment)}`);
      list("Annotated", query.moments, span);
    }

    #drawMark() {
      if (!this.marking || !this.#parts.lanes) return;
      const { start_s, end_s } = this.#mark;
      const { field } = this.#parts.lanes.mark;
      field.replaceChildren();
      if (start_s !== null || end_s !== null) {
        const bar = field.appendChild(make("div", "xt-span"));
        bar.classList.toggle("xt-open", start_s === null || end_s === null);
        this.#place(bar, start_s ?? end_s, end_s ?? start_s);
      }
      const text = (value) => (value === null ? "not marked" : seconds(value));
      this.#parts.marked.textContent = `Start ${text(start_s)}, end ${text(end_s)}`;
    }

    #drawTime() {
      const { playhead, readout, plot } = this.#parts;
      const { time } = this;
      const text = this.#describe(time);
      this.#place(playhead, time);
      readout.textContent = text;
      plot.setAttribute("aria-valuenow", time.toFixed(2));
      plot.setAttribute("aria-valuetext", text);
    }

    /* What is known of a time, in words: the row that it lies in, and the probabilities there. */
    #describe(time_s) {
      const { start_s: starts, end_s: ends } = this.#data.rows;
      const row = starts.findLastIndex((start, index) => start <= time_s + 1e-3 && time_s <= ends[index]);
      const query = this.#data.queries[this.#index];
      const words = [seconds(time_s)];
      if (row >= 0) words.push(`row ${row + 1} of ${starts.length}`);
      if (row >= 0 && query && query.start_probability.length) {
        words.push(`start p ${probability(query.start_probability[row])}`);
        words.push(`end p ${probability(query.end_probability[row])}`);
      }
      return words.join(" · ");
    }
  }

  if (!customElements.get("excl-timeline")) customElements.define("excl-timeline", ExclTimeline);
})();
