"use strict";
// Everything that a service has sent is shown as text: nothing here parses HTML.

const byId = (id) => document.getElementById(id);
const rows = new Map(); // name -> {element, parts, row}
let letters = []; // shown dead letters, newest first
let newest = 0;
let total = 0;
let clockOffset = 0;

function make(tag, properties = {}, ...children) {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...children);
  return element;
}

function setText(element, text) {
  // An unchanged text is not set again: a screen reader would read it, and a selection would be lost.
  if (element.textContent !== text) element.textContent = text;
}

function show(text) {
  setText(byId("result"), text);
}

async function call(method, path, body) {
  const response = await fetch(path, {
    method,
    headers: { "X-Fleet": "1", ...(body && { "Content-Type": "application/json" }) },
    body: body && JSON.stringify(body),
  });
  if (response.status === 401 && !(method === "POST" && path === "/api/v1/session")) askPassword();
  const content = response.status === 204 ? null : await response.json();
  if (!response.ok) {
    const detail = content.detail;
    throw new Error(Array.isArray(detail) ? detail.map((problem) => problem.msg).join("; ") : detail);
  }
  return content;
}

// Runs what a button or a form starts, and shows its error.
const attempt = (work) => async (event) => {
  event?.preventDefault();
  try {
    await work(event);
  } catch (error) {
    show(`Failed: ${error.message}`);
  }
};

function duration(seconds) {
  if (seconds < 90) return `${Math.round(seconds)} s`;
  if (seconds < 5400) return `${Math.round(seconds / 60)} min`;
  if (seconds < 172800) return `${Math.round(seconds / 3600)} h`;
  return `${Math.round(seconds / 86400)} d`;
}

const ago = (iso) => `${duration(Math.max(0, (Date.now() - clockOffset - Date.parse(iso)) / 1000))} ago`;

// Services

function makeRow(name) {
  const parts = {
    name: make("a", { href: `#service=${encodeURIComponent(name)}`, textContent: name }),
    state: make("span", { className: "state" }),
    uptime: make("span"),
    memory: make("span"),
    chart: make("span"),
    seen: make("small"),
    reasons: make("p", { className: "reasons" }),
  };
  return { element: make("li", {}, ...Object.values(parts)), parts };
}

function fillRow({ element, parts }, row) {
  element.className = row.state;
  setText(parts.state, row.state);
  setText(parts.reasons, row.reasons.join("; "));
  parts.reasons.hidden = !row.reasons.length;
  const version = row.version ? `, version ${row.version}` : "";
  setText(parts.uptime, row.uptime_seconds === null ? "" : `up ${duration(row.uptime_seconds)}${version}`);
  setText(parts.memory, row.memory_mb === null ? "" : `${row.memory_mb.toFixed(1)} MiB`);
  if (row.history.length > 1) parts.chart.replaceChildren(sparkline(row.history));
  fillSeen(parts, row);
}

function fillSeen(parts, row) {
  setText(parts.seen, row.last_seen === null ? "never seen" : `seen ${ago(row.last_seen)}`);
}

function sparkline(history) {
  const make = (tag, attributes) => {
    const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
    for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
    return element;
  };
  const values = history.map(([memory]) => memory);
  const lowest = Math.min(...values);
  const range = Math.max(...values) - lowest || 1;
  const x = (index) => (index * 100) / (history.length - 1);
  const points = values.map((value, index) => `${x(index).toFixed(1)},${(26 - (20 * (value - lowest)) / range).toFixed(1)}`);
  const bad = history.filter(([, state]) => state !== "online").length;
  const last = values.at(-1).toFixed(1);
  const label = `Memory from ${lowest.toFixed(1)} to ${Math.max(...values).toFixed(1)} MiB, now ${last}; ${bad} of ${history.length} heartbeats not online`;
  const svg = make("svg", { viewBox: "0 0 100 32", preserveAspectRatio: "none", role: "img", "aria-label": label });
  svg.append(make("polyline", { points: points.join(" ") }));
  history.forEach(([, state], index) => {
    if (state !== "online") svg.append(make("rect", { class: `mark-${state}`, x: x(index) - 0.8, y: 28, width: 1.6, height: 4 }));
  });
  return svg;
}

function takeServices(update) {
  if (update.is_full) {
    const present = new Set(update.services.map((row) => row.name));
    for (const [name, { element }] of rows) {
      if (!present.has(name)) {
        element.remove();
        rows.delete(name);
      }
    }
  }
  for (const row of update.services) {
    let item = rows.get(row.name);
    if (!item) {
      item = makeRow(row.name);
      rows.set(row.name, item);
      const next = [...rows.keys()].filter((name) => name > row.name).sort()[0];
      byId("rows").insertBefore(item.element, next ? rows.get(next).element : null);
    }
    item.row = row;
    fillRow(item, row);
    if (detail?.name === row.name) {
      fillRow(detail.item, row);
      if (Date.now() - detail.loadedAt > 1000) attempt(loadDetail)();
    }
  }
  const states = Object.groupBy([...rows.values()], ({ row }) => row.state);
  const order = ["online", "degraded", "offline", "stale"].filter((state) => states[state]);
  setText(byId("services-summary"), order.map((state) => `${states[state].length} ${state}`).join(", ") || "No service was seen yet.");
}

// One service

let detail = null;

async function openService(name) {
  const opened = { name, item: makeRow(name), topics: new Map(), loadedAt: 0 };
  detail = opened;
  setText(byId("service-title"), name);
  byId("service-row").replaceChildren(detail.item.element);
  byId("topics").replaceChildren();
  byId("commands").replaceChildren();
  const { service, commands } = await loadDetail();
  // Another service may have been opened meanwhile.
  if (detail !== opened) return;
  fillRow(opened.item, service);
  byId("commands").replaceChildren(...commands.map((command) => makeCommand(name, command)));
  if (!commands.length) byId("commands").append("None in its schemas.");
}

async function loadDetail() {
  const shown = detail;
  shown.loadedAt = Date.now();
  const found = await call("GET", `/api/v1/services/${encodeURIComponent(shown.name)}`);
  if (shown === detail) found.topics.forEach(takeTopic);
  return found;
}

function takeTopic({ pattern, direction, description, messages }) {
  let topic = detail.topics.get(direction + pattern);
  if (!topic) {
    topic = { count: make("small"), list: make("ul", { className: "letters" }), messages: new Map() };
    detail.topics.set(direction + pattern, topic);
    const title = `${direction === "send" ? "sends" : "receives"} ${pattern} `;
    byId("topics").append(make("details", {}, make("summary", {}, title, topic.count), topic.list));
  }
  setText(topic.count, `${description}, ${messages.length} seen`);
  for (const message of messages) {
    let item = topic.messages.get(message.topic);
    if (!item) {
      item = makeMessage(message);
      topic.messages.set(message.topic, item);
      topic.list.append(item.element);
    }
    item.fill(message);
  }
}

function makeMessage({ topic }) {
  const facts = make("small");
  const payload = make("pre", { tabIndex: 0, ariaLabel: "Payload" });
  const link = traceLink("");
  const element = make("li", {}, make("strong", { textContent: topic }), " ", facts, payload, link);
  const fill = (message) => {
    const cut = message.size > 4096 ? " (cut)" : "";
    setText(facts, `${message.size} bytes${cut}, ${new Date(message.received_at).toLocaleTimeString()}`);
    setText(payload, message.payload);
    link.hidden = !message.trace_id;
    if (message.trace_id) link.hash = `#trace=${encodeURIComponent(message.trace_id)}`;
  };
  return { element, fill };
}

const traceLink = (id) => make("a", { href: `#trace=${encodeURIComponent(id)}`, textContent: "Follow the trace" });

function makeCommand(name, { name: command, description, arguments: schema }) {
  const fields = Object.entries(schema.properties).map(([field, one]) => makeField(field, one, schema.required.includes(field)));
  const reply = make("pre", { hidden: true, tabIndex: 0, ariaLabel: `Reply to ${command}` });
  const form = make("form", { className: "command" },
    make("p", {}, make("strong", { textContent: command }), ` ${description}`),
    ...fields.map(({ label }) => label),
    make("button", { textContent: `Send ${command}` }),
    reply);
  form.addEventListener("submit", attempt(async (event) => {
    event.preventDefault();
    const values = fields.map(({ field, read }) => [field, read()]).filter(([, value]) => value !== undefined);
    show(`Sending ${command} to ${name} …`);
    const result = await call("POST", `/api/v1/services/${encodeURIComponent(name)}/commands`, { command, arguments: Object.fromEntries(values) });
    reply.textContent = JSON.stringify(result.reply, null, 2);
    reply.hidden = false;
    show(`${name} replied to ${command}: ${result.reply.status}`);
  }));
  return form;
}

function makeField(field, schema, required) {
  const type = (schema.anyOf ?? [schema]).map((one) => one.type).find((one) => one && one !== "null");
  const choices = schema.enum ?? (schema.type === "boolean" || type === "boolean" ? [true, false] : null);
  let input;
  if (choices) {
    input = make("select", { required }, make("option", { value: "", textContent: required ? "Choose" : "default" }),
      ...choices.map((choice, index) => make("option", { value: index, textContent: String(choice) })));
  } else if (type === "number" || type === "integer") {
    input = make("input", { type: "number", required, step: type === "integer" ? 1 : "any", min: schema.minimum ?? "", max: schema.maximum ?? "" });
  } else {
    input = make(type === "string" ? "input" : "textarea", { required });
  }
  if (schema.default !== undefined && schema.default !== null && !choices) input.placeholder = JSON.stringify(schema.default);
  const hint = type === "object" || type === "array" || !type ? " (JSON)" : "";
  const read = () => {
    if (input.value === "") return undefined;
    if (choices) return choices[Number(input.value)];
    return type === "string" ? input.value : JSON.parse(input.value);
  };
  const label = make("label", {}, `${field}${hint} `, input);
  if (schema.description) label.title = schema.description;
  return { field, label, read };
}

// Dead letters

const filter = () => Object.fromEntries(new FormData(byId("filter")));

let lastQuery = null;

async function loadLetters(before = "") {
  const query = new URLSearchParams({ ...filter(), limit: 50, ...(before && { before }) });
  lastQuery = query;
  const found = await call("GET", `/api/v1/dead-letters?${query}`);
  // The reply to a later query may have arrived first.
  if (lastQuery !== query) return;
  letters = before ? [...letters, ...found.letters] : found.letters;
  const select = byId("filter").kind;
  const kinds = found.kinds.map(({ kind, count }) => make("option", { value: kind, textContent: `${kind} (${count})` }));
  const chosen = select.value;
  select.replaceChildren(make("option", { value: "", textContent: `All (${found.total})` }), ...kinds);
  select.value = chosen;
  if (select.selectedIndex < 0) select.selectedIndex = 0;
  byId("kind-actions").hidden = select.value === "";
  byId("more").hidden = found.letters.length < 50;
  drawLetters();
}

function drawLetters() {
  // Letters that are shown already keep their elements, so that they can still be clicked.
  const list = byId("letters");
  const old = new Map([...list.children].map((element) => [element.dataset.id, element]));
  const wanted = letters.map((letter) => old.get(String(letter.id)) ?? makeLetter(letter));
  for (const element of [...list.children]) {
    if (!wanted.includes(element)) element.remove();
  }
  wanted.forEach((element, index) => {
    if (list.children[index] !== element) list.insertBefore(element, list.children[index] ?? null);
  });
  if (!wanted.length) list.replaceChildren(make("li", { textContent: "There are none." }));
}

function makeLetter(letter) {
  const replay = make("button", { type: "button", textContent: "Replay to every subscriber", disabled: letter.rejection !== null });
  const discard = make("button", { type: "button", textContent: "Discard" });
  const on = (button, method, path, done) => button.addEventListener("click", attempt(async () => {
    await call(method, `/api/v1/dead-letters/${letter.id}${path}`);
    show(done);
    await afterRemoval(element);
  }));
  on(replay, "POST", "/replay", `Replayed to ${letter.original_topic}. The broker has it.`);
  on(discard, "DELETE", "", "Discarded.");
  const element = make("li", {},
    make("strong", { textContent: letter.service ?? "unknown" }), " ", letter.original_topic, " ",
    make("time", { dateTime: letter.received_at, textContent: new Date(letter.received_at).toLocaleString() }),
    make("p", { className: "problem", textContent: `${letter.error_type}: ${letter.error}` }),
    make("pre", { tabIndex: 0, ariaLabel: "Payload", textContent: letter.payload }),
    replay, " ", discard, " ");
  if (letter.trace_id) element.append(traceLink(letter.trace_id));
  if (letter.rejection) element.append(make("p", { className: "muted", textContent: `Cannot be replayed. ${letter.rejection}` }));
  element.dataset.id = letter.id;
  return element;
}

async function afterRemoval(element) {
  // Move the focus to the next letter, because the button of this one is about to disappear.
  const next = element.nextElementSibling ?? element.previousElementSibling;
  await loadLetters();
  (next?.isConnected ? next.querySelector("button:enabled") : byId("letters-title"))?.focus();
}

byId("kind-actions").addEventListener("click", attempt(async (event) => {
  const action = event.target.dataset.action;
  if (!action) return;
  const { kind } = filter();
  show(`${action === "replay" ? "Replaying" : "Discarding"} …`);
  const { done, rejected, remaining } = await call("POST", `/api/v1/dead-letters/${action}`, { kind });
  const left = remaining ? `, ${remaining} are left` : "";
  show(`${action === "replay" ? "Replayed" : "Discarded"} ${done}${left}. ${rejected.join(" ")}`);
  await loadLetters();
  if (byId("kind-actions").hidden) byId("letters-title").focus();
}));
byId("filter").addEventListener("input", attempt(() => loadLetters()));
byId("filter").addEventListener("submit", (event) => event.preventDefault());
byId("more").addEventListener("click", attempt(() => loadLetters(letters.at(-1).id)));

// Trace

async function openTrace(id) {
  byId("trace-form").trace.value = id;
  const found = id ? await call("GET", `/api/v1/messages?${new URLSearchParams({ trace_id: id })}`) : [];
  byId("messages").replaceChildren(...found.map((message) => {
    const { element, fill } = makeMessage(message);
    fill({ ...message, trace_id: null });
    return element;
  }));
  if (id && !found.length) byId("messages").append(make("li", { textContent: "No message of those seen lately has this trace id." }));
}

byId("trace-form").addEventListener("submit", (event) => {
  event.preventDefault();
  location.hash = `#trace=${encodeURIComponent(event.target.trace.value)}`;
});

// Views

const openView = attempt(async (event) => {
  const [view, value = ""] = location.hash.slice(1).split("=").map(decodeURIComponent);
  const shown = byId(view)?.matches("main > section") ? view : "services";
  for (const section of document.querySelectorAll("main > section")) section.hidden = section.id !== shown;
  for (const link of document.querySelectorAll("nav a")) {
    if (link.hash === `#${shown}`) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  if (event) byId(shown).querySelector("h2").focus();
  detail = null;
  if (shown === "service") await openService(value);
  if (shown === "dead-letters") await loadLetters();
  if (shown === "trace") await openTrace(value);
});
addEventListener("hashchange", openView);

// Session and stream

let stream = null;
let reloading = 0;

function askPassword() {
  stream?.close();
  byId("login").hidden = false;
  byId("logout").hidden = true;
  for (const section of document.querySelectorAll("main > section")) section.hidden = true;
  setText(byId("connection"), "Log in to see the services.");
  byId("login").password.focus();
}

byId("login").addEventListener("submit", attempt(async (event) => {
  await call("POST", "/api/v1/session", { password: event.target.password.value });
  event.target.reset();
  show("");
  await connect();
}));
byId("logout").addEventListener("click", attempt(async () => {
  await call("DELETE", "/api/v1/session");
  askPassword();
}));

function takeUpdate(event) {
  const update = JSON.parse(event.data);
  clockOffset = Date.now() - Date.parse(update.now);
  const connection = byId("connection");
  connection.classList.toggle("problem", !update.connected);
  setText(connection, update.connected ? "Live" : "No connection to the broker. The states are the last known ones.");
  takeServices(update);
  const hasChanged = update.newest !== newest || update.dead_letters !== total;
  [newest, total] = [update.newest, update.dead_letters];
  setText(byId("count"), String(total));
  document.title = total ? `(${total}) {{ cookiecutter.service_slug }}` : "{{ cookiecutter.service_slug }}";
  // One request a second at most, however many letters arrive.
  if (hasChanged && !byId("dead-letters").hidden && !reloading) {
    reloading = setTimeout(attempt(() => {
      reloading = 0;
      if (letters.length <= 50) return loadLetters();
    }), 1000);
  }
}

async function start() {
  const session = await call("GET", "/api/v1/session");
  byId("login").hidden = true;
  byId("logout").hidden = !session.has_password;
  stream?.close();
  stream = new EventSource("/api/v1/events");
  stream.onmessage = takeUpdate;
  stream.onerror = () => {
    byId("connection").classList.add("problem");
    setText(byId("connection"), "No connection to this service. Trying again …");
    // The browser connects again by itself, except after an error status.
    if (stream.readyState === EventSource.CLOSED) setTimeout(connect, 2000);
  };
  openView();
}

async function connect() {
  try {
    await start();
  } catch {
    // The stream, or the form for the password, shows why.
    if (byId("login").hidden) setTimeout(connect, 2000);
  }
}

setInterval(() => {
  for (const { parts, row } of rows.values()) fillSeen(parts, row);
}, 1000);
connect();
