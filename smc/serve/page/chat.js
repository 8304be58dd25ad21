// The chat page: conversations in the browser's storage, answers streamed from /v1/chat/completions.
"use strict";

const element = (id) => document.getElementById(id);
const STORE = "smc.conversations";
const SETTINGS = ["system", "temperature", "top_p", "max_tokens", "seed", "key"];

let conversations = read(STORE, []);
let current = null;
let running = null; // the AbortController of the answer that is being written
let context = 0;

function read(name, otherwise) {
  try { return JSON.parse(localStorage.getItem(name)) ?? otherwise; } catch { return otherwise; }
}

function keep() {
  localStorage.setItem(STORE, JSON.stringify(conversations.slice(0, 100)));
}

async function ask(path, body, signal) {
  const headers = { "Content-Type": "application/json" };
  if (element("key").value) headers.Authorization = `Bearer ${element("key").value}`;
  const answer = await fetch(path, body ? { method: "POST", headers, body: JSON.stringify(body), signal } : { headers });
  if (!answer.ok) {
    const told = await answer.json().catch(() => ({}));
    throw new Error(told.error?.message ?? told.error ?? `the server answers ${answer.status}`);
  }
  return answer;
}

// ---- Markdown: paragraphs, lists, headings, code, bold; built as elements, so that no text becomes HTML

function inline(parent, text) {
  for (const part of text.split(/(`[^`\n]+`|\*\*[^*\n]+\*\*)/)) {
    if (part.length > 2 && part.startsWith("`") && part.endsWith("`")) {
      parent.append(Object.assign(document.createElement("code"), { textContent: part.slice(1, -1) }));
    } else if (part.length > 4 && part.startsWith("**")) {
      parent.append(Object.assign(document.createElement("strong"), { textContent: part.slice(2, -2) }));
    } else parent.append(part);
  }
}

function markdown(parent, text) {
  parent.replaceChildren();
  text.split(/^(```[^\n]*\n[\s\S]*?(?:^```\s*$|$(?![\s\S])))/m).forEach((block) => {
    if (block.startsWith("```")) {
      const pre = document.createElement("pre");
      pre.textContent = block.replace(/^```[^\n]*\n/, "").replace(/\n?```\s*$/, "");
      parent.append(pre);
      return;
    }
    for (const paragraph of block.split(/\n{2,}/)) {
      const lines = paragraph.split("\n").filter((line) => line.trim());
      if (!lines.length) continue;
      const bullets = lines.every((line) => /^\s*[-*] /.test(line));
      const numbers = lines.every((line) => /^\s*\d+[.)] /.test(line));
      if (bullets || numbers) {
        const list = document.createElement(bullets ? "ul" : "ol");
        for (const line of lines) {
          const item = document.createElement("li");
          inline(item, line.replace(/^\s*([-*]|\d+[.)]) /, ""));
          list.append(item);
        }
        parent.append(list);
      } else {
        const heading = /^#{1,6} /.test(lines[0]) && lines.length === 1;
        const node = document.createElement(heading ? "h4" : "p");
        inline(node, heading ? lines[0].replace(/^#+ /, "") : lines.join("\n"));
        parent.append(node);
      }
    }
  });
}

// ---- showing

function show() {
  const list = element("messages");
  list.replaceChildren();
  for (const message of current?.messages ?? []) list.append(bubble(message));
  list.scrollTop = list.scrollHeight;
  element("again").disabled = !current?.messages.some((message) => message.role === "user");
  meter(current?.used ?? 0);
  const nav = element("conversations");
  nav.replaceChildren();
  for (const conversation of conversations) {
    const row = document.createElement("div");
    const open = Object.assign(document.createElement("button"), { textContent: conversation.title });
    if (conversation === current) open.setAttribute("aria-current", "true");
    open.onclick = () => { stop(); current = conversation; element("side").classList.remove("open"); show(); };
    const remove = Object.assign(document.createElement("button"), { textContent: "×", ariaLabel: "Remove" });
    remove.onclick = () => {
      conversations = conversations.filter((other) => other !== conversation);
      if (current === conversation) current = null;
      keep(); show();
    };
    row.append(open, remove);
    nav.append(row);
  }
}

function bubble(message) {
  const item = document.createElement("li");
  item.className = message.error ? "error" : message.role;
  if (message.role === "assistant" && !message.error) {
    const body = document.createElement("div");
    markdown(body, message.content);
    item.append(body);
    if (message.facts) item.append(Object.assign(document.createElement("div"), { className: "facts", textContent: message.facts }));
  } else item.textContent = message.content;
  return item;
}

function meter(used) {
  element("meter").textContent = context ? `${used} of ${context} tokens` : "";
}

// ---- talking

async function send(text) {
  if (running || !text.trim()) return;
  if (!current) {
    current = { title: text.slice(0, 40), messages: [], used: 0 };
    conversations.unshift(current);
  }
  current.messages.push({ role: "user", content: text });
  await answer();
}

async function answer() {
  const conversation = current;
  const system = element("system").value.trim();
  const said = conversation.messages.filter((message) => !message.error).map(({ role, content }) => ({ role, content }));
  const body = {
    model: element("model").value, stream: true, stream_options: { include_usage: true },
    messages: [...(system ? [{ role: "system", content: system }] : []), ...said],
  };
  for (const name of ["temperature", "top_p", "max_tokens", "seed"]) {
    if (element(name).value !== "") body[name] = Number(element(name).value);
  }
  const message = { role: "assistant", content: "" };
  running = new AbortController();
  busy(true);
  show();
  const item = bubble(message);
  element("messages").append(item);
  const started = performance.now();
  try {
    const stream = (await ask("v1/chat/completions", body, running.signal)).body.getReader();
    const decoder = new TextDecoder();
    let rest = "";
    for (let part = await stream.read(); !part.done; part = await stream.read()) {
      rest += decoder.decode(part.value, { stream: true });
      const events = rest.split("\n\n");
      rest = events.pop();
      for (const event of events) {
        if (event === "data: [DONE]") continue;
        const piece = JSON.parse(event.slice(6));
        if (piece.error) throw new Error(piece.error.message);
        message.content += piece.choices[0]?.delta.content ?? "";
        if (piece.usage) {
          const speed = piece.usage.completion_tokens / ((performance.now() - started) / 1000);
          message.facts = `${piece.usage.completion_tokens} tokens, ${speed.toFixed(1)} tokens/s`;
          conversation.used = piece.usage.total_tokens;
        }
      }
      const list = element("messages");
      const atEnd = list.scrollHeight - list.scrollTop - list.clientHeight < 60;
      markdown(item.firstChild, message.content);
      if (atEnd) list.scrollTop = list.scrollHeight;
    }
  } catch (error) {
    if (error.name !== "AbortError") {
      conversation.messages.push({ role: "assistant", content: error.message, error: true });
    }
  } finally {
    running = null;
    if (message.content) conversation.messages.push(message);
    keep();
    busy(false);
    if (current === conversation) show();
  }
}

function stop() { running?.abort(); }

function busy(yes) {
  element("send").hidden = yes;
  element("stop").hidden = !yes;
}

// ---- the page

async function about() {
  const name = element("model").value;
  const told = await (await ask("api/show", { model: name })).json();
  const info = told.model_info;
  context = Object.entries(info).find(([key]) => key.endsWith(".context_length"))?.[1] ?? 0;
  const card = element("card");
  card.replaceChildren();
  const facts = {
    Model: name, Weights: `${told.details.parameter_size}, ${told.details.quantization_level}`,
    Context: `${context} tokens`, Machine: `${info["smc.target"]}, ${info["smc.level"]}`,
    Quality: info["smc.quality"] ?? "not measured when it was compiled",
    Made: (info["smc.provenance"] ?? []).join("; ") || "not said",
  };
  for (const [term, text] of Object.entries(facts)) {
    card.append(Object.assign(document.createElement("dt"), { textContent: term }),
      Object.assign(document.createElement("dd"), { textContent: text }));
  }
  meter(current?.used ?? 0);
}

async function begin() {
  for (const name of SETTINGS) {
    element(name).value = read(`smc.${name}`, "");
    element(name).onchange = () => localStorage.setItem(`smc.${name}`, JSON.stringify(element(name).value));
  }
  const theme = read("smc.theme", "");
  if (theme) document.documentElement.className = theme;
  show();
  try {
    const models = (await (await ask("v1/models")).json()).data;
    element("model").replaceChildren(...models.map(({ id }) => new Option(id, id)));
    await about();
  } catch (error) {
    element("meter").textContent = error.message;
  }
}

element("form").onsubmit = (event) => {
  event.preventDefault();
  const text = element("input").value;
  if (running || !text.trim()) return;
  element("input").value = "";
  send(text);
};
element("input").onkeydown = (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
    event.preventDefault();
    element("form").requestSubmit();
  }
};
element("stop").onclick = stop;
element("again").onclick = () => {
  if (running || !current) return;
  while (current.messages.length && current.messages.at(-1).role !== "user") current.messages.pop();
  answer();
};
element("new").onclick = () => { stop(); current = null; element("side").classList.remove("open"); show(); element("input").focus(); };
element("menu").onclick = () => element("side").classList.toggle("open");
element("model").onchange = about;
element("key").addEventListener("change", begin);
element("theme").onclick = () => {
  const dark = document.documentElement.className
    ? document.documentElement.className === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  document.documentElement.className = dark ? "light" : "dark";
  localStorage.setItem("smc.theme", JSON.stringify(document.documentElement.className));
};
document.onkeydown = (event) => {
  if (event.key === "Escape") stop();
  if (event.key === "O" && event.ctrlKey && event.shiftKey) { event.preventDefault(); element("new").click(); }
};
begin();
