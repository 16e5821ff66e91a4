"use strict";
// Sorts and filters the tables and opens the numbers. Without it the page is whole, and only stands still.
(() => {
  const one = (selector, root = document) => root.querySelector(selector);
  const all = (selector, root = document) => [...root.querySelectorAll(selector)];
  const html = document.documentElement;

  /** An element with attributes and children. Text stays text: nothing on this page is parsed as HTML. */
  function make(tag, attributes = {}, ...children) {
    const element = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
    element.append(...children);
    return element;
  }

  // ---- The address: #place?published=hidden&method=... so that what is seen can be sent to somebody.

  const form = one("#controls");
  const fields = form.elements;
  const choices = ["method", "origin", "scale"].filter((name) => name in fields); // a page of one scale has no such field

  function readAddress() {
    const [place, query] = location.hash.slice(1).split("?");
    if (query !== undefined) {
      const wanted = new URLSearchParams(query);
      fields.text.value = wanted.get("text") ?? "";
      for (const name of choices) {
        fields[name].value = wanted.get(name) ?? "";
        if (fields[name].selectedIndex < 0) fields[name].value = "";
      }
      fields.quoted.checked = wanted.get("published") !== "hidden";
    }
    return place;
  }

  function addressOf(place) {
    const query = new URLSearchParams();
    for (const name of ["text", ...choices]) if (fields[name].value) query.set(name, fields[name].value);
    if (!fields.quoted.checked) query.set("published", "hidden");
    return "#" + [place, ...(String(query) ? [query] : [])].join("?");
  }

  const currentPlace = () => location.hash.slice(1).split("?")[0];
  const replaceAddress = (place) => history.replaceState(history.state, "", addressOf(place));

  // ---- Filters

  // By what each row can be chosen; what it does not tell of is no reason to hide it.
  const rows = all("tr[data-method]").map((row) => {
    const { method, origin, scales } = row.dataset;
    const known = { method: [method], origin: origin?.split(" "), scale: scales && JSON.parse(scales) };
    return { row, known, text: row.textContent.toLowerCase() };
  });

  function filter() {
    const words = fields.text.value.toLowerCase().split(/\s+/).filter(Boolean);
    const chosen = choices.filter((name) => fields[name].value);
    for (const { row, known, text } of rows) {
      const fits = chosen.every((name) => known[name]?.includes(fields[name].value) ?? true);
      row.hidden = !(fits && words.every((word) => text.includes(word)));
    }
    html.dataset.published = fields.quoted.checked ? "shown" : "hidden";
    const narrowed = Boolean(words.length || chosen.length);
    const numbers = rows.filter(({ row }) => row.closest(".numbers"));
    const left = numbers.filter(({ row }) => !row.hidden).length;
    const away = hideEmpty(narrowed);
    const tables = away ? `; ${away} table${away === 1 ? "" : "s"} hidden` : "";
    one("[role=status]", form).textContent = narrowed ? `${left} of ${numbers.length} rows${tables}` : "";
    one("[type=reset]", form).hidden = !narrowed && fields.quoted.checked;
    one(".on", form).hidden = !narrowed && fields.quoted.checked;
  }

  /** Hides the tables of which a filter leaves no row, with all below them and their lines in the contents; how many. */
  function hideEmpty(narrowed) {
    for (const section of all("#tables > section")) {
      section.hidden = narrowed && !one(".numbers tbody tr:not([hidden])", section);
      one(`nav a[href="#${section.id}"]`).parentNode.hidden = section.hidden;
    }
    return all("#tables > section[hidden]").length;
  }

  function changed() {
    filter();
    replaceAddress(currentPlace());
  }

  form.addEventListener("input", changed);
  form.addEventListener("reset", () => setTimeout(changed));
  form.addEventListener("submit", (event) => event.preventDefault());

  // ---- Sorting: numbers from the best or else the largest, words from A; the third click restores the order of the report.

  function keyOf(cell) {
    const text = (one(".value", cell) ?? cell).textContent.trim();
    const number = Number(cell.dataset.value ?? (text || NaN));
    const missing = text === "-" || text === "" || cell.classList.contains("lost");
    return { number, text, missing: missing && cell.dataset.value === undefined };
  }

  function ascending(a, b) {
    const numbers = Number.isNaN(a.number) - Number.isNaN(b.number);
    if (numbers) return numbers;
    return Number.isNaN(a.number) ? a.text.localeCompare(b.text, "en", { numeric: true }) : a.number - b.number;
  }

  function sortable(table) {
    const bodies = all("tbody", table);
    const home = all("tbody > tr", table).map((row) => ({ row, body: row.parentNode }));
    const heads = all("thead th", table);

    function sort(column, direction) {
      heads.forEach((head) => head.removeAttribute("aria-sort"));
      if (!direction) return home.forEach(({ row, body }) => body.append(row));
      heads[column].setAttribute("aria-sort", direction);
      const keyed = home.map(({ row }) => ({ row, key: keyOf(row.cells[column]) }));
      const sign = direction === "ascending" ? 1 : -1;
      keyed.sort((a, b) => a.key.missing - b.key.missing || (a.key.missing ? 0 : sign * ascending(a.key, b.key)));
      bodies.at(-1).append(...keyed.map(({ row }) => row));
    }

    heads.forEach((head, column) => {
      const button = make("button", { type: "button", class: "sort" }, ...head.childNodes);
      head.append(button);
      button.addEventListener("click", () => {
        const keys = home.map(({ row }) => keyOf(row.cells[column])).filter((key) => !key.missing);
        const words = keys.some((key) => Number.isNaN(key.number));
        const upward = words || head.dataset.first === "ascending";
        const order = upward ? ["ascending", "descending"] : ["descending", "ascending"];
        sort(column, order[order.indexOf(head.getAttribute("aria-sort")) + 1]);
      });
    });
  }

  // ---- Tables that are wider than their place: which of their sides go on

  const edges = (box) => {
    box.classList.toggle("scrolled", box.scrollLeft > 2);
    box.classList.toggle("more", box.scrollWidth - box.clientWidth - box.scrollLeft > 2);
  };
  const widths = new ResizeObserver((entries) => entries.forEach(({ target }) => edges(target.closest(".scroll"))));

  function scrollable(box) {
    box.addEventListener("scroll", () => edges(box), { passive: true });
    for (const element of [box, one("table", box)]) widths.observe(element);
    return box;
  }

  // ---- Charts

  const space = one("svg", one("#chart").content).namespaceURI;

  function draw(tag, attributes, ...children) {
    const element = document.createElementNS(space, tag);
    for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
    element.append(...children);
    return element;
  }

  /** Round numbers that cut [low, high] into about `count` parts; on a log scale powers of ten. */
  function ticks(low, high, count, log) {
    if (log) {
      const powers = [];
      for (let power = Math.ceil(low); power <= high; power += Math.ceil((high - low) / 6)) powers.push(power);
      return powers.length > 1 ? powers : [low, high];
    }
    const rough = (high - low) / count || 1;
    const unit = 10 ** Math.floor(Math.log10(rough));
    const step = [1, 2, 5, 10].find((factor) => factor * unit >= rough) * unit;
    const found = [];
    for (let at = Math.ceil(low / step) * step; at <= high + step * 1e-6; at += step) found.push(at);
    return found;
  }

  const label = (value) => String(Number.isInteger(value) ? value : Number(value.toPrecision(3)));

  /** Lines [{name, points: [[x, y], ...]}, ...] with their axes and a legend; on a log scale over six decades at most. */
  function chart(title, lines, axis, log = false) {
    const [width, height, left, bottom, top] = [480, 230, 52, 34, 10];
    const least = Math.max(...lines.flatMap(({ points }) => points.map(([, y]) => y))) * 1e-6;
    const level = (y) => (log ? Math.log10(Math.max(y, least)) : y);
    const xs = lines.flatMap(({ points }) => points.map(([x]) => x));
    const ys = lines.flatMap(({ points }) => points.map(([, y]) => level(y)));
    const [x0, x1] = [Math.min(...xs), Math.max(...xs)];
    let [y0, y1] = [Math.min(...ys), Math.max(...ys)];
    if (y0 === y1) [y0, y1] = [y0 - 1, y1 + 1];
    const x = (value) => left + ((value - x0) / (x1 - x0 || 1)) * (width - left - 12);
    const y = (value) => height - bottom - ((value - y0) / (y1 - y0)) * (height - bottom - top);
    const words = lines.map(({ name, points }) => `${name} from ${label(points[0][1])} to ${label(points.at(-1)[1])}`);
    const svg = draw("svg", { class: "chart", viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": `${title}: ${words.join("; ")}` });
    for (const tick of ticks(y0, y1, 4, log)) {
      svg.append(draw("line", { class: "grid", x1: left, x2: width - 12, y1: y(tick), y2: y(tick) }));
      svg.append(draw("text", { x: left - 6, y: y(tick) + 4, "text-anchor": "end" }, label(log ? 10 ** tick : tick)));
    }
    for (const tick of ticks(x0, x1, 5)) {
      svg.append(draw("text", { x: x(tick), y: height - bottom + 16, "text-anchor": "middle" }, label(tick)));
    }
    svg.append(draw("text", { x: (left + width) / 2, y: height - 3, "text-anchor": "middle" }, axis));
    lines.forEach(({ points }, place) => {
      const at = points.map(([px, py]) => `${x(px).toFixed(1)},${y(level(py)).toFixed(1)}`);
      svg.append(draw("polyline", { class: `s${place % 5}`, points: at.join(" ") }));
    });
    const legend = make("div", { class: "legend" });
    lines.forEach(({ name }, place) => legend.append(make("span", {}, make("i", { class: `s${place % 5}` }), name)));
    return make("div", {}, make("h3", {}, title), svg, lines.length > 1 ? legend : "");
  }

  // ---- The details of a number

  const dialog = one("#details");
  let data = null; // read when the first number is opened

  const fixed = (value, digits) => (value == null ? "" : value.toFixed(digits));
  const short = (hash) => (hash.length > 12 ? make("code", { title: hash }, hash.slice(0, 12)) : hash && make("code", {}, hash));

  function duration(seconds) {
    if (seconds == null) return "";
    if (seconds < 100) return `${seconds.toFixed(1)} s`;
    const minutes = Math.round(seconds / 60);
    return minutes < 100 ? `${minutes} min` : `${Math.floor(minutes / 60)} h ${minutes % 60} min`;
  }

  /** A table with a column a seed; rows [name, values] without a value are left out, one value for all is said once. */
  function matrix(seeds, lines) {
    const head = make("tr", {}, make("td"), ...seeds.map((name) => make("th", { scope: "col" }, name)));
    const body = make("tbody");
    for (const [name, values, kind = ""] of lines) {
      const texts = values.map((value) => value?.textContent ?? value);
      if (texts.every((text) => !text)) continue;
      const same = seeds.length > 1 && texts.every((text) => text === texts[0]);
      const cells = same
        ? [make("td", { class: `shared ${kind}`, colspan: seeds.length }, values[0])]
        : values.map((value) => make("td", { class: kind }, value || "-"));
      body.append(make("tr", {}, make("th", { scope: "row" }, name), ...cells));
    }
    const table = make("table", {}, make("thead", {}, head), body);
    return scrollable(make("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": "Seeds" }, table));
  }

  function copyButton(text) {
    const button = make("button", { type: "button", class: "plain" }, "Copy");
    button.addEventListener("click", async () => {
      try {
        await navigator.clipboard.writeText(text);
        button.textContent = "Copied";
      } catch {
        getSelection().selectAllChildren(one("pre", button.parentNode));
      }
    });
    return button;
  }

  const seedName = (seed) => (seed.seed == null ? "one run" : `seed ${seed.seed}`);

  function seedsPart(cell, runs) {
    const of = (read) => cell.seeds.map((seed, place) => read(seed, runs[place] ?? {}));
    return matrix(cell.seeds.map(seedName), [
      ["Value", of((s) => fixed(s.value, cell.digits + 1))],
      ["Standard error over test items", of((s) => fixed(s.stderr, cell.digits + 1))],
      ["Status", of((s) => s.status)],
      ["Reason", of((s) => s.reason), "words"],
      ["Recipe hash", of((_, r) => short(r.recipe_hash ?? ""))],
      ["Encoder checksum", of((s) => short(s.checksum))],
      ["Run folder", of((_, r) => r.folder), "words"],
      ["Parameters", of((_, r) => r.parameters?.toLocaleString("en"))],
      ["Training", of((_, r) => duration(r.seconds))],
      ["Images/s in training", of((_, r) => r.images_per_second?.toFixed(0))],
      ["Evaluation", of((s) => duration(s.seconds))],
      ["Peak memory of the evaluation", of((s) => s.memory_mb && `${s.memory_mb.toFixed(0)} MB`)],
      ["Device", of((s) => s.device), "words"],
      ["Environment of the training", of((s) => data.environments[s.trained_in]?.[0])],
      ["Environment of the evaluation", of((s) => data.environments[s.environment]?.[0])],
    ]);
  }

  function diagnosticsPart(cell, runs) {
    const names = [...new Set(runs.flatMap((run) => run?.numbers.map(([name]) => name) ?? []))];
    if (!names.length) return "";
    const value = (run, name) => new Map(run?.numbers).get(name);
    const lines = names.map((name) => [name, runs.map((run) => value(run, name) != null && label(value(run, name)))]);
    return [make("h3", {}, "Embeddings at the end of the training, of the method's own views of held-out images"), matrix(cell.seeds.map(seedName), lines)];
  }

  function chartsPart(cell, runs) {
    const lines = (key) =>
      runs.map((run, place) => ({ name: seedName(cell.seeds[place]), points: run?.[key] ?? [] })).filter(({ points }) => points.length > 1);
    const charts = make("div", { class: "charts" });
    if (lines("loss").length) charts.append(chart("Loss", lines("loss"), "step"));
    const spectra = lines("spectrum").filter(({ points }) => points[0][1] > 0);
    if (spectra.length) charts.append(chart("Singular values of the embeddings, the method's own views", spectra, "index", true));
    return charts;
  }

  /** The recipes, of those that differ in the seed alone the first. */
  function recipePart(cell, runs) {
    const texts = runs.map((run) => run?.recipe ?? "");
    const without = texts.map((text) => text.replace(/^seed: .*$/m, ""));
    return texts.flatMap((text, place) => {
      if (!text || without.indexOf(without[place]) < place) return [];
      const alike = cell.seeds.filter((_, other) => other > place && without[other] === without[place]).map(seedName);
      const summary = `Recipe of ${seedName(cell.seeds[place])}` + (alike.length ? `; ${alike.join(", ")} alike` : "");
      return [make("details", { class: "environment" }, make("summary", {}, summary), make("pre", { class: "recipe", tabindex: "0" }, text))];
    });
  }

  function environmentPart(cell) {
    return [...new Set(cell.seeds.flatMap((seed) => [seed.trained_in, seed.environment]))].filter((place) => place != null).map((place) => {
      const [name, items] = data.environments[place];
      const pairs = items.flatMap(([key, value]) => [make("dt", {}, key), make("dd", {}, value)]);
      return make("details", { class: "environment" }, make("summary", {}, `Environment ${name}`), make("dl", { class: "pairs" }, ...pairs));
    });
  }

  function show(address) {
    data ??= JSON.parse(one("#data").textContent);
    const cell = data.cells[address];
    const runs = cell.seeds.map((seed) => data.runs[seed.run]);
    const close = make("button", { type: "button", class: "plain" }, "Close");
    close.addEventListener("click", () => dialog.close());
    const title = make("h2", { id: "details-title" }, `${cell.row}: ${cell.column}`);
    const remarks = [...cell.remarks, ...(cell.source ? [cell.source] : [])].map((remark) => make("li", {}, remark));
    const inside = make("div", { class: "inside" });
    inside.append(
      make("p", { class: "headline" + (document.getElementById(address).classList.contains("lost") ? " lost" : "") }, cell.text),
      make("p", { class: "soft" }, cell.summary),
      make("h3", {}, cell.seeds.length > 1 ? "Seeds" : "Run"),
      seedsPart(cell, runs),
      chartsPart(cell, runs),
      ...diagnosticsPart(cell, runs),
      ...(remarks.length ? [make("h3", {}, "Remarks"), make("ul", {}, ...remarks)] : []),
      make("h3", {}, "Recipe and environment"),
      ...recipePart(cell, runs),
      ...environmentPart(cell),
      make("h3", {}, "This number again"),
      make("div", { class: "command" }, make("pre", { tabindex: "0" }, cell.command), copyButton(cell.command)),
      make("p", { class: "soft" }, "Trains and measures what is missing in the run store; what is finished is not done again."),
    );
    dialog.replaceChildren(make("header", {}, make("div", {}, title, make("p", {}, `${cell.table}. ${cell.measured}.`)), close), inside);
    dialog.dataset.cell = address;
    if (!dialog.open) dialog.showModal();
    dialog.scrollTop = 0;
  }

  function open(address) {
    history.pushState({ opened: true }, "", addressOf(address));
    show(address);
  }

  dialog.addEventListener("click", (event) => event.target === dialog && dialog.close());
  dialog.addEventListener("close", () => {
    const cell = document.getElementById(dialog.dataset.cell);
    if (currentPlace() === dialog.dataset.cell) {
      if (history.state?.opened) history.back();
      else replaceAddress(cell.closest("section").id);
    }
    one("button", cell)?.focus({ preventScroll: true });
  });

  // ---- Contents

  function contents() {
    const menus = all(".menu");
    const wide = matchMedia("(min-width: 72rem)");
    const fit = () => menus.forEach((menu) => (menu.open = wide.matches));
    wide.addEventListener("change", fit);
    fit();
    const shut = (but) => wide.matches || menus.forEach((menu) => menu !== but && (menu.open = false));
    menus.forEach((menu) => menu.addEventListener("toggle", () => menu.open && shut(menu)));
    document.addEventListener("click", (event) => event.target.closest(".side") ? event.target.closest("nav a") && shut() : shut());
    document.addEventListener("keydown", (event) => event.key === "Escape" && !dialog.open && shut());
    const links = new Map(all("nav a").map((link) => [link.hash.slice(1), link]));
    const seen = new Set();
    const watch = new IntersectionObserver((entries) => {
      for (const { target, isIntersecting } of entries) seen[isIntersecting ? "add" : "delete"](target);
      const first = all("main section").find((section) => seen.has(section));
      for (const [id, link] of links) {
        if (id === first?.id) link.setAttribute("aria-current", "true");
        else link.removeAttribute("aria-current");
      }
    }, { rootMargin: "-15% 0px -60% 0px" });
    all("main section").forEach((section) => watch.observe(section));
  }

  // ---- Start

  function follow(scroll) {
    const place = readAddress();
    filter();
    const target = place ? document.getElementById(place) : null;
    if (target?.matches("td[id]")) show(place);
    else if (dialog.open) dialog.close();
    if (scroll || location.hash.includes("?")) target?.scrollIntoView();
    if (target && addressOf(place) !== location.hash) replaceAddress(place);
  }

  html.classList.add("live");
  form.hidden = false;
  one(".hint").hidden = false;
  all("table.sortable").forEach(sortable);
  all(".scroll").forEach(scrollable);
  for (const cell of all("td[id]")) {
    const value = one(".value", cell);
    const button = make("button", { type: "button", class: "value", "aria-haspopup": "dialog" }, ...value.childNodes);
    button.addEventListener("click", () => open(cell.id));
    value.replaceWith(button);
  }
  contents();
  addEventListener("popstate", () => follow(false));
  follow(false);
})();
