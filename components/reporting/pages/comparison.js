// Draws the charts with the page's colours, hides lines that are not asked for, and filters the gallery.
"use strict";
(() => {
  const root = document.documentElement;
  root.classList.add("scripted");
  const charts = JSON.parse(document.getElementById("charts").textContent);
  const PAPER = { text: "#000000", line: "#bbbbbb" };
  const PRINT_WIDTH = { across: 660, part: 320 }; // CSS pixels that fit on A4 and on US letter

  function ink() {
    const style = getComputedStyle(root);
    return { text: style.getPropertyValue("--text").trim(), line: style.getPropertyValue("--line").trim() };
  }

  function themed({ text, line }) {
    const look = { paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", "font.color": text };
    look["font.family"] = getComputedStyle(document.body).fontFamily;
    for (const axis of ["xaxis", "yaxis"]) {
      look[`${axis}.gridcolor`] = line;
      look[`${axis}.zerolinecolor`] = text;
      look[`${axis}.linecolor`] = line;
    }
    return look;
  }

  const places = charts.map((chart) => document.getElementById(chart.id));

  async function draw() {
    for (const [at, chart] of charts.entries()) {
      await Plotly.newPlot(places[at], chart.figure.data, chart.figure.layout, { displayModeBar: false, responsive: true });
      await Plotly.relayout(places[at], themed(ink()));
    }
    root.dataset.drawn = String(charts.length);
  }

  const everywhere = (change) => places.forEach((place, at) => Plotly.relayout(place, change(place, at)));

  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => everywhere(() => themed(ink())));
  addEventListener("beforeprint", () => everywhere((place) => ({
    ...themed(PAPER), autosize: false,
    width: place.closest(".across") ? PRINT_WIDTH.across : PRINT_WIDTH.part,
  })));
  addEventListener("afterprint", () => everywhere(() => ({ ...themed(ink()), autosize: true, width: null })));

  for (const box of document.querySelectorAll("[data-look]")) {
    box.addEventListener("change", () => charts.forEach((chart, at) => {
      const traces = chart.figure.data.flatMap((trace, number) => (String(trace.meta) === box.dataset.look ? [number] : []));
      if (traces.length) Plotly.restyle(places[at], { visible: box.checked }, traces);
    }));
  }

  // A box that scrolls sideways is shaded where more of it lies.
  for (const box of document.querySelectorAll(".scroll")) {
    const edge = document.createElement("div");
    edge.className = "edge";
    box.replaceWith(edge);
    edge.append(box);
    const shade = () => {
      edge.classList.toggle("more-left", box.scrollLeft > 1);
      edge.classList.toggle("more-right", box.scrollLeft + box.clientWidth < box.scrollWidth - 1);
    };
    box.addEventListener("scroll", shade, { passive: true });
    new ResizeObserver(shade).observe(box);
    shade();
  }

  const filters = document.getElementById("filters");
  if (filters) {
    const cards = [...document.querySelectorAll("#gallery .card")];
    const shown = filters.querySelector("output");
    const filter = () => {
      const { task, line, kind } = Object.fromEntries(new FormData(filters));
      let count = 0;
      for (const card of cards) {
        let any = false;
        for (const loss of card.querySelectorAll(".loss")) {
          const fits = (!line || loss.dataset.line === line) && (!kind || loss.dataset.kinds.split("|").includes(kind));
          loss.hidden = !fits;
          any ||= fits;
        }
        card.hidden = !any || (task && card.dataset.task !== task);
        count += !card.hidden;
      }
      shown.textContent = `${count} of ${cards.length} rows shown`;
    };
    filters.addEventListener("change", filter);
    filters.addEventListener("submit", (event) => event.preventDefault());
    filter(); // a browser may restore what was chosen before
  }

  draw();
})();
