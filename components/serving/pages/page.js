"use strict";
const at = (id) => document.getElementById(id);
let running = null;

function headers() {
  const key = at("key").value.trim();
  return { "Content-Type": "application/json", ...(key ? { Authorization: `Bearer ${key}` } : {}) };
}

async function sentence(response) {
  if (response.status === 401) return `the key is ${at("key").value.trim() ? "wrong" : "missing"}; give the server's in the field Key`;
  try {
    return (await response.json()).error.message;
  } catch {
    return `the server answered ${response.status}`;
  }
}

async function findModel() {
  const response = await fetch("v1/models", { headers: headers() });
  if (!response.ok) {
    at("model").textContent = await sentence(response);
    return;
  }
  const models = (await response.json()).data;
  const chosen = at("name").value;
  at("name").replaceChildren(...models.map(({ id }) => new Option(id, id, false, id === chosen)));
  at("name-label").hidden = models.length < 2;
  const told = models[0].littoral;
  at("model").textContent = `${told.checkpoint}, ${told.method}, has learned ${told.tasks.join(", ")}`;
}

function dataUrl(file) {
  return new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(reader.result);
    reader.onerror = () => reject(new Error("the picture cannot be read"));
    reader.readAsDataURL(file);
  });
}

function show(served) {
  const rows = { Checkpoint: served.checkpoint, Task: served.task, Slots: served.slots && served.slots.join(", "),
    Role: served.role, "In a batch of": served.batch_rows };
  at("served").replaceChildren();
  for (const [name, value] of Object.entries(rows)) {
    if (value === null || value === undefined) continue;
    const term = document.createElement("dt"), said = document.createElement("dd");
    term.textContent = name;
    said.textContent = String(value);
    at("served").append(term, said);
  }
  at("served").hidden = false;
}

function take(line) {
  if (!line.startsWith("data: ") || line === "data: [DONE]") return;
  const part = JSON.parse(line.slice(6));
  if (part.error) throw new Error(part.error.message);
  at("reply").textContent += part.choices[0]?.delta.content ?? "";
  if (part.littoral) show(part.littoral);
}

async function ask() {
  const content = [], file = at("picture").files[0];
  if (file) content.push({ type: "image_url", image_url: { url: await dataUrl(file) } });
  content.push({ type: "text", text: at("question").value });
  running = new AbortController();
  const response = await fetch("v1/chat/completions", {
    method: "POST",
    headers: headers(),
    signal: running.signal,
    body: JSON.stringify({
      model: at("name").value,
      messages: [{ role: "user", content }],
      max_tokens: at("tokens").valueAsNumber,
      temperature: at("temperature").valueAsNumber,
      stream: true,
    }),
  });
  if (!response.ok) throw new Error(await sentence(response));
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) break;
    const lines = (rest + value).split("\n");
    rest = lines.pop();
    lines.forEach(take);
  }
}

at("form").addEventListener("submit", async (event) => {
  event.preventDefault();
  at("reply").textContent = "";
  at("error").hidden = at("served").hidden = true;
  at("send").disabled = true;
  at("stop").disabled = false;
  try {
    if (!at("name").value) await findModel();
    await ask();
  } catch (error) {
    if (error.name !== "AbortError") {
      at("error").textContent = error.message;
      at("error").hidden = false;
    }
  } finally {
    at("send").disabled = false;
    at("stop").disabled = true;
  }
});
at("stop").addEventListener("click", () => running?.abort());
at("key").addEventListener("change", findModel);
at("picture").addEventListener("change", () => {
  const file = at("picture").files[0];
  at("preview").hidden = !file;
  if (file) at("preview").src = URL.createObjectURL(file);
});
at("address").textContent = new URL("v1/chat/completions", location.href).href;
findModel();
