// Draws the figures when they come into view, filters, copies and saves. Without it the page shows everything, with the
// same figures as still pictures.
"use strict";
(() => {
  const all = (selector, within = document) => [...within.querySelectorAll(selector)];
  const figures = all("[data-chart]");
  const canDraw = "DecompressionStream" in window;

  const unpack = async (id) => {
    const bytes = Uint8Array.from(atob(document.getElementById(id).textContent.trim()), (letter) => letter.charCodeAt(0));
    return new Response(new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"))).text();
  };

  const button = (text, label, press) => {
    const made = document.createElement("button");
    made.type = "button";
    made.textContent = text;
    made.setAttribute("aria-label", label);
    made.addEventListener("click", press);
    return made;
  };

  const download = (name, address) => {
    const link = document.createElement("a");
    link.download = name;
    link.href = address;
    link.click();
  };

  // --- figures ---------------------------------------------------------------------------------------------------

  let ready = null;
  const prepare = () => (ready ??= (async () => {
    const [engine, charts] = await Promise.all([unpack("engine"), unpack("charts")]);
    const script = document.createElement("script");
    script.type = "module";
    const done = new Promise((resolve, reject) => {
      window.tareEngineReady = resolve;
      script.onerror = reject;
    });
    script.textContent = `${engine}\nwindow.tareEngineReady();`;
    document.head.append(script);
    await done;
    return JSON.parse(charts);
  })());

  const left = new Set();  // places of the backends that are filtered out
  const drawings = new Map();

  const narrowed = (spec, places) => {
    if (!left.size) return spec;
    const shown = (row) => !("b" in row) || !left.has(String(places[row.b]));
    const datasets = Object.fromEntries(Object.entries(spec.datasets).map(([name, rows]) => [name, rows.filter(shown)]));
    const height = spec.usermeta?.row
      ? spec.usermeta.row * Math.max(1, new Set(Object.values(datasets).flat().map((row) => row.b)).size)
      : spec.height;
    return { ...spec, datasets, height };
  };

  const draw = async (figure) => {
    const { config, charts, backends } = await prepare();
    const fonts = getComputedStyle(document.body).fontFamily;
    const live = figure.querySelector(".live");
    const isNew = !figure.classList.contains("drawn");
    // The still picture keeps the place until the live one stands, so that nothing jumps.
    if (isNew) live.style.cssText = "display: block; height: 0; overflow: hidden";
    drawings.get(figure)?.finalize();
    drawings.set(figure, await window.vegaEmbed(live, narrowed(charts[figure.dataset.chart], backends), {
      actions: false, renderer: "svg", config: { ...config, font: fonts }, tooltip: { theme: "tare" },
    }));
    live.style.cssText = "";
    figure.classList.add("drawn");
    if (isNew) offer(figure, live);
  };

  const tryToDraw = (figure) => draw(figure).catch((problem) => {
    console.warn(`figure ${figure.dataset.chart} stays a still picture:`, problem);
  });

  const offer = (figure, live) => {
    const box = document.createElement("p");
    box.className = "keep";
    const name = figure.closest("figure")?.querySelector("h4 bdi")?.textContent ?? "this figure";
    for (const kind of ["SVG", "PNG"]) {
      box.append(button(kind, `Save ${name} as ${kind}`, () => save(figure.dataset.file, live.querySelector("svg"), kind)));
    }
    figure.after(box);
  };

  // A saved picture has no page around it: colours become values, and it brings its own ground.
  const standalone = (svg) => {
    const page = getComputedStyle(document.documentElement);
    const text = new XMLSerializer().serializeToString(svg);
    const ground = `<rect width="100%" height="100%" fill="${page.getPropertyValue("--paper").trim()}"/>`;
    return text
      .replace(/var\((--[a-z0-9-]+)\)/g, (_, name) => page.getPropertyValue(name).trim())
      .replace(/(<svg[^>]*>)/, `$1${ground}`);
  };

  const save = async (name, svg, kind) => {
    const text = standalone(svg);
    if (kind === "SVG") {
      download(`${name}.svg`, URL.createObjectURL(new Blob([text], { type: "image/svg+xml" })));
      return;
    }
    const image = new Image();
    image.src = `data:image/svg+xml;charset=utf-8,${encodeURIComponent(text)}`;
    await image.decode();
    const canvas = document.createElement("canvas");
    const box = svg.getBoundingClientRect();
    canvas.width = box.width * 2;
    canvas.height = box.height * 2;
    canvas.getContext("2d").drawImage(image, 0, 0, canvas.width, canvas.height);
    download(`${name}.png`, canvas.toDataURL("image/png"));
  };

  if (canDraw) {
    const seen = new IntersectionObserver((entries) => {
      for (const { isIntersecting, target } of entries) {
        if (!isIntersecting) continue;
        seen.unobserve(target);
        tryToDraw(target);
      }
    }, { rootMargin: "400px" });
    figures.forEach((figure) => seen.observe(figure));
  }

  // --- tables as CSV ----------------------------------------------------------------------------------------------

  // A spreadsheet takes a text that begins so for a formula.
  const harmless = (text) => (/^[=+@\t\r]|^-(?![\d.])/.test(text) ? `'${text}` : text);
  const quoted = (text) => (/[",\r\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text);
  const said = (cell) => cell.textContent.trim().replace(/\s+/g, " ");
  const asCsv = (table) => all("tr", table)
    .filter((line) => line.dataset.csv !== "-" && !line.hidden)
    .map((line) => [...line.cells]
      .filter((cell) => cell.dataset.csv !== "-" && !cell.hidden)
      .flatMap((cell) => (cell.tagName === "TH" && cell.scope !== "row" ? heads(cell) : (cell.dataset.csv ?? said(cell)).split("\t")))
      .map((text) => quoted(harmless(text))).join(","))
    .join("\r\n") + "\r\n";
  const heads = (cell) => (cell.dataset.csv ?? said(cell)).split("\t");

  // Works where the page is a file, too: no permission is asked for.
  const copy = (text) => {
    let done = false;
    const put = (event) => {
      event.clipboardData.setData("text/plain", text);
      event.preventDefault();
      done = true;
    };
    document.addEventListener("copy", put, { once: true });
    document.execCommand("copy");
    document.removeEventListener("copy", put);
    return done;
  };

  all("table[data-file]").forEach((table) => {
    const label = table.parentElement.getAttribute("aria-label");
    const box = document.createElement("p");
    box.className = "keep";
    const made = button("Copy as CSV", `Copy as CSV: ${label}`, () => {
      const worked = copy(asCsv(table));
      if (!worked) download(`${table.dataset.file}.csv`, URL.createObjectURL(new Blob([asCsv(table)], { type: "text/csv" })));
      made.textContent = worked ? "Copied" : "Saved";
      setTimeout(() => { made.textContent = "Copy as CSV"; }, 2000);
    });
    box.append(made);
    table.parentElement.after(box);
  });

  // On a small screen these tables are stacked; a screen reader shall still know them as tables.
  const roles = { TABLE: "table", THEAD: "rowgroup", TBODY: "rowgroup", TR: "row", TD: "cell" };
  all(".ratios").forEach((table) => [table, ...all("*", table)].forEach((part) => {
    const role = part.tagName === "TH" ? (part.scope === "col" ? "columnheader" : "rowheader") : roles[part.tagName];
    if (role) part.setAttribute("role", role);
  }));

  const here = document.getElementById("samples-here");
  if (here && canDraw) {
    here.append(" ", button("Save them", "Save all samples as CSV", async () => {
      download("samples.csv", URL.createObjectURL(new Blob([await unpack("samples-csv")], { type: "text/csv" })));
    }));
  }

  // --- filter -----------------------------------------------------------------------------------------------------

  const form = document.getElementById("filters");
  const choose = () => {
    const places = all("input[name=backend]", form).filter((box) => !box.checked).map((box) => box.value);
    const changed = places.length !== left.size || places.some((place) => !left.has(place));
    left.clear();
    places.forEach((place) => left.add(place));
    const wanted = all("select", form).map((list) => list.value).filter(Boolean);
    const isWanted = (element) => !element.dataset.keys || wanted.every((key) => element.dataset.keys.split(" ").includes(key));
    all("[data-subject]").forEach((subject) => { subject.hidden = !isWanted(subject); });
    all("[data-backend]").forEach((element) => { element.hidden = left.has(element.dataset.backend) || !isWanted(element); });
    all("[data-section]").forEach((section) => { section.hidden = !section.querySelector("[data-subject]:not([hidden])"); });
    all("[data-for]").forEach((entry) => {
      const target = document.getElementById(entry.dataset.for);
      entry.hidden = Boolean(target?.closest("[hidden]"));
    });
    all("table").forEach((table) => {
      let before = null;
      all("tr[data-row]", table).filter((line) => !line.hidden).forEach((line) => {
        line.className = line.dataset.row === before ? "again" : "first";
        before = line.dataset.row;
      });
    });
    all(".ratios tbody").forEach((body) => {
      body.hidden = !body.querySelector("tr[data-row]:not([hidden])");
    });
    const subjects = all("[data-subject]");
    const shown = subjects.filter((subject) => !subject.hidden).length;
    form.querySelector("output").textContent = left.size || wanted.length
      ? `${shown} of ${subjects.length} subjects${left.size ? `, ${left.size} of ${all("input[name=backend]", form).length} backends left out` : ""}`
      : "";
    if (changed) [...drawings.keys()].forEach(tryToDraw);
  };
  if (form) {
    form.hidden = false;
    form.addEventListener("change", choose);
    form.addEventListener("reset", () => setTimeout(choose));
    form.addEventListener("submit", (event) => event.preventDefault());
    if (all("input:not(:checked)", form).length || all("select", form).some((list) => list.value)) choose();
  }

  // --- paper ------------------------------------------------------------------------------------------------------

  let closed = [];
  addEventListener("beforeprint", () => {
    closed = all("details:not([open])");
    closed.forEach((box) => { box.open = true; });
  });
  addEventListener("afterprint", () => closed.forEach((box) => { box.open = false; }));
})();
