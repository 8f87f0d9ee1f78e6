// Opens what a link points into, saves tables and samples as CSV. Without it the page shows everything.
"use strict";
(() => {
  const all = (selector, within = document) => [...within.querySelectorAll(selector)];

  const reveal = () => {
    const target = location.hash.length > 1 && document.getElementById(decodeURIComponent(location.hash.slice(1)));
    for (let place = target; place; place = place.parentElement) if (place.tagName === "DETAILS") place.open = true;
    if (target) target.scrollIntoView();
  };
  addEventListener("hashchange", reveal);
  reveal();

  const save = (name, blob) => {
    const link = document.createElement("a");
    link.download = name;
    link.href = URL.createObjectURL(blob);
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 1000);
  };

  const button = (text, label, press) => {
    const made = document.createElement("button");
    made.type = "button";
    made.textContent = text;
    made.setAttribute("aria-label", label);
    made.addEventListener("click", press);
    return made;
  };

  // A text that a spreadsheet would run as a formula gets an apostrophe; numbers are left alone.
  const safe = (text) => (/^[=+\-@\t\r]/.test(text) && Number.isNaN(Number(text)) ? `'${text}` : text);
  const quoted = (text) => (/[",\r\n']/.test(safe(text)) ? `"${safe(text).replaceAll('"', '""')}"` : safe(text));
  const cells = (row) => all("th, td", row).flatMap((cell) => (cell.dataset.csv ?? cell.innerText.trim()).split("\t"));
  for (const table of all("table[data-file]")) {
    const csv = () => all("tr", table).map((row) => cells(row).map(quoted).join(",")).join("\r\n") + "\r\n";
    const label = `Save this table (${table.closest("[aria-label]")?.getAttribute("aria-label") ?? "table"}) as CSV`;
    const place = document.createElement("p");
    place.className = "keep";
    place.append(button("Save as CSV", label, () => save(`${table.dataset.file}.csv`, new Blob([csv()], { type: "text/csv" }))));
    (table.closest(".scroll") ?? table).after(place);
  }

  const packed = document.getElementById("samples-csv");
  if (packed && "DecompressionStream" in window) {
    const unpack = () => {
      const bytes = Uint8Array.from(atob(packed.textContent.trim()), (letter) => letter.charCodeAt(0));
      return new Response(new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"))).blob();
    };
    document.getElementById("samples-here").append(
      " ",
      button("Save the samples", "Save the samples as CSV", async () => save("samples.csv", await unpack())),
    );
  }
})();
