// Keeps a page fresh: asks for it again and puts what has changed into its place. Every page is whole without this.

const body = document.body;
const lost = document.querySelector("[data-lost]");
const every_ms = 1000 * Number(body.dataset.everyS);
let asked = 0;

// The answer to a form is at the form's address, which cannot be asked for again.
if (body.dataset.own) history.replaceState(null, "", body.dataset.own);

function fetched(address) {
  return new Promise((resolve, reject) => {
    const request = new XMLHttpRequest();
    request.open("GET", address);
    request.responseType = "document";  // parsed by the browser; what it parses runs nothing
    request.timeout = 20000;
    request.onload = () => (request.status < 500 && request.response ? resolve(request.response) : reject());
    request.onerror = request.ontimeout = reject;
    request.send();
  });
}

function isInUse(region) {
  const chosen = getSelection();
  return region.matches(":has(:active)") || (!chosen.isCollapsed && chosen.containsNode(region, true));
}

function show(page) {
  for (const region of document.querySelectorAll("[data-live]")) {
    const fresh = page.getElementById(region.id);
    if (!fresh || fresh.innerHTML === region.innerHTML || isInUse(region)) continue;
    const focused = region.contains(document.activeElement) ? document.activeElement.getAttribute("href") : null;
    region.replaceChildren(...fresh.childNodes);
    if (focused) region.querySelector(`[href="${CSS.escape(focused)}"]`)?.focus();
  }
}

async function refresh(address = location.href) {
  const mine = ++asked;
  try {
    const page = await fetched(address);
    if (page.querySelector("[data-login]")) return location.reload();
    if (mine === asked) show(page);
    lost.hidden = true;
  } catch {
    lost.hidden = false;
  }
}

function keepFresh() {
  setTimeout(async () => {
    if (!document.hidden) await refresh();
    keepFresh();
  }, every_ms);
}

if (every_ms > 0) {
  keepFresh();
  document.addEventListener("visibilitychange", () => document.hidden || refresh());
}

for (const form of document.querySelectorAll("[data-filter]")) {
  let waiting = 0;
  const look = () => {
    const address = new URL(form.action);
    address.search = new URLSearchParams([...new FormData(form)].filter(([, value]) => value));
    history.replaceState(null, "", address);
    refresh(address.href);
  };
  form.querySelector("button").hidden = true;
  form.addEventListener("submit", (event) => (event.preventDefault(), look()));
  form.addEventListener("input", () => (clearTimeout(waiting), (waiting = setTimeout(look, 200))));
}

// A form that is sent to nobody, or by somebody whose session is over, is lost with all that was typed into it.
for (const form of document.querySelectorAll("[data-typed]")) {
  const out = document.querySelector("[data-out]");
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    try {
      out.hidden = !(await fetched(`${body.dataset.path}/tasks`)).querySelector("[data-login]");
      lost.hidden = true;
      if (out.hidden) form.submit();
    } catch {
      lost.hidden = false;
    }
  });
}

for (const chooser of document.querySelectorAll("[data-into]")) {
  const field = document.getElementById(chooser.dataset.into);
  chooser.hidden = false;
  chooser.addEventListener("change", async () => {
    const [file] = chooser.files;
    if (file) field.value = await file.text();
  });
}

const themes = ["system", "light", "dark"];
const theme = document.querySelector("[data-theme-switch]");
function nameTheme() {
  const chosen = document.documentElement.dataset.theme;
  theme.querySelector("span").textContent = { system: "Auto", light: "Light", dark: "Dark" }[chosen];
  theme.title = chosen === "system" ? "Follows the system: press for light" : `Always ${chosen}: press to change`;
}

theme.addEventListener("click", () => {
  const next = themes[(themes.indexOf(document.documentElement.dataset.theme) + 1) % themes.length];
  document.documentElement.dataset.theme = next;
  document.cookie = `raffm_theme=${next}; path=${body.dataset.path}; max-age=31536000; samesite=strict`;
  nameTheme();
});
nameTheme();
theme.hidden = false;
