(function () {
  "use strict";
  const root = document.documentElement;
  root.classList.add("js");
  const all = (selector, inside) => Array.from((inside || document).querySelectorAll(selector));

  // Theme: the system's, until the reader chooses; the choice is kept where the browser lets us.
  const kept = { get() { try { return localStorage.getItem("anytune-theme"); } catch (_) { return null; } },
                 set(value) { try { localStorage.setItem("anytune-theme", value); } catch (_) { /* private window */ } } };
  const dark = () => (root.dataset.theme || (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light")) === "dark";
  if (kept.get() === "dark" || kept.get() === "light") root.dataset.theme = kept.get();
  const themeButton = document.querySelector(".theme");
  themeButton.addEventListener("click", () => { root.dataset.theme = dark() ? "light" : "dark"; kept.set(root.dataset.theme); });

  // Learning curves: steps or seconds.
  const axisButtons = all(".segments button");
  axisButtons.forEach((button) => button.addEventListener("click", () => {
    root.classList.toggle("seconds", button.dataset.axis === "seconds");
    axisButtons.forEach((other) => other.setAttribute("aria-pressed", String(other === button)));
    all(".chart").forEach((figure) => figure.dispatchEvent(new Event("rest")));
  }));

  // Learning curves: the legend shows the values at the pointer, or at the arrow keys' place.
  const written = (value) => value.toFixed(1).replace(/^-0\.0$/, "0.0").replace("-", "−");
  all(".chart").forEach((figure) => {
    const data = JSON.parse(figure.dataset.chart);
    const values = all(".legend .value", figure), ranges = all(".legend .range", figure), at = figure.querySelector(".at");
    const resting = at.textContent;
    const rest = () => {
      all("svg.curves", figure).forEach((svg) => svg.classList.remove("reading"));
      values.forEach((node) => { node.textContent = node.dataset.end; });
      ranges.forEach((node) => { node.textContent = node.dataset.end; });
      at.textContent = resting;
    };
    figure.addEventListener("rest", rest);
    all("svg.curves", figure).forEach((svg) => {
      const axis = svg.dataset.axis, { scale: [left, right, end], series } = data[axis];
      const stops = Array.from(new Set(series.flat().map((point) => point[0]))).sort((a, b) => a - b);
      let stop = stops.length - 1;
      const show = (x) => {
        stop = stops.reduce((best, value, index) => Math.abs(value - x) < Math.abs(stops[best] - x) ? index : best, 0);
        x = stops[stop];
        const place = left + (x / end) * (right - left);
        svg.classList.add("reading");
        svg.querySelector(".cursor").setAttribute("transform", "translate(" + place.toFixed(1) + " 0)");
        at.textContent = axis === "steps" ? "at step " + x.toLocaleString("en") : "at " + x.toFixed(1) + " s";
        series.forEach((points, index) => {
          if (points[0].length === 2) return;
          const last = points[points.length - 1][0], gap = points.length > 1 ? (last - points[0][0]) / (points.length - 1) : last;
          const near = points.reduce((best, point) => Math.abs(point[0] - x) < Math.abs(best[0] - x) ? point : best, points[0]);
          const inside = Math.abs(near[0] - x) <= gap * 0.6 + 1e-9;
          values[index].textContent = inside ? written(near[1]) : "–";
          ranges[index].textContent = inside && ranges[index].dataset.end ? written(near[2]) + " to " + written(near[3]) : "";
        });
      };
      svg.addEventListener("pointermove", (event) => {
        const box = svg.getBoundingClientRect();
        show(((event.clientX - box.left) / box.width * svg.viewBox.baseVal.width - left) / (right - left) * end);
      });
      svg.addEventListener("pointerleave", rest);
      svg.addEventListener("blur", rest);
      svg.addEventListener("keydown", (event) => {
        const move = { ArrowLeft: -1, ArrowRight: 1, Home: -stops.length, End: stops.length }[event.key];
        if (!move) return;
        event.preventDefault();
        show(stops[Math.max(0, Math.min(stops.length - 1, stop + move))]);
      });
    });
  });

  // Table: sort, filter, open.
  const table = document.querySelector("table.runs");
  if (table) {
    const groups = all("tbody.group", table), headers = all("thead th", table);
    headers.forEach((header, column) => header.querySelector("button").addEventListener("click", () => {
      const numeric = header.classList.contains("number"), before = header.getAttribute("aria-sort");
      // numbers start with the largest, text with A
      const sign = (before === "none" ? numeric : before === "ascending") ? -1 : 1;
      headers.forEach((other) => other.setAttribute("aria-sort", "none"));
      header.setAttribute("aria-sort", sign > 0 ? "ascending" : "descending");
      const key = (group) => group.rows[0].cells[column].dataset.value;
      const number = (text) => text === "inf" ? Infinity : parseFloat(text);
      groups.sort((a, b) => {
        const x = key(a), y = key(b);
        if (!numeric) return sign * x.localeCompare(y, "en", { numeric: true });
        if (x === "" || y === "") return (x === "") - (y === "");
        return x === y ? 0 : sign * (number(x) - number(y));
      }).forEach((group) => table.appendChild(group));
    }));
    const box = document.querySelector(".filters"), find = box.querySelector("input"), selects = all("select", box), output = box.querySelector("output");
    const filter = () => {
      const parts = find.value.toLowerCase().split(/\s+/).filter(Boolean);
      let shown = 0;
      groups.forEach((group) => {
        const hit = parts.every((part) => group.dataset.text.includes(part)) && selects.every((select) => !select.value || group.dataset[select.dataset.key] === select.value);
        group.hidden = !hit;
        shown += hit;
      });
      output.textContent = shown === groups.length ? "" : shown + " of " + groups.length + " rows";
    };
    find.addEventListener("input", filter);
    selects.forEach((select) => select.addEventListener("change", filter));
    table.addEventListener("click", (event) => {
      const button = event.target.closest("button.open");
      if (!button) return;
      const open = button.getAttribute("aria-expanded") !== "true";
      button.setAttribute("aria-expanded", String(open));
      document.getElementById(button.getAttribute("aria-controls")).classList.toggle("shown", open);
    });
  }

  // Recipes: copy.
  document.addEventListener("click", async (event) => {
    const button = event.target.closest("button.copy");
    if (!button) return;
    const code = button.closest("details").querySelector("pre code");
    try { await navigator.clipboard.writeText(code.textContent + "\n"); } catch (_) {
      const range = document.createRange();
      range.selectNodeContents(code);
      const selection = getSelection();
      selection.removeAllRanges();
      selection.addRange(range);
      document.execCommand("copy");
    }
    button.textContent = "Copied";
    setTimeout(() => { button.textContent = "Copy"; }, 1600);
  });
})();
