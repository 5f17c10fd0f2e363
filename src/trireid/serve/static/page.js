// Drop zones with previews, a word while a form is on its way, and folders that are added item by item.
// Without it the forms work as well; only adding a folder needs it.
"use strict";

const MODALITY_WORDS = {
  rgb: /(^|[^a-z])(rgb|vis|visible|colou?r)([^a-z]|$)/i,
  nir: /(^|[^a-z])(nir|ni|near)([^a-z]|$)/i,
  tir: /(^|[^a-z])(tir|ti|lwir|thermal|ir)([^a-z]|$)/i,
};
const FOLDERS = { rgb: "rgb", visible: "rgb", vis: "rgb", nir: "nir", ni: "nir", tir: "tir", ti: "tir", thermal: "tir", lwir: "tir" };
const IMAGE_NAME = /\.(jpe?g|png|bmp|tiff?|webp)$/i;

const fill = (text, values) => text.replace(/\{(\w+)\}/g, (whole, name) => (name in values ? values[name] : whole));

function guessed(name) {
  return Object.keys(MODALITY_WORDS).find(modality => MODALITY_WORDS[modality].test(name.replace(/\d+/g, " ")));
}

/* Drop zone */

function setFile(input, file) {
  const transfer = new DataTransfer();
  if (file) transfer.items.add(file);
  input.files = transfer.files;
}

function showSlot(slot, words) {
  const file = slot.querySelector("input[type=file]").files[0];
  const preview = slot.querySelector("[data-preview]");
  const shown = preview.querySelector("img");
  if (shown) URL.revokeObjectURL(shown.src);
  preview.replaceChildren();
  preview.hidden = slot.querySelector("[data-tools]").hidden = !file;
  slot.classList.toggle("filled", Boolean(file));
  slot.querySelector("[data-move]").value = slot.dataset.slot;
  if (!file) return;
  const image = document.createElement("img");
  const name = document.createElement("span");
  image.alt = fill(words.alt, { modality: slot.dataset.slot });
  image.addEventListener("error", () => { image.remove(); name.textContent = words.noPreview; });
  image.src = URL.createObjectURL(file);
  preview.append(image, name);
}

function setUpDrop(zone) {
  const status = zone.querySelector("[data-drop-status]");
  const words = status.dataset;
  const slots = [...zone.querySelectorAll("[data-slot]")];
  const inputs = Object.fromEntries(slots.map(slot => [slot.dataset.slot, slot.querySelector("input[type=file]")]));
  const redraw = () => slots.forEach(slot => showSlot(slot, words));

  const take = files => {
    status.textContent = "";
    const images = [];
    for (const file of files) {
      if (IMAGE_NAME.test(file.name) || file.type.startsWith("image/")) images.push(file);
      else status.textContent = words.noImage + file.name;
    }
    const free = name => !inputs[name].files.length;
    const rest = [];
    for (const file of images) {
      const name = guessed(file.name);
      if (name && inputs[name] && (free(name) || images.length === 1)) setFile(inputs[name], file);
      else rest.push(file);
    }
    for (const file of rest) {
      const name = Object.keys(inputs).find(free);
      if (!name) { status.textContent = words.tooMany; break; }
      setFile(inputs[name], file);
    }
    redraw();
  };
  zone.addEventListener("dragover", event => { event.preventDefault(); zone.classList.add("over"); });
  zone.addEventListener("dragleave", event => { if (!zone.contains(event.relatedTarget)) zone.classList.remove("over"); });
  zone.addEventListener("drop", event => {
    event.preventDefault();
    zone.classList.remove("over");
    take(event.dataTransfer.files);
  });
  for (const slot of slots) {
    const input = inputs[slot.dataset.slot];
    input.addEventListener("change", redraw);
    slot.querySelector("[data-clear]").addEventListener("click", () => { setFile(input, null); redraw(); input.focus(); });
    slot.querySelector("[data-move]").addEventListener("change", event => {
      const other = inputs[event.target.value];
      const [mine, theirs] = [input.files[0], other.files[0]];
      setFile(other, mine);
      setFile(input, theirs);
      redraw();
      other.focus();
    });
  }
  window.addEventListener("pageshow", redraw);
  document.addEventListener("paste", event => { if (event.clipboardData.files.length) take(event.clipboardData.files); });
}

/* A folder or a table */

function parseTable(text) {
  const rows = [];
  let row = [], field = "", quoted = false;
  const endField = () => { row.push(field); field = ""; };
  const endRow = () => { endField(); if (row.some(Boolean)) rows.push(row); row = []; };
  for (let place = 0; place < text.length; place++) {
    const letter = text[place];
    if (quoted) {
      if (letter !== '"') field += letter;
      else if (text[place + 1] === '"') { field += letter; place++; }
      else quoted = false;
    } else if (letter === '"') quoted = true;
    else if (letter === ",") endField();
    else if (letter === "\n") endRow();
    else if (letter !== "\r") field += letter;
  }
  endRow();
  const header = (rows.shift() || []).map(name => name.trim().toLowerCase().replace(/^\ufeff/, ""));
  return { header, rows: rows.map(values => Object.fromEntries(header.map((name, number) => [name, (values[number] || "").trim()]))) };
}

const pathOf = file => (file.webkitRelativePath || file.name).replace(/\\/g, "/");

function itemsOfFolder(files, modalities) {
  const found = new Map();
  let unused = 0;
  for (const file of files.filter(each => IMAGE_NAME.test(each.name))) {
    const parts = pathOf(file).split("/");
    const place = parts.findIndex(part => modalities.includes(FOLDERS[part.toLowerCase()]));
    if (place < 0) { unused++; continue; }
    const key = [...parts.slice(1, place), ...parts.slice(place + 1)].join("/").replace(/\.[^.]+$/, "");
    if (!found.has(key)) found.set(key, { fields: { key }, files: {} });
    found.get(key).files[FOLDERS[parts[place].toLowerCase()]] = file;
  }
  return { items: [...found.values()], unused, faults: [] };
}

function itemsOfTable(text, files, modalities, words) {
  const { header, rows } = parseTable(text);
  const faults = [];
  if (!modalities.some(name => header.includes(name))) return { items: [], unused: 0, faults: [words.columns] };
  const byPath = new Map(files.map(file => [pathOf(file), file]));
  const top = files.length ? pathOf(files[0]).split("/")[0] : "";
  const find = path => byPath.get(path) || byPath.get(`${top}/${path.replace(/^\.\//, "")}`);
  const items = [], used = new Set(), keys = new Set();
  for (const row of rows) {
    const item = { fields: {}, files: {} };
    const first = modalities.map(name => row[name]).find(Boolean) || "";
    item.fields.key = row.key || first.replace(/\.[^.]+$/, "");
    let line = "";
    for (const name of modalities.filter(each => row[each])) {
      const file = find(row[name]);
      if (file) { item.files[name] = file; used.add(file); } else line = fill(words.missing, { file: row[name] });
    }
    if (row.time) {
      const time = Number.isFinite(Number(row.time)) ? Number(row.time) : Date.parse(/Z|[+-]\d\d:?\d\d$/.test(row.time) ? row.time : `${row.time}Z`) / 1000;
      if (Number.isFinite(time)) item.fields.time = time; else line = line || words.time;
    }
    for (const name of ["identity", "camera", "scene"]) if (row[name]) item.fields[name] = row[name];
    if (row.id && !row.identity) item.fields.identity = row.id;
    if (keys.has(item.fields.key)) line = line || words.duplicate;
    keys.add(item.fields.key);
    if (line) faults.push(fill(words.failed, { key: item.fields.key, line })); else items.push(item);
  }
  return { items, unused: files.filter(file => IMAGE_NAME.test(file.name) && !used.has(file)).length, faults };
}

async function sendItem(item, words) {
  const body = new FormData();
  let size = 0;
  for (const [name, file] of Object.entries(item.files)) { body.append(`0.${name}`, file, file.name); size += file.size; }
  body.append("request", JSON.stringify({ items: [item.fields] }));
  if (size > Number(words.mostBytes) - 65536) return { line: words.large };
  for (let attempt = 0; ; attempt++) {
    let response;
    try { response = await fetch("/v1/items", { method: "POST", body }); } catch { return { line: words.network }; }
    if (response.status === 429 && attempt < 20) {
      await new Promise(done => setTimeout(done, 1000 * Number(response.headers.get("Retry-After") || 1)));
      continue;
    }
    const answer = await response.json().catch(() => ({}));
    return response.ok ? answer : { line: answer.detail || String(response.status) };
  }
}

async function removeItems(keys) {
  let removed = 0;
  const queries = [];  // of many keys, but not longer than the head of a request may be
  for (const key of keys) {
    const query = `${new URLSearchParams({ key })}`;
    const last = queries.length - 1;
    if (last >= 0 && queries[last].length + query.length < 6000) queries[last] += `&${query}`; else queries.push(query);
  }
  for (const query of queries) {
    const response = await fetch(`/v1/items?${query}`, { method: "DELETE" }).catch(() => null);
    if (!response || !response.ok) break;
    removed += (await response.json()).changed;
  }
  return removed;
}

function setUpMany(section) {
  const find = name => section.querySelector(`[data-${name}]`);
  const raw = section.dataset;
  const words = { mostBytes: raw.mostBytes };
  for (const name of Object.keys(raw)) if (name.startsWith("words")) words[name[5].toLowerCase() + name.slice(6)] = raw[name];
  const modalities = raw.modalities.split(",");
  const [status, bar, start, stop, revert] = ["status", "progress", "start", "stop", "revert"].map(find);
  let plan = { items: [], unused: 0, faults: [] };
  let fresh = [];  // keys that the gallery did not have before
  let stopped = false, running = false;
  window.addEventListener("beforeunload", event => { if (running) event.preventDefault(); });

  const fault = line => {
    const entry = document.createElement("li");
    entry.textContent = line;
    find("fault-list").append(entry);
    find("faults").hidden = false;
  };
  const prepare = async () => {
    const files = [...find("folder").files];
    const table = find("table").files[0];
    find("fault-list").replaceChildren();
    find("faults").hidden = bar.hidden = true;
    plan = table ? itemsOfTable(await table.text(), files, modalities, words) : itemsOfFolder(files, modalities);
    plan.faults.forEach(fault);
    const said = [plan.items.length ? fill(words.items, { count: plan.items.length }) : files.length || table ? words.none : ""];
    if (plan.unused) said.push(fill(words.unused, { count: plan.unused }));
    status.textContent = said.filter(Boolean).join(" ");
    start.disabled = !plan.items.length;
  };
  find("folder").addEventListener("change", prepare);
  find("table").addEventListener("change", prepare);
  stop.addEventListener("click", () => { stopped = true; });
  start.addEventListener("click", async () => {
    const count = plan.items.length + plan.faults.length;
    const total = { done: plan.faults.length, added: 0, replaced: 0, failed: plan.faults.length };
    const camera = find("camera").value.trim();
    const queue = [...plan.items];
    stopped = false;
    start.disabled = running = true;
    revert.hidden = true;
    fresh = [];
    bar.hidden = stop.hidden = false;
    bar.max = count;
    const report = () => { bar.value = total.done; status.textContent = fill(words.done, { ...total, count }); };
    const work = async () => {
      while (queue.length && !stopped) {
        const item = queue.shift();
        if (camera && !item.fields.camera) item.fields.camera = camera;
        const answer = await sendItem(item, words);
        total.done++;
        if (answer.line) { total.failed++; fault(fill(words.failed, { key: item.fields.key, line: answer.line })); }
        else { total.added += answer.added; total.replaced += answer.replaced; if (answer.added) fresh.push(item.fields.key); }
        report();
      }
    };
    report();
    await Promise.all([work(), work(), work()]);
    if (stopped) status.textContent += ` ${words.stopped}`;
    stop.hidden = true;
    start.disabled = running = false;
    revert.hidden = !fresh.length;
  });
  revert.addEventListener("click", async () => {
    revert.hidden = true;
    status.textContent = fill(words.removed, { removed: await removeItems(fresh), count: fresh.length });
    status.focus();
  });
}

/* Forms */

for (const form of document.querySelectorAll("form")) {
  form.addEventListener("submit", event => {
    if (form.dataset.sent) { event.preventDefault(); return; }
    form.dataset.sent = "yes";
    const button = form.querySelector(".primary");
    if (form.dataset.busy && button) { button.dataset.words = button.textContent; button.textContent = form.dataset.busy; button.setAttribute("aria-busy", "true"); }
  });
}
window.addEventListener("pageshow", () => {  // also after "back", where forms are as they were left
  for (const form of document.querySelectorAll("form[data-sent]")) {
    delete form.dataset.sent;
    const button = form.querySelector("[data-words]");
    if (button) { button.textContent = button.dataset.words; button.removeAttribute("aria-busy"); }
  }
});
document.querySelectorAll("[data-drop]").forEach(setUpDrop);
for (const name of ["dragover", "drop"]) document.addEventListener(name, event => event.preventDefault());  // a near miss opens nothing
document.querySelectorAll("[data-many]").forEach(setUpMany);
for (const link of document.querySelectorAll("[data-back]")) {
  if (history.length > 1) link.addEventListener("click", event => { event.preventDefault(); history.back(); });
}
