// Draws the figures when they come into view. Without it the page shows the same figures as still pictures.
"use strict";
(async () => {
  const figures = [...document.querySelectorAll("[data-chart]")];
  if (!figures.length || !("DecompressionStream" in window)) return;

  const unpack = async (id) => {
    const bytes = Uint8Array.from(atob(document.getElementById(id).textContent.trim()), (letter) => letter.charCodeAt(0));
    return new Response(new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"))).text();
  };

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

  const draw = async (figure) => {
    const { config, charts } = await prepare();
    const fonts = getComputedStyle(document.body).fontFamily;
    const live = figure.querySelector(".live");
    // The still picture keeps the place until the live one stands, so that nothing jumps.
    live.style.cssText = "display: block; height: 0; overflow: hidden";
    await window.vegaEmbed(live, charts[figure.dataset.chart], {
      actions: false, renderer: "svg", config: { ...config, font: fonts }, tooltip: { theme: "tare" },
    });
    live.style.cssText = "";
    figure.classList.add("drawn");
    offer(figure, live);
  };

  const offer = (figure, live) => {
    const box = document.createElement("p");
    box.className = "keep";
    for (const kind of ["SVG", "PNG"]) {
      const button = document.createElement("button");
      button.type = "button";
      button.textContent = kind;
      button.setAttribute("aria-label", `Save this figure as ${kind}`);
      button.addEventListener("click", () => save(figure.dataset.chart, live.querySelector("svg"), kind));
      box.append(button);
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
    const link = document.createElement("a");
    link.download = `${name}.${kind.toLowerCase()}`;
    if (kind === "SVG") {
      link.href = URL.createObjectURL(new Blob([text], { type: "image/svg+xml" }));
    } else {
      const image = new Image();
      image.src = `data:image/svg+xml;charset=utf-8,${encodeURIComponent(text)}`;
      await image.decode();
      const canvas = document.createElement("canvas");
      const box = svg.getBoundingClientRect();
      canvas.width = box.width * 2;
      canvas.height = box.height * 2;
      canvas.getContext("2d").drawImage(image, 0, 0, canvas.width, canvas.height);
      link.href = canvas.toDataURL("image/png");
    }
    link.click();
  };

  const seen = new IntersectionObserver((entries) => {
    for (const { isIntersecting, target } of entries) {
      if (!isIntersecting) continue;
      seen.unobserve(target);
      draw(target).catch((problem) => console.warn(`figure ${target.dataset.chart} stays a still picture:`, problem));
    }
  }, { rootMargin: "400px" });
  figures.forEach((figure) => seen.observe(figure));

  let closed = [];
  addEventListener("beforeprint", () => {
    closed = [...document.querySelectorAll("details:not([open])")];
    closed.forEach((box) => { box.open = true; });
  });
  addEventListener("afterprint", () => closed.forEach((box) => { box.open = false; }));
})();
